"""The ConvNet family of dataset distillation: depth x (conv 3x3, norm, ReLU, average pool 2x2).

Used by DC, DSA, DM, MTT and G-VBSM with instance norm ("ConvNetD3", "ConvNetW128"), by RDED with
batch norm ("conv3", "conv4", ...); FRePo has a layout of its own.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from ltdd_jax.core.registry import check_at_least, check_choice
from ltdd_jax.core.types import LtddError
from ltdd_jax.models import layers
from ltdd_jax.models.convolution import convolve

LAYOUTS = ("dc", "frepo")


class ConvNet(nn.Module):
  """See `convnet`, which checks its arguments and makes one."""

  num_classes: int
  depth: int
  width: int
  norm: str
  stem_padding: int
  bn_momentum: float
  layout: str = "dc"

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    """Maps images (b, h, w, c) to logits (b, k), float32."""
    for i in range(self.depth):
      padding = self.stem_padding if i == 0 else 1
      if self.layout == "frepo":
        x = nn.relu(self._normalised_conv(x, i, padding, train))
      else:
        x = layers.torch_conv(x, self.width, 3, padding=padding, name=f"conv{i}")
        x = nn.relu(layers.make_norm(self.norm, train, self.bn_momentum, f"norm{i}")(x))
      x = nn.avg_pool(x, (2, 2), (2, 2))
    x = x.reshape(x.shape[0], -1)
    if self.layout == "frepo":
      return layers.Dense(self.num_classes, name="classifier")(x).astype(jnp.float32)
    return layers.torch_dense(x, self.num_classes, name="classifier").astype(jnp.float32)

  def _normalised_conv(self, x: jax.Array, i: int, padding: int, train: bool) -> jax.Array:
    if i:
      x = layers.make_norm(self.norm, train, self.bn_momentum, f"norm{i}")(x)
    return layers.Conv(
      self.width * 2**i,
      (3, 3),
      padding=padding,
      conv_general_dilated=convolve,
      name=f"conv{i}",
    )(x)


def convnet(
  *,
  num_classes: int,
  image_shape: Sequence[int],
  depth: int = 3,
  width: int = 128,
  norm: str = "instance",
  stem_padding: int = 1,
  bn_momentum: float = layers.BN_MOMENTUM,
  layout: str = "dc",
) -> ConvNet:
  """Makes a ConvNet.

  Args:
    depth: number of blocks, each of which halves the image (rounding down).
    width: channels of every block, or of the first.
    norm: "instance", "batch" or "none".
    stem_padding: of the first convolution. DC and its successors pad images of one channel by 3,
      which makes 28x28 into 32x32.
    layout: "dc" (conv, norm, ReLU, pool, with PyTorch's initialisation) or "frepo": each block has
      twice as many channels as the one before, and norms stand before all convolutions but the
      first; kernels start from N(0, 1/fan_in), cut off (LeCun's), and biases from 0.
  """
  check_at_least("convnet: ", 1, depth=depth, width=width)
  check_at_least("convnet: ", 0, stem_padding=stem_padding)
  check_choice("convnet: norm", norm, layers.NORMS)
  check_choice("convnet: layout", layout, LAYOUTS)
  side = min(image_shape[:2]) + 2 * (stem_padding - 1)
  if side < 2**depth:
    raise LtddError(
      f"convnet: depth={depth} halves an image of shape {tuple(image_shape)} to nothing; it takes "
      f"at most depth={max(side, 1).bit_length() - 1} (or larger images)."
    )
  return ConvNet(num_classes, depth, width, norm, stem_padding, bn_momentum, layout)
