"""What an optimisation of pixels starts from: noise, real images, after EDC and RLDD, or a set.

  start = make_start(env, "real")                                # raw training images
  start = make_start(env, {"name": "rded", "factor": 2})         # mosaics
  start = make_start(env, "crops")                              # those that teachers find easy
  start = make_start(env, {"name": "imported", "path": "runs/a/distil/edc"})  # a set that exists
  images = start.draw(key, slots, res)                          # (n, h, w, c), normalised

From real images each slot draws one of its class, uniformly and with replacement, and mirrors it
with probability one half; several slots may start from one image. The matching methods have starts
of their own, such as `MATCHING`, beside a set.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ltdd_jax.core import registry
from ltdd_jax.core.registry import check_at_least
from ltdd_jax.core.types import LtddError, Slots
from ltdd_jax.data import crops
from ltdd_jax.distil import confident_crops, coreset, features, patches, selection
from ltdd_jax.distil.base import Env, Notes, Resources, repeats


class Start(NamedTuple):
  """How slots get their first images."""

  draw: Callable[[jax.Array, Slots, Resources], jax.Array]  # -> (n, h, w, c), normalised
  needs: tuple[str, ...] = ()  # fields of `Resources`; with "images" classes with slots need one
  notes: Notes = lambda have, want: ()  # for `Method.notes`

  def needs_with(self, *needs: str) -> tuple[str, ...]:
    """Returns these resources and those of the start, each once."""
    return tuple(dict.fromkeys((*needs, *self.needs)))


Starts = Mapping[str, Callable[..., Start]]  # by the names that configs use


def noise(env: Env, /) -> Start:
  """N(0, 1) for each value of a normalised image."""

  def draw(key: jax.Array, slots: Slots, res: Resources) -> jax.Array:
    del res
    return jax.random.normal(key, (len(slots.labels), *env.image_shape), jnp.float32)

  return Start(draw)


def real(env: Env, /, *, flip: bool = True) -> Start:
  """Raw training images, as EDC on CIFAR and Tiny-ImageNet (scripts, and the paper's tables).

  With `flip` half of them are mirrored; not for digits.
  """

  def draw(key: jax.Array, slots: Slots, res: Resources) -> jax.Array:
    draw_key, flip_key = jax.random.split(key)
    by_class, labels = selection.by_class(res["labels"], env.num_classes), slots.labels
    counts = jnp.maximum(by_class.counts[labels], 1)
    number = jax.random.randint(draw_key, labels.shape, 0, counts)
    images = features.real_images(env, res, by_class.rows_of(labels, number))
    return crops.random_flip(flip_key, images) if flip else images

  return Start(draw, ("images", "labels"), _with_replacement)


def distinct(env: Env, /) -> Start:
  """Training images, drawn without replacement in each class: see `coreset.random`."""
  draw = coreset.random(env).init
  return Start(lambda *args: draw(*args).images, ("images", "labels"), repeats)


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

  The other arguments are those of `rded.rded`.
  """
  options = patches.PatchOptions(factor, num_crops, pool, chunk_size)
  patches.check_options("rded", env, options)
  check_at_least("start 'rded': ", 1, images_per_class=images_per_class)
  notes = patches.make_notes("rded", options)

  def draw(key: jax.Array, slots: Slots, res: Resources) -> jax.Array:
    set_key, number_key, flip_key = jax.random.split(key, 3)
    labels = jnp.asarray(slots.labels, jnp.int32)
    number = jax.random.randint(number_key, labels.shape, 0, images_per_class)
    totals = jnp.full(labels.shape, images_per_class)
    images = patches.mosaics(set_key, env, options, res, Slots(labels, number), totals)
    return crops.random_flip(flip_key, images)

  def of_set(have: np.ndarray, want: np.ndarray) -> tuple[str, ...]:
    return notes(have, np.where(want > 0, images_per_class, 0))

  return Start(draw, ("teachers", "images", "labels"), of_set)


def crops_by_confidence(env: Env, /, *, num_crops: int = 5, chunk_size: int = 500) -> Start:
  """The crops that the teachers find easiest, of many images, as RLDD: see `confident_crops`.

  All batches of images share one set of crops. In what we differ: a class with few images has no
  placeholders in its set; of each image there are `num_crops` crops, where the public copy of the
  code comes down to one.

  Args:
    env: with one teacher or more.
    num_crops: crops of each training image of a class.
    chunk_size: crops in one forward pass.
  """
  check_at_least("start 'crops': ", 1, num_crops=num_crops, chunk_size=chunk_size)

  def draw(key: jax.Array, slots: Slots, res: Resources) -> jax.Array:
    del key  # that of one batch of images
    return confident_crops.draw(env, res, slots, num_crops, chunk_size)

  notes = functools.partial(confident_crops.check_slots, num_crops)
  return Start(draw, ("teachers", "images", "labels", "key"), notes)


def imported(
  env: Env, starts: Starts, /, *, path: str, rest: str | Mapping[str, Any] | None = None
) -> Start:
  """The image of the slot's class and rank in a set that exists: see `interop.distilled_sets.read`.

  Args:
    env: static facts.
    starts: what `rest` may be.
    path: of the set, which the pipeline reads: the resource "init_set".
    rest: the start of slots beyond those of the set; None refuses them.
  """
  del path
  others = None if rest is None else make_start(env, rest, starts=starts)
  if others is not None and "init_set" in others.needs:
    raise LtddError("start 'imported': rest is 'imported' too; expected another start, or None")

  def draw(key: jax.Array, slots: Slots, res: Resources) -> jax.Array:
    labels, rank = (jnp.asarray(x, jnp.int32) for x in slots)
    by_class = selection.by_class(res["init_set"]["labels"], env.num_classes)
    images = features.real_images(env, res["init_set"], by_class.rows_of(labels, rank))
    if others is None:
      return images
    inside = (rank < by_class.counts[labels])[:, None, None, None]
    return jnp.where(inside, images, others.draw(key, slots, res))

  if others is None:
    return Start(draw, ("init_set",))
  return Start(draw, ("init_set", *others.needs), others.notes)


STARTS: Starts = {"noise": noise, "real": real, "rded": rded, "crops": crops_by_confidence}
MATCHING: Starts = {"noise": noise, "real": distinct}


def make_start(
  env: Env, spec: str | Mapping[str, Any], method: str = "start", starts: Starts = STARTS
) -> Start:
  """Makes a start of a name or of a mapping with `name` and arguments, a method's `init`.

  It is one of `starts`, or `imported`.
  """
  kwargs = {"name": spec} if isinstance(spec, str) else dict(spec)
  name = kwargs.pop("name", "")
  known = {**starts, "imported": imported}
  args = (env, starts) if name == "imported" else (env,)
  return registry.make(f"'init' of method {method!r}:", known, name, kwargs, *args)


def _with_replacement(have: np.ndarray, want: np.ndarray) -> tuple[str, ...]:
  return tuple(
    f"class {c}: {want[c]} slots start from {have[c]} training images, drawn with replacement"
    for c in np.flatnonzero(have < want)
  )
