"""A convolution in the form that a backend is fast at; all forms compute the same.

XLA's CPU compiler makes slow loops of depth-wise convolutions, and more of 1x1 ones than of a
matrix product. Put as sums of shifted images and as a product, MobileNetV2 and ShuffleNetV2 take a
tenth of the time, gradients included (docs/results/performance.md). Accelerators keep the
convolution.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp


def convolve(
  x: jax.Array,
  kernel: jax.Array,
  window_strides: Sequence[int],
  padding: Any,
  *,
  feature_group_count: int = 1,
  **kwargs: Any,
) -> jax.Array:
  """`jax.lax.conv_general_dilated` of x (b, h, w, c) and a kernel (u, v, c / groups, d).

  For layers, as `flax.linen.Conv.conv_general_dilated`.
  """

  def whole(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return jax.lax.conv_general_dilated(
      x, kernel, window_strides, padding, feature_group_count=feature_group_count, **kwargs
    )

  form = _cpu_form(x, kernel, feature_group_count)
  undilated = all(set(kwargs.get(f"{side}_dilation") or (1,)) == {1} for side in ("lhs", "rhs"))
  if form is None or not undilated or isinstance(padding, str):
    return whole(x, kernel)
  strides = tuple(window_strides)
  cpu = functools.partial(form, strides=strides, padding=tuple(map(tuple, padding)))
  return jax.lax.platform_dependent(x, kernel, cpu=cpu, default=whole)


def _cpu_form(x: jax.Array, kernel: jax.Array, groups: int) -> Callable[..., jax.Array] | None:
  channels, width = x.shape[-1], kernel.shape[-1]
  if groups == channels == width and channels > 1:
    return _depthwise
  return _pointwise if groups == 1 and kernel.shape[:2] == (1, 1) else None


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
