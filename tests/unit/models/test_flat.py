"""Parameters as a vector: their order, and networks that have none."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ltdd_jax import models
from ltdd_jax.core.types import LtddError
from ltdd_jax.models.flat import flat_params


def make(name="convnet", side=8, **kwargs):
  shape = (side, side, 1)
  return models.make_model(name, num_classes=3, image_shape=shape, **kwargs), shape


def test_features_come_before_the_classifier():
  model, shape = make(depth=2, width=2)
  flat = flat_params(model, shape)
  params = models.init_variables(model, jax.random.key(0), shape)["params"]
  vector = flat.ravel(params)
  assert vector.shape == (flat.size,) == (models.count_params(params),)
  jax.tree.map(np.testing.assert_array_equal, flat.unravel(vector), params)
  changed = flat.unravel(vector.at[flat.num_features :].add(1))
  for name, tree in params.items():
    moved = [not np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, (tree, changed[name])),
                                                      strict=True)]  # fmt: skip
    assert moved == [name == "classifier"] * len(moved)
  parts = [params["conv0"]["bias"], params["conv0"]["kernel"], params["conv1"]["bias"]]
  first = jnp.concatenate([x.ravel() for x in parts])
  np.testing.assert_array_equal(vector[: len(first)], first)


def test_size_of_the_published_network():
  model = models.make_model(
    "convnet", num_classes=10, image_shape=(32, 32, 3), depth=3, width=128, norm="instance"
  )
  flat = flat_params(model, (32, 32, 3))
  assert (flat.size, flat.size - flat.num_features) == (320_010, 20_490)


def test_networks_that_are_no_vector():
  with pytest.raises(LtddError, match=r"ConvNet has batch norms, .*'norm': 'instance'"):
    flat_params(*make(depth=1, width=2, norm="batch"))
