"""DC's and DREAM's distances and their gradients by pixels against NumPy, for unequal classes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ltdd_jax import models
from ltdd_jax.distil import gradient_matching as gm
from ltdd_jax.distil import multi_formation, selection
from ltdd_jax.distil.dream import squared_distance
from tests.reference import gradient_ref as ref
from tests.reference import multi_formation_ref

SHAPE, K = (4, 4, 1), 3
LABELS = np.array([1, 0, 0, 0, 2], np.int32)  # class 0 is taken in two parts
DRAWS = np.random.RandomState(0)
IMAGES = DRAWS.normal(size=(len(LABELS), *SHAPE))
REAL = DRAWS.normal(size=(3, *SHAPE))
THERE = np.array([1, 1, 0], np.float32)  # the class has two real images
CASES = {"dc": (gm.cosine_distance, ref.cosine_distance, 1)}
CASES["dream"] = (squared_distance, ref.squared_distance, 2)


def view(images):
  return 0.5 * images[:, ::-1] + 0.1


@functools.cache
def network():
  model = models.make_model("convnet", num_classes=K, image_shape=SHAPE, depth=1, width=2)
  params = models.init_variables(model, jax.random.key(0), SHAPE)["params"]
  return model, params, jax.tree.map(np.float64, dict(params))


@functools.cache
def compiled(name):
  model, params, _ = network()
  distance, _, factor = CASES[name]
  matching = gm.Matching(model, distance, functools.partial(multi_formation.decode, factor=factor))
  real = jnp.asarray(REAL, jnp.float32), jnp.asarray(THERE)
  by_class = selection.by_class(LABELS, K)
  weights = jnp.ones((len(LABELS), factor**2)).at[1, 0].set(0)

  @jax.jit
  def fn(images, c):
    return gm.class_gradient(matching, params, view, c, real, images, by_class, weights)

  return fn


def ref_loss(name, images, c):
  """Of image 1 the first of the decoded ones is left out."""
  _, distance, factor = CASES[name]
  decoded, params = multi_formation_ref.decode(images, factor), network()[2]
  labels, left_out = np.tile(LABELS, factor**2), np.arange(len(decoded)) == 1
  own = ref.gradients(view(decoded[(labels == c) & ~left_out]), c, params)
  return distance(ref.gradients(view(REAL[:2]), c, params), own)


@pytest.mark.parametrize("c", [0, 1])
@pytest.mark.parametrize("name", CASES)
def test_distance_and_its_gradient(name, c):
  loss, grads = compiled(name)(jnp.asarray(IMAGES, jnp.float32), jnp.int32(c))
  np.testing.assert_allclose(loss, ref_loss(name, IMAGES, c), rtol=1e-4)
  assert not np.any(np.asarray(grads)[c != LABELS])
  for seed in range(2):  # the slope in random directions
    way = np.random.RandomState(seed).normal(size=IMAGES.shape)
    ends = [ref_loss(name, IMAGES + h * way, c) for h in (1e-4, -1e-4)]
    slope = (ends[0] - ends[1]) / 2e-4
    np.testing.assert_allclose((np.asarray(grads) * way).sum(), slope, rtol=5e-3, atol=1e-5)


def test_distances_of_known_gradients():
  """Two units of a kernel, one turned round, and a bias, which does not count."""
  a = {"kernel": jnp.array([[3.0, 0.0], [4.0, 2.0]]), "bias": jnp.array([1.0, 5.0])}
  b = {"kernel": jnp.array([[6.0, 0.0], [8.0, -1.0]]), "bias": jnp.zeros(2)}
  fn = jax.jit(jax.value_and_grad(gm.cosine_distance, argnums=1))
  np.testing.assert_allclose(fn(a, b)[0], 0 + 2, atol=1e-6)
  distance, slope = fn(a, jax.tree.map(jnp.zeros_like, b))
  np.testing.assert_allclose(distance, 2)
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(slope))
  assert squared_distance(a, b) == 0  # no convolution
  kernels = jnp.ones((3, 3, 1, 2)), jnp.full((3, 3, 1, 2), 3.0)
  assert squared_distance(*kernels) == 18 * 4
