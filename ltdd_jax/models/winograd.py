"""3x3 convolutions by Winograd's products F(4x4, 3x3), for CPUs.

An output tile of 4x4 pixels takes an input tile of 6x6 (Lavin and Gray, CVPR 2016):

    Y = A^T [(G g G^T) * (B^T d B)] A

Summed over channels, the products in the middle are 36 matrix products, with a quarter of the
multiplications of the convolution. The transforms on both sides are small products too, but cost
memory traffic; so the work is a loop over a few images at a time, whose tiles stay in a core's
cache. In float32 errors are about 1e-5 of the largest value.
"""

import jax
import jax.numpy as jnp
import numpy as np

from ltdd_jax.models.chunks import chunk_map, chunk_sum

_BYTES = 2**20  # of the tiles of one chunk


def _square(matrix: list[list[float]]) -> np.ndarray:
  """The Kronecker product of a matrix with itself: a tile from both sides as one product."""
  return np.kron(matrix, matrix).astype(np.float32)


_IMAGE = _square([  # B^T
  [4, 0, -5, 0, 1, 0], [0, -4, -4, 1, 1, 0], [0, 4, -4, -1, 1, 0],
  [0, -2, -1, 2, 1, 0], [0, 2, -1, -2, 1, 0], [0, 4, 0, -5, 0, 1],
])  # fmt: skip
_KERNEL = _square([  # G
  [1 / 4, 0, 0], [-1 / 6, -1 / 6, -1 / 6], [-1 / 6, 1 / 6, -1 / 6],
  [1 / 24, 1 / 12, 1 / 6], [1 / 24, -1 / 12, 1 / 6], [0, 0, 1],
])  # fmt: skip
_OUTPUT = _square(
  [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]]
)


def forward(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """Convolves images with a 3x3 kernel, with strides of 1 and a padding of 1.

  Args:
    x: (b, h, w, c).
    kernel: (3, 3, c, d).

  Returns:
    (b, h, w, d).
  """
  h, w = x.shape[1:3]
  u = _product(_KERNEL, kernel.reshape(9, *kernel.shape[2:]))

  def step(x: jax.Array) -> jax.Array:
    y = jnp.einsum("tpnc,tcd->tpnd", _image_tiles(x), u)
    return _output_pixels(y, x.shape)[:, :, :h, :w]

  return chunk_map(step, x, _size(h, w, max(u.shape[1:])))


def kernel_gradient(x: jax.Array, dy: jax.Array) -> jax.Array:
  """The gradient (3, 3, c, d) by the kernel, from that by the result, (b, h, w, d)."""
  (_, h, w, c), d = x.shape, dy.shape[-1]
  step = lambda x, dy: jnp.einsum("tpnc,tpnd->ptcd", _image_tiles(x), _gradient_tiles(dy))
  du = chunk_sum(step, x, dy, _size(h, w, max(c, d)))
  return _product(_KERNEL.T, du).reshape(3, 3, c, d)


def image_gradient(dy: jax.Array, kernel: jax.Array) -> jax.Array:
  """The gradient (b, h, w, c) by the images: a convolution with the kernel turned round."""
  return forward(dy, kernel[::-1, ::-1].swapaxes(2, 3))


def _size(h: int, w: int, channels: int) -> int:
  """Images of a chunk."""
  tiles = -(-h // 4) * -(-w // 4)
  return max(1, _BYTES // (4 * 36 * tiles * channels))


# ---- transforms of images (p, n, h, w, c) and tiles (36, p, tiles, c) ----


def _image_tiles(x: jax.Array) -> jax.Array:
  """B^T d B of all tiles, which overlap by two pixels."""
  p, _, h, w, c = x.shape
  x = jnp.pad(x, ((0, 0), (0, 0), (1, _past(h)), (1, _past(w)), (0, 0)))
  x = _cells(x)
  x = jnp.concatenate([x[:, :, :, :, :-1], x[:2, :, :, :, 1:]], 0)
  x = jnp.concatenate([x[:, :, :, :, :, :-1], x[:, :2, :, :, :, 1:]], 1)
  return _product(_IMAGE, x.reshape(36, p, -1, c))


def _gradient_tiles(dy: jax.Array) -> jax.Array:
  """A dy A^T of all tiles."""
  p, _, h, w, d = dy.shape
  dy = jnp.pad(dy, ((0, 0), (0, 0), (0, -h % 4), (0, -w % 4), (0, 0)))
  return _product(_OUTPUT.T, _cells(dy).reshape(16, p, -1, d))


def _output_pixels(y: jax.Array, shape: tuple[int, ...]) -> jax.Array:
  """A^T M A of all tiles as images (p, n, 4 * rows, 4 * columns, d), of images of that shape."""
  p, n, h, w, _ = shape
  rows, columns = -(-h // 4), -(-w // 4)
  y = _product(_OUTPUT, y).reshape(4, 4, p, n, rows, columns, -1)
  return y.transpose(2, 3, 4, 0, 5, 1, 6).reshape(p, n, 4 * rows, 4 * columns, -1)


def _past(side: int) -> int:
  """Zeros after the last pixel: to the end of its tile, one of padding, and to another tile's."""
  return (-(-side // 4) + 1) * 4 - side - 1


def _cells(x: jax.Array) -> jax.Array:
  """Images as (4, 4, p, n, rows, columns, c): the pixels of each place within blocks of 4x4."""
  p, n, h, w, c = x.shape
  return x.reshape(p, n, h // 4, 4, w // 4, 4, c).transpose(3, 5, 0, 1, 2, 4, 6)


def _product(matrix: np.ndarray, x: jax.Array) -> jax.Array:
  """A matrix times the first axis."""
  y = jnp.matmul(matrix.astype(x.dtype), x.reshape(len(x), -1), precision="highest")
  return y.reshape(len(matrix), *x.shape[1:])
