"""Wide residual networks, WRN-depth-widen: WRN-16-2 is a teacher of G-VBSM and EDC on CIFAR.

Pre-activation blocks of 3x3 convolutions; no dropout. Where the number of channels changes, the
activated input feeds both the branch and the 1x1 projection; elsewhere the raw input is the skip.
Convolutions start from N(0, 2/(k^2 c_out)), the linear layer from PyTorch's default with no bias.
"""

from collections.abc import Sequence
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from ltdd_jax.core.registry import check_at_least
from ltdd_jax.core.types import LtddError
from ltdd_jax.models import layers

STEM = 16


class PreActBlock(nn.Module):
  """Norm, ReLU, 3x3 convolution, twice, and a skip."""

  width: int
  stride: int
  bn_momentum: float = layers.BN_MOMENTUM

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    norm = partial(layers.make_norm, "batch", train, self.bn_momentum)
    active = nn.relu(norm("norm1")(x))
    y = layers.conv(self.width, 3, self.stride, name="conv1")(active)
    y = layers.conv(self.width, 3, name="conv2")(nn.relu(norm("norm2")(y)))
    if x.shape[-1] == self.width:
      return x + y
    return layers.conv(self.width, 1, self.stride, name="shortcut_conv")(active) + y


class WideResNet(nn.Module):
  """See `wide_resnet`."""

  num_classes: int
  blocks: int  # of each of the three groups
  width: int  # of the first group
  bn_momentum: float

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    """Maps images (b, h, w, c) to logits (b, k), float32."""
    x = layers.conv(STEM, 3, name="conv")(x)
    for i in range(3):
      for j in range(self.blocks):
        stride = 2 if i > 0 and j == 0 else 1
        name = f"stage{i}_block{j}"
        block = PreActBlock(self.width * 2**i, stride, self.bn_momentum, name=name)
        x = block(x, train=train)
    x = nn.relu(layers.make_norm("batch", train, self.bn_momentum, "norm")(x)).mean((1, 2))
    init = layers.torch_kernel_init
    x = layers.Dense(self.num_classes, kernel_init=init, name="classifier")(x)
    return x.astype(jnp.float32)


def wide_resnet(
  *,
  num_classes: int,
  image_shape: Sequence[int],
  depth: int = 16,
  widen: int = 2,
  bn_momentum: float = layers.BN_MOMENTUM,
) -> WideResNet:
  """Makes a WRN; the default is WRN-16-2.

  Args:
    depth: convolutions on the longest way and the linear layer, 6 n + 4 for n blocks a group.
    widen: the groups have 16, 32 and 64 times as many channels as this.
  """
  del image_shape
  check_at_least("wide_resnet: ", 1, widen=widen)
  if depth < 10 or (depth - 4) % 6:
    raise LtddError(f"wide_resnet: depth={depth}; expected 10, 16, 22, 28, ... (6 n + 4).")
  return WideResNet(num_classes, (depth - 4) // 6, 16 * widen, bn_momentum)
