"""AlexNet in two layouts: torchvision's for 224 pixels, and the one of cross-architecture tables.

* "cifar" is the network of DC, DM and MTT at 32 pixels: five convolutions of 128 to 256 channels,
  2x2 max-pools after the first, second and last, one linear layer;
* "imagenet" is torchvision's `alexnet`, a teacher and teacher of EDC on ImageNet-1k.

No normalisation; PyTorch's default initialisation. In what we differ: torchvision's drop-out (0.5)
before its first two linear layers is left out, which does not matter in eval mode.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from ltdd_jax.core.registry import check_at_least, check_choice
from ltdd_jax.models import layers

LAYOUTS = ("cifar", "imagenet")
# Of each convolution: channels, kernel, stride, padding, and whether a max-pool follows.
CIFAR = ((128, 5, 1, 2, True), (192, 5, 1, 2, True), (256, 3, 1, 1, False), (192, 3, 1, 1, False),
         (192, 3, 1, 1, True))  # fmt: skip
IMAGENET = ((64, 11, 4, 2, True), (192, 5, 1, 2, True), (384, 3, 1, 1, False),
            (256, 3, 1, 1, False), (256, 3, 1, 1, True))  # fmt: skip


class AlexNet(nn.Module):
  """See `alexnet`."""

  num_classes: int
  layout: str = "cifar"
  stem_padding: int = 2
  hidden: int = 4096

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
      x = nn.relu(layers.torch_dense(x, self.hidden, name=f"dense{i}"))
    return layers.torch_dense(x, self.num_classes, name="classifier").astype(jnp.float32)


def alexnet(
  *, num_classes: int, image_shape: Sequence[int], layout: str = "cifar", stem_padding: int = 2
) -> AlexNet:
  """Makes an AlexNet.

  Args:
    num_classes: k.
    image_shape: (h, w, c), 63 pixels or more in the layout "imagenet".
    layout: "cifar" or "imagenet", see the module.
    stem_padding: of the first convolution. DC and its successors pad images of one channel by 4,
      which makes 28x28 into 32x32.

  Raises:
    LtddError: the image is too small, or an argument is out of range.
  """
  check_choice("alexnet: layout", layout, LAYOUTS)
  check_at_least("alexnet: ", 0, stem_padding=stem_padding)
  least = 8 if layout == "cifar" else 63
  layers.check_side("alexnet", image_shape, least - 2 * (stem_padding - 2))
  return AlexNet(num_classes, layout, stem_padding)
