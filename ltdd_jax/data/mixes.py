"""CutMix and mixup of one image with another. Pure, jit-able, differentiable in the images.

  image, weight = cutmix(key, own, other, alpha=1.0)
  target = weight * target + (1 - weight) * other_target

`weight` is the share of the image itself. Many images are mixed under `vmap`, each with a box or a
share of its own; published code draws one for the whole batch.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

Mixed = tuple[Float[Array, "h w c"], Float[Array, ""]]  # image, share of its own


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
  key: Key[Array, ""], own: Float[Array, "h w c"], other: Float[Array, "h w c"], alpha: float | int
) -> Mixed:
  """Returns `lambda own + (1 - lambda) other`, `lambda ~ Beta(alpha, alpha)`, and lambda."""
  weight = jax.random.beta(key, alpha, alpha)
  return weight * own + (1 - weight) * other, weight


MIXES = {"cutmix": cutmix, "mixup": mixup}
