"""Convolutions in the forms for CPU against XLA's own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

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
