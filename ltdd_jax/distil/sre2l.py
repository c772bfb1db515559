"""SRe2L and CDA: the teacher's certainty and its batch-norm statistics, from noise."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ltdd_jax.core.registry import check_at_least, check_choice, check_share
from ltdd_jax.core.types import LtddError
from ltdd_jax.data import augment as augment_lib
from ltdd_jax.data import crops as crops_lib
from ltdd_jax.distil import initial_images, objectives, pixels
from ltdd_jax.distil.base import Env, Method, Resources
from ltdd_jax.models import taps
from ltdd_jax.training import losses

VERSION = 1

Augments = Sequence[Mapping[str, Any]]
Views = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]  # key, images, step -> images
SMALLEST = 0.08  # share of the area of the smallest default crop


def sre2l(
  env: Env,
  /,
  *,
  num_steps: int = 1000,
  lr: float = 0.25,
  r_bn: float = 0.01,
  first_bn_multiplier: float = 10.0,
  init: str | Mapping[str, Any] = "noise",
  augment: Augments = ({"name": "random_roll", "low": 0, "high": 4, "shared": True},),
) -> Method:
  """SRe2L (Yin et al., NeurIPS 2023): images that the teacher is certain of, with its statistics.

      min over X of  CE(f(A_t(X)), y) + r_bn * R_BN(f, A_t(X))

  Adam (beta 0.5, 0.9) from noise N(0, 1), `lr_t = lr/2 (1 + cos(pi t / T))`; after every step each
  pixel is clamped to its valid range. One draw of the augmentation is shared by the whole batch.
  The defaults are the released CIFAR-100 constants (there is no released CIFAR-10 code).

  In what we differ: several teachers enter by the mean of their objectives; classes may have
  unequal numbers of slots; the number of images in a batch is the caller's (the released CIFAR code
  takes one of each class); total variation and L2 norm of the images, of weight 0 in all scripts,
  are not here; images are stored without loss, unless `config.distil.jpeg_quality` is 75, as
  released.

  Args:
    env: static facts, with at least one teacher that has batch norms.
    num_steps: T.
    lr: base learning rate, in units of normalised pixels.
    r_bn: weight of the statistics term.
    first_bn_multiplier: weight of the stem within it.
    init: what images start from, "noise" in the paper: see `initial_images`.
    augment: specs for `data.augment.compose`; each should be `shared`.
  """
  augment_fn = augment_lib.compose(augment)
  views_of = lambda key, images, step: augment_fn(key, images)
  start = initial_images.make_start(env, init, "sre2l")
  return _matching_batch_norms(
    "sre2l", env, start, views_of, num_steps, lr, r_bn, first_bn_multiplier
  )


def cda(
  env: Env,
  /,
  *,
  curriculum: str = "cosine",
  milestone: float = 1.0,
  min_scale: float = SMALLEST,
  num_steps: int = 4000,
  lr: float = 0.4,
  r_bn: float = 0.05,
  first_bn_multiplier: float = 10.0,
  init: str | Mapping[str, Any] = "noise",
  augment: Augments = (
    {"name": "random_flip", "shared": True},
    {"name": "random_roll", "low": 0, "high": 4, "shared": True},
  ),
) -> Method:
  """CDA (Yin and Shen, TMLR 2024): SRe2L with random resized crops that begin as the whole image.

  The views of step t are crops of at least a share `c_t` of the area, then `augment`:

      cosine  c_t = s + (1 - s) (1 + cos(pi t / (m T))) / 2   before m T, s after it
      linear  c_t = s + (1 - s) (1 - t / (m T))               before m T, s after it
      step    c_t = 1                                         before m T, s after it

  All else is as in `sre2l`. The defaults are the released constants for Tiny-ImageNet (ImageNet:
  lr 0.25, r_bn 0.01, a roll of 0 to 32; there is no released CIFAR code).

  Args:
    env: as in `sre2l`, and likewise what is not named here.
    curriculum: "cosine", "linear" or "step".
    milestone: m, the share of the steps that the curriculum lasts; 1 in all released commands, and
      0 is SRe2L with default crops.
    min_scale: s.
    augment: specs of what follows the crop.
  """
  check_choice("method 'cda': curriculum", curriculum, CURRICULA)
  check_share("method 'cda': ", milestone=milestone, min_scale=min_scale)
  augment_fn = augment_lib.compose(augment)

  def views_of(key: jax.Array, images: jax.Array, step: jax.Array) -> jax.Array:
    crop_key, rest_key = jax.random.split(key)
    low = crop_scale(step, milestone * num_steps, curriculum, min_scale)
    crops = crops_lib.random_resized_crop(crop_key, images, scale=(low, 1.0), shared=True)
    return augment_fn(rest_key, crops)

  start = initial_images.make_start(env, init, "cda")
  return _matching_batch_norms(
    "cda", env, start, views_of, num_steps, lr, r_bn, first_bn_multiplier
  )


CURRICULA: dict[str, Callable[[jax.Array], jax.Array]] = {
  "cosine": lambda done: 0.5 * (1 + jnp.cos(math.pi * done)),
  "linear": lambda done: 1 - done,
  "step": jnp.ones_like,
}


def crop_scale(
  step: jax.Array, length: float, curriculum: str = "cosine", min_scale: float = SMALLEST
) -> jax.Array:
  """Computes the least share of the area, c_t, of a crop; see `cda`, `length` is m T."""
  done = jnp.minimum(step.astype(jnp.float32) / max(length, 1e-9), 1)
  share = jnp.where(step < length, CURRICULA[curriculum](done), 0.0)
  return min_scale + (1 - min_scale) * share


def _matching_batch_norms(
  name: str,
  env: Env,
  start: initial_images.Start,
  views_of: Views,
  num_steps: int,
  lr: float,
  r_bn: float,
  first_bn_multiplier: float,
) -> Method:
  """The loop of both: they differ in their views and constants. All teachers need batch norms."""
  check_at_least(f"method {name!r}: ", 0, r_bn=r_bn, first_bn_multiplier=first_bn_multiplier)

  def objective(
    images: jax.Array, state: pixels.PixelState, key: jax.Array, res: Resources, turn: int
  ) -> tuple[jax.Array, tuple[pixels.Metrics, None]]:
    del turn
    views = views_of(key, images, state.step)
    ce, bn = [], []
    for teacher, variables in zip(env.teachers, res["teachers"], strict=True):
      logits, moments = taps.apply_with_moments(teacher.model, variables, views)
      if not moments:
        raise LtddError(
          f"method {name!r} matches batch-norm statistics, but teacher {teacher.name!r} has no "
          "batch norm. Give config.teacher a model with norm='batch', or a ResNet."
        )
      ce.append(losses.cross_entropy(logits, state.labels))
      bn.append(objectives.bn_statistics(moments, first_bn_multiplier))
    ce_mean, bn_mean = jnp.mean(jnp.stack(ce)), jnp.mean(jnp.stack(bn))
    loss = ce_mean + r_bn * bn_mean
    return loss, ({"loss": loss, "cross_entropy": ce_mean, "bn_statistics": bn_mean}, None)

  return pixels.pixel_method(name, env, start, objective, num_steps=num_steps, lr=lr)
