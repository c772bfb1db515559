"""AlexNet and VGG-11, each in two layouts: one of cross-architecture tables, and torchvision's.

* "cifar" is the network of DC, DM and MTT at 32 pixels, with one linear layer and PyTorch's default
  initialisation. AlexNet: five convolutions of 128 to 256 channels, 2x2 max-pools after the first,
  second and last, no norm. VGG-11: convolutions with a bias, a norm (theirs is "instance"), ReLU,
  five 2x2 max-pools.
* "imagenet" is torchvision's, with three linear layers after an adaptive pool. `alexnet` is a
  teacher of EDC on ImageNet-1k; `vgg11` is it at `norm="none"` and `vgg11_bn` at `norm="batch"`:
  convolutions start from N(0, 2/(k^2 c_out)), linear layers from N(0, 0.01^2), biases from zero.

In what we differ: torchvision's drop-out (0.5) before its first two linear layers is left out,
which does not matter in eval mode.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from ltdd_jax.core.registry import check_at_least, check_choice
from ltdd_jax.core.types import LtddError
from ltdd_jax.models import layers

HIDDEN = 4096
# Of each convolution of AlexNet: channels, kernel, stride, padding, and whether a max-pool follows.
CIFAR = ((128, 5, 1, 2, True), (192, 5, 1, 2, True), (256, 3, 1, 1, False), (192, 3, 1, 1, False),
         (192, 3, 1, 1, True))  # fmt: skip
IMAGENET = ((64, 11, 4, 2, True), (192, 5, 1, 2, True), (384, 3, 1, 1, False),
            (256, 3, 1, 1, False), (256, 3, 1, 1, True))  # fmt: skip
VGG11 = ((64,), (128,), (256, 256), (512, 512), (512, 512))  # a max-pool follows each group


class AlexNet(nn.Module):
  """See `alexnet`."""

  num_classes: int
  layout: str
  stem_padding: int

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    """Maps images (b, h, w, c) to logits (b, k), float32."""
    small = self.layout == "cifar"
    window = 2 if small else 3
    for i, (width, kernel, stride, padding, pool) in enumerate(CIFAR if small else IMAGENET):
      padding = self.stem_padding if i == 0 else padding
      x = nn.relu(layers.torch_conv(x, width, kernel, stride, padding=padding, name=f"conv{i}"))
      if pool:
        x = nn.max_pool(x, (window, window), (2, 2))
    if not small:
      x = layers.adaptive_avg_pool(x, 6)
    x = x.reshape(x.shape[0], -1)
    for i in range(0 if small else 2):
      x = nn.relu(layers.torch_dense(x, HIDDEN, name=f"dense{i}"))
    return layers.torch_dense(x, self.num_classes, name="classifier").astype(jnp.float32)


class VGG(nn.Module):
  """See `vgg11`."""

  num_classes: int
  layout: str
  norm: str
  stem_padding: int
  bn_momentum: float

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    """Maps images (b, h, w, c) to logits (b, k), float32."""
    small, number = self.layout == "cifar", 0
    for group in VGG11:
      for width in group:
        x = self._conv(x, width, number)
        x = nn.relu(layers.make_norm(self.norm, train, self.bn_momentum, f"norm{number}")(x))
        number += 1
      x = nn.max_pool(x, (2, 2), (2, 2))
    if not small:
      x = layers.adaptive_avg_pool(x, 7)
    x = x.reshape(x.shape[0], -1)
    for i in range(0 if small else 2):
      x = nn.relu(layers.normal_dense(x, HIDDEN, name=f"dense{i}"))
    classifier = layers.torch_dense if small else layers.normal_dense
    return classifier(x, self.num_classes, name="classifier").astype(jnp.float32)

  def _conv(self, x: jax.Array, width: int, number: int) -> jax.Array:
    padding, name = self.stem_padding if number == 0 else 1, f"conv{number}"
    if self.layout == "cifar":
      return layers.torch_conv(x, width, 3, padding=padding, name=name)
    init = layers.kaiming_init
    return layers.Conv(width, (3, 3), padding=padding, kernel_init=init, name=name)(x)


def alexnet(
  *, num_classes: int, image_shape: Sequence[int], layout: str = "cifar", stem_padding: int = 2
) -> AlexNet:
  """Makes an AlexNet.

  Args:
    layout: "cifar" or "imagenet" (for 63 pixels or more), see the module.
    stem_padding: of the first convolution. DC and its successors pad images of one channel by 4,
      which makes 28x28 into 32x32.
  """
  check_choice("alexnet: layout", layout, layers.LAYOUTS)
  check_at_least("alexnet: ", 0, stem_padding=stem_padding)
  least = 8 if layout == "cifar" else 63
  _check_side("alexnet", image_shape, least - 2 * (stem_padding - 2))
  return AlexNet(num_classes, layout, stem_padding)


def vgg11(
  *,
  num_classes: int,
  image_shape: Sequence[int],
  layout: str = "cifar",
  norm: str = "instance",
  stem_padding: int = 1,
  bn_momentum: float = layers.BN_MOMENTUM,
) -> VGG:
  """Makes a VGG-11, for 32 pixels or more.

  Args:
    layout: "cifar" or "imagenet", see the module.
    norm: "instance", "batch" or "none".
    stem_padding: of the first convolution. DC and its successors pad images of one channel by 3,
      which makes 28x28 into 32x32.
  """
  check_choice("vgg11: layout", layout, layers.LAYOUTS)
  check_choice("vgg11: norm", norm, layers.NORMS)
  check_at_least("vgg11: ", 0, stem_padding=stem_padding)
  _check_side("vgg11", image_shape, 32 - 2 * (stem_padding - 1))
  return VGG(num_classes, layout, norm, stem_padding, bn_momentum)


def _check_side(model: str, image_shape: Sequence[int], least: int) -> None:
  """Raises LtddError for an image that the network would shrink to nothing."""
  if min(image_shape[:2]) < least:
    raise LtddError(
      f"{model}: an image of shape {tuple(image_shape)} is shrunk to nothing; expected {least} "
      "pixels or more on each side. Use larger images, or another network or layout."
    )
