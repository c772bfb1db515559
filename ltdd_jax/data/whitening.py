"""ZCA whitening: images whose pixels are uncorrelated over the training set, and back.

  arrays = fit(train_images, eps=0.1)                     # in float64, once: the `data` stage
  spec = spec._replace(std=Whitening(spec.std, lambda: arrays))
  x = augment.normalize(images, spec.mean, spec.std)      # whitened; `denormalize` inverts it

A `Whitening` stands in the place of the standard deviation of a data set, which it generalises: the
root of the covariance of all pixels, and not of one variance for each channel.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ltdd_jax.core.types import LtddError
from ltdd_jax.data import checks

MAX_VALUES = 4096  # of an image: 64 x 64 grey pixels, or 36 x 36 in colour
_CHUNK = 1000


class Arrays(NamedTuple):
  """What `fit` finds, float32; d = h w c."""

  mean: Any  # (h, w, c) image, of pixels in [0, 1]
  matrix: Any  # (d, d) T, symmetric
  inverse: Any  # (d, d) of T


def fit(images: np.ndarray, eps: float) -> Arrays:
  """Computes `T = U diag(s + eps)^(-1/2) U'` of the covariance `U diag(s) U'`, in float64.

  Pixels are in [0, 1] and not normalised; the covariance is that of n - 1. As kornia's
  `ZCAWhitening`, which MTT, TESLA, FTD and DATM use with eps = 0.1: eps is added to eigenvalues as
  it is. In which order the values of an image stand does not matter.

  Args:
    images: (n, h, w, c) uint8, the training images.
    eps: above 0.
  """
  n, d = len(images), int(np.prod(images.shape[1:]))
  chunks = range(0, n, _CHUNK)
  pixels = lambda i: images[i : i + _CHUNK].reshape(-1, d).astype(np.float64) / 255
  mean = sum((pixels(i).sum(0) for i in chunks), np.zeros(d)) / n
  covariance = np.zeros((d, d))
  for i in chunks:
    centred = pixels(i) - mean
    covariance += centred.T @ centred
  s, u = np.linalg.eigh(covariance / max(n - 1, 1))
  root = np.sqrt(np.maximum(s, 0) + eps)
  found = mean.reshape(images.shape[1:]), (u / root) @ u.T, (u * root) @ u.T
  return Arrays(*(x.astype(np.float32) for x in found))


def blank(image_shape: tuple[int, int, int]) -> Arrays:
  """Zeros in the place of what `fit` will find, without memory of their own."""
  d = int(np.prod(image_shape))
  zeros = lambda *shape: np.broadcast_to(np.float32(0), shape)
  return Arrays(zeros(*image_shape), zeros(d, d), zeros(d, d))


def check(eps: float, image_shape: tuple[int, int, int]) -> None:
  """Raises LtddError unless images of this shape can be whitened with eps."""
  if not (checks.is_number(eps) and eps > 0):
    raise LtddError(f"config.data.whiten is {eps!r}; expected a number > 0, such as 0.1, or None")
  d = int(np.prod(image_shape))
  if d > MAX_VALUES:
    raise LtddError(
      f"config.data.whiten is {eps:g} and images are {'x'.join(map(str, image_shape))}: a matrix "
      f"of {d:,} x {d:,} numbers ({4 * d * d / 1e9:.1f} GB) in each compiled program. Expected "
      f"images of at most {MAX_VALUES:,} values; set config.data.image_size=32, or whiten=None"
    )


@dataclasses.dataclass(frozen=True, eq=False)
class Whitening:
  """In the place of the `std` (c,) of a data set: see the module.

  Attributes:
    channels: (c,), the std itself.
    arrays: loads what `fit` found. A jitted function has them as constants.
  """

  channels: tuple[float, ...]
  arrays: Callable[[], Arrays]

  def whiten(self, pixels: Float[Array, "*n h w c"]) -> Float[Array, "*n h w c"]:
    """Returns `(pixels - mean) T` of pixels in [0, 1]."""
    mean, matrix, _ = self.arrays()
    flat = pixels.reshape(-1, matrix.shape[0]) - mean.reshape(1, -1)
    return _product(flat, matrix).reshape(pixels.shape)

  def unwhiten(self, images: Float[Array, "*n h w c"]) -> Float[Array, "*n h w c"]:
    """Returns pixels: `images T^-1 + mean`."""
    mean, _, inverse = self.arrays()
    flat = _product(images.reshape(-1, inverse.shape[0]), inverse) + mean.reshape(1, -1)
    return flat.reshape(images.shape)


def _product(rows: jax.Array, matrix: Any) -> jax.Array:
  """In full float32: accelerators would round the factors."""
  return jnp.matmul(rows, matrix, precision=jax.lax.Precision.HIGHEST)
