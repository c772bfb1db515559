"""Read the inputs of layers, and their moments, while a model runs in eval mode.

  logits, moments = taps.apply_with_moments(model, variables, images)
  moments[0].mean, moments[0].running_mean       # the stem's batch normalisation

SRe2L and its successors compare running statistics with the moments of the batch at hand. Inputs
are captured by `flax.linen.intercept_methods`: any Linen model will do, under `jit`, `grad`,
`vmap` and `eval_shape` alike, but layers inside a lifted transformation (`nn.scan`, `nn.remat`) are
out of reach, since their tracers do not outlive it.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import flax.struct
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ltdd_jax.core.types import Leaf, LtddError


class LayerInput(NamedTuple):
  """What one layer was called with."""

  path: str  # its place in the variable tree, such as "stage1_block0/norm2"
  value: Leaf  # (b, h, w, c)
  kind: str  # "batch_norm", "conv", "dense", or the name of another layer's class


_KINDS = ((nn.BatchNorm, "batch_norm"), (nn.Conv, "conv"), (nn.Dense, "dense"))


def _kind(module: nn.Module) -> str:
  return next((name for cls, name in _KINDS if isinstance(module, cls)), type(module).__name__)


@flax.struct.dataclass
class Moment:
  """Moments of a batch at the input of one BatchNorm layer, beside the layer's running ones."""

  path: str = flax.struct.field(pytree_node=False)
  mean: Leaf  # (c,) over b, h, w
  var: Leaf  # (c,) biased
  running_mean: Leaf  # (c,)
  running_var: Leaf  # (c,)


def apply_with_inputs(
  model: nn.Module,
  variables: Any,
  images: Float[Array, "b h w c"],
  layer_types: Any = nn.BatchNorm,
) -> tuple[Float[Array, "b k"], tuple[LayerInput, ...]]:
  """Runs a model in eval mode and returns what each layer of some types was called with.

  Args:
    model: a module with `__call__(images, *, train)`.
    variables: its collections.
    images: normalised.
    layer_types: a module class or a tuple of them: `nn.BatchNorm`, `nn.Conv`.

  Returns:
    Logits and one entry for each call, in the order of the calls.
  """
  inputs: list[LayerInput] = []
  with recording(inputs, layer_types):
    logits: Any = model.apply(variables, images, train=False)
  return logits, tuple(inputs)


def recording(inputs: list[LayerInput], layer_types: Any) -> Any:
  """A context in which calls of layers of some types are added to `inputs`."""

  def record(call, args, kwargs, context):
    if isinstance(context.module, layer_types) and context.method_name == "__call__":
      path = "/".join(context.module.path)
      inputs.append(LayerInput(path, args[0], _kind(context.module)))
    return call(*args, **kwargs)

  return nn.intercept_methods(record)


def counting(counted: Bool[Array, " b"]) -> Any:
  """For `nn.intercept_methods`: batch norms take the moments of the images `counted` alone."""

  def intercept(call, args, kwargs, context):
    if isinstance(context.module, nn.BatchNorm):
      kwargs = kwargs | {"mask": counted.reshape(-1, *[1] * (args[0].ndim - 1))}
    return call(*args, **kwargs)

  return intercept


def moments(x: Float[Array, "*rest c"]) -> tuple[Float[Array, "c"], Float[Array, "c"]]:
  """Computes mean and biased variance of each channel, in float32 and two passes."""
  x = x.astype(jnp.float32).reshape(-1, x.shape[-1])
  mean = x.mean(0)
  return mean, jnp.square(x - mean[None]).mean(0)


def apply_with_moments(
  model: nn.Module, variables: Any, images: Float[Array, "b h w c"]
) -> tuple[Float[Array, "b k"], tuple[Moment, ...]]:
  """Runs a model as `apply_with_inputs` and returns the batch moments at every BatchNorm layer.

  They are in the order of the calls: the first is the stem's.
  """
  logits, inputs = apply_with_inputs(model, variables, images)
  return logits, tuple(_moment(layer, variables["batch_stats"]) for layer in inputs)


def _moment(layer: LayerInput, batch_stats: Any) -> Moment:
  running = batch_stats
  for name in layer.path.split("/"):
    running = running[name]
  mean, var = moments(layer.value)
  return Moment(layer.path, mean, var, running["mean"], running["var"])


def features(
  model: nn.Module, variables: Any, images: Float[Array, "b h w c"]
) -> tuple[Float[Array, "b k"], Float[Array, "b f"]]:
  """Runs a model in eval mode and returns its logits and its penultimate features.

  These are what the classifier, the last `nn.Dense` that is called, was called with.

  Raises:
    LtddError: a model without a dense layer.
  """
  logits, inputs = apply_with_inputs(model, variables, images, nn.Dense)
  if not inputs:
    raise LtddError(f"{type(model).__name__} has no dense layer, so its features are not known")
  return logits, inputs[-1].value
