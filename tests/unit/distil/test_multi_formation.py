"""Multi-formation: against loops, its order, its inverse, its errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ltdd_jax import distil
from ltdd_jax.core.types import LtddError
from ltdd_jax.data import augment
from ltdd_jax.data.crops import check_factor
from ltdd_jax.distil.multi_formation import block_mean, decode, encode, nearest, real_parts
from tests import small
from tests.reference import multi_formation_ref as ref

ENV = small.env(0)


@pytest.mark.parametrize(("h", "w", "factor"), [(4, 6, 2), (5, 4, 2), (8, 8, 4), (4, 4, 1)])
def test_decode_against_loops(h, w, factor):
  images = np.random.RandomState(0).uniform(size=(2, h, w, 2))
  want = ref.decode(images, factor)
  found = decode(jnp.asarray(images, jnp.float32), factor)
  assert found.shape == (2 * factor**2, h, w, 2)
  np.testing.assert_allclose(found, want, atol=1e-6)


def test_tiles_come_in_the_order_that_labels_are_repeated_in():
  numbers = np.arange(8.0).reshape(4, 2)  # tile, image
  images = np.zeros((2, 4, 4, 1), np.float32)
  for tile, (row, column) in enumerate(np.ndindex(2, 2)):
    block = np.s_[2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
    for i in range(2):
      images[i][block] = numbers[tile, i]
  found = decode(jnp.asarray(images), 2)
  np.testing.assert_allclose(found.mean((1, 2, 3)), numbers.ravel())
  np.testing.assert_allclose(encode(found, 2, nearest), images)


def test_encode_takes_the_nearest_pixels():
  images = np.arange(2 * 9 * 25.0, dtype=np.float32).reshape(18, 5, 5, 1)
  found = encode(jnp.asarray(images), 3, nearest)  # tiles of 2 x 2, of which the last are cut off
  assert found.shape == (2, 5, 5, 1)
  np.testing.assert_array_equal(found[1, 2:4, :2], images[7][[0, 2]][:, [0, 2]])
  np.testing.assert_array_equal(found[0, 4:, 4:], images[16][:1, :1])


def test_parts_start_from_different_real_images_each_the_mean_of_blocks():
  res = {"images": jnp.asarray(small.images(30)), "labels": jnp.repeat(jnp.arange(3), 10)}
  slots = distil.make_slots(3, slots_per_class=(2, 0, 3))
  start = lambda key, res: real_parts(key, ENV, slots, res, 2, block_mean)
  images = jax.jit(start)(jax.random.key(0), res)
  real = np.asarray(augment.normalize(res["images"], ENV.mean, ENV.std))
  small_ones = block_mean(jnp.asarray(real), 2)
  np.testing.assert_allclose(
    small_ones[:, 1, 2], real[:, 2:4, 4:6].mean((1, 2)), rtol=1e-5, atol=1e-6
  )
  np.testing.assert_array_equal(nearest(jnp.asarray(real), 2)[:, 1, 2], real[:, 2, 4])
  parts = [images[:, a : a + 4, b : b + 4] for a in (0, 4) for b in (0, 4)]
  rows = [
    [int(np.flatnonzero(np.isclose(small_ones, x, atol=1e-5).all((1, 2, 3)))[0]) for x in p]
    for p in parts
  ]
  assert (np.array(rows) // 10 == np.asarray(slots.labels)).all()
  of_last = np.array(rows)[:, np.asarray(slots.labels) == 2].ravel()
  assert np.bincount(of_last, minlength=30)[20:].tolist().count(2) == 2  # 12 parts of 10 images
  assert len(set(np.array(rows)[:, np.asarray(slots.labels) == 0].ravel())) == 8


@pytest.mark.parametrize(
  ("factor", "message"), [(0, "factor is 0"), (4, "factor is 4, which cuts images of 6 x 6")]
)
def test_factors_that_do_not_fit(factor, message):
  check_factor("here: ", 3, (6, 6, 1))
  with pytest.raises(LtddError, match=f"here: {message}"):
    check_factor("here: ", factor, (6, 6, 1))
