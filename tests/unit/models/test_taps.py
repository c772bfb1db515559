from operator import itemgetter

import flax.errors
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ltdd_jax import models
from ltdd_jax.core.types import LtddError
from ltdd_jax.models import taps

SHAPE = (8, 8, 3)


@pytest.fixture(scope="module")
def network():
  """A batch-norm ConvNet whose running statistics are all different from each other."""
  model = models.make_model(
    "convnet", num_classes=5, image_shape=SHAPE, depth=2, width=4, norm="batch"
  )
  variables = models.init_variables(model, jax.random.key(0), SHAPE)
  leaves, tree = jax.tree.flatten(variables["batch_stats"])
  leaves = [leaf + 0.1 * (i + 1) for i, leaf in enumerate(leaves)]
  variables["batch_stats"] = jax.tree.unflatten(tree, leaves)
  images = 2 * jax.random.normal(jax.random.key(1), (6, *SHAPE)) + 1
  return model, variables, images


def penalty(model, variables, images):
  _, moments = taps.apply_with_moments(model, variables, images)
  return sum(
    jnp.square(m.mean - m.running_mean).sum() + jnp.square(m.var - m.running_var).sum()
    for m in moments
  )


def close(a, b):
  np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def test_logits_are_those_of_eval_mode(network):
  model, variables, images = network
  logits, _ = taps.apply_with_moments(model, variables, images)
  np.testing.assert_array_equal(logits, model.apply(variables, images, train=False))


def test_moments_are_of_the_inputs_and_running_ones_of_the_layer(network):
  model, variables, images = network
  _, moments = taps.apply_with_moments(model, variables, images)
  assert [m.path for m in moments] == ["norm0", "norm1"]
  stem = nn.Conv(4, (3, 3), padding=1).apply({"params": variables["params"]["conv0"]}, images)
  np.testing.assert_allclose(moments[0].mean, np.mean(stem, (0, 1, 2)), rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(moments[0].var, np.var(stem, (0, 1, 2)), rtol=1e-5)
  for m in moments:
    np.testing.assert_array_equal(m.running_mean, variables["batch_stats"][m.path]["mean"])
    np.testing.assert_array_equal(m.running_var, variables["batch_stats"][m.path]["var"])


def test_jit_equals_eager(network):
  model, variables, images = network
  run = lambda v, x: taps.apply_with_moments(model, v, x)
  # Rounding of a compiled program: sums are taken in another order.
  jax.tree.map(close, run(variables, images), jax.jit(run)(variables, images))


def test_gradient_in_the_images(network):
  model, variables, images = network
  loss = jax.jit(lambda x: penalty(model, variables, x))
  grad = jax.jit(jax.grad(loss))(images)
  direction = jax.random.normal(jax.random.key(2), images.shape)
  difference = (loss(images + 1e-2 * direction) - loss(images - 1e-2 * direction)) / 2e-2
  # Central differences in float32, and ReLU has kinks.
  np.testing.assert_allclose(jnp.vdot(grad, direction), difference, rtol=1e-2)


def test_vmap_over_networks_and_images_equals_a_loop(network):
  model, variables, images = network
  other = jax.tree.map(lambda x: 1.1 * x + 0.1, variables)
  stacked = jax.tree.map(lambda a, b: jnp.stack([a, b]), variables, other)
  run = lambda v, x: taps.apply_with_moments(model, v, x)
  both = jax.vmap(run)(stacked, jnp.stack([images, 2 * images]))
  for i, one in enumerate((run(variables, images), run(other, 2 * images))):
    jax.tree.map(close, jax.tree.map(itemgetter(i), both), one)


def test_gradient_under_vmap(network):
  model, variables, images = network
  grad = jax.grad(lambda x: penalty(model, variables, x))
  both = jax.jit(jax.vmap(grad))(jnp.stack([images, 2 * images]))
  close(both[0], jax.jit(grad)(images))


@pytest.mark.parametrize(("name", "number"), [("resnet18", 20), ("resnet50", 53)])
def test_resnet_order(name, number):
  """Shapes only: the stem comes first, and every batch norm is there once."""
  model = models.make_model(name, num_classes=10, image_shape=(32, 32, 3))
  images = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
  variables = jax.eval_shape(lambda: models.init_variables(model, jax.random.key(0), (32, 32, 3)))
  run = lambda v, x: taps.apply_with_moments(model, v, x)
  _, moments = jax.eval_shape(run, variables, images)
  paths = [m.path for m in moments]
  assert paths[:2] == ["norm", "stage0_block0/norm1"]
  assert len(paths) == len(set(paths)) == number
  assert all(m.mean.shape == m.running_mean.shape for m in moments)


def test_convolution_inputs(network):
  model, variables, images = network
  _, inputs = taps.apply_with_inputs(model, variables, images, nn.Conv)
  assert [layer.path for layer in inputs] == ["conv0", "conv1"]
  assert {layer.kind for layer in inputs} == {"conv"}
  np.testing.assert_array_equal(inputs[0].value, images)
  assert inputs[1].value.shape == (6, 4, 4, 4)


def test_a_network_without_batch_norm_has_no_moments():
  model = models.make_model("convnet", num_classes=5, image_shape=SHAPE, depth=1, width=2)
  variables = models.init_variables(model, jax.random.key(0), SHAPE)
  _, moments = taps.apply_with_moments(model, variables, jnp.zeros((1, *SHAPE)))
  assert moments == ()


def test_missing_statistics_are_named(network):
  model, variables, images = network
  with pytest.raises(flax.errors.ScopeCollectionNotFound, match="batch_stats"):
    taps.apply_with_moments(model, {"params": variables["params"]}, images)


@pytest.mark.parametrize("name", ["convnet", "resnet18"])
def test_features_are_what_the_classifier_sees(name, key):
  kwargs = {"depth": 1, "width": 4} if name == "convnet" else {"width": 2}
  model = models.make_model(name, num_classes=3, image_shape=(8, 8, 1), **kwargs)
  variables = models.init_variables(model, key, (8, 8, 1))
  images = jax.random.normal(jax.random.key(1), (2, 8, 8, 1))
  logits, features = jax.jit(lambda v, x: taps.features(model, v, x))(variables, images)
  classifier = variables["params"]["classifier"]
  want = features @ classifier["kernel"] + classifier["bias"][None]
  np.testing.assert_allclose(logits, want, rtol=1e-5, atol=1e-6)  # float32, two orders of a sum


def test_a_model_without_a_dense_layer_has_no_features(key):
  class Flat(nn.Module):
    @nn.compact
    def __call__(self, x, *, train):
      return nn.Conv(3, (8, 8), padding=0)(x).reshape(len(x), -1)

  images = jnp.zeros((2, 8, 8, 1))
  variables = Flat().init(key, images, train=False)
  with pytest.raises(LtddError, match="Flat has no dense layer"):
    taps.features(Flat(), variables, images)
