"""Views of distilled images, recomputed from keys.

  views_of = view_fn(spec, mix="cutmix")
  views = views_of(key, images, labels, indices, epochs)   # views.images: (b, h, w, c) normalised

A *view* of image i in label epoch e is a pure function of (key, e, i): a crop, a flip, DSA, and a
mix with another image. Nothing of it is stored.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from ltdd_jax.core.registry import check_choice
from ltdd_jax.core.types import Leaf, LtddError
from ltdd_jax.data import augment, checks, crops
from ltdd_jax.data import dsa as dsa_lib
from ltdd_jax.data import rand_augment as rand_augment_lib
from ltdd_jax.data.specs import DatasetSpec

# Purposes of the keys: of all views, of one image, and of one mix. A key is either folded with
# these or used, never both, and never split: `fold_in(key, 0)` is the same as `split(key)[0]`.
IMAGE, MIX, _EPOCH = 0, 1, 2
_PAD, CROP, _OPERATIONS, _SHUFFLE, FLIP, _DSA = 0, 1, 2, 3, 4, 5
PARTNER, BOX, WHETHER = 0, 1, 2


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
  mix_prob: float = 1.0,
  rand_augment: bool = False,
  shuffle_patches: int = 1,
  dsa: str | None = None,
  dsa_combined: bool = False,
  parts: int = 1,
) -> ViewFn:
  """Makes the function that recomputes views.

  The crop is torchvision's RandomResizedCrop, the mix is CutMix or mixup with a partner drawn
  uniformly from all images, cropped and flipped as its own view of the same epoch is. In what we
  differ: published code draws one box and one permutation for a batch, and whether to mix it; here
  each view has its own, so that views do not depend on how batches are put together. For the same
  reason the operation of DSA is drawn for a label epoch: every batch of an epoch has the same one,
  and each view has its own strengths. Where a batch holds all images, this is the published code.

  Args:
    spec: facts of the data set.
    crop_scale: least and largest share of the image in a crop, or None for no crop.
    padding: black pixels on every side for a random crop of the image's own size, before that.
    flip: whether to flip left to right with probability 1/2.
    mix: "cutmix", "mixup" or None.
    mix_alpha: parameter of the Beta(alpha, alpha) distribution of the share.
    mix_prob: probability, above 0, that a view is mixed.
    rand_augment: whether `data.rand_augment` comes before all else.
    shuffle_patches: f to shuffle the strips of f x f mosaics before they are cropped, as RDED does.
    dsa: the strategy of `data.dsa`, such as "color_crop_cutout_flip_scale_rotate", or None. It acts
      on the normalised image, after crop and flip and before the mix; leave out "flip" for digits.
    dsa_combined: whether flip, color and cutout, where the strategy has them, are always applied,
      with one of its other operations (`dsa.apply_combined`, IDC and DREAM); else one of all.
    parts: f, for images that hold f x f small ones (multi-formation). A view shows one of them,
      enlarged, before all else: of image i in label epoch e the part (e + i) mod f^2, row by row.
      Methods that make such images set it for theirs; set it for those from a file.

  Returns:
    `fn(key, images (n,h,w,c), labels (n,), indices (b,), epochs (b,)) -> Views`; images are uint8,
    or float32 pixels from 0 to 1.

  Raises:
    LtddError: an unknown mix or operation, or a value that its argument cannot have.
  """
  check_choice("config.label.views.mix", mix, (*MIXES, None))
  for name, kind, value in (
    ("crop_scale", "scale", (1, 1) if crop_scale is None else crop_scale),
    ("padding", "padding", padding),
    ("mix_alpha", "alpha", mix_alpha),
    ("mix_prob", "probability", mix_prob),
    ("shuffle_patches", "factor", shuffle_patches),
    ("parts", "factor", parts),
  ):
    checks.check(f"config.label.views.{name}", kind, value)
  crops.check_factor("config.label.views.parts: ", parts, spec.image_shape)
  draw_op, apply_op = _dsa_fns(dsa, dsa_combined)
  normalize = functools.partial(augment.normalize_pixels, mean=spec.mean, std=spec.std)

  def view_of_one(key: jax.Array, image: jax.Array, number: jax.Array, op: Any) -> jax.Array:
    """Augments one stored image (h, w, c), or a part of it: into [0, 1], or normalised by DSA."""
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
      image = crops.crop_resize(image, crops.rrc_box(key_of(CROP), h, w, (low, high)))
    if flip:
      image = jnp.where(jax.random.bernoulli(key_of(FLIP)), image[:, ::-1], image)
    return image if dsa is None else apply_op(key_of(_DSA), normalize(image), op)

  def views(
    key: jax.Array, images: jax.Array, labels: jax.Array, indices: jax.Array, epochs: jax.Array
  ) -> Views:
    image_key, mix_key = (jax.random.fold_in(key, purpose) for purpose in (IMAGE, MIX))
    first = epochs * images.shape[0]  # views are numbered: epoch e, image i is e n + i
    ops = None  # of DSA, for each view
    if dsa is not None:
      ops = jax.vmap(draw_op)(numbered(jax.random.fold_in(key, _EPOCH), epochs))
    if mix is None:
      partner, weight = indices, jnp.ones(indices.shape, jnp.float32)
      own = jax.vmap(view_of_one)(
        numbered(image_key, first + indices), images[indices], epochs + indices, ops
      )
    else:
      keys = numbered(mix_key, first + indices)
      draw = lambda k: jax.random.randint(k, (), 0, images.shape[0])
      partner = jax.vmap(draw)(each(keys, PARTNER))
      both = jnp.stack([indices, partner], 1)  # (b, 2): a device makes both of its own views
      keys_of_both = jax.vmap(numbered, (None, 0))(image_key, first[:, None] + both)
      shown = jax.vmap(jax.vmap(view_of_one, (0, 0, 0, None)))(
        keys_of_both, images[both], epochs[:, None] + both, ops
      )
      own, other = shown[:, 0], shown[:, 1]
      mix_pair = functools.partial(MIXES[mix], alpha=mix_alpha)
      mixed, weight = jax.vmap(mix_pair)(each(keys, BOX), own, other)
      if mix_prob < 1:
        chosen = jax.vmap(lambda k: jax.random.bernoulli(k, mix_prob))(each(keys, WHETHER))
        mixed = jnp.where(chosen[:, None, None, None], mixed, own)
        partner, weight = jnp.where(chosen, partner, indices), jnp.where(chosen, weight, 1.0)
      own = mixed
    shown = own if dsa is not None else normalize(own)
    return Views(shown, labels[indices], labels[partner], weight, partner)

  return views


def _dsa_fns(strategy: str | None, combined: bool) -> tuple[Any, Any]:
  """Makes `draw_op(key) -> op` and `apply_op(key, image (h, w, c), op) -> image` of a strategy."""
  if strategy is None:
    if combined:
      raise LtddError(
        "config.label.views.dsa_combined is True and config.label.views.dsa is None; expected a "
        f"strategy, such as dsa={dsa_lib.STRATEGY!r}, or dsa_combined=False"
      )
    return None, None
  dsa_lib.check_strategy(strategy)
  draw: Any = dsa_lib.draw_combined if combined else dsa_lib.draw
  apply: Any = dsa_lib.apply_op
  if combined:
    apply = functools.partial(dsa_lib.apply_combined, strategy=strategy)
  draw_op = lambda key: draw(key, strategy, 1)[0]
  return draw_op, lambda key, image, op: apply(image, op, draw(key, strategy, 1)[1][0])


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


def numbered(key: jax.Array, numbers: jax.Array) -> jax.Array:
  """The key of each number (b,)."""
  return jax.vmap(lambda number: jax.random.fold_in(key, number))(numbers)


def each(keys: jax.Array, purpose: int) -> jax.Array:
  """Folds each of the keys (b,) with one purpose."""
  return jax.vmap(lambda key: jax.random.fold_in(key, purpose))(keys)
