import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ltdd_jax import models
from ltdd_jax.core.types import LtddError
from ltdd_jax.models import layers


def abstract(image_shape, num_classes=10, **kwargs):
  model = models.make_model("convnet", num_classes=num_classes, image_shape=image_shape, **kwargs)
  key = jax.ShapeDtypeStruct((), jax.random.key(0).dtype)
  return model, jax.eval_shape(lambda k: models.init_variables(model, k, image_shape), key)


@pytest.mark.parametrize(
  ("image_shape", "num_classes", "kwargs", "number"),
  [
    ((32, 32, 3), 10, {}, 320_010),
    ((32, 32, 3), 100, {}, 504_420),
    ((64, 64, 3), 200, {"depth": 4}, 857_160),
    ((128, 128, 3), 10, {"depth": 5}, 615_690),
    ((32, 32, 3), 10, {"norm": "batch"}, 320_010),
    ((32, 32, 3), 10, {"norm": "none"}, 320_010 - 3 * 256),
    ((32, 32, 3), 10, {"norm": "batch", "layout": "frepo"}, 1_561_610),
    ((28, 28, 1), 10, {"stem_padding": 3}, 320_010 - 2 * 9 * 128),
  ],
)
def test_parameter_counts(image_shape, num_classes, kwargs, number):
  _, variables = abstract(image_shape, num_classes, **kwargs)
  assert models.count_params(variables["params"]) == number


def test_batch_stats():
  _, variables = abstract((32, 32, 3))
  assert variables["batch_stats"] == {}
  _, variables = abstract((32, 32, 3), norm="batch")
  assert sorted(variables["batch_stats"]) == ["norm0", "norm1", "norm2"]


def test_names_sort_by_depth():
  _, variables = abstract((8, 8, 1))
  assert sorted(variables["params"]) == [
    "classifier", "conv0", "conv1", "conv2", "norm0", "norm1", "norm2",
  ]  # fmt: skip


def test_smallest_image():
  _, variables = abstract((8, 8, 1), width=16)
  assert variables["params"]["classifier"]["kernel"].shape == (16, 10)


@pytest.mark.parametrize(
  ("kwargs", "message"),
  [
    ({"depth": 4}, "depth=4 .* at most depth=3"),
    ({"depth": 0}, "depth is 0; expected 1 or more"),
    ({"width": 0}, "width is 0"),
    ({"stem_padding": -1}, "stem_padding is -1; expected 0 or more"),
    ({"norm": "layer"}, "norm is 'layer'"),
    ({"layout": "vgg"}, "layout is 'vgg'"),
    ({"dept": 3}, "Did you mean 'depth'"),
  ],
)
def test_errors(kwargs, message):
  with pytest.raises(LtddError, match=message):
    models.make_model("convnet", num_classes=10, image_shape=(8, 8, 1), **kwargs)


def test_instance_norm_is_group_norm_with_a_group_a_channel(key):
  x = 3 * jax.random.normal(key, (2, 4, 5, 6)) + 1
  params = {"params": {"scale": jnp.arange(1.0, 7.0), "bias": jnp.arange(6.0)}}
  reference = nn.GroupNorm(num_groups=None, group_size=1, epsilon=1e-5)
  np.testing.assert_allclose(
    layers.InstanceNorm().apply(params, x), reference.apply(params, x), rtol=1e-5, atol=1e-5
  )


def test_initialisation_is_that_of_pytorch(key):
  """Weights and biases uniform within 1/sqrt(fan_in): std 1/sqrt(3 fan_in), and near the bound."""
  model, _ = abstract((16, 16, 3), width=32, depth=2)
  params = models.init_variables(model, key, (16, 16, 3))["params"]
  for name, fan_in in (("conv0", 27), ("conv1", 9 * 32), ("classifier", 32 * 16)):
    kernel, bias = (np.asarray(params[name][x]) for x in ("kernel", "bias"))
    bound = fan_in**-0.5
    assert 0.95 * bound < np.abs(kernel).max() <= bound
    np.testing.assert_allclose(kernel.std(), bound / 3**0.5, rtol=0.05)
    assert 0.3 * bound < np.abs(bias).max() <= bound


def test_forward_against_loops(key):
  """One block and the classifier, written out in float64."""
  model, _ = abstract((4, 4, 2), 3, depth=1, width=2)
  variables = models.init_variables(model, key, (4, 4, 2))
  images = np.random.RandomState(0).randn(2, 4, 4, 2)
  p = jax.tree.map(lambda x: np.asarray(x, np.float64), variables["params"])
  padded = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))
  conv = np.zeros((2, 4, 4, 2))
  for b, i, j, o in np.ndindex(conv.shape):
    patch = padded[b, i : i + 3, j : j + 3]
    conv[b, i, j, o] = (patch * p["conv0"]["kernel"][..., o]).sum() + p["conv0"]["bias"][o]
  normal = conv - conv.mean((1, 2), keepdims=True)
  normal /= np.sqrt(conv.var((1, 2), keepdims=True) + 1e-5)
  pooled = np.maximum(normal, 0).reshape(2, 2, 2, 2, 2, 2).mean((2, 4))
  logits = pooled.reshape(2, -1) @ p["classifier"]["kernel"] + p["classifier"]["bias"][None]
  actual = model.apply(variables, jnp.asarray(images, jnp.float32), train=False)
  np.testing.assert_allclose(actual, logits, rtol=1e-4, atol=1e-5)
