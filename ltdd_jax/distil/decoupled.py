"""Methods that optimise pixels against frozen observers: one loop, told apart by their terms."""

from collections.abc import Mapping, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from ltdd_jax import losses
from ltdd_jax.data import augment as augment_lib
from ltdd_jax.distil import terms
from ltdd_jax.distil.base import Env, Feed, Method
from ltdd_jax.models import taps
from ltdd_jax.types import Leaf, LtddError, Slots, SynthSet


@flax.struct.dataclass
class PixelState:
  """Images that are being optimised."""

  step: Leaf  # [] int32
  images: Leaf  # (n, h, w, c) float32, normalised
  labels: Leaf  # (n,) int32
  opt_state: Any


def sre2l(
  env: Env,
  /,
  *,
  num_steps: int = 1000,
  lr: float = 0.25,
  r_bn: float = 0.01,
  first_bn_multiplier: float = 10.0,
  augment: Sequence[Mapping[str, Any]] = (
    {"name": "random_roll", "low": 0, "high": 4, "shared": True},
  ),
) -> Method:
  """SRe2L (Yin et al., NeurIPS 2023): images that the teacher is certain of, with its statistics.

      min over X of  CE(f(A_t(X)), y) + r_bn * R_BN(f, A_t(X))

  Adam (beta 0.5, 0.9) from noise N(0, 1), `lr_t = lr/2 (1 + cos(pi t / T))`; after every step each
  pixel is clamped to its valid range. One draw of the augmentation is shared by the whole batch.
  The defaults are the released CIFAR-100 constants (there is no released CIFAR-10 code).

  In what we differ: several observers, if there are several teachers, enter by the mean of their
  objectives; classes may have unequal numbers of slots; the number of images in a batch is the
  caller's (the released CIFAR code takes one of each class).

  Args:
    env: static facts, with at least one observer that has batch norms.
    num_steps: T.
    lr: base learning rate, in units of normalised pixels.
    r_bn: weight of the statistics term.
    first_bn_multiplier: weight of the stem within it.
    augment: specs for `data.augment.compose`; each should be `shared`.

  Raises:
    LtddError: no observer, or an observer without batch norms.
  """
  if not env.observers:
    raise LtddError("method 'sre2l' needs at least one observer; config.squeeze.models is empty")
  augment_fn = augment_lib.compose(augment)
  tx = optax.adam(optax.cosine_decay_schedule(lr, max(num_steps, 1)), b1=0.5, b2=0.9)

  def init(key: jax.Array, slots: Slots, feed: Feed) -> PixelState:
    del feed
    images = jax.random.normal(key, (len(slots.labels), *env.image_shape), jnp.float32)
    return PixelState(
      step=jnp.zeros((), jnp.int32),
      images=images,
      labels=jnp.asarray(slots.labels, jnp.int32),
      opt_state=tx.init(images),
    )

  def objective(
    images: jax.Array, labels: jax.Array, key: jax.Array, feed: Feed
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    views = augment_fn(key, images)
    ce, bn = [], []
    for observer, variables in zip(env.observers, feed.teachers, strict=True):
      logits, moments = taps.apply_with_moments(observer.model, variables, views)
      if not moments:
        raise LtddError(
          f"method 'sre2l' matches batch-norm statistics, but observer {observer.name!r} has no "
          "batch norm. Give config.squeeze a model with norm='batch', or a ResNet."
        )
      ce.append(losses.cross_entropy(logits, labels))
      bn.append(terms.bn_statistics(moments, first_bn_multiplier))
    ce_mean, bn_mean = jnp.mean(jnp.stack(ce)), jnp.mean(jnp.stack(bn))
    loss = ce_mean + r_bn * bn_mean
    return loss, {"loss": loss, "cross_entropy": ce_mean, "bn_statistics": bn_mean}

  def step(
    key: jax.Array, state: PixelState, feed: Feed, *, turn: int = 0
  ) -> tuple[PixelState, dict[str, jax.Array]]:
    del turn
    grads, metrics = jax.grad(objective, has_aux=True)(state.images, state.labels, key, feed)
    updates, opt_state = tx.update(grads, state.opt_state, state.images)
    images = optax.apply_updates(state.images, updates)
    images = augment_lib.clip_to_pixels(images, env.mean, env.std)
    return state.replace(step=state.step + 1, images=images, opt_state=opt_state), metrics

  return Method(init, step, read_pixels, needs=("teachers",), num_steps=num_steps)


def read_pixels(state: PixelState) -> SynthSet:
  """The images as they stand: the last iterate is the result."""
  return SynthSet(state.images, state.labels)
