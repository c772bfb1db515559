"""ShuffleNetV2 x0.5 with two stems: the one of CIFAR teachers, and torchvision's.

* "cifar" (a 1x1 convolution of stride 1, no max-pool) is a teacher of G-VBSM and EDC;
* "imagenet" (3x3, stride 2, and a max-pool) is torchvision's `shufflenet_v2_x0_5`.

56 convolutions and 56 batch norms with either; PyTorch's default initialisation.
"""

from collections.abc import Callable, Sequence
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from ltdd_jax.core.registry import check_choice
from ltdd_jax.core.types import LtddError
from ltdd_jax.models import layers

BLOCKS = (4, 8, 4)  # of each stage, the first of which strides
STEM, LAST = 24, 1024


def channel_shuffle(x: jax.Array) -> jax.Array:
  """Interleaves the two halves of the channels: 0 1 2 3 becomes 0 2 1 3."""
  halves = x.reshape(*x.shape[:-1], 2, x.shape[-1] // 2)
  return halves.swapaxes(-1, -2).reshape(x.shape)


def _layer(train: bool, bn_momentum: float) -> Callable[..., jax.Array]:
  init = layers.torch_kernel_init
  return partial(layers.conv_norm, train=train, bn_momentum=bn_momentum, init=init)


class BasicBlock(nn.Module):
  """Half of the channels pass; the other half goes through 1x1, 3x3 depth-wise, 1x1."""

  bn_momentum: float = layers.BN_MOMENTUM

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    layer = _layer(train, self.bn_momentum)
    left, right = jnp.split(x, 2, axis=-1)
    half = right.shape[-1]
    y = layer(right, half, 1, name="reduce", act=nn.relu)
    y = layer(y, half, 3, groups=half, name="depthwise")
    y = layer(y, half, 1, name="expand", act=nn.relu)
    return channel_shuffle(jnp.concatenate([left, y], axis=-1))


class DownBlock(nn.Module):
  """Two branches of stride 2, each half of the new width."""

  width: int
  bn_momentum: float = layers.BN_MOMENTUM

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    layer, channels, half = _layer(train, self.bn_momentum), x.shape[-1], self.width // 2
    left = layer(x, channels, 3, 2, groups=channels, name="left_depthwise")
    left = layer(left, half, 1, name="left", act=nn.relu)
    right = layer(x, half, 1, name="reduce", act=nn.relu)
    right = layer(right, half, 3, 2, groups=half, name="depthwise")
    right = layer(right, half, 1, name="expand", act=nn.relu)
    return channel_shuffle(jnp.concatenate([left, right], axis=-1))


class ShuffleNetV2(nn.Module):
  """See `shufflenet_v2`."""

  num_classes: int
  stem: str
  width: int
  bn_momentum: float

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    """Maps images (b, h, w, c) to logits (b, k), float32."""
    layer, momentum = partial(_layer(train, self.bn_momentum), act=nn.relu), self.bn_momentum
    if self.stem == "cifar":
      x = layer(x, STEM, 1, name="stem")
    else:
      x = layer(x, STEM, 3, 2, name="stem")
      x = nn.max_pool(x, (3, 3), (2, 2), padding=((1, 1), (1, 1)))
    for i, blocks in enumerate(BLOCKS):
      x = DownBlock(self.width * 2**i, momentum, name=f"stage{i}_block0")(x, train=train)
      for j in range(1, blocks):
        x = BasicBlock(momentum, name=f"stage{i}_block{j}")(x, train=train)
    x = layer(x, LAST, 1, name="last").mean((1, 2))
    return layers.torch_dense(x, self.num_classes, name="classifier").astype(jnp.float32)


def shufflenet_v2(
  *,
  num_classes: int,
  image_shape: Sequence[int],
  stem: str = "cifar",
  width: int = 48,
  bn_momentum: float = layers.BN_MOMENTUM,
) -> ShuffleNetV2:
  """Makes a ShuffleNetV2.

  Args:
    stem: "cifar" or "imagenet", see the module.
    width: channels of the first stage, even; 48 is "x0.5", and 116 is "x1.0".
  """
  del image_shape
  if width < 2 or width % 2:
    raise LtddError(f"shufflenet_v2: width={width}; expected an even number of 2 or more.")
  check_choice("shufflenet_v2: stem", stem, layers.LAYOUTS)
  return ShuffleNetV2(num_classes, stem, width, bn_momentum)
