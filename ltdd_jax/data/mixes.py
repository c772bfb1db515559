"""Views that mix two images: CutMix and mixup. Pure, jit-able, differentiable in the images.

  images, mix = cutmix(key, images)
  targets = mix.weight[:, None] * targets + (1 - mix.weight)[:, None] * targets[mix.partner]

Recipes whose labels come from a network that sees the mixed image need no weight; those that use
hard labels decide whether to honour it.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from ltdd_jax.core.types import Leaf


class Mix(NamedTuple):
  """What an image was mixed with, and the share of its own label."""

  partner: Leaf  # (b,) int32, position in the batch
  weight: Leaf  # (b,) float32; CutMix: the exact fraction of its own pixels left


def cutmix(
  key: Key[Array, ""],
  images: Float[Array, "b h w c"],
  *,
  alpha: float | int = 1.0,
  shared: bool = True,
) -> tuple[Float[Array, "b h w c"], Mix]:
  """Replaces a box of each image by the same box of another image of the batch.

  One random permutation names the partners. With `shared` one box serves the batch, as in every
  published recipe here; otherwise each image has its own.

  Args:
    key: a typed key.
    images: a batch.
    alpha: the box's share of the area is `1 - Beta(alpha, alpha)` before clipping at the border.
    shared: one box for the whole batch.
  """
  b, h, w, _ = images.shape
  box_key, partner_key = jax.random.split(key)
  partner = _permutation(partner_key, b)
  if shared:
    mask, weight = cutmix_box(box_key, h, w, alpha)
    mask, weight = mask[None], jnp.broadcast_to(weight, (b,))
  else:
    mask, weight = jax.vmap(lambda k: cutmix_box(k, h, w, alpha))(jax.random.split(box_key, b))
  return jnp.where(mask[..., None], images[partner], images), Mix(partner, weight)


def cutmix_box(
  key: Key[Array, ""], h: int, w: int, alpha: float | int = 1.0
) -> tuple[Bool[Array, "h w"], Float[Array, ""]]:
  """Draws the box of CutMix: (mask, weight), the mask true where the partner shows.

  `lambda ~ Beta(alpha, alpha)`, sides `floor(side sqrt(1 - lambda))`, the centre uniform on the
  pixels, the box clipped at the border; the weight is the exact fraction outside the box.
  """
  lam_key, row_key, column_key = jax.random.split(key, 3)
  row = jax.random.randint(row_key, (), 0, h)
  column = jax.random.randint(column_key, (), 0, w)
  return box_mask(_beta(lam_key, (), alpha), row, column, h, w)


def box_mask(
  lam: Float[Array, ""], row: Int[Array, ""], column: Int[Array, ""], h: int, w: int
) -> tuple[Bool[Array, "h w"], Float[Array, ""]]:
  """Returns mask and weight of the CutMix box for a given lambda and centre."""
  inside = []
  for centre, size in ((row, h), (column, w)):
    half = jnp.floor(size * jnp.sqrt(1 - lam)).astype(jnp.int32) // 2
    pixel = jnp.arange(size)
    inside.append((pixel >= centre - half) & (pixel < centre + half))
  mask = inside[0][:, None] & inside[1][None, :]
  return mask, 1 - jnp.sum(mask, dtype=jnp.float32) / (h * w)


def mixup(
  key: Key[Array, ""],
  images: Float[Array, "b h w c"],
  *,
  alpha: float | int = 0.8,
  shared: bool = True,
) -> tuple[Float[Array, "b h w c"], Mix]:
  """Mixes each image with another of the batch: `lambda x + (1 - lambda) x[partner]`.

  `lambda ~ Beta(alpha, alpha)`, one for the batch with `shared`, else one for each image.
  """
  b = len(images)
  lam_key, partner_key = jax.random.split(key)
  partner = _permutation(partner_key, b)
  weight = jnp.broadcast_to(_beta(lam_key, () if shared else (b,), alpha), (b,))
  own = weight[:, None, None, None]
  return own * images + (1 - own) * images[partner], Mix(partner, weight)


def _permutation(key: Key[Array, ""], b: int) -> Int[Array, " b"]:
  return jax.random.permutation(key, jnp.arange(b, dtype=jnp.int32))


def _beta(key: Key[Array, ""], shape: tuple[int, ...], alpha: float | int) -> Float[Array, "..."]:
  if alpha == 1:  # uniform; the general sampler compiles a rejection loop
    return jax.random.uniform(key, shape)
  return jax.random.beta(key, alpha, alpha, shape)
