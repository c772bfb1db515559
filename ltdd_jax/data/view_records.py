"""What made each view: crop, flip and mix, for programs that cannot recompute JAX's random keys.

  records_of = record_fn(spec.image_shape, n, mix="cutmix")   # arguments of `views.view_fn`
  records = records_of(key, indices, epochs)                  # of the views of the same key

A view is its image's box `crop`, enlarged bilinearly, then mirrored, then mixed with the view that
image `partner` has in the same label epoch.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ltdd_jax.core.types import Leaf, LtddError
from ltdd_jax.data import crops
from ltdd_jax.data import views as views_lib

# Augmentations that boxes, flips and mixes do not describe, with the values that switch them off.
_OFF = {"padding": 0, "rand_augment": False, "shuffle_patches": 1, "dsa": None, "parts": 1}


class Records(NamedTuple):
  """What made a batch of views."""

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
