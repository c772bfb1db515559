"""ResNet-18, -34 and -50 with batch normalisation, as torchvision defines them.

The CIFAR stem (a 3x3 convolution, no max-pool) is the network that SRe2L, CDA and RDED use at 32
and 64 pixels, the ImageNet stem torchvision's own. Bottlenecks stride in their 3x3 convolution.
Initialisation: convolutions kaiming-normal in fan-out mode, except that the CIFAR stem keeps
PyTorch's default (in those code bases it replaces the original after initialisation); linear layer
PyTorch's default; batch norm one and zero, in the last layer of a branch too.
"""

from collections.abc import Sequence
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from ltdd_jax.models import layers
from ltdd_jax.types import LtddError

STEMS = ("cifar", "imagenet")


def _conv(width: int, kernel: int, stride: int, name: str) -> nn.Conv:
  return nn.Conv(
    width,
    (kernel, kernel),
    strides=stride,
    padding=kernel // 2,
    use_bias=False,
    kernel_init=nn.initializers.variance_scaling(2.0, "fan_out", "normal"),
    name=name,
  )


class BasicBlock(nn.Module):
  """Two 3x3 convolutions and a shortcut."""

  width: int
  stride: int
  expansion = 1

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    norm = partial(layers.make_norm, "batch", train)
    y = nn.relu(norm("norm1")(_conv(self.width, 3, self.stride, "conv1")(x)))
    y = norm("norm2")(_conv(self.width, 3, 1, "conv2")(y))
    return nn.relu(y + _shortcut(x, y.shape[-1], self.stride, norm))


class Bottleneck(nn.Module):
  """1x1, 3x3 and 1x1 convolutions, four times as wide at the end, and a shortcut."""

  width: int
  stride: int
  expansion = 4

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    norm = partial(layers.make_norm, "batch", train)
    y = nn.relu(norm("norm1")(_conv(self.width, 1, 1, "conv1")(x)))
    y = nn.relu(norm("norm2")(_conv(self.width, 3, self.stride, "conv2")(y)))
    y = norm("norm3")(_conv(self.width * self.expansion, 1, 1, "conv3")(y))
    return nn.relu(y + _shortcut(x, y.shape[-1], self.stride, norm))


def _shortcut(x, width: int, stride: int, norm):
  """Projects the input where its shape changes; called inside a block."""
  if stride == 1 and x.shape[-1] == width:
    return x
  return norm("shortcut_norm")(_conv(width, 1, stride, "shortcut_conv")(x))


class ResNet(nn.Module):
  """See `resnet18`, `resnet34`, `resnet50`."""

  num_classes: int
  block: type[nn.Module]
  depths: tuple[int, ...]
  stem: str = "cifar"
  width: int = 64

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    """Maps images (b, h, w, c) to logits (b, k), float32."""
    x = self._stem(x, train)
    for i, depth in enumerate(self.depths):
      for j in range(depth):
        stride = 2 if i > 0 and j == 0 else 1
        x = self.block(self.width * 2**i, stride, name=f"stage{i}_block{j}")(x, train=train)
    x = x.mean((1, 2))
    x = nn.Dense(
      self.num_classes,
      kernel_init=layers.torch_kernel_init,
      bias_init=layers.torch_bias_init(x.shape[-1]),
      name="classifier",
    )(x)
    return x.astype(jnp.float32)

  def _stem(self, x: jax.Array, train: bool) -> jax.Array:
    if self.stem == "cifar":
      init = layers.torch_kernel_init
      conv = nn.Conv(self.width, (3, 3), padding=1, use_bias=False, kernel_init=init, name="conv")
    else:
      conv = _conv(self.width, 7, 2, "conv")
    x = nn.relu(layers.make_norm("batch", train, "norm")(conv(x)))
    if self.stem == "imagenet":
      x = nn.max_pool(x, (3, 3), (2, 2), padding=((1, 1), (1, 1)))
    return x


def _resnet(block, depths, num_classes: int, image_shape: Sequence[int], stem: str, width: int):
  del image_shape  # every size will do: the last map is averaged
  if stem not in STEMS:
    raise LtddError(f"resnet: stem={stem!r}; expected one of {', '.join(STEMS)}.")
  if width < 1:
    raise LtddError(f"resnet: width={width}; expected 1 or more.")
  return ResNet(num_classes, block, depths, stem, width)


def resnet18(
  *, num_classes: int, image_shape: Sequence[int], stem: str = "cifar", width: int = 64
) -> ResNet:
  """Makes a ResNet-18; `stem` is "cifar" or "imagenet", `width` the channels of the first stage."""
  return _resnet(BasicBlock, (2, 2, 2, 2), num_classes, image_shape, stem, width)


def resnet34(
  *, num_classes: int, image_shape: Sequence[int], stem: str = "cifar", width: int = 64
) -> ResNet:
  """Makes a ResNet-34; arguments as for `resnet18`."""
  return _resnet(BasicBlock, (3, 4, 6, 3), num_classes, image_shape, stem, width)


def resnet50(
  *, num_classes: int, image_shape: Sequence[int], stem: str = "cifar", width: int = 64
) -> ResNet:
  """Makes a ResNet-50; arguments as for `resnet18`."""
  return _resnet(Bottleneck, (3, 4, 6, 3), num_classes, image_shape, stem, width)
