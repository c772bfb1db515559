"""The parameters of a network as one vector, in a stable order: features before the classifier.

flat = flat_params(model, (32, 32, 3))
vector = flat.ravel(variables["params"])                 # (p,) float32
logits = model.apply({"params": flat.unravel(vector)}, images, train=True)
vector[flat.num_features :]                              # the classifier alone
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from ltdd_jax.core.types import LtddError

CLASSIFIER = "classifier"
PARTS = ("backbone", CLASSIFIER)  # dictionaries are flattened by the order of their keys


class Flat(NamedTuple):
  """How the parameters of one network lie in a vector."""

  size: int  # p
  num_features: int  # the first entries, those of all layers but the classifier
  ravel: Callable[[Any], jax.Array]  # params -> (p,)
  unravel: Callable[[jax.Array], Any]  # (p,) -> params


@functools.lru_cache(maxsize=16)  # a run makes its methods many times
def flat_params(model: nn.Module, image_shape: tuple[int, ...]) -> Flat:
  """Lays out the parameters of a network whose last layer is named "classifier".

  Args:
    model: from `models.make_model`.
    image_shape: (h, w, c).

  Raises:
    LtddError: a network with batch norm, whose running statistics are no parameters; or without a
      layer "classifier", or without any other.
  """
  name = type(model).__name__
  image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
  variables = jax.eval_shape(
    lambda key, x: model.init(key, x, train=False), jax.random.key(0), image
  )
  if variables.get("batch_stats"):
    raise LtddError(
      f"{name} has batch norms, whose running statistics are not in a vector of parameters; use a "
      "network without, such as {'name': 'convnet', 'norm': 'instance'}"
    )
  params = dict(variables["params"])
  if CLASSIFIER not in params or len(params) < 2:
    raise LtddError(
      f"{name} has the layers {', '.join(params)}; expected a last one named {CLASSIFIER!r} and "
      "others before it, as 'convnet' has"
    )
  zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), _split(params))
  assert [path[0].key for path, _ in jax.tree.leaves_with_path(zeros)] == sorted(
    (path[0].key for path, _ in jax.tree.leaves_with_path(zeros)), key=PARTS.index
  )
  vector, unravel = ravel_pytree(zeros)
  last = sum(x.size for x in jax.tree.leaves(zeros[CLASSIFIER]))
  return Flat(
    vector.size,
    vector.size - last,
    lambda params: ravel_pytree(_split(params))[0],
    lambda vector: _join(unravel(vector)),
  )


def _split(params: Any) -> dict[str, Any]:
  rest = {k: v for k, v in params.items() if k != CLASSIFIER}
  return dict(zip(PARTS, (rest, params[CLASSIFIER]), strict=True))


def _join(parts: dict[str, Any]) -> dict[str, Any]:
  return {**parts[PARTS[0]], CLASSIFIER: parts[CLASSIFIER]}
