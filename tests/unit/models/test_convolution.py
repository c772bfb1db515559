"""Convolutions in the forms for CPU against XLA's own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import sharding

from ltdd_jax.models import convolution, winograd
from ltdd_jax.models.convolution import convolve

NAMES = ("NHWC", "HWIO", "NHWC")


def make(shape, kernel, groups):
  random = np.random.default_rng(0)
  x = random.standard_normal((2, *shape)).astype(np.float32)
  return x, random.standard_normal((*kernel[:2], shape[-1] // groups, kernel[2])).astype(np.float32)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(
  ("shape", "kernel", "groups", "pad"),
  [
    ((8, 6, 5), (3, 3, 5), 5, 1),  # depth-wise
    ((7, 5, 4), (5, 5, 4), 4, 2),
    ((7, 6, 4), (2, 3, 4), 4, 0),
    ((7, 6, 4), (1, 1, 6), 1, 0),  # point-wise
    ((7, 6, 4), (1, 1, 3), 1, 2),
    ((7, 6, 4), (3, 3, 6), 1, 1),  # left as they are
    ((7, 6, 4), (3, 3, 8), 4, 1),
    ((7, 6, 4), (3, 3, 4), 2, 1),
  ],
)
def test_values_and_gradients_are_those_of_the_convolution(shape, kernel, groups, pad, stride):
  x, k = make(shape, kernel, groups)
  padding = [(pad, pad), (pad, pad)]

  def both(fn):
    def total(x, k):
      y = fn(
        x, k, (stride, stride), padding, feature_group_count=groups, dimension_numbers=NAMES,
        lhs_dilation=(1, 1), rhs_dilation=(1, 1), precision=None,
      )  # fmt: skip
      return jnp.sum(jnp.sin(y)), y

    (_, y), gradients = jax.jit(jax.value_and_grad(total, (0, 1), has_aux=True))(x, k)
    return y, *gradients

  for ours, theirs in zip(both(convolve), both(jax.lax.conv_general_dilated), strict=True):
    assert ours.shape == theirs.shape
    np.testing.assert_allclose(ours, theirs, atol=2e-5)


def test_names_of_paddings_and_dilations_are_left_to_xla():
  x, k = make((6, 6, 3), (3, 3, 3), 3)
  more = {"feature_group_count": 3, "dimension_numbers": NAMES}
  for kwargs in ({"padding": "SAME"}, {"padding": [(2, 2), (2, 2)], "rhs_dilation": (2, 2)}):
    ours = convolve(x, k, (1, 1), **kwargs, **more)
    theirs = jax.lax.conv_general_dilated(x, k, (1, 1), **kwargs, **more)
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


# ---- forms of 3x3 convolutions, of which large ones are made ----


@pytest.fixture
def every_size(monkeypatch):
  monkeypatch.setattr(convolution, "_LEAST", 0)
  monkeypatch.setattr(convolution, "_PIXELS", 0)


def derivatives(fn, x, k):
  """Values, gradients, and gradients of what is made of the gradients, in both modes."""
  total = lambda x, k: jnp.tanh(fn(x, k)).sum()
  first = jax.grad(total, (0, 1))
  second = jax.grad(lambda x, k: sum(jnp.sin(g).sum() for g in first(x, k)), (0, 1))
  ways = (jnp.cos(x), jnp.sin(k))
  slope = jax.grad(lambda *args: jax.jvp(total, args, ways)[1], (0, 1))
  change = lambda *args: jax.jvp(first, args, ways)[1]
  fns = (lambda *args: (fn(*args),), first, second, slope, change)
  return jax.jit(lambda *args: [y for f in fns for y in f(*args)])(x, k)


@settings(max_examples=8, deadline=None)
@given(
  side=st.tuples(st.integers(4, 13), st.integers(4, 13)),
  channels=st.tuples(st.integers(16, 20), st.integers(1, 9)),
  stride=st.sampled_from([1, 2]),
  images=st.integers(1, 7),
)
def test_large_3x3_convolutions_are_those_of_xla(side, channels, stride, images):
  random = np.random.default_rng(0)
  x = random.standard_normal((images, *side, channels[0])).astype(np.float32)
  k = 0.2 * random.standard_normal((3, 3, *channels)).astype(np.float32)
  ways = ((stride, stride), [(1, 1), (1, 1)])
  names = {"dimension_numbers": NAMES}
  theirs = derivatives(lambda x, k: jax.lax.conv_general_dilated(x, k, *ways, **names), x, k)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(convolution, "_LEAST", 0)
    patch.setattr(convolution, "_PIXELS", 0)
    ours = derivatives(lambda x, k: convolve(x, k, *ways, **names), x, k)
  for a, b in zip(ours, theirs, strict=True):
    np.testing.assert_allclose(a, b, atol=5e-5 * max(1, np.abs(b).max()))


@pytest.mark.parametrize("side", [(9, 6), (4, 4), (1, 3)])
@pytest.mark.parametrize("size", [1, 3, 50])
def test_winograd_is_exact_to_rounding_in_chunks_of_any_size(monkeypatch, side, size):
  monkeypatch.setattr(winograd, "_size", lambda *args: size)
  random = np.random.default_rng(0)
  x = random.standard_normal((7, *side, 20)).astype(np.float32)
  k = random.standard_normal((3, 3, 20, 12)).astype(np.float32)
  exact = lambda x, k: jax.lax.conv_general_dilated(x, k, (1, 1), "SAME", dimension_numbers=NAMES)
  y, transpose = jax.vjp(exact, x, k)
  dx, dk = transpose(jnp.cos(y))
  pairs = (
    (winograd.forward(jnp.asarray(x), k), y),
    (winograd.image_gradient(jnp.cos(y), k), dx),
    (winograd.kernel_gradient(jnp.asarray(x), jnp.cos(y)), dk),
  )
  for ours, theirs in pairs:
    assert np.abs(ours - theirs).max() < 1e-5 * np.abs(theirs).max()


def test_networks_at_once_are_those_of_a_loop(every_size):
  random = np.random.default_rng(0)
  x = random.standard_normal((3, 4, 8, 8, 16)).astype(np.float32)
  k = random.standard_normal((3, 3, 3, 16, 8)).astype(np.float32)
  conv = lambda x, k: convolve(x, k, (1, 1), [(1, 1), (1, 1)], dimension_numbers=NAMES)
  loss = jax.grad(lambda x, k: jnp.sin(conv(x, k)).sum(), 1)
  one_by_one = jnp.stack([loss(*pair) for pair in zip(x, k, strict=True)])
  np.testing.assert_allclose(jax.vmap(loss)(x, k), one_by_one, atol=1e-3)


@pytest.mark.parametrize("axes", [(0, 0), (None, 1), (0, None)])
def test_gradients_of_many_at_once(every_size, axes):
  """Of a sum over networks, over images, or both; what is shared has one gradient."""
  random = np.random.default_rng(0)
  x = random.standard_normal((3, 2, 6, 5, 16)).astype(np.float32)
  k = 0.2 * random.standard_normal((3, 3, 3, 16, 4)).astype(np.float32)
  x, k = x[0] if axes[0] is None else x, k[0] if axes[1] is None else np.moveaxis(k, 0, axes[1])

  def gradients(fn):
    of_one = lambda x, k: jnp.tanh(fn(x, k, (1, 1), [(1, 1), (1, 1)], dimension_numbers=NAMES))
    return jax.jit(jax.grad(lambda x, k: jax.vmap(of_one, axes)(x, k).sum(), (0, 1)))(x, k)

  for a, b in zip(gradients(convolve), gradients(jax.lax.conv_general_dilated), strict=True):
    np.testing.assert_allclose(a, b, atol=5e-5 * max(1, np.abs(b).max()))


@pytest.mark.parametrize(
  ("strides", "padding"), [((1, 1), [(1, 1), (1, 1)]), ((2, 1), [(0, 2), (3, 0)])]
)
def test_convolutions_for_loops_have_the_same_derivatives(strides, padding):
  x, k = make((6, 5, 3), (3, 3, 4), 1)
  conv = lambda x, k: convolve(x, k, strides, padding, dimension_numbers=NAMES)
  theirs = derivatives(conv, x, k)
  with convolution.looped():
    ours = derivatives(lambda x, k: conv(x, k), x, k)
  for a, b in zip(ours, theirs, strict=True):
    np.testing.assert_allclose(a, b, atol=5e-5 * max(1, np.abs(b).max()))


def test_sums_of_gradients_are_not_rounded_to_bfloat16():
  """Of two hundred images, one after another: the sum errs by no more than one rounding."""
  x = np.random.default_rng(0).uniform(size=(200, 32, 32, 16))
  x = jnp.asarray(x, jnp.bfloat16)
  k = jnp.zeros((3, 3, 16, 1), jnp.bfloat16)
  with convolution.looped():
    conv = lambda k: convolve(x, k, (1, 1), [(1, 1), (1, 1)], dimension_numbers=NAMES)
    (found,) = jax.vjp(conv, k)[1](jnp.ones((200, 32, 32, 1), jnp.bfloat16))
  assert found.dtype == jnp.bfloat16
  middle = np.asarray(found[1, 1, :, 0], np.float64)
  np.testing.assert_allclose(middle, np.asarray(x, np.float64).sum((0, 1, 2)), rtol=2**-8)


def test_it_may_be_mapped_by_shard_map(every_size):
  random = np.random.default_rng(0)
  x = jnp.asarray(random.standard_normal((4, 8, 8, 16)), jnp.float32)
  k = jnp.asarray(random.standard_normal((3, 3, 16, 8)), jnp.float32)
  conv = lambda x, k: convolve(x, k, (1, 1), [(1, 1), (1, 1)], dimension_numbers=NAMES)
  mesh, spec = jax.make_mesh((1,), ("d",), (sharding.AxisType.Auto,)), sharding.PartitionSpec
  mapped = jax.shard_map(conv, mesh=mesh, in_specs=(spec("d"), spec()), out_specs=spec("d"))
  expected = conv(x, k)
  np.testing.assert_allclose(jax.jit(mapped)(x, k), expected, atol=5e-5 * np.abs(expected).max())
