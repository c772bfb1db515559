"""ResNet-18, -34, -50 and -101 as torchvision defines them, and the narrow ResNet-32 of CIFAR.

The CIFAR stem (a 3x3 convolution, no max-pool) is the network that SRe2L, CDA and RDED use at 32
and 64 pixels, the ImageNet stem torchvision's own. Bottlenecks stride in their 3x3 convolution.
Batch norm starts as one and zero, in the last layer of a branch too; the linear layer has PyTorch's
default. The convolutions of the code bases differ in their initialisation, `init`:

* "torchvision": kaiming-normal in fan-out mode, except that the CIFAR stem keeps PyTorch's default
  (it replaces the original after initialisation): SRe2L, CDA, RDED;
* "kaiming": kaiming-normal everywhere: the ResNet-18 of G-VBSM and EDC;
* "default": PyTorch's default everywhere: with `norm="instance"` the ResNet-18 of DC, DM and MTT,
  and the student that G-VBSM calls ResNet18 on CIFAR-100.

ResNet-32 (He et al., CVPR 2016, section 4.2) has three stages of 16, 32 and 64 channels and
shortcuts without parameters: RLDD's observer on CIFAR-100. Its weights start as "kaiming" says;
long-tailed code bases take the fan-in, for the linear layer too.
"""

from collections.abc import Callable, Sequence
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from ltdd_jax.core.registry import check_at_least, check_choice
from ltdd_jax.models import layers

INITS = ("torchvision", "kaiming", "default")


class _Block(nn.Module):
  """What both kinds of blocks are made with."""

  width: int
  stride: int
  norm: str = "batch"
  init_name: str = "torchvision"
  bn_momentum: float = layers.BN_MOMENTUM

  def conv(self, width: int, kernel: int, stride: int, name: str) -> nn.Conv:
    init = layers.torch_kernel_init if self.init_name == "default" else layers.kaiming_init
    return layers.conv(width, kernel, stride, name=name, init=init)

  def shortcut(self, x: jax.Array, width: int, norm) -> jax.Array:
    """Projects the input where its shape changes."""
    if self.stride == 1 and x.shape[-1] == width:
      return x
    return norm("shortcut_norm")(self.conv(width, 1, self.stride, "shortcut_conv")(x))


class BasicBlock(_Block):
  """Two 3x3 convolutions and a shortcut."""

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    norm = partial(layers.make_norm, self.norm, train, self.bn_momentum)
    y = nn.relu(norm("norm1")(self.conv(self.width, 3, self.stride, "conv1")(x)))
    y = norm("norm2")(self.conv(self.width, 3, 1, "conv2")(y))
    return nn.relu(y + self.shortcut(x, self.width, norm))


class PaddedBlock(BasicBlock):
  """A block whose shortcut takes every other pixel and has zeros for the new channels."""

  def shortcut(self, x: jax.Array, width: int, norm) -> jax.Array:
    x = x[:, :: self.stride, :: self.stride]
    new = width - x.shape[-1]
    return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (new // 2, new - new // 2)))


class Bottleneck(_Block):
  """1x1, 3x3 and 1x1 convolutions, four times as wide at the end, and a shortcut."""

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    norm = partial(layers.make_norm, self.norm, train, self.bn_momentum)
    y = nn.relu(norm("norm1")(self.conv(self.width, 1, 1, "conv1")(x)))
    y = nn.relu(norm("norm2")(self.conv(self.width, 3, self.stride, "conv2")(y)))
    y = norm("norm3")(self.conv(4 * self.width, 1, 1, "conv3")(y))
    return nn.relu(y + self.shortcut(x, 4 * self.width, norm))


class ResNet(nn.Module):
  """See `resnet18`, `resnet32`, `resnet34`, `resnet50`."""

  num_classes: int
  block: type[_Block]
  depths: tuple[int, ...]
  stem: str
  width: int
  norm: str
  init_name: str
  bn_momentum: float

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    """Maps images (b, h, w, c) to logits (b, k), float32."""
    x = self._stem(x, train)
    for i, depth in enumerate(self.depths):
      for j in range(depth):
        stride = 2 if i > 0 and j == 0 else 1
        name = f"stage{i}_block{j}"
        kinds = (self.norm, self.init_name, self.bn_momentum)
        x = self.block(self.width * 2**i, stride, *kinds, name=name)(x, train=train)
    x = layers.torch_dense(x.mean((1, 2)), self.num_classes, name="classifier")
    return x.astype(jnp.float32)

  def _stem(self, x: jax.Array, train: bool) -> jax.Array:
    small = self.stem == "cifar"
    plain = self.init_name == "default" or (small and self.init_name == "torchvision")
    init = layers.torch_kernel_init if plain else layers.kaiming_init
    kernel, stride = (3, 1) if small else (7, 2)
    x = layers.conv(self.width, kernel, stride, name="conv", init=init)(x)
    x = nn.relu(layers.make_norm(self.norm, train, self.bn_momentum, "norm")(x))
    return x if small else nn.max_pool(x, (3, 3), (2, 2), padding=((1, 1), (1, 1)))


def _factory(
  name: str,
  block: type[_Block],
  depths: tuple[int, ...],
  first_width: int = 64,
  first_init: str = "torchvision",
) -> Callable[..., ResNet]:
  def resnet(
    *,
    num_classes: int,
    image_shape: Sequence[int],
    stem: str = "cifar",
    width: int = first_width,
    norm: str = "batch",
    init: str = first_init,
    bn_momentum: float = layers.BN_MOMENTUM,
  ) -> ResNet:
    """Makes the ResNet of that name.

    Args:
      stem: "cifar" or "imagenet".
      width: channels of the first stage.
      norm: "batch", "instance" or "none".
      init: "torchvision", "kaiming" or "default", see the module.
    """
    del image_shape
    check_choice(f"{name}: stem", stem, layers.LAYOUTS)
    check_choice(f"{name}: norm", norm, layers.NORMS)
    check_choice(f"{name}: init", init, INITS)
    check_at_least(f"{name}: ", 1, width=width)
    return ResNet(num_classes, block, depths, stem, width, norm, init, bn_momentum)

  return resnet


resnet18 = _factory("resnet18", BasicBlock, (2, 2, 2, 2))
resnet32 = _factory("resnet32", PaddedBlock, (5, 5, 5), 16, "kaiming")
resnet34 = _factory("resnet34", BasicBlock, (3, 4, 6, 3))
resnet50 = _factory("resnet50", Bottleneck, (3, 4, 6, 3))
resnet101 = _factory("resnet101", Bottleneck, (3, 4, 23, 3))
