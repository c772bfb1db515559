"""MobileNetV2 in two layouts: the half-width one of CIFAR teachers, and torchvision's.

* "cifar" at width 0.5 (the default) is a teacher of G-VBSM and EDC at 32 and 64 pixels: widths
  are rounded down, the first block has a 1x1 convolution although it expands by one, the second
  stage does not stride, and activations are ReLU: 53 convolutions, 53 batch norms.
* "imagenet" at width 1 is torchvision's `mobilenet_v2`: widths are rounded to multiples of 8, the
  first block has no 1x1 expansion, activations are ReLU6: 52 and 52.

Both have a stem of stride 2. Convolutions start from N(0, 2/(k^2 c_out)), the linear layer from
N(0, 0.01^2). In what we differ: torchvision's drop-out (0.2) before the classifier is left out.
"""

from collections.abc import Callable, Sequence
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from ltdd_jax.core.registry import check_choice
from ltdd_jax.models import layers

LAYOUTS = ("cifar", "imagenet")
# Of each stage: expansion, width, blocks, stride of the first block in the two layouts.
STAGES = (
  (1, 16, 1, (1, 1)),
  (6, 24, 2, (1, 2)),
  (6, 32, 3, (2, 2)),
  (6, 64, 4, (2, 2)),
  (6, 96, 3, (1, 1)),
  (6, 160, 3, (2, 2)),
  (6, 320, 1, (1, 1)),
)
STEM, LAST = 32, 1280


class InvertedResidual(nn.Module):
  """1x1 expansion, 3x3 depth-wise, 1x1 linear projection; a skip where the shape is kept."""

  width: int
  stride: int
  expand: int
  layout: str = "cifar"
  bn_momentum: float = layers.BN_MOMENTUM

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    act, hidden, y = _activation(self.layout), x.shape[-1] * self.expand, x
    layer = partial(layers.conv_norm, train=train, bn_momentum=self.bn_momentum)
    if self.expand > 1 or self.layout == "cifar":
      y = layer(y, hidden, 1, name="expand", act=act)
    y = layer(y, hidden, 3, self.stride, groups=hidden, name="depthwise", act=act)
    y = layer(y, self.width, 1, name="project")
    return x + y if self.stride == 1 and x.shape[-1] == self.width else y


def _activation(layout: str) -> Callable[[jax.Array], jax.Array]:
  return nn.relu if layout == "cifar" else nn.relu6


class MobileNetV2(nn.Module):
  """See `mobilenet_v2`."""

  num_classes: int
  layout: str = "cifar"
  width: float = 0.5
  bn_momentum: float = layers.BN_MOMENTUM

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    """Maps images (b, h, w, c) to logits (b, k), float32."""
    act, variant = _activation(self.layout), LAYOUTS.index(self.layout)
    layer = partial(layers.conv_norm, train=train, bn_momentum=self.bn_momentum, act=act)
    x = layer(x, self._scaled(STEM), 3, 2, name="stem")
    for i, (expand, width, blocks, strides) in enumerate(STAGES):
      for j in range(blocks):
        stride = strides[variant] if j == 0 else 1
        kinds = (stride, expand, self.layout, self.bn_momentum)
        block = InvertedResidual(self._scaled(width), *kinds, name=f"stage{i}_block{j}")
        x = block(x, train=train)
    last = self._scaled(LAST) if self.width > 1 else LAST
    x = layer(x, last, 1, name="last")
    x = layers.normal_dense(x.mean((1, 2)), self.num_classes, name="classifier")
    return x.astype(jnp.float32)

  def _scaled(self, width: int) -> int:
    scaled = width * self.width
    return max(1, int(scaled)) if self.layout == "cifar" else layers.divisible(scaled)


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
    num_classes: k.
    image_shape: (h, w, c); every size will do.
    layout: "cifar" or "imagenet", see the module.
    width: multiplier of all widths but the last, which is 1280 or more.
    bn_momentum: of the running statistics of batch norm, in Flax's terms.

  Raises:
    LtddError: an argument is out of range.
  """
  del image_shape
  check_choice("mobilenet_v2: layout", layout, LAYOUTS)
  layers.check_positive("mobilenet_v2", width=width)
  return MobileNetV2(num_classes, layout, float(width), bn_momentum)
