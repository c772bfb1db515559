"""A convolution in the form that a backend is fast at; all forms compute the same.

XLA's CPU compiler makes slow loops of depth-wise convolutions, more of 1x1 ones than of a matrix
product, and of 3x3 ones and their gradients a half to a quarter of what the cores can do. Here they
are sums of shifted images, products, and Winograd's products (docs/results/performance.md).
Accelerators keep the convolution.
"""

import contextlib
import contextvars
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ltdd_jax.models import winograd
from ltdd_jax.models.bilinear import Form, bilinear
from ltdd_jax.models.chunks import chunk_sum

_LEAST = 1e8  # multiplications; smaller convolutions are not worth the time of compilation
_PIXELS = 512  # of all images; with fewer, transforms of kernels cost more than is saved
_COLUMNS = 2**20  # bytes of the columns of a chunk

_LOOPED = contextvars.ContextVar("looped", default=False)


@contextlib.contextmanager
def looped() -> Iterator[None]:
  """Makes all that is traced in it fit for training inside a loop (`lax.scan`, `lax.fori_loop`).

  XLA's CPU compiler makes slow code of the gradients of convolutions there: in this context that by
  a kernel is always a product, and that by images the convolution with the turned kernel. Nothing
  changes on accelerators.
  """
  token = _LOOPED.set(True)
  try:
    yield
  finally:
    _LOOPED.reset(token)


def convolve(
  x: jax.Array,
  kernel: jax.Array,
  window_strides: Sequence[int],
  padding: Any,
  *,
  feature_group_count: int = 1,
  **kwargs: Any,
) -> jax.Array:
  """`jax.lax.conv_general_dilated` for layers, as `flax.linen.Conv.conv_general_dilated`.

  Args:
    x: (b, h, w, c).
    kernel: (u, v, c / groups, d).
    window_strides: two numbers.
    padding: pairs of numbers for h and w, or a name.
    feature_group_count: groups; as many as channels is depth-wise.
    **kwargs: of `jax.lax.conv_general_dilated`.
  """

  def whole(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return jax.lax.conv_general_dilated(
      x, kernel, window_strides, padding, feature_group_count=feature_group_count, **kwargs
    )

  undilated = all(set(kwargs.get(f"{side}_dilation") or (1,)) == {1} for side in ("lhs", "rhs"))
  mapped = any(jax.typeof(y).manual_axis_type.varying for y in (x, kernel))
  if not undilated or isinstance(padding, str) or mapped:  # by `jax.shard_map`, which checks types
    return whole(x, kernel)
  ways = {"strides": tuple(window_strides), "padding": tuple(map(tuple, padding))}
  form = _cpu_form(x, kernel, whole, feature_group_count, **ways)
  return jax.lax.platform_dependent(x, kernel, cpu=form, default=whole)


def _cpu_form(
  x: jax.Array, kernel: jax.Array, whole: Form, groups: int, *, strides: Any, padding: Any
) -> Form:
  """The form for arrays of these shapes; `whole` is the convolution as it is."""
  (b, h, w, c), (u, v, _, d) = x.shape, kernel.shape
  if groups == c == d and c > 1:
    return functools.partial(_depthwise, strides=strides, padding=padding)
  if groups == 1 and (u, v) == (1, 1):
    return functools.partial(_pointwise, strides=strides, padding=padding)
  work = b * h * w * u * v * c * d // (strides[0] * strides[1])
  images = jax.ShapeDtypeStruct(x.shape, x.dtype)
  if _LOOPED.get():
    back: Form = functools.partial(_turned, shape=x.shape, strides=strides, padding=padding)
  else:
    back = lambda dy, kernel: jax.linear_transpose(lambda x: whole(x, kernel), images)(dy)[0]
  columns = bilinear(
    whole,
    back,
    functools.partial(_by_columns, shape=kernel.shape, strides=strides, padding=padding),
  )
  otherwise = columns if _LOOPED.get() and groups == 1 else whole
  if groups > 1 or work < _LEAST or c < 16 or x.dtype != jnp.float32:
    return otherwise
  if (u, v) == (3, 3) and strides == (1, 1) and padding == ((1, 1), (1, 1)):
    if min(h, w) < 4 or b * h * w < _PIXELS:
      return otherwise
    return bilinear(winograd.forward, winograd.image_gradient, winograd.kernel_gradient)
  return columns


def _padded(x: jax.Array, padding: tuple[tuple[int, int], ...]) -> jax.Array:
  return jnp.pad(x, ((0, 0), *padding, (0, 0))) if any(map(any, padding)) else x


def _depthwise(x: jax.Array, kernel: jax.Array, *, strides: Any, padding: Any) -> jax.Array:
  """The sum over the cells of the kernel of the shifted image times the cell's weights."""
  x = _padded(x, padding)
  (u, v), (rows, columns) = kernel.shape[:2], strides
  h, w = ((n - k) // s for n, k, s in zip(x.shape[1:3], (u, v), strides, strict=True))
  out: Any = 0.0
  for i in range(u):
    for j in range(v):
      shifted = x[:, i : i + h * rows + 1 : rows, j : j + w * columns + 1 : columns]
      out = out + shifted * kernel[None, i : i + 1, j : j + 1, 0]
  return out


def _pointwise(x: jax.Array, kernel: jax.Array, *, strides: Any, padding: Any) -> jax.Array:
  """The product of each pixel's channels with a matrix."""
  x = _padded(x, padding)[:, :: strides[0], :: strides[1]]
  return jnp.matmul(x, kernel[0, 0])


def _turned(
  dy: jax.Array, kernel: jax.Array, *, shape: Sequence[int], strides: Any, padding: Any
) -> jax.Array:
  """The gradient by images of that shape: a convolution of `dy` with the kernel turned round."""
  ends = []
  for size, n, k, s, (before, _) in zip(
    shape[1:3], dy.shape[1:3], kernel.shape[:2], strides, padding, strict=True
  ):
    first = k - 1 - before
    ends.append((first, size + k - 2 - s * (n - 1) - first))
  turned = jnp.flip(kernel, (0, 1)).swapaxes(2, 3)
  return jax.lax.conv_general_dilated(
    dy, turned, (1, 1), ends, lhs_dilation=strides, dimension_numbers=("NHWC", "HWIO", "NHWC")
  )


def _by_columns(
  x: jax.Array, dy: jax.Array, *, shape: Sequence[int], strides: Any, padding: Any
) -> jax.Array:
  """The gradient by a kernel of that shape: a product of the images under its cells with `dy`."""
  (u, v, c, _), (rows, columns) = shape, strides
  sums = jnp.promote_types(x.dtype, jnp.float32)

  def step(x: jax.Array, dy: jax.Array) -> jax.Array:
    x = jnp.pad(x, ((0, 0), (0, 0), *padding, (0, 0)))
    h, w = rows * (dy.shape[2] - 1) + 1, columns * (dy.shape[3] - 1) + 1
    cells = [x[:, :, i : i + h : rows, j : j + w : columns] for i in range(u) for j in range(v)]
    return jnp.einsum(
      "pnhwc,pnhwd->pcd", jnp.concatenate(cells, -1), dy, preferred_element_type=sums
    )

  size = max(1, _COLUMNS // (4 * u * v * c * dy.shape[1] * dy.shape[2]))
  return chunk_sum(step, x, dy, size).reshape(shape).astype(x.dtype)
