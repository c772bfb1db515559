"""The ConvNet family of dataset distillation: depth x (conv 3x3, norm, ReLU, average pool 2x2).

Used by DC, DSA, DM, MTT, FRePo and G-VBSM with instance norm ("ConvNetD3", "ConvNetW128"), by RDED
with batch norm ("conv3", "conv4", ...).
"""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from ltdd_jax.models import layers
from ltdd_jax.types import LtddError


class ConvNet(nn.Module):
  """See `convnet`, which checks its arguments and makes one."""

  num_classes: int
  depth: int = 3
  width: int = 128
  norm: str = "instance"
  stem_padding: int = 1

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    """Maps images (b, h, w, c) to logits (b, k), float32."""
    for i in range(self.depth):
      x = nn.Conv(
        self.width,
        (3, 3),
        padding=self.stem_padding if i == 0 else 1,
        kernel_init=layers.torch_kernel_init,
        bias_init=layers.torch_bias_init(9 * x.shape[-1]),
        name=f"conv{i}",
      )(x)
      x = nn.relu(layers.make_norm(self.norm, train, f"norm{i}")(x))
      x = nn.avg_pool(x, (2, 2), (2, 2))
    x = x.reshape(x.shape[0], -1)
    x = nn.Dense(
      self.num_classes,
      kernel_init=layers.torch_kernel_init,
      bias_init=layers.torch_bias_init(x.shape[-1]),
      name="classifier",
    )(x)
    return x.astype(jnp.float32)


def convnet(
  *,
  num_classes: int,
  image_shape: Sequence[int],
  depth: int = 3,
  width: int = 128,
  norm: str = "instance",
  stem_padding: int = 1,
) -> ConvNet:
  """Makes a ConvNet.

  Args:
    num_classes: k.
    image_shape: (h, w, c).
    depth: number of blocks, each of which halves the image (rounding down).
    width: channels of every block.
    norm: "instance", "batch" or "none".
    stem_padding: of the first convolution. DC and its successors pad images of one channel by 3,
      which makes 28x28 into 32x32.

  Raises:
    LtddError: the image is too small for the depth, or an argument is out of range.
  """
  _check(depth, width, norm, stem_padding)
  side = min(image_shape[:2]) + 2 * (stem_padding - 1)
  if side < 2**depth:
    raise LtddError(
      f"convnet: depth={depth} halves an image of shape {tuple(image_shape)} to nothing; it takes "
      f"at most depth={max(side, 1).bit_length() - 1} (or larger images)."
    )
  return ConvNet(num_classes, depth, width, norm, stem_padding)


def _check(depth: int, width: int, norm: str, stem_padding: int) -> None:
  for name, value, least in (
    ("depth", depth, 1),
    ("width", width, 1),
    ("stem_padding", stem_padding, 0),
  ):
    if value < least:
      raise LtddError(f"convnet: {name}={value}; expected {least} or more.")
  if norm not in layers.NORMS:
    raise LtddError(f"convnet: norm={norm!r}; expected one of {', '.join(layers.NORMS)}.")
