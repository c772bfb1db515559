"""The networks beside ConvNet and ResNet: counts by shapes alone, pieces on small arrays."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ltdd_jax import models
from ltdd_jax.core.types import LtddError
from ltdd_jax.models import inverted_residual, layers, shufflenet, taps, wrn


def wrn_16_2(k):
  """Convolutions k^2 c_in c_out, batch norms two numbers a channel, and the classifier."""
  block = lambda i, o, project: 9 * i * o + 9 * o * o + 2 * i + 2 * o + project * i * o
  groups = [(16, 32), (32, 64), (64, 128)]
  convs = sum(block(i, o, True) + block(o, o, False) for i, o in groups)
  return 9 * 3 * 16 + convs + 2 * 128 + 128 * k + k


def mobile_half(k):
  total, c = 9 * 3 * 16 + 2 * 16, 16
  for t, o, n in [(1, 8, 1), (6, 12, 2), (6, 16, 3), (6, 32, 4), (6, 48, 3), (6, 80, 3),
                  (6, 160, 1)]:  # fmt: skip
    for _ in range(n):
      hidden = t * c
      total += c * hidden + 9 * hidden + hidden * o + 4 * hidden + 2 * o
      c = o
  return total + c * 1280 + 2 * 1280 + 1280 * k + k


def shuffle_half(k, stem):
  total, c = 3 * 24 * stem + 2 * 24, 24
  for o, n in [(48, 3), (96, 7), (192, 3)]:
    h = o // 2
    total += (9 * c + 2 * c + c * h + 2 * h) + (c * h + 2 * h + 9 * h + 2 * h + h * h + 2 * h)
    total += n * (2 * h * h + 9 * h + 6 * h)
    c = o
  return total + c * 1024 + 2 * 1024 + 1024 * k + k


IMAGENET = {"layout": "imagenet"}


@pytest.mark.parametrize(
  ("name", "side", "k", "kwargs", "number", "norms", "convs"),
  [
    ("resnet18", 32, 10, {}, 11_173_962, 20, 20),
    ("convnet", 32, 10, {}, 320_010, 0, 3),
    ("convnet", 32, 10, {"depth": 1}, 331_530, 0, 1),
    ("convnet", 32, 10, {"depth": 2}, 233_610, 0, 2),
    ("convnet", 32, 10, {"width": 32}, 24_714, 0, 3),
    ("wide_resnet", 32, 10, {}, wrn_16_2(10), 13, 16),
    ("mobilenet_v2", 32, 10, {}, mobile_half(10), 53, 53),
    ("mobilenet_v2", 224, 1000, IMAGENET | {"width": 1.0}, 3_504_872, 52, 52),
    ("shufflenet_v2", 32, 10, {}, shuffle_half(10, 1), 56, 56),
    ("shufflenet_v2", 224, 1000, {"stem": "imagenet"}, 1_366_792, 56, 56),
    ("efficientnet_b0", 224, 1000, {}, 5_288_548, 49, 81),
    ("alexnet", 32, 10, {}, 1_872_202, 0, 5),
    ("alexnet", 28, 10, {"stem_padding": 4}, 1_872_202, 0, 5),
    ("alexnet", 224, 1000, IMAGENET, 61_100_840, 0, 5),
    ("vgg11", 32, 10, {}, 9_231_114, 0, 8),
    ("vgg11", 32, 10, {"norm": "batch"}, 9_231_114, 8, 8),
    ("vgg11", 224, 1000, IMAGENET | {"norm": "batch"}, 132_868_840, 8, 8),
    ("vgg11", 224, 1000, IMAGENET | {"norm": "none"}, 132_863_336, 0, 8),
  ],
)
def test_parameters_and_layers_in_reach_of_taps(name, side, k, kwargs, number, norms, convs):
  variables, inputs = trace(name, side, k, **kwargs)
  assert models.count_params(variables["params"]) == number
  assert len(jax.tree.leaves(variables["batch_stats"])) == 2 * norms
  assert len({x.path for x in inputs}) == len(inputs) == norms + convs
  assert inputs[0].value.shape == (2, side, side, 3), "the stem convolution sees the pixels"


@functools.cache
def trace(name, side, k, **kwargs):
  shape = (side, side, 3)
  model = models.make_model(name, num_classes=k, image_shape=shape, **kwargs)
  key = jax.ShapeDtypeStruct((), jax.random.key(0).dtype)
  variables = jax.eval_shape(lambda key: models.init_variables(model, key, shape), key)
  found = []

  def run(v, x):
    logits, inputs = taps.apply_with_inputs(model, v, x, (nn.BatchNorm, nn.Conv))
    found.extend(inputs)
    return logits

  jax.eval_shape(run, variables, jax.ShapeDtypeStruct((2, *shape), jnp.float32))
  return variables, found


def test_derived_counts_are_those_that_are_known():
  """WRN-16-2 and MobileNetV2 x0.5 of the distillation literature have 0.70 and 0.81 million."""
  assert (wrn_16_2(100), mobile_half(100), shuffle_half(1000, 9)) == (703_284, 812_836, 1_366_792)


def sides(inputs, suffix):
  return [x.value.shape[1] for x in inputs if x.path.endswith(suffix)]


def test_map_sizes_of_the_cifar_layouts():
  _, inputs = trace("mobilenet_v2", 32, 10)
  after = sides(inputs, "project_conv")
  assert after == [16] + [16] * 2 + [8] * 3 + [4] * 4 + [4] * 3 + [2] * 3 + [2]
  _, inputs = trace("shufflenet_v2", 32, 10)
  assert sides(inputs, "expand_conv") == [16] * 4 + [8] * 8 + [4] * 4
  _, inputs = trace("wide_resnet", 32, 10)
  assert sides(inputs, "conv2") == [32] * 2 + [16] * 2 + [8] * 2


# ---- pieces ----


def test_channel_shuffle():
  x = jnp.arange(12.0).reshape(1, 1, 2, 6)
  np.testing.assert_array_equal(shufflenet.channel_shuffle(x)[0, 0, 0], [0, 3, 1, 4, 2, 5])


@pytest.mark.parametrize("shape", [(7, 5), (3, 3), (2, 9), (64, 2)])
def test_adaptive_pool_against_loops(shape):
  x = np.random.RandomState(0).randn(2, *shape, 3)
  want = np.zeros((2, 3, 3, 3))
  for i, j in np.ndindex(3, 3):
    rows = range(i * shape[0] // 3, -((-(i + 1) * shape[0]) // 3))
    columns = range(j * shape[1] // 3, -((-(j + 1) * shape[1]) // 3))
    cells = [x[:, r, c] for r in rows for c in columns]
    want[:, i, j] = sum(cells) / len(cells)
  actual = layers.adaptive_avg_pool(jnp.asarray(x, jnp.float32), 3)
  np.testing.assert_allclose(actual, want, rtol=1e-5, atol=1e-6)  # float32


def test_divisible():
  assert [layers.divisible(x) for x in (3, 12, 17, 24, 35.2)] == [8, 16, 16, 24, 32]
  assert layers.divisible(11.0) == 16, "8 would be less than nine tenths of it"


@pytest.mark.parametrize("width", [4, 6])
def test_wide_block_feeds_the_activated_input_to_branch_and_projection(width, key):
  """With the branch's last kernel at zero the block is its skip: raw, or projected and active."""
  block = wrn.PreActBlock(width, 1)
  x = jax.random.normal(key, (2, 3, 3, 4))
  variables = jax.jit(lambda k: block.init(k, x, train=False))(jax.random.key(1))
  params = dict(variables["params"])
  params["conv2"] = jax.tree.map(jnp.zeros_like, params["conv2"])
  out = block.apply(variables | {"params": params}, x, train=False)
  if width == 4:
    want = x
  else:
    active = np.maximum(x / np.sqrt(1 + 1e-5), 0)
    want = np.einsum("bhwi,io->bhwo", active, params["shortcut_conv"]["kernel"][0, 0])
  np.testing.assert_allclose(out, want, rtol=1e-4, atol=1e-5)  # float32


def test_excitation_of_nothing_halves(key):
  x = jax.random.normal(key, (2, 3, 3, 4))
  module = inverted_residual.SqueezeExcite(2)
  shapes = jax.eval_shape(lambda: module.init(key, x))
  zeros = jax.tree.map(lambda s: jnp.zeros(s.shape), shapes)
  np.testing.assert_allclose(module.apply(zeros, x), x / 2, rtol=1e-6)


def test_inverted_residual_skips_where_the_shape_is_kept():
  """A zero branch leaves the input; at stride 2 nothing, even of a map of one pixel."""
  x = jnp.ones((1, 1, 1, 4))
  for stride, want in ((1, 1.0), (2, 0.0)):
    block = inverted_residual.InvertedResidual(4, stride, 1, nn.relu)
    shapes = jax.eval_shape(lambda b=block: b.init(jax.random.key(0), x, train=False))
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape), shapes)
    assert float(block.apply(zeros, x, train=False).max()) == want


@pytest.mark.parametrize(("layout", "there"), [("cifar", True), ("imagenet", False)])
def test_first_expansion_is_there_in_the_cifar_layout_only(layout, there):
  variables, _ = trace("mobilenet_v2", 32, 10, layout=layout)
  assert ("expand_conv" in variables["params"]["stage0_block0"]) == there


@pytest.mark.parametrize(
  ("name", "kwargs", "message"),
  [
    ("wide_resnet", {"depth": 18}, "depth=18"),
    ("wide_resnet", {"widen": 0}, "wide_resnet: widen is 0; expected 1 or more"),
    (
      "mobilenet_v2",
      {"layout": "tv"},
      "layout is 'tv'; expected one of 'cifar', 'imagenet'",
    ),
    ("mobilenet_v2", {"width": 0.0}, "width=0.0"),
    ("shufflenet_v2", {"stem": "tv"}, "stem is 'tv'"),
    ("shufflenet_v2", {"width": 7}, "width=7; expected an even number of 2 or more"),
    ("efficientnet_b0", {"width": -1.0}, "width=-1.0"),
    ("alexnet", IMAGENET, r"\(32, 32, 3\) is shrunk to nothing; expected 63 pixels"),
    ("alexnet", {"layout": "tv"}, "layout is 'tv'"),
    ("vgg11", {"stem_padding": 0}, "expected 34 pixels"),
    ("vgg11", {"bn_momentum": 1.0}, r"bn_momentum is 1\.0; expected a number in \[0, 1\)"),
    ("vgg11", {"norm": "layer"}, "norm is 'layer'"),
  ],
)
def test_errors(name, kwargs, message):
  with pytest.raises(LtddError, match=message):
    models.make_model(name, num_classes=10, image_shape=(32, 32, 3), **kwargs)


@pytest.mark.parametrize(
  ("kwargs", "message"),
  [
    ({"depth": 1}, "airbench: depth is 1; expected one of 2, 3"),
    ({"widths": (4, 4)}, r"airbench: widths is \(4, 4\); expected three"),
    ({"widths": (4, 0, 4)}, r"airbench: widths\[1\] is 0; expected 1 or more"),
    ({"image_shape": (8, 32, 3)}, r"\(8, 32, 3\) are too small; expected 9x9 or more"),
    ({"bn_momentum": 1.0}, r"airbench: bn_momentum is 1.0; expected a number in \[0, 1\)"),
  ],
)
def test_airbench_errors(kwargs, message):
  with pytest.raises(LtddError, match=message):
    models.make_model("airbench", **{"num_classes": 2, "image_shape": (32, 32, 3)} | kwargs)


def test_batch_norms_of_airbench_are_tapped():
  key = jax.ShapeDtypeStruct((), jax.random.key(0).dtype)
  model = models.make_model("airbench", num_classes=2, image_shape=(9, 9, 1), widths=(3, 4, 5))
  variables = jax.eval_shape(lambda k: models.init_variables(model, k, (9, 9, 1)), key)
  x = jax.ShapeDtypeStruct((2, 9, 9, 1), jnp.float32)
  logits, moments = jax.eval_shape(lambda v, x: taps.apply_with_moments(model, v, x), variables, x)
  assert logits.shape == (2, 2)
  assert [m.mean.shape for m in moments] == [(3,), (3,), (4,), (4,), (5,), (5,)]
  _, features = jax.eval_shape(lambda v, x: taps.features(model, v, x), variables, x)
  assert features.shape == (2, 5)
