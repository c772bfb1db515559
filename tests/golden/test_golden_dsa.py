"""DSA against NumPy: every operation, on images that are not square, and its gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ltdd_jax.core.types import LtddError
from ltdd_jax.data import dsa
from tests.reference import dsa_ref as ref

H, W = 9, 12  # cutouts of an odd and of an even size
NUMBERS = [
  (0.0, 0.0, 0.0),
  (0.999, 0.999, 0.999),
  (0.3, 0.6, 0.8),
  (0.5, 0.1, 0.2),
  (0.8, 0.4, 0.5),
]


def images(n=5, channels=3):
  return np.random.RandomState(0).normal(size=(n, H, W, channels)).astype(np.float32)


@jax.jit
def every_op(x, numbers):
  """The operations (6, b, h, w, c) of each image."""
  by_op = jax.vmap(dsa.apply_op, (None, 0, None))
  return jax.vmap(by_op, (0, None, 0), 1)(x, jnp.arange(len(dsa.OPS)), numbers)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", dsa.OPS)
def test_each_operation(name, channels):
  x = images(channels=channels)
  numbers = np.asarray(NUMBERS, np.float32)
  got = every_op(x, numbers)[dsa.OPS.index(name)]
  want = np.stack([ref.apply(name, image, u) for image, u in zip(x, numbers, strict=True)])
  exact = name in ("crop", "cutout", "flip")
  np.testing.assert_allclose(got, want, rtol=0, atol=0 if exact else 1e-5)  # float32 coordinates


@pytest.mark.parametrize("name", dsa.OPS)
def test_gradient_is_that_of_finite_differences(name):
  x, u = images(1)[0], jnp.asarray([0.3, 0.6, 0.8])
  weights = np.random.RandomState(1).normal(size=x.shape)
  f = lambda x: (np.square(ref.apply(name, x, np.asarray(u))) * weights).sum()
  op = jnp.asarray(dsa.OPS.index(name))
  g = jax.grad(lambda x: (jnp.square(dsa.apply_op(x, op, u)) * weights).sum())(jnp.asarray(x))
  for at in [(0, 0, 0), (4, 5, 1), (8, 11, 2), (3, 9, 0)]:
    step = np.zeros(x.shape)
    step[at] = 1e-5
    slope = (f(x + step) - f(x - step)) / 2e-5
    np.testing.assert_allclose(g[at], slope, rtol=1e-4, atol=1e-4)


def test_a_shared_view_does_not_depend_on_the_size_of_the_batch(key):
  x = images()
  shared = jax.jit(lambda k, x: dsa.dsa(k, x, shared=True))
  for k in jax.random.split(key, 12):
    one, two = shared(jax.random.clone(k), x), shared(k, x[:2])
    np.testing.assert_array_equal(one[:2], two)


def test_one_operation_for_the_batch_and_strengths_for_each_image(key):
  """Of one image six times: rotated six times by six angles, say, and never by turns cut out."""
  x = np.repeat(images(1), 6, axis=0)
  draw = jax.jit(lambda k: dsa.draw(k, "crop_rotate_color", 6))
  seen = set()
  for k in jax.random.split(key, 30):
    op, numbers = draw(jax.random.clone(k))
    seen.add(dsa.OPS[op])
    want = [
      ref.apply(dsa.OPS[op], image, u) for image, u in zip(x, np.asarray(numbers), strict=True)
    ]
    got = dsa.dsa(k, jnp.asarray(x), strategy="crop_rotate_color")
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5)
    assert len(np.unique(numbers)) == 18
  assert seen == {"crop", "rotate", "color"}


def test_numbers_spread_over_all_shifts_alike():
  u = np.linspace(0, 1, 9 * 100, endpoint=False, dtype=np.float32)
  whole = np.asarray(dsa._whole(jnp.asarray(u), -4, 4))
  np.testing.assert_array_equal(np.unique(whole), np.arange(-4, 5))
  assert np.abs(np.bincount(whole.astype(int) + 4) - 100).max() <= 1


@pytest.mark.parametrize("strategy", ["colour_crop", "", "crop__flip"])
def test_an_operation_that_does_not_exist(key, strategy):
  with pytest.raises(LtddError, match=r"is not known; expected names joined by '_', such as 'col"):
    dsa.dsa(key, jnp.asarray(images()), strategy=strategy)


@pytest.mark.parametrize(
  ("strategy", "op"), [("color_crop_cutout", "crop"), (dsa.STRATEGY, "scale")]
)
def test_combined_operations_come_one_after_another(strategy, op):
  x, numbers = images(1)[0], np.asarray(NUMBERS[:4], np.float32)
  numbers[0, 0] = 0.2  # a flip
  want = x
  for name, u in zip(("flip", "color", op, "cutout"), numbers, strict=True):
    want = ref.apply(name, want, u) if name in strategy.split("_") else want
  op = jnp.asarray(dsa.OPS.index(op))
  view = jax.jit(dsa.apply_combined, static_argnames="strategy")
  got = view(jnp.asarray(x), op, jnp.asarray(numbers), strategy)
  np.testing.assert_allclose(got, want, atol=2e-5)


def test_combined_operations_are_drawn_among_those_not_always_applied():
  draw = jax.jit(jax.vmap(lambda key: dsa.draw_combined(key, "color_crop_rotate_flip", 2)))
  op, numbers = draw(jax.random.split(jax.random.key(0), 40))
  assert {dsa.OPS[i] for i in np.asarray(op)} == {"crop", "rotate"}
  assert numbers.shape == (40, 2, 4, 3)
