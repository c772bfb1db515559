"""The networks of airbench (Jordan, 2024): CIFAR-10 at 94 % in ten passes, at 96 % in forty.

  model = make_model("airbench", num_classes=10, image_shape=(32, 32, 3))
  variables = init_variables(model, key, (32, 32, 3), images)    # normalised, of the training set

A whitening convolution, three blocks of convolutions that begin as identities, and a linear layer.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from ltdd_jax.core.registry import check_at_least, check_choice
from ltdd_jax.core.types import LtddError
from ltdd_jax.models import layers

WHITENING_BIAS = "whitening_bias"  # a parameter that `training.optimizers.airbench_sgd` freezes
_EPSILON = 5e-4  # added to the eigenvalues of patches
_LOGITS = 1 / 9  # what logits are multiplied by
_LEAST = 9  # side of the smallest image that three pools leave something of
_AT_ONCE = 256  # images


class AirbenchNet(nn.Module):
  """See `airbench`, which checks its arguments and makes one."""

  num_classes: int
  widths: tuple[int, ...]
  depth: int
  bn_momentum: float
  uses_images = True  # see `models.init_variables`

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    """Maps images (b, h, w, c) to logits (b, k), float32."""
    kernel = self.variable("batch_stats", "whitening_kernel", lambda: whitening_kernel(x)).value
    if self.is_initializing():
      x = x[:1]
    kernel = jax.lax.stop_gradient(kernel).astype(x.dtype)
    bias = self.param(WHITENING_BIAS, nn.initializers.zeros, (kernel.shape[-1],))
    x = jax.lax.conv_general_dilated(
      x, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    x = gelu(x + bias.reshape(1, 1, 1, -1).astype(x.dtype))
    for i, width in enumerate(self.widths):
      x = self._block(x, width, f"block{i}", train)
    x = x.max((1, 2))
    dense = layers.Dense(
      self.num_classes,
      use_bias=False,
      kernel_init=layers.torch_kernel_init,
      name="classifier",
    )
    return dense(x).astype(jnp.float32) * _LOGITS

  def _block(self, x: jax.Array, width: int, name: str, train: bool) -> jax.Array:
    first = x
    for i in range(self.depth):
      x = layers.conv(width, 3, name=f"{name}_conv{i}", init=dirac_init)(x)
      x = max_pool(x) if i == 0 else x
      norm = nn.BatchNorm(
        not train,
        momentum=self.bn_momentum,
        epsilon=1e-5,
        use_scale=False,
        dtype=x.dtype,
        name=f"{name}_norm{i}",
      )
      x = norm(x)
      x = gelu(x + first if i == 2 else x)
      first = x if i == 0 else first
    return x


def gelu(x: jax.Array) -> jax.Array:
  """x Phi(x), exact; Flax's default is an approximation by tanh."""
  return nn.gelu(x, approximate=False)


def max_pool(x: jax.Array) -> jax.Array:
  """Takes the maxima of 2x2 windows (b, h, w, c); an odd last row or column is dropped.

  By reshaping, since the gradient of a pooling layer is slow on CPU. Ties share the gradient.
  """
  b, h, w, c = x.shape
  x = x[:, : h // 2 * 2, : w // 2 * 2]
  return x.reshape(b, h // 2, 2, w // 2, 2, c).max((2, 4))


def whitening_kernel(images: jax.Array) -> jax.Array:
  """Computes the filters (2, 2, c, 8c) that whiten patches of 2x2 pixels of images (n, h, w, c).

      M = mean of x x^T = sum_j lambda_j v_j v_j^T,   filter_j = v_j / sqrt(lambda_j + 5e-4)

  The largest eigenvalue comes first, then all filters with the other sign. M is not centred. Blank
  images say nothing of patches: theirs count as white, M = I.
  """
  c = images.shape[-1]
  dtype = jnp.promote_types(images.dtype, jnp.float32)

  def moment(image: jax.Array) -> jax.Array:
    h, w, _ = image.shape
    shifts = [image[i : h - 1 + i, j : w - 1 + j] for i in (0, 1) for j in (0, 1)]
    patches = jnp.concatenate(shifts, -1).reshape(-1, 4 * c).astype(dtype)
    return jnp.matmul(patches.T, patches, precision="highest") / len(patches)

  moments = jax.lax.map(moment, images, batch_size=min(_AT_ONCE, len(images))).mean(0)
  moments = jnp.where(jnp.trace(moments) > 0, moments, jnp.eye(4 * c, dtype=dtype))
  values, vectors = jnp.linalg.eigh(moments)
  filters = (vectors / jnp.sqrt(values + _EPSILON)[None, :])[:, ::-1]
  return jnp.concatenate([filters, -filters], 1).reshape(2, 2, c, 8 * c)


def dirac_init(key: jax.Array, shape: Sequence[int], dtype: jnp.dtype = jnp.float32) -> jax.Array:
  """Draws a kernel (3, 3, c, d) whose first min(c, d) filters hand on the channel of their number.

  The others are PyTorch's default. A square convolution is hence the identity.
  """
  kernel = layers.torch_kernel_init(key, tuple(shape), dtype)
  same = min(shape[2:])
  identity = jnp.zeros((*shape[:3], same), dtype).at[1, 1, :same].set(jnp.eye(same, dtype=dtype))
  return kernel.at[..., :same].set(identity)


def airbench(
  *,
  num_classes: int,
  image_shape: Sequence[int],
  widths: Sequence[int] = (64, 256, 256),
  depth: int = 2,
  bn_momentum: float = 0.6,
) -> AirbenchNet:
  """Makes a network of airbench (K. Jordan, "94% on CIFAR-10 in 3.29 Seconds", 2024).

  The whitening filters lie in `batch_stats`, where no optimiser and no decay touches them; they are
  those of the images that `models.init_variables` gets. Their bias is trained.

  In what we differ: batch norm has an epsilon of 1e-5, not 1e-12, with which a channel that is
  nearly constant explodes on distilled images; the running variance is the biased one; the last
  maximum is over the whole map, which is 3x3 as there for images of 32 pixels.

  Args:
    widths: channels of the blocks, three: (64, 256, 256) of 94 %, (128, 384, 512) of 96 %.
    depth: convolutions of a block: 2, or 3 with a residual connection (96 %).
  """
  widths = tuple(widths)
  check_choice("airbench: depth", depth, (2, 3))
  if len(widths) != 3:
    raise LtddError(f"airbench: widths is {widths}; expected three, such as (64, 256, 256)")
  check_at_least("airbench: ", 1, **{f"widths[{i}]": width for i, width in enumerate(widths)})
  if min(image_shape[:2]) < _LEAST:
    raise LtddError(
      f"airbench: images of shape {tuple(image_shape)} are too small; expected {_LEAST}x{_LEAST} "
      "or more. Use a network for small images, such as 'convnet' of depth 2"
    )
  return AirbenchNet(num_classes, widths, depth, bn_momentum)
