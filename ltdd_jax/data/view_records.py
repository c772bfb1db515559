"""What made each view: crop, flip and mix, for programs that cannot recompute JAX's random keys.

  records_of = record_fn(spec.image_shape, n, mix="cutmix")   # arguments of `views.view_fn`
  records = records_of(key, indices, epochs)                  # of the views of the same key
  views_of = replay_fn(spec, mix="cutmix")                    # and back, from records (e, n, ...)
  views = views_of(records, images, labels, indices, epochs)

A view is its image's box `crop`, enlarged bilinearly, then mirrored, then mixed with the view that
image `partner` has in the same label epoch.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ltdd_jax.core.types import Leaf, LtddError
from ltdd_jax.data import augment, crops
from ltdd_jax.data import views as views_lib
from ltdd_jax.data.specs import DatasetSpec

# Augmentations that boxes, flips and mixes do not describe, with the values that switch them off.
_OFF = {"padding": 0, "rand_augment": False, "shuffle_patches": 1, "dsa": None, "parts": 1}


class Records(NamedTuple):
  """What made a batch of views; with axes (e, n) in place of (b,), those of all label epochs."""

  crop: Leaf  # (b, 4) int32: top, left, height, width
  flip: Leaf  # (b,) bool
  partner: Leaf  # (b,) int32, number of the image mixed in; its own number if none is
  weight: Leaf  # (b,) float32, share of the image itself
  box: Leaf  # (b, 4) int32, of CutMix: first row and column, last row and column, exclusive


def record_fn(
  image_shape: tuple[int, int, int],
  num_images: int,
  *,
  crop_scale: tuple[float, float] | None = (0.08, 1.0),
  flip: bool = True,
  mix: str | None = "cutmix",
  mix_alpha: float = 1.0,
  mix_prob: float = 1.0,
  **others: Any,
) -> Callable[[jax.Array, jax.Array, jax.Array], Records]:
  """Makes the function that draws what `views.view_fn` draws with the same arguments.

  Returns:
    `fn(key, indices (b,), epochs (b,)) -> Records`

  Raises:
    LtddError: the views have other augmentations.
  """
  if on := [name for name, off in _OFF.items() if others.get(name, off) != off]:
    raise LtddError(
      f"views have {on[0]}={others[on[0]]!r}, which boxes, flips and mixes do not describe; "
      f"expected {on[0]}={_OFF[on[0]]!r} in config.label.views. Export one soft label for each "
      "image instead, with --to npz"
    )
  h, w, _ = image_shape

  def of_one(key: jax.Array) -> tuple[jax.Array, jax.Array]:
    crop: Any = (0, 0, h, w)
    if crop_scale is not None:
      low, high = crop_scale
      crop = crops.rrc_box(jax.random.fold_in(key, views_lib.CROP), h, w, (low, high))
    flipped = flip and jax.random.bernoulli(jax.random.fold_in(key, views_lib.FLIP))
    return jnp.stack([jnp.asarray(x, jnp.int32) for x in crop]), jnp.asarray(flipped)

  def of_mix(key: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    fold = lambda purpose: jax.random.fold_in(key, purpose)
    partner = jax.random.randint(fold(views_lib.PARTNER), (), 0, num_images)
    black, white = jnp.zeros((h, w, 1)), jnp.ones((h, w, 1))  # mixed, they show where the box is
    shown, weight = views_lib.MIXES[str(mix)](fold(views_lib.BOX), black, white, alpha=mix_alpha)
    box = _bounds(shown[..., 0] > 0) if mix == "cutmix" else jnp.zeros(4, jnp.int32)
    mixed = jnp.asarray(True)
    if mix_prob < 1:
      mixed = jax.random.bernoulli(fold(views_lib.WHETHER), mix_prob)
    return mixed, partner, weight, box

  def records(key: jax.Array, indices: jax.Array, epochs: jax.Array) -> Records:
    numbers = epochs * num_images + indices
    keys = lambda purpose: views_lib.numbered(jax.random.fold_in(key, purpose), numbers)
    crop, flipped = jax.vmap(of_one)(keys(views_lib.IMAGE))
    own, whole = indices.astype(jnp.int32), jnp.ones(indices.shape, jnp.float32)
    if mix is None:
      return Records(crop, flipped, own, whole, jnp.zeros_like(crop))
    mixed, partner, weight, box = jax.vmap(of_mix)(keys(views_lib.MIX))
    return Records(
      crop,
      flipped,
      jnp.where(mixed, partner, own),
      jnp.where(mixed, weight, whole),
      jnp.where(mixed[:, None], box, 0),
    )

  return records


def _bounds(mask: jax.Array) -> jax.Array:
  """First row and column of a box of True in a mask (h, w), and those after its last; or zeros."""
  ends = []
  for axis in (1, 0):
    line = jnp.any(mask, axis)
    first = jnp.argmax(line)
    ends.append((first, first + jnp.sum(line)))
  (top, bottom), (left, right) = ends
  return jnp.stack([top, left, bottom, right]).astype(jnp.int32)


def replay_fn(
  spec: DatasetSpec,
  *,
  mix: str | None,
  cropped: bool = True,
  flipped: bool = True,
  partly: bool = False,
) -> views_lib.ViewFn:
  """Makes the function that shows the views that records describe, as `views.view_fn` does.

  It has the operations of `views.view_fn` and no others, so that bits are the same; those of mixup
  are as far as the compiler rounds its weighted sum alike.

  Args:
    spec: facts of the data set.
    mix: "cutmix", "mixup" or None.
    cropped: whether any view is less than its image; `facts_of` finds this and the next two.
    flipped: whether any view is mirrored.
    partly: whether any view is not mixed.

  Returns:
    A function as of `views.view_fn`, but for its first argument: in place of the key it takes
    `Records` of all label epochs (e, n, ...).
  """
  normalize = functools.partial(augment.normalize_pixels, mean=spec.mean, std=spec.std)

  def view_of_one(image: jax.Array, crop: jax.Array, flip: jax.Array) -> jax.Array:
    image = augment.to_pixels(image)
    if cropped:
      image = crops.crop_resize(image, (crop[0], crop[1], crop[2], crop[3]))
    return jnp.where(flip, image[:, ::-1], image) if flipped else image

  def mix_pair(weight: jax.Array, box: jax.Array, own: jax.Array, other: jax.Array) -> jax.Array:
    if mix == "mixup":
      return weight * own + (1 - weight) * other
    row, column = (jnp.arange(side) for side in own.shape[:2])
    rows, columns = (row >= box[0]) & (row < box[2]), (column >= box[1]) & (column < box[3])
    return jnp.where((rows[:, None] & columns[None, :])[..., None], other, own)

  def views(
    records: Any, images: jax.Array, labels: jax.Array, indices: jax.Array, epochs: jax.Array
  ) -> views_lib.Views:
    partner, weight, box = (
      x[epochs, indices] for x in (records.partner, records.weight, records.box)
    )
    both, turns = indices, epochs
    if mix is not None:
      both, turns = jnp.concatenate([indices, partner]), jnp.concatenate([epochs, epochs])
    crop, flip = records.crop[turns, both], records.flip[turns, both]
    shown = jax.vmap(view_of_one)(images[both], crop, flip)
    if mix is not None:
      shown, other = jnp.split(shown, 2)
      mixed = jax.vmap(mix_pair)(weight, box, shown, other)
      alone = (weight == 1) & (partner == indices)
      shown = jnp.where(alone[:, None, None, None], shown, mixed) if partly else mixed
    return views_lib.Views(normalize(shown), labels[indices], labels[partner], weight, partner)

  return views


def facts_of(
  records: Records, mix: str | None, image_shape: tuple[int, int, int]
) -> dict[str, Any]:
  """Arguments of `replay_fn` for records of all label epochs (e, n, ...), NumPy arrays."""
  own = np.arange(records.flip.shape[1])
  return {
    "mix": mix,
    "cropped": bool((records.crop != (0, 0, *image_shape[:2])).any()),
    "flipped": bool(records.flip.any()),
    "partly": bool(((records.weight == 1) & (records.partner == own)).any()),
  }


def view_fn(spec: DatasetSpec, source: jax.Array | Records, views: Mapping[str, Any]) -> Any:
  """Makes `replay_fn` if views come from records, and `views.view_fn` if from a key."""
  make: Any = replay_fn if isinstance(source, Records) else views_lib.view_fn
  return make(spec, **views)


def to_arrays(records: Records) -> dict[str, Any]:
  """The arrays of an artefact that hold records."""
  return {f"view_{name}": x for name, x in records._asdict().items()}


def from_arrays(arrays: Mapping[str, Any]) -> Records:
  """Records out of the arrays of an artefact."""
  return Records(*(arrays[f"view_{name}"] for name in Records._fields))
