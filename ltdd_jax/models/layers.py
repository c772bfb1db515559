"""What the networks share: PyTorch's default initialisation, and normalisation by name."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

torch_kernel_init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
"""U(-1/sqrt(fan_in), 1/sqrt(fan_in)), which PyTorch gives convolutions and linear layers."""

NORMS = ("instance", "batch", "none")


def torch_bias_init(fan_in: int) -> Callable[..., jax.Array]:
  """Makes PyTorch's default initialiser of a bias: uniform within +-1/sqrt(fan_in) of the layer."""
  bound = fan_in**-0.5

  def init(key, shape, dtype=jnp.float32):
    return jax.random.uniform(key, shape, dtype, -bound, bound)

  return init


class InstanceNorm(nn.Module):
  """Normalises each channel of each image over h and w, with a scale and a bias.

  `nn.GroupNorm(num_groups=None, group_size=1)` with a variance taken in two passes; on CPU a
  ConvNet-3 trains about 1.2 times as fast with it. The literature's "instance norm" is this.
  """

  epsilon: float = 1e-5

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
    bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],))
    centred = x - x.mean((1, 2), keepdims=True)
    var = jnp.square(centred).mean((1, 2), keepdims=True)
    shape = (1, 1, 1, x.shape[-1])
    return centred * (jax.lax.rsqrt(var + self.epsilon) * scale.reshape(shape)) + bias.reshape(
      shape
    )


def make_norm(kind: str, train: bool, name: str) -> Callable[[jax.Array], jax.Array]:
  """Makes a normalisation layer; `kind` is one of `NORMS`.

  Batch normalisation: epsilon 1e-5 and momentum 0.9, which is 0.1 in PyTorch's terms. Its running
  variance is the biased one (PyTorch keeps the unbiased one).
  """
  if kind == "batch":
    return nn.BatchNorm(use_running_average=not train, momentum=0.9, epsilon=1e-5, name=name)
  return InstanceNorm(name=name) if kind == "instance" else lambda x: x
