"""A function mapped over networks: each gets its own arguments, one network as many do."""

from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ltdd_jax.core import mesh as mesh_lib
from ltdd_jax.training import many

MESH = mesh_lib.make_mesh(jax.devices()[:1])


def predict(params, key, x, *, mesh):
  del mesh
  return {"out": params["w"] * x + jax.random.normal(key, x.shape), "sum": params["w"].sum()}


@pytest.mark.parametrize("count", [1, 3])
def test_each_network_has_its_own_arguments_and_shares_the_rest(count):
  params = {"w": jnp.arange(1.0, 1 + count)[:, None] * jnp.ones((1, 2))}
  keys = jax.random.split(jax.random.key(0), count)
  x = jnp.array([3.0, 4.0])
  found = jax.jit(many.over_networks(predict, (0, 0, None), MESH))(
    params, jax.random.clone(keys), x
  )
  assert found["out"].shape == (count, 2)
  assert found["sum"].shape == (count,)
  for i in range(count):
    one = predict(many.member(params, i), many.member(jax.random.clone(keys), i), x, mesh=None)
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), many.member(found, i), one
    )


def test_one_network_may_split_its_batch_and_several_under_vmap_may_not():
  seen = []
  look = lambda x, *, mesh: seen.append(mesh) or x
  for count in (1, 2):
    many.over_networks(look, (0,), MESH)(jnp.zeros((count, 3)))
  assert seen == [MESH, None]


@pytest.mark.parametrize(
  ("platform", "devices", "count", "spread", "how"),
  [
    ("cpu", 1, 3, True, "loop"),
    ("tpu", 1, 3, True, "vmap"),
    ("tpu", 4, 8, True, "vmap"),
    ("tpu", 4, 3, True, "loop"),
    ("tpu", 4, 8, False, "loop"),
  ],
)
def test_networks_share_a_program_where_that_is_fastest(platform, devices, count, spread, how):
  mesh = mock.Mock(size=devices, devices=np.array([mock.Mock(platform=platform)] * devices))
  assert many.fastest(count, mesh, spread) == how
