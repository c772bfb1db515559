"""VGG-11 in two layouts: that of cross-architecture tables at 32 pixels, and torchvision's.

* "cifar" is the network of DC, DM and MTT: convolutions with a bias, a norm (theirs is
  "instance"), ReLU, five 2x2 max-pools, one linear layer; PyTorch's default initialisation;
* "imagenet" is torchvision's: `norm="none"` is `vgg11`, `norm="batch"` is `vgg11_bn`; three linear
  layers after an adaptive pool to 7x7. Convolutions start from N(0, 2/(k^2 c_out)), linear layers
  from N(0, 0.01^2), biases from zero. In what we differ: no drop-out (0.5) between the linear
  layers, which does not matter in eval mode.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from ltdd_jax.core.registry import check_at_least, check_choice
from ltdd_jax.models import layers

LAYOUTS = ("cifar", "imagenet")
WIDTHS = ((64,), (128,), (256, 256), (512, 512), (512, 512))  # a max-pool follows each group


class VGG(nn.Module):
  """See `vgg11`."""

  num_classes: int
  layout: str = "cifar"
  norm: str = "instance"
  stem_padding: int = 1
  bn_momentum: float = layers.BN_MOMENTUM
  hidden: int = 4096

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    """Maps images (b, h, w, c) to logits (b, k), float32."""
    number = 0
    for group in WIDTHS:
      for width in group:
        x = self._conv(x, width, number)
        x = nn.relu(layers.make_norm(self.norm, train, self.bn_momentum, f"norm{number}")(x))
        number += 1
      x = nn.max_pool(x, (2, 2), (2, 2))
    if self.layout == "cifar":
      x = layers.torch_dense(x.reshape(x.shape[0], -1), self.num_classes, name="classifier")
      return x.astype(jnp.float32)
    x = layers.adaptive_avg_pool(x, 7)
    x = x.reshape(x.shape[0], -1)
    for i in range(2):
      x = nn.relu(layers.normal_dense(x, self.hidden, name=f"dense{i}"))
    return layers.normal_dense(x, self.num_classes, name="classifier").astype(jnp.float32)

  def _conv(self, x: jax.Array, width: int, number: int) -> jax.Array:
    padding, name = self.stem_padding if number == 0 else 1, f"conv{number}"
    if self.layout == "cifar":
      return layers.torch_conv(x, width, 3, padding=padding, name=name)
    init = layers.kaiming_init
    return nn.Conv(width, (3, 3), padding=padding, kernel_init=init, name=name)(x)


def vgg11(
  *,
  num_classes: int,
  image_shape: Sequence[int],
  layout: str = "cifar",
  norm: str = "instance",
  stem_padding: int = 1,
  bn_momentum: float = layers.BN_MOMENTUM,
) -> VGG:
  """Makes a VGG-11.

  Args:
    num_classes: k.
    image_shape: (h, w, c), 32 pixels or more.
    layout: "cifar" or "imagenet", see the module.
    norm: "instance", "batch" or "none".
    stem_padding: of the first convolution. DC and its successors pad images of one channel by 3,
      which makes 28x28 into 32x32.
    bn_momentum: of the running statistics of batch norm, in Flax's terms.

  Raises:
    LtddError: the image is too small, or an argument is out of range.
  """
  check_choice("vgg11: layout", layout, LAYOUTS)
  check_choice("vgg11: norm", norm, layers.NORMS)
  check_at_least("vgg11: ", 0, stem_padding=stem_padding)
  layers.check_side("vgg11", image_shape, 32 - 2 * (stem_padding - 1))
  return VGG(num_classes, layout, norm, stem_padding, bn_momentum)
