"""Networks by name: `model = make_model("resnet18", num_classes=10, image_shape=(32, 32, 3))`.

A model is a Linen module with `__call__(images (b,h,w,c), *, train) -> logits (b,k)`. To add one,
write a factory with keyword arguments and put it into `MODELS`; the contract tests run over it.

All factories take `num_classes` k and `image_shape` (h, w, c), and those with batch norm
`bn_momentum` of its running statistics, in Flax's terms: 0.9 is PyTorch's 0.1. They raise LtddError
for an argument out of range or an image that is too small; where none is named every size will do.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from ltdd_jax.core import registry
from ltdd_jax.core.types import LtddError
from ltdd_jax.models.airbench import airbench
from ltdd_jax.models.alexnet_vgg import alexnet, vgg11
from ltdd_jax.models.convnet import convnet
from ltdd_jax.models.inverted_residual import efficientnet_b0, mobilenet_v2
from ltdd_jax.models.resnet import resnet18, resnet32, resnet34, resnet50, resnet101
from ltdd_jax.models.shufflenet import shufflenet_v2
from ltdd_jax.models.wrn import wide_resnet

MODELS: dict[str, Callable[..., nn.Module]] = {
  "airbench": airbench,
  "alexnet": alexnet,
  "convnet": convnet,
  "efficientnet_b0": efficientnet_b0,
  "mobilenet_v2": mobilenet_v2,
  "resnet18": resnet18,
  "resnet32": resnet32,
  "resnet34": resnet34,
  "resnet50": resnet50,
  "resnet101": resnet101,
  "shufflenet_v2": shufflenet_v2,
  "vgg11": vgg11,
  "wide_resnet": wide_resnet,
}


COMPUTE_DTYPES = ("float32", "bfloat16")


def make_model(
  name: str, *, num_classes: int, image_shape: Sequence[int], **kwargs: Any
) -> nn.Module:
  """Makes a network by its name.

  Args:
    name: a key of `MODELS`.
    num_classes: k.
    image_shape: (h, w, c).
    **kwargs: of that factory: `depth`, `width`, `norm`, `stem`, ...

  Raises:
    LtddError: an unknown name or argument, or one out of range.
  """
  if not 0 <= (momentum := kwargs.get("bn_momentum", 0)) < 1:
    raise LtddError(f"{name}: bn_momentum is {momentum}; expected a number in [0, 1)")
  kwargs = {"num_classes": num_classes, "image_shape": image_shape, **kwargs}
  return registry.make("model", MODELS, name, kwargs)


class _Computing(nn.Module):
  """See `computing_in`."""

  network: nn.Module
  dtype: str

  def setup(self) -> None:
    nn.share_scope(self, self.network)

  def __call__(self, x: jax.Array, *, train: bool) -> Any:
    return self.network(x.astype(self.dtype), train=train)


def computing_in(model: nn.Module, dtype: str) -> nn.Module:
  """A network with the same variables that computes in "float32" or "bfloat16".

  Parameters, their gradients, the statistics of norms and the logits stay float32. bfloat16 halves
  the memory of activations, and is faster on accelerators alone.

  Raises:
    LtddError: another dtype.
  """
  registry.check_choice("compute_dtype", dtype, COMPUTE_DTYPES)
  return model if dtype == "float32" else _Computing(model, dtype)


def init_variables(
  model: nn.Module,
  key: jax.Array,
  image_shape: Sequence[int],
  images: jax.Array | None = None,
) -> dict[str, Any]:
  """Draws the variables of an untrained network: {"params", "batch_stats"}, the latter maybe {}.

  Compiled once for each model, since eager initialisation is slow. `jax.vmap` over keys gives the
  variables of several seeds, equal to those drawn one by one.

  Args:
    model: from `make_model`.
    key: of the draws.
    image_shape: (h, w, c).
    images: (n, h, w, c) normalised, that the network is to be trained on. Those that `uses_images`
      look at them; without any they take what is right for white noise.
  """
  return _init(model, key, tuple(image_shape), images if uses_images(model) else None)


def uses_images(model: nn.Module) -> bool:
  """Whether a network, or one in it, is initialised from images."""
  inner = (x for x in vars(model).values() if isinstance(x, nn.Module))
  return getattr(model, "uses_images", False) or any(map(uses_images, inner))


@partial(jax.jit, static_argnums=(0, 2))
def _init(
  model: nn.Module, key: jax.Array, image_shape: tuple[int, ...], images: jax.Array | None
) -> dict[str, Any]:
  x = jnp.zeros((1, *image_shape)) if images is None else images
  return {"batch_stats": {}} | dict(model.init(key, x, train=False))


def count_params(params: Any) -> int:
  """Counts the entries of a tree of arrays or of their shapes."""
  return sum(leaf.size for leaf in jax.tree.leaves(params))
