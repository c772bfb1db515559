import jax
import jax.numpy as jnp
import numpy as np

from ltdd_jax import models

SHAPE = (4, 4, 1)


def small():
  return models.make_model("convnet", num_classes=2, image_shape=SHAPE, depth=1, width=2)


def seed_of(tree, i):
  return jax.tree.map(lambda x: x[i], tree)


def test_init_is_deterministic_in_the_key():
  model = small()
  a, b, c = (models.init_variables(model, jax.random.key(i), SHAPE) for i in (0, 0, 1))
  jax.tree.map(np.testing.assert_array_equal, a, b)
  assert not np.array_equal(a["params"]["conv0"]["kernel"], c["params"]["conv0"]["kernel"])


def test_init_of_several_seeds_equals_one_by_one():
  model = small()
  keys = jax.random.split(jax.random.key(3), 2)
  stacked = jax.vmap(lambda k: models.init_variables(model, k, SHAPE))(keys)
  for i in range(2):
    one = models.init_variables(model, keys[i], SHAPE)
    jax.tree.map(np.testing.assert_array_equal, seed_of(stacked, i), one)


def test_init_takes_a_list_for_a_shape():
  models.init_variables(small(), jax.random.key(0), list(SHAPE))


def test_count_params():
  tree = {"a": jnp.zeros((2, 3)), "b": {"c": jax.ShapeDtypeStruct((4,), jnp.float32)}}
  assert models.count_params(tree) == 10
