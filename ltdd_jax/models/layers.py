"""What the networks share: initialisation, convolutions, norms by name, pooling, the classifier.

Functions that take `x` make their layers inside the module that calls them. Convolutions pad by
half their kernel on both sides, as PyTorch does; "SAME" would pad otherwise where the stride is 2.
All layers compute in the dtype of their input, whatever that of their parameters; the statistics of
norms are float32 (`models.computing_in`).
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ltdd_jax.models.convolution import convolve

torch_kernel_init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
"""U(-1/sqrt(fan_in), 1/sqrt(fan_in)), which PyTorch gives convolutions and linear layers."""

kaiming_init = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
"""N(0, 2 / (kernel^2 c_out)), He's in fan-out mode; depth-wise kernels count all channels too."""

BN_MOMENTUM = 0.9  # the default of `bn_momentum`, in Flax's terms: 0.1 in PyTorch's
NORMS = ("instance", "batch", "none")
LAYOUTS = ("cifar", "imagenet")


def torch_bias_init(fan_in: int) -> Callable[..., jax.Array]:
  """Makes PyTorch's default initialiser of a bias: uniform within +-1/sqrt(fan_in) of the layer."""
  bound = fan_in**-0.5
  return lambda key, shape, dtype: jax.random.uniform(key, shape, dtype, -bound, bound)


def _as_input(
  *args: jax.Array | None, dtype: Any = None, inexact: bool = True
) -> list[jax.Array | None]:
  """Gives the input and the parameters of a layer the dtype of the input."""
  del dtype, inexact
  dtype = jnp.result_type(args[0])
  return [x if x is None else x.astype(dtype) for x in args]


Conv = functools.partial(nn.Conv, promote_dtype=_as_input)
Dense = functools.partial(nn.Dense, promote_dtype=_as_input)


class InstanceNorm(nn.Module):
  """Normalises each channel of each image over h and w, with a scale and a bias.

  `nn.GroupNorm(num_groups=None, group_size=1)` with a variance taken in two passes: faster on CPU.
  """

  epsilon: float = 1e-5

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
    bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],))
    dtype, x = x.dtype, x.astype(jnp.float32)
    shape = (1, 1, 1, x.shape[-1])
    held = jax.lax.optimization_barrier  # else CPUs compute what follows once for each pixel
    centred = x - x.mean((1, 2), keepdims=True)
    var = held(jnp.square(centred).mean((1, 2), keepdims=True))
    scaled, bias = held((jax.lax.rsqrt(var + self.epsilon) * scale.reshape(shape), bias))
    return (centred * scaled + bias.reshape(shape)).astype(dtype)


def make_norm(
  kind: str, train: bool, bn_momentum: float, name: str
) -> Callable[[jax.Array], jax.Array]:
  """Makes a normalisation layer; `kind` is one of `NORMS`.

  Batch normalisation: epsilon 1e-5; running = momentum running + (1 - momentum) batch. Its running
  variance is the biased one (PyTorch keeps the unbiased one).
  """
  if kind == "batch":
    norm = functools.partial(nn.BatchNorm, not train, momentum=bn_momentum, epsilon=1e-5, name=name)
    return lambda x: norm(dtype=x.dtype)(x)
  return InstanceNorm(name=name) if kind == "instance" else lambda x: x


def conv(
  width: int,
  kernel: int,
  stride: int = 1,
  *,
  name: str,
  groups: int = 1,
  init: Callable[..., jax.Array] = kaiming_init,
) -> nn.Conv:
  """Makes a convolution without a bias; `groups` as many as channels makes it depth-wise."""
  return Conv(
    width,
    (kernel, kernel),
    strides=stride,
    padding=kernel // 2,
    feature_group_count=groups,
    use_bias=False,
    kernel_init=init,
    conv_general_dilated=convolve,
    name=name,
  )


def conv_norm(
  x: jax.Array,
  width: int,
  kernel: int,
  stride: int = 1,
  *,
  name: str,
  train: bool,
  bn_momentum: float,
  act: Callable[[jax.Array], jax.Array] | None = None,
  **kwargs: Any,
) -> jax.Array:
  """Applies `{name}_conv`, the batch norm `{name}_norm` and an activation, if any."""
  x = conv(width, kernel, stride, name=f"{name}_conv", **kwargs)(x)
  x = make_norm("batch", train, bn_momentum, f"{name}_norm")(x)
  return x if act is None else act(x)


def torch_conv(
  x: jax.Array, width: int, kernel: int, stride: int = 1, *, padding: int, name: str
) -> jax.Array:
  """Applies a convolution as PyTorch makes one by default: with a bias, both uniform."""
  return Conv(
    width,
    (kernel, kernel),
    strides=stride,
    padding=padding,
    kernel_init=torch_kernel_init,
    bias_init=torch_bias_init(kernel**2 * x.shape[-1]),
    conv_general_dilated=convolve,
    name=name,
  )(x)


def torch_dense(x: jax.Array, width: int, *, name: str) -> jax.Array:
  """Applies a linear layer with PyTorch's default initialisation."""
  return Dense(
    width, kernel_init=torch_kernel_init, bias_init=torch_bias_init(x.shape[-1]), name=name
  )(x)


def normal_dense(x: jax.Array, width: int, *, name: str) -> jax.Array:
  """Applies a linear layer with weights from N(0, 0.01^2) and a bias of zero."""
  return Dense(width, kernel_init=nn.initializers.normal(0.01), name=name)(x)


def adaptive_avg_pool(x: jax.Array, side: int) -> jax.Array:
  """Averages (b, h, w, c) to (b, side, side, c): cell i is rows floor(ih/s) to ceil((i+1)h/s) - 1.

  PyTorch's AdaptiveAvgPool2d.
  """
  if x.shape[1:3] == (side, side):
    return x
  rows, columns = (jnp.asarray(_pooling(n, side)) for n in x.shape[1:3])
  return jnp.einsum("bhwc,ih,jw->bijc", x, rows, columns, precision="highest")


def _pooling(n: int, cells: int) -> np.ndarray:
  """The weights (cells, n) of averages over `cells` windows of n entries."""
  weights = np.zeros((cells, n), np.float32)
  for i in range(cells):
    first, last = i * n // cells, -(-(i + 1) * n // cells)
    weights[i, first:last] = 1 / (last - first)
  return weights


def divisible(width: float, by: int = 8) -> int:
  """Rounds a scaled width to a multiple of 8, but not by more than a tenth downwards (torchvision).

  `divisible(12)` is 16 and `divisible(17.0)` is 16.
  """
  rounded = max(by, int(width + by / 2) // by * by)
  return rounded + by if rounded < 0.9 * width else rounded
