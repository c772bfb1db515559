"""Views of distilled images, recomputed from keys.

  views_of = view_fn(spec, mix="cutmix")
  views = views_of(key, images, labels, indices, epochs)   # views.images: (b, h, w, c) normalised

A *view* of image i in label epoch e is a pure function of (key, e, i): a crop, a flip, and a mix
with another image. Nothing of it is stored.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from ltdd_jax.core.registry import check_choice
from ltdd_jax.core.types import Leaf
from ltdd_jax.data import augment, checks, crops
from ltdd_jax.data import rand_augment as rand_augment_lib
from ltdd_jax.data.specs import DatasetSpec

# Purposes of the keys: of all views, of one image, and of one mix. A key is either folded with
# these or used, never both, and never split: `fold_in(key, 0)` is the same as `split(key)[0]`.
_IMAGE, _MIX = 0, 1
_PAD, _CROP, _OPERATIONS, _SHUFFLE, _FLIP = 0, 1, 2, 3, 4
_PARTNER, _BOX = 0, 1


class Views(NamedTuple):
  """A batch of views."""

  images: Leaf  # (b, h, w, c) float32, normalised
  labels: Leaf  # (b,) int32, of the image itself
  partner_labels: Leaf  # (b,) int32, of the image mixed in
  weight: Leaf  # (b,) float32, share of the image itself
  partners: Leaf  # (b,) int32, number of the image mixed in


Mixed = tuple[Float[Array, "h w c"], Float[Array, ""]]  # image, share of its own
ViewFn = Callable[[jax.Array, jax.Array, jax.Array, jax.Array, jax.Array], Views]


def view_fn(
  spec: DatasetSpec,
  *,
  crop_scale: tuple[float, float] | None = (0.08, 1.0),
  padding: int = 0,
  flip: bool = True,
  mix: str | None = "cutmix",
  mix_alpha: float = 1.0,
  rand_augment: bool = False,
  shuffle_patches: int = 1,
  parts: int = 1,
) -> ViewFn:
  """Makes the function that recomputes views.

  The crop is torchvision's RandomResizedCrop, the mix is CutMix or mixup with a partner drawn
  uniformly from all images, cropped and flipped as its own view of the same epoch is. In what we
  differ: published code draws one box and one permutation for a batch; here each view has its own,
  so that views do not depend on how batches are put together.

  Args:
    spec: facts of the data set.
    crop_scale: least and largest share of the image in a crop, or None for no crop.
    padding: black pixels on every side for a random crop of the image's own size, before that.
    flip: whether to flip left to right with probability 1/2.
    mix: "cutmix", "mixup" or None.
    mix_alpha: parameter of the Beta(alpha, alpha) distribution of the share.
    rand_augment: whether `data.rand_augment` comes before all else.
    shuffle_patches: f to shuffle the strips of f x f mosaics before they are cropped, as RDED does.
    parts: f, for images that hold f x f small ones (multi-formation). A view shows one of them,
      enlarged, before all else: of image i in label epoch e the part (e + i) mod f^2, row by row.
      Methods that make such images set it for theirs; set it for those from a file.

  Returns:
    `fn(key, images (n,h,w,c), labels (n,), indices (b,), epochs (b,)) -> Views`; images are uint8,
    or float32 pixels from 0 to 1.

  Raises:
    LtddError: an unknown mix, or a number that its argument cannot have.
  """
  check_choice("config.label.views.mix", mix, (*MIXES, None))
  for name, kind, value in (
    ("crop_scale", "scale", (1, 1) if crop_scale is None else crop_scale),
    ("padding", "padding", padding),
    ("mix_alpha", "alpha", mix_alpha),
    ("shuffle_patches", "factor", shuffle_patches),
    ("parts", "factor", parts),
  ):
    checks.check(f"config.label.views.{name}", kind, value)
  crops.check_factor("config.label.views.parts: ", parts, spec.image_shape)

  def view_of_one(key: jax.Array, image: jax.Array, number: jax.Array) -> jax.Array:
    """Augments, crops and flips one stored image (h, w, c), or a part of it, into [0, 1]."""
    key_of = lambda purpose: jax.random.fold_in(key, purpose)
    if parts != 1:
      part = crops.partition(augment.to_pixels(image), parts)[number % parts**2]
      image = crops.enlarge(part, *image.shape[:2])
    if rand_augment:
      image = rand_augment_lib.rand_augment(key_of(_OPERATIONS), image)
    image = augment.to_pixels(image)
    if shuffle_patches != 1:
      image = crops.shuffle_patches(key_of(_SHUFFLE), image, factor=shuffle_patches)
    if padding:
      image = crops.random_crop(key_of(_PAD), image[None], padding=padding)[0]
    if crop_scale is not None:
      h, w, _ = image.shape
      low, high = crop_scale  # a list, maybe
      image = crops.crop_resize(image, crops.rrc_box(key_of(_CROP), h, w, (low, high)))
    if flip:
      image = jnp.where(jax.random.bernoulli(key_of(_FLIP)), image[:, ::-1], image)
    return image

  def views(
    key: jax.Array, images: jax.Array, labels: jax.Array, indices: jax.Array, epochs: jax.Array
  ) -> Views:
    image_key, mix_key = (jax.random.fold_in(key, purpose) for purpose in (_IMAGE, _MIX))
    first = epochs * images.shape[0]  # views are numbered: epoch e, image i is e n + i
    if mix is None:
      partner, weight = indices, jnp.ones(indices.shape, jnp.float32)
      own = jax.vmap(view_of_one)(
        _keys(image_key, first + indices), images[indices], epochs + indices
      )
    else:
      keys = _keys(mix_key, first + indices)
      draw = lambda k: jax.random.randint(k, (), 0, images.shape[0])
      partner = jax.vmap(draw)(_each(keys, _PARTNER))
      both = jnp.concatenate([indices, partner])
      numbers = jnp.concatenate([first, first]) + both
      turns = jnp.concatenate([epochs, epochs]) + both
      shown = jax.vmap(view_of_one)(_keys(image_key, numbers), images[both], turns)
      own, other = jnp.split(shown, 2)
      mix_pair = functools.partial(MIXES[mix], alpha=mix_alpha)
      own, weight = jax.vmap(mix_pair)(_each(keys, _BOX), own, other)
    normalised = augment.normalize_pixels(own, spec.mean, spec.std)
    return Views(normalised, labels[indices], labels[partner], weight, partner)

  return views


# ---- mixes ----


def cutmix(
  key: Key[Array, ""], own: Float[Array, "h w c"], other: Float[Array, "h w c"], alpha: float | int
) -> Mixed:
  """Replaces a box of an image by the same box of another.

  `lambda ~ Beta(alpha, alpha)`, sides `floor(side sqrt(1 - lambda))`, the centre uniform on the
  pixels, the box clipped at the border; the weight is the exact fraction outside the box.
  """
  h, w, _ = own.shape
  lam_key, row_key, column_key = jax.random.split(key, 3)
  row = jax.random.randint(row_key, (), 0, h)
  column = jax.random.randint(column_key, (), 0, w)
  uniform = alpha == 1  # the general sampler compiles a rejection loop
  lam = jax.random.uniform(lam_key) if uniform else jax.random.beta(lam_key, alpha, alpha)
  inside, weight = box_mask(lam, row, column, h, w)
  return jnp.where(inside[..., None], other, own), weight


def box_mask(
  lam: Float[Array, ""],
  row: Int[Array, ""],
  column: Int[Array, ""],
  h: int,
  w: int,
  rounding: Callable[[jax.Array], jax.Array] = jnp.floor,
) -> tuple[Bool[Array, "h w"], Float[Array, ""]]:
  """Returns mask and weight of the CutMix box for a given lambda and centre; sides are rounded."""
  inside = []
  for centre, size in ((row, h), (column, w)):
    half = rounding(size * jnp.sqrt(1 - lam)).astype(jnp.int32) // 2
    pixel = jnp.arange(size)
    inside.append((pixel >= centre - half) & (pixel < centre + half))
  mask = inside[0][:, None] & inside[1][None, :]
  return mask, 1 - jnp.sum(mask, dtype=jnp.float32) / (h * w)


def mixup(
  key: Key[Array, ""], own: Float[Array, "h w c"], other: Float[Array, "h w c"], alpha: float | int
) -> Mixed:
  """Returns `lambda own + (1 - lambda) other`, `lambda ~ Beta(alpha, alpha)`, and lambda."""
  weight = jax.random.beta(key, alpha, alpha)
  return weight * own + (1 - weight) * other, weight


MIXES = {"cutmix": cutmix, "mixup": mixup}


# ---- keys ----


def _keys(key: jax.Array, numbers: jax.Array) -> jax.Array:
  """The key of each number (b,)."""
  return jax.vmap(lambda number: jax.random.fold_in(key, number))(numbers)


def _each(keys: jax.Array, purpose: int) -> jax.Array:
  """Folds each of the keys (b,) with one purpose."""
  return jax.vmap(lambda key: jax.random.fold_in(key, purpose))(keys)
