"""MobileNetV2 and EfficientNet-B0: networks of inverted residuals with depth-wise convolutions.

MobileNetV2 has two layouts:

* "cifar" at width 0.5 (the default) is a teacher of G-VBSM and EDC at 32 and 64 pixels: widths
  are rounded down, the first block has a 1x1 convolution although it expands by one, the second
  stage does not stride, and activations are ReLU: 53 convolutions, 53 batch norms;
* "imagenet" at width 1 is torchvision's `mobilenet_v2`: widths are rounded to multiples of 8, the
  first block has no 1x1 expansion, activations are ReLU6: 52 and 52.

EfficientNet-B0, a teacher of G-VBSM and EDC on ImageNet, is torchvision's: with
squeeze-and-excitation and SiLU, 81 convolutions, of which 32 are the 1x1 ones (with a bias) of the
excitations, and 49 batch norms.

All have a stem of stride 2, and convolutions that start from N(0, 2/(k^2 c_out)). The linear layer
starts from N(0, 0.01^2) in MobileNetV2, within 1/sqrt(k) in EfficientNet. In what we differ: no
stochastic depth (torchvision: up to 0.2) and no drop-out before the classifier (0.2).
"""

from collections.abc import Callable, Sequence
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from ltdd_jax.core.registry import check_choice
from ltdd_jax.core.types import LtddError
from ltdd_jax.models import layers

STEM = 32
# Of each stage: expansion, width, blocks, stride of the first block in the two layouts.
MOBILENET = (
  (1, 16, 1, (1, 1)),
  (6, 24, 2, (1, 2)),
  (6, 32, 3, (2, 2)),
  (6, 64, 4, (2, 2)),
  (6, 96, 3, (1, 1)),
  (6, 160, 3, (2, 2)),
  (6, 320, 1, (1, 1)),
)
MOBILENET_LAST = 1280
# Of each stage: expansion, kernel, stride of the first block, width, blocks.
EFFICIENTNET = (
  (1, 3, 1, 16, 1),
  (6, 3, 2, 24, 2),
  (6, 5, 2, 40, 2),
  (6, 3, 2, 80, 3),
  (6, 5, 1, 112, 3),
  (6, 5, 2, 192, 4),
  (6, 3, 1, 320, 1),
)


class SqueezeExcite(nn.Module):
  """Scales each channel by a number in (0, 1) that all of them determine."""

  reduced: int

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    conv = lambda width, name: layers.Conv(
      width, (1, 1), kernel_init=layers.kaiming_init, name=name
    )
    scale = x.mean((1, 2), keepdims=True)
    scale = nn.silu(conv(self.reduced, "reduce")(scale))
    return x * nn.sigmoid(conv(x.shape[-1], "expand")(scale))


class InvertedResidual(nn.Module):
  """1x1 expansion, depth-wise convolution, excitation, 1x1 linear projection, and a skip.

  The skip is there where the shape is kept, the expansion where it expands or is `always_there`.
  """

  width: int
  stride: int
  expand: int
  act: Callable[[jax.Array], jax.Array]
  kernel: int = 3
  excite: bool = False
  always_there: bool = False
  bn_momentum: float = layers.BN_MOMENTUM

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    hidden, y = x.shape[-1] * self.expand, x
    layer = partial(layers.conv_norm, train=train, bn_momentum=self.bn_momentum)
    if self.expand > 1 or self.always_there:
      y = layer(y, hidden, 1, name="expand", act=self.act)
    kernel, stride = self.kernel, self.stride
    y = layer(y, hidden, kernel, stride, groups=hidden, name="depthwise", act=self.act)
    if self.excite:
      y = SqueezeExcite(max(1, x.shape[-1] // 4), name="excite")(y)
    y = layer(y, self.width, 1, name="project")
    return x + y if self.stride == 1 and x.shape[-1] == self.width else y


class MobileNetV2(nn.Module):
  """See `mobilenet_v2`."""

  num_classes: int
  layout: str
  width: float
  bn_momentum: float

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    """Maps images (b, h, w, c) to logits (b, k), float32."""
    small, momentum = self.layout == "cifar", self.bn_momentum
    act = nn.relu if small else nn.relu6
    layer = partial(layers.conv_norm, train=train, bn_momentum=momentum, act=act)
    block = partial(InvertedResidual, act=act, always_there=small, bn_momentum=momentum)
    x = layer(x, self._scaled(STEM), 3, 2, name="stem")
    for i, (expand, width, blocks, strides) in enumerate(MOBILENET):
      for j in range(blocks):
        stride = strides[layers.LAYOUTS.index(self.layout)] if j == 0 else 1
        x = block(self._scaled(width), stride, expand, name=f"stage{i}_block{j}")(x, train=train)
    last = self._scaled(MOBILENET_LAST) if self.width > 1 else MOBILENET_LAST
    x = layer(x, last, 1, name="last")
    x = layers.normal_dense(x.mean((1, 2)), self.num_classes, name="classifier")
    return x.astype(jnp.float32)

  def _scaled(self, width: int) -> int:
    scaled = width * self.width
    return max(1, int(scaled)) if self.layout == "cifar" else layers.divisible(scaled)


class EfficientNet(nn.Module):
  """See `efficientnet_b0`."""

  num_classes: int
  width: float
  bn_momentum: float

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    """Maps images (b, h, w, c) to logits (b, k), float32."""
    scaled, momentum = lambda width: layers.divisible(width * self.width), self.bn_momentum
    layer = partial(layers.conv_norm, train=train, bn_momentum=momentum, act=nn.silu)
    block = partial(InvertedResidual, act=nn.silu, excite=True, bn_momentum=momentum)
    x = layer(x, scaled(STEM), 3, 2, name="stem")
    for i, (expand, kernel, first, width, blocks) in enumerate(EFFICIENTNET):
      for j in range(blocks):
        stride = first if j == 0 else 1
        x = block(scaled(width), stride, expand, kernel=kernel, name=f"stage{i}_block{j}")(
          x, train=train
        )
    x = layer(x, 4 * x.shape[-1], 1, name="last")
    init = nn.initializers.variance_scaling(1 / 3, "fan_out", "uniform")
    x = layers.Dense(self.num_classes, kernel_init=init, name="classifier")(x.mean((1, 2)))
    return x.astype(jnp.float32)


def efficientnet_b0(
  *,
  num_classes: int,
  image_shape: Sequence[int],
  width: float = 1.0,
  bn_momentum: float = layers.BN_MOMENTUM,
) -> EfficientNet:
  """Makes an EfficientNet-B0; images of every size will do, though maps shrink to a 32nd."""
  del image_shape
  _check_width("efficientnet_b0", width)
  return EfficientNet(num_classes, float(width), bn_momentum)


def _check_width(model: str, width: float) -> None:
  if width <= 0:
    raise LtddError(f"{model}: width={width}; expected a number above 0.")


def mobilenet_v2(
  *,
  num_classes: int,
  image_shape: Sequence[int],
  layout: str = "cifar",
  width: float = 0.5,
  bn_momentum: float = layers.BN_MOMENTUM,
) -> MobileNetV2:
  """Makes a MobileNetV2; torchvision's is `layout="imagenet", width=1.0`.

  Args:
    layout: "cifar" or "imagenet", see the module.
    width: multiplier of all widths but the last, which is 1280 or more.
  """
  del image_shape
  check_choice("mobilenet_v2: layout", layout, layers.LAYOUTS)
  _check_width("mobilenet_v2", width)
  return MobileNetV2(num_classes, layout, float(width), bn_momentum)
