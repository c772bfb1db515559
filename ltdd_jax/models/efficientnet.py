"""EfficientNet-B0 as torchvision defines it: a teacher of G-VBSM and EDC on ImageNet.

Inverted residuals with squeeze-and-excitation and SiLU: 81 convolutions, of which 32 are the 1x1
ones (with a bias) of the excitations, and 49 batch norms. Convolutions start from N(0, 2/(k^2
c_out)), the linear layer from a uniform distribution within 1/sqrt(k).

In what we differ: no stochastic depth (torchvision: up to 0.2) and no drop-out before the
classifier (0.2). Neither matters to a network in eval mode.
"""

from collections.abc import Sequence
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from ltdd_jax.models import layers

# Of each stage: expansion, kernel, stride of the first block, width, blocks.
STAGES = (
  (1, 3, 1, 16, 1),
  (6, 3, 2, 24, 2),
  (6, 5, 2, 40, 2),
  (6, 3, 2, 80, 3),
  (6, 5, 1, 112, 3),
  (6, 5, 2, 192, 4),
  (6, 3, 1, 320, 1),
)
STEM = 32


class SqueezeExcite(nn.Module):
  """Scales each channel by a number in (0, 1) that all of them determine."""

  reduced: int

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    conv = lambda width, name: nn.Conv(width, (1, 1), kernel_init=layers.kaiming_init, name=name)
    scale = x.mean((1, 2), keepdims=True)
    scale = nn.silu(conv(self.reduced, "reduce")(scale))
    return x * nn.sigmoid(conv(x.shape[-1], "expand")(scale))


class MBConv(nn.Module):
  """1x1 expansion, depth-wise convolution, excitation, 1x1 linear projection, and a skip."""

  width: int
  kernel: int
  stride: int
  expand: int
  bn_momentum: float = layers.BN_MOMENTUM

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    hidden, y = layers.divisible(x.shape[-1] * self.expand), x
    layer = partial(layers.conv_norm, train=train, bn_momentum=self.bn_momentum)
    if self.expand > 1:
      y = layer(y, hidden, 1, name="expand", act=nn.silu)
    kernel, stride = self.kernel, self.stride
    y = layer(y, hidden, kernel, stride, groups=hidden, name="depthwise", act=nn.silu)
    y = SqueezeExcite(max(1, x.shape[-1] // 4), name="excite")(y)
    y = layer(y, self.width, 1, name="project")
    return x + y if self.stride == 1 and x.shape[-1] == self.width else y


class EfficientNet(nn.Module):
  """See `efficientnet_b0`."""

  num_classes: int
  width: float = 1.0
  bn_momentum: float = layers.BN_MOMENTUM

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    """Maps images (b, h, w, c) to logits (b, k), float32."""
    scaled = lambda width: layers.divisible(width * self.width)
    layer = partial(layers.conv_norm, train=train, bn_momentum=self.bn_momentum, act=nn.silu)
    x = layer(x, scaled(STEM), 3, 2, name="stem")
    for i, (expand, kernel, stride, width, blocks) in enumerate(STAGES):
      for j in range(blocks):
        kinds = (kernel, stride if j == 0 else 1, expand, self.bn_momentum)
        x = MBConv(scaled(width), *kinds, name=f"stage{i}_block{j}")(x, train=train)
    x = layer(x, 4 * x.shape[-1], 1, name="last")
    init = nn.initializers.variance_scaling(1 / 3, "fan_out", "uniform")
    x = nn.Dense(self.num_classes, kernel_init=init, name="classifier")(x.mean((1, 2)))
    return x.astype(jnp.float32)


def efficientnet_b0(
  *,
  num_classes: int,
  image_shape: Sequence[int],
  width: float = 1.0,
  bn_momentum: float = layers.BN_MOMENTUM,
) -> EfficientNet:
  """Makes an EfficientNet-B0.

  Args:
    num_classes: k.
    image_shape: (h, w, c); every size will do, though the maps shrink to a 32nd.
    width: multiplier of all widths.
    bn_momentum: of the running statistics of batch norm, in Flax's terms.

  Raises:
    LtddError: an argument is out of range.
  """
  del image_shape
  layers.check_positive("efficientnet_b0", width=width)
  return EfficientNet(num_classes, float(width), bn_momentum)
