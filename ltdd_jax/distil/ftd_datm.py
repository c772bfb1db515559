"""FTD and DATM: trajectory matching with flat experts; what to match and what to learn by DATM.

The experts are trained with GSAM: `config.trajectories.gsam_rho`. See `trajectory_matching`.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ltdd_jax.core.types import Slots
from ltdd_jax.data import dsa
from ltdd_jax.distil import features, initial_images, inner_loop, selection
from ltdd_jax.distil.base import Env, Method, Resources, repeats
from ltdd_jax.distil.initial_images import Start
from ltdd_jax.distil.trajectory_matching import (
  CHUNK,
  First,
  Firsts,
  LogitsOf,
  Options,
  all_logits,
  check_size,
  expert_network,
  matching,
)

VERSION = 1


def ftd(
  env: Env,
  /,
  *,
  num_steps: int = 5000,
  inner_steps: int = 30,
  inner_batch_size: int | None = None,
  expert_epochs: int = 2,
  max_start_epoch: int = 20,
  lr: float = 100.0,
  momentum: float = 0.5,
  student_lr: float = 1e-3,
  lr_lr: float = 1e-5,
  augment: str | None = dsa.STRATEGY,
  init: str | Mapping[str, Any] = "real",
  ema_decay: float = 0.9995,
) -> Method:
  """FTD (Du et al., CVPR 2023): `mtt` on flat experts, whose result is a running mean of images.

  Experts are trained with GSAM (`training.gsam`), which keeps the error of the inner loop from
  growing along a trajectory. After each step, from the first images on,

      mean = ema_decay mean + (1 - ema_decay) images

  In what we differ from the released code: as `mtt`. It scores the images beside their mean.

  Args:
    env: as the other arguments, see `mtt`.
    num_steps: of SGD on the images.
    inner_steps: N.
    inner_batch_size: images in an inner step, or None for all.
    expert_epochs: M.
    max_start_epoch: of t, exclusive.
    lr: of the images.
    momentum: of both optimisers.
    student_lr: the rate of the inner loop at the start.
    lr_lr: the rate at which it is learned.
    augment: strategy of `dsa.dsa`, or None.
    init: as in `mtt`.
    ema_decay: in [0, 1). With fewer steps the first images weigh more: ema_decay^num_steps.

  Raises:
    LtddError: as `mtt`.
  """
  options = Options(
    num_steps, inner_steps, inner_batch_size, expert_epochs, max_start_epoch, lr, momentum,
    student_lr, lr_lr, augment, init, ema_decay=ema_decay,
  )  # fmt: skip
  return matching("ftd", env, options, inner_loop.exact)


def datm(
  env: Env,
  /,
  *,
  num_steps: int = 10_000,
  inner_steps: int = 80,
  inner_batch_size: int | None = None,
  expert_epochs: int = 2,
  min_start_epoch: int = 0,
  first_max_start_epoch: int | None = 10,
  max_start_epoch: int = 20,
  growth_steps: int = 1000,
  lr: float = 100.0,
  momentum: float = 0.5,
  lr_labels: float = 2.0,
  momentum_labels: float = 0.9,
  student_lr: float = 0.01,
  lr_lr: float = 1e-5,
  threshold: float = 1.0,
  augment: str | None = dsa.STRATEGY,
  init: str | Mapping[str, Any] = "predicted",
) -> Method:
  """DATM (Guo et al., ICLR 2024): `mtt` with a range of difficulty, and with learned soft labels.

  Early epochs of experts teach easy patterns, which few images can hold; late ones hard patterns.
  In step i the start epoch is drawn from min_start_epoch, ..., T_i - 1, with

      T_i = T + floor((T+ - T) i / growth_steps), at most T+

  Labels are the softmax of free logits, in the inner loss H(softmax(y), softmax(z)); they are
  learned too. A step whose loss L is above `threshold` moves nothing. The experts are FTD's.

  At the start each slot has a training image that an expert predicts correctly: as far as they go
  those of the first expert, in a random order, then those of the second that the first did not
  know, and so on; and its label is the mean logits of the experts that predict it correctly. If no
  expert knows any image of a class, its slots start from any of them, with uniform labels, and the
  report says so.

  In what we differ from the released code: as `mtt`; no image is taken twice before all that some
  expert knows were taken once; the code never ends where no expert knows any image of a class.

  Args:
    env: as the other arguments, see `mtt`.
    num_steps: of SGD on images and labels.
    inner_steps: N.
    inner_batch_size: images in an inner step, or None for all.
    expert_epochs: M.
    min_start_epoch: the first epoch to start from.
    first_max_start_epoch: T, exclusive; None for max_start_epoch from the first step on.
    max_start_epoch: T+, exclusive.
    growth_steps: steps until T+.
    lr: of the images.
    momentum: of images and rate.
    lr_labels: of the logits.
    momentum_labels: of theirs.
    student_lr: the rate of the inner loop at the start.
    lr_lr: the rate at which it is learned.
    threshold: of L.
    augment: strategy of `dsa.dsa`, or None.
    init: "predicted" as above, or with the first expert's logits "real", any training images, or
      {"name": "imported", "path": SET, ...}, see `initial_images`.

  Raises:
    LtddError: as `mtt`.
  """
  options = Options(
    num_steps, inner_steps, inner_batch_size, expert_epochs, max_start_epoch, lr, momentum,
    student_lr, lr_lr, augment, init, min_start_epoch, first_max_start_epoch, growth_steps,
    lr_labels, momentum_labels, threshold,
  )  # fmt: skip
  first = labelled_images("datm", env, init, "experts")
  return matching("datm", env, options, inner_loop.exact, first=first)


def labelled_images(name: str, env: Env, init: str | Mapping[str, Any], experts: str) -> Firsts:
  """Makes what draws first images and labels: `init` of `datm`, by a resource of vectors (e, p)."""
  logits_of, size = expert_network(name, env)

  def by_experts(key: jax.Array, slots: Slots, res: Resources) -> First:
    return predicted_images(logits_of, env, key, slots, {**res, "experts": res[experts]})

  def predicted(_: Env, /) -> Start:
    return Start(lambda *args: by_experts(*args).images, ("images", "labels"), repeats)

  starts = {"predicted": predicted, "real": initial_images.distinct}
  start = initial_images.make_start(env, init, name, starts)

  def first(key: jax.Array, slots: Slots, res: Resources) -> First:
    check_size(name, res[experts].shape[1], size)
    if init in ("predicted", {"name": "predicted"}):
      return by_experts(key, slots, res)
    images = start.draw(key, slots, res)
    return First(images, all_logits(logits_of, res[experts][0], images))

  return first, start


def predicted_images(
  logits_of: LogitsOf, env: Env, key: jax.Array, slots: Slots, res: Resources
) -> First:
  """Draws training images that experts predict correctly, with these experts' mean logits.

  Experts are asked one after another, until every slot has an image of its own.
  """
  experts, k = jnp.asarray(res["experts"]), env.num_classes
  labels = jnp.asarray(res["labels"], jnp.int32)
  own, rank = (jnp.asarray(x, jnp.int32) for x in slots)
  by_class = selection.by_class(labels, k)
  wanted = jnp.minimum(jnp.bincount(own, length=k), by_class.counts)

  def found(asked: Int[Array, " N"]) -> Int[Array, " k"]:
    return jax.ops.segment_sum((asked < len(experts)).astype(jnp.int32), labels, k)

  def go_on(state: tuple[jax.Array, jax.Array]) -> jax.Array:
    number, asked = state
    return (number < len(experts)) & (found(asked) < wanted).any()

  def ask(state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
    number, asked = state
    rows_of = lambda rows: logits_of(experts[number], features.real_images(env, res, rows))
    logits = features.in_chunks(rows_of, len(labels), CHUNK)
    knows = logits.argmax(1) == labels
    return number + 1, jnp.where(knows, jnp.minimum(asked, number), asked)

  none = jnp.full(labels.shape, len(experts))
  asked = jax.lax.while_loop(go_on, ask, (jnp.zeros((), none.dtype), none))[1]
  order = jnp.lexsort((jax.random.uniform(key, labels.shape), asked, labels))
  usable = jnp.where(found(asked) > 0, found(asked), by_class.counts)
  chosen = selection.ByClass(order, by_class.start, usable).rows_of(own, rank)
  images = features.real_images(env, res, chosen)
  logits, count = _mean_of_right(logits_of, experts, images, own, k)
  return First(images, logits, count > 0)


def _mean_of_right(
  logits_of: LogitsOf,
  experts: Float[Array, "e p"],
  images: Float[Array, "n h w c"],
  labels: Int[Array, " n"],
  k: int,
) -> tuple[Float[Array, "n k"], Int[Array, " n"]]:
  """The mean logits of the experts that predict an image correctly, and how many they are.

  Zero, which is a uniform label, where there are none, as in the code of DAMED.
  """

  def add(state, theta):
    total, count = state
    logits = all_logits(logits_of, theta, images)
    right = logits.argmax(1) == labels
    return (total + jnp.where(right[:, None], logits, 0), count + right), None

  none = jnp.zeros((len(labels), k)), jnp.zeros(labels.shape, jnp.int32)
  (total, count), _ = jax.lax.scan(add, none, experts)
  return total / jnp.maximum(count, 1)[:, None], count
