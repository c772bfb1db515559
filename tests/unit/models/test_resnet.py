import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ltdd_jax import models
from ltdd_jax.core.types import LtddError
from ltdd_jax.models import layers, resnet


def abstract(name, image_shape, num_classes=10, **kwargs):
  model = models.make_model(name, num_classes=num_classes, image_shape=image_shape, **kwargs)
  key = jax.ShapeDtypeStruct((), jax.random.key(0).dtype)
  return model, jax.eval_shape(lambda k: models.init_variables(model, k, image_shape), key)


@pytest.mark.parametrize(
  ("name", "num_classes", "stem", "number"),
  [
    ("resnet18", 10, "cifar", 11_173_962),
    ("resnet18", 1000, "imagenet", 11_689_512),
    ("resnet32", 10, "cifar", 464_154),
    ("resnet34", 1000, "imagenet", 21_797_672),
    ("resnet50", 1000, "imagenet", 25_557_032),
    ("resnet101", 1000, "imagenet", 44_549_160),
  ],
)
def test_parameter_counts(name, num_classes, stem, number):
  _, variables = abstract(name, (64, 64, 3), num_classes, stem=stem)
  assert models.count_params(variables["params"]) == number


@pytest.mark.parametrize(("stem", "side", "last"), [("cifar", 32, 4), ("imagenet", 224, 7)])
def test_size_of_the_last_map(stem, side, last):
  model, variables = abstract("resnet18", (side, side, 3), stem=stem, width=8)
  images = jax.ShapeDtypeStruct((2, side, side, 3), jnp.float32)
  capture = lambda v, x: model.apply(v, x, train=False, capture_intermediates=True)[1]
  tree = jax.eval_shape(capture, variables, images)["intermediates"]
  assert tree["stage3_block1"]["__call__"][0].shape == (2, last, last, 64)


def test_strided_convolutions_pad_on_both_sides(key):
  """PyTorch pads by 1 above and below; SAME would pad below only when the stride is 2."""
  conv = layers.conv(1, 3, 2, name="conv")
  image = jnp.zeros((1, 4, 4, 1)).at[0, 0, 0, 0].set(1.0)
  kernel = jnp.arange(9.0).reshape(3, 3, 1, 1)
  out = conv.apply({"params": {"kernel": kernel}}, image)
  np.testing.assert_array_equal(out[0, :, :, 0], [[4.0, 0.0], [0.0, 0.0]])


def test_shortcut_projects_only_where_the_shape_changes():
  _, variables = abstract("resnet18", (32, 32, 3), width=8)
  params = variables["params"]
  projected = [name for name in sorted(params) if "shortcut_conv" in params[name]]
  assert projected == ["stage1_block0", "stage2_block0", "stage3_block0"]
  _, variables = abstract("resnet50", (32, 32, 3), width=8)
  assert "shortcut_conv" in variables["params"]["stage0_block0"]


def test_padded_shortcut(key):
  """Every other pixel, and zeros on both sides of the channels."""
  block = resnet.PaddedBlock(4, 2)
  x = jax.random.normal(key, (1, 4, 4, 2))
  expected = jnp.zeros((1, 2, 2, 4)).at[..., 1:3].set(x[:, ::2, ::2])
  np.testing.assert_array_equal(block.shortcut(x, 4, None), expected)
  np.testing.assert_array_equal(resnet.PaddedBlock(2, 1).shortcut(x, 2, None), x)


def test_initialisation():
  """Kaiming-normal in fan-out mode, but PyTorch's default for the CIFAR stem."""
  stem = np.asarray(_draw(lambda k: layers.torch_kernel_init(k, (3, 3, 3, 64))))
  assert 0.95 * 27**-0.5 < np.abs(stem).max() <= 27**-0.5
  conv = layers.conv(64, 3, name="conv")
  kernel = np.asarray(_draw(lambda k: conv.kernel_init(k, (3, 3, 32, 64))))
  np.testing.assert_allclose(kernel.std(), (2 / (9 * 64)) ** 0.5, rtol=0.02)
  assert np.abs(kernel).max() > 3 * kernel.std(), "normal, not truncated"


def _draw(init):
  return jax.jit(init)(jax.random.key(0))


@pytest.mark.parametrize(
  ("init", "stem", "rest"),
  [("torchvision", "default", "kaiming"), ("kaiming",) * 3, ("default",) * 3],
)
def test_initialisation_by_name(init, stem, rest):
  """Which initialiser each convolution is made with."""
  names = {id(layers.torch_kernel_init): "default", id(layers.kaiming_init): "kaiming"}
  found = []

  def record(call, args, kwargs, context):
    if isinstance(context.module, nn.Conv):
      found.append(names[id(context.module.kernel_init)])
    return call(*args, **kwargs)

  with nn.intercept_methods(record):
    abstract("resnet18", (8, 8, 3), width=3, init=init)
  assert (found[0], set(found[1:])) == (stem, {rest})


def test_instance_norm_keeps_the_count_and_has_no_batch_statistics():
  _, variables = abstract("resnet18", (32, 32, 3), norm="instance", init="default")
  assert models.count_params(variables["params"]) == 11_173_962
  assert variables["batch_stats"] == {}


@pytest.mark.parametrize(
  ("kwargs", "message"),
  [
    ({"stem": "cifar10"}, "resnet18: stem is 'cifar10'"),
    ({"width": 0}, "width is 0"),
    ({"norm": "layer"}, "norm is 'layer'"),
    ({"init": "he"}, "init is 'he'"),
    ({"stm": "cifar"}, "Did you mean 'stem'"),
  ],
)
def test_errors(kwargs, message):
  with pytest.raises(LtddError, match=message):
    models.make_model("resnet18", num_classes=10, image_shape=(32, 32, 3), **kwargs)


def test_unknown_model():
  with pytest.raises(LtddError, match="Did you mean 'resnet18'"):
    models.make_model("resnet-18", num_classes=10, image_shape=(32, 32, 3))
