"""What an optimisation of pixels starts from: noise, or real images, after EDC.

  start = make_start(env, "real")                                # raw training images
  start = make_start(env, {"name": "rded", "factor": 2})         # mosaics
  images = start.draw(key, slots, res)                          # (n, h, w, c), normalised

From real images each slot draws one of its class, uniformly and with replacement, and mirrors it
with probability one half; several slots may start from one image.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ltdd_jax.core import config
from ltdd_jax.core.types import LtddError, Slots
from ltdd_jax.data import augment, crops
from ltdd_jax.distil import patches, pixels
from ltdd_jax.distil.base import Env, Notes, Resources, repeats


class Start(NamedTuple):
  """How slots get their first images."""

  draw: pixels.Start
  needs: tuple[str, ...] = ()  # fields of `Resources`; with "images" classes with slots need one
  notes: Notes = repeats  # for `Method.notes`


def noise(env: Env, /) -> Start:
  """N(0, 1) for each value of a normalised image."""

  def draw(key: jax.Array, slots: Slots, res: Resources) -> jax.Array:
    del res
    return jax.random.normal(key, (len(slots.labels), *env.image_shape), jnp.float32)

  return Start(draw)


def real(env: Env, /, *, flip: bool = True) -> Start:
  """Raw training images, as EDC on CIFAR and Tiny-ImageNet (scripts, and the paper's tables).

  Args:
    env: static facts.
    flip: whether half of them are mirrored; not for digits.
  """

  def draw(key: jax.Array, slots: Slots, res: Resources) -> jax.Array:
    draw_key, flip_key = jax.random.split(key)
    labels, targets = jnp.asarray(res["labels"]), jnp.asarray(slots.labels, jnp.int32)
    by_class = jnp.argsort(labels)
    counts = jnp.bincount(labels, length=env.num_classes)
    first = (jnp.cumsum(counts) - counts)[targets]
    rank = jax.random.randint(draw_key, targets.shape, 0, jnp.maximum(counts[targets], 1))
    images = augment.normalize(
      jnp.asarray(res["images"])[by_class[first + rank]], env.mean, env.std
    )
    return crops.random_flip(flip_key, images) if flip else images

  return Start(draw, ("images", "labels"), _with_replacement)


def rded(
  env: Env,
  /,
  *,
  images_per_class: int = 50,
  factor: int = 1,
  num_crops: int = 5,
  pool: int = 300,
  chunk_size: int = 500,
) -> Start:
  """Images of an RDED set of `images_per_class` a class, as EDC on ImageNet (factor 2).

  Only the mosaics that are drawn are made. In what we differ: EDC draws from one set on disk; here
  each batch of images that is optimised together draws from a set of its own key.

  Args:
    env: with one teacher or more.
    images_per_class: images of the set to draw from.
    factor: see `rded.rded`, as are the others.
    num_crops: candidate patches of each image.
    pool: images of each class that are looked at.
    chunk_size: patches in one forward pass.
  """
  recipe = patches.PatchOptions(factor, num_crops, pool, "strided", chunk_size)
  patches.check_options("rded", env, recipe)
  if images_per_class < 1:
    raise LtddError(f"start 'rded': images_per_class is {images_per_class}; expected 1 or more")
  notes = patches.make_notes("rded", recipe)

  def draw(key: jax.Array, slots: Slots, res: Resources) -> jax.Array:
    set_key, number_key, flip_key = jax.random.split(key, 3)
    labels = jnp.asarray(slots.labels, jnp.int32)
    number = jax.random.randint(number_key, labels.shape, 0, images_per_class)
    totals = jnp.full(labels.shape, images_per_class)
    images = patches.mosaics(set_key, env, recipe, res, labels, number, totals)
    return crops.random_flip(flip_key, images)

  def of_set(have: np.ndarray, want: np.ndarray) -> tuple[str, ...]:
    return notes(have, np.where(want > 0, images_per_class, 0))

  return Start(draw, ("teachers", "images", "labels"), of_set)


STARTS: dict[str, Callable[..., Start]] = {"noise": noise, "real": real, "rded": rded}


def make_start(env: Env, spec: str | Mapping[str, Any], method: str = "start") -> Start:
  """Makes a start of a name, or of a mapping with `name` and keyword arguments.

  Args:
    env: static facts.
    spec: the method's argument `init`.
    method: its name, for messages.

  Raises:
    LtddError: an unknown name or argument, or one out of range.
  """
  kwargs = {"name": spec} if isinstance(spec, str) else dict(spec)
  name = kwargs.pop("name", None)
  if name not in STARTS:
    raise LtddError(
      f"method {method!r}: init is {spec!r}; expected one of {', '.join(STARTS)}, or a mapping "
      f"with one of these as its 'name' and more arguments. {config.suggest(str(name), STARTS)}"
    )
  config.bind(f"method {method!r}: init {name!r}", STARTS[name], kwargs)
  return STARTS[name](env, **kwargs)


def _with_replacement(have: np.ndarray, want: np.ndarray) -> tuple[str, ...]:
  return tuple(
    f"class {c}: {want[c]} slots start from {have[c]} training images, drawn with replacement"
    for c in np.flatnonzero(have < want)
  )
