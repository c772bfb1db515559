"""Multi-formation: several small images in the place of one, decoded by upsampling (IDC, DREAM).

  small = decode(images, 2)      # (4 n, h, w, c): all upper left tiles, all upper right ones, ...
  images = encode(small, 2)      # (n, h, w, c): each shrunk to a tile

Pure functions; gradients flow through both. Labels go along as `jnp.tile(labels, factor**2)`.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ltdd_jax.core.registry import check_at_least
from ltdd_jax.core.types import LtddError


def check_factor(where: str, factor: int, image_shape: tuple[int, int, int]) -> None:
  """Raises LtddError for a factor below 1, or with tiles that are not all within the image."""
  check_at_least(where, 1, factor=factor)
  h, w, _ = image_shape
  if any((factor - 1) * -(-side // factor) >= side for side in (h, w)):
    raise LtddError(
      f"{where}factor is {factor}, which cuts images of {h} x {w} pixels into tiles of which some "
      "lie outside; expected a small number, such as 1, 2 or 3"
    )


def decode(
  images: Float[Array, "n h w c"], factor: int, fill: float = 0.5
) -> Float[Array, "m h w c"]:
  """Cuts images into factor x factor tiles, each enlarged to the image's size (bilinear).

  Tile number t (row by row) of image i becomes image t n + i of the factor^2 n. Tiles have sides of
  ceil(side / factor); where these do not divide, `fill` is added on the right and below. Kim et
  al., "Dataset Condensation via Efficient Synthetic-Data Parameterization", ICML 2022; `fill` is of
  the released code, for pixels in [0, 1]. Pixels are resampled as PyTorch's
  `align_corners=False` does.

  Args:
    images: stored images.
    factor: 1 gives them back.
    fill: value of pixels that are not there.
  """
  if factor == 1:
    return images
  n, h, w, c = images.shape
  u, v = _tile(h, w, factor)
  below, right = u * factor - h, v * factor - w
  padded = jnp.pad(images, ((0, 0), (0, below), (0, right), (0, 0)), constant_values=fill)
  tiles = padded.reshape(n, factor, u, factor, v, c).transpose(1, 3, 0, 2, 4, 5)
  return jax.image.resize(tiles.reshape(-1, u, v, c), (factor**2 * n, h, w, c), "bilinear")


def encode(small: Float[Array, "m h w c"], factor: int) -> Float[Array, "n h w c"]:
  """Puts each factor^2 images into one, in the order of `decode`: DREAM's start "mix".

  Each is shrunk to a tile by its nearest pixels, row i from row floor(i h / ceil(h / factor)), and
  what lies outside of the image is cut off.
  """
  m, h, w, c = small.shape
  u, v = _tile(h, w, factor)
  rows, columns = (jnp.arange(a) * side // a for a, side in ((u, h), (v, w)))
  tiles = small[:, rows][:, :, columns].reshape(factor, factor, m // factor**2, u, v, c)
  grid = tiles.transpose(2, 0, 3, 1, 4, 5).reshape(-1, factor * u, factor * v, c)
  return grid[:, :h, :w]


def _tile(h: int, w: int, factor: int) -> tuple[int, int]:
  return -(-h // factor), -(-w // factor)
