"""Multi-formation: against loops, its order, its inverse, its errors."""

import jax.numpy as jnp
import numpy as np
import pytest

from ltdd_jax.core.types import LtddError
from ltdd_jax.data.multi_formation import check_factor, decode, encode
from tests.reference import gradient_ref as ref


@pytest.mark.parametrize(("h", "w", "factor"), [(4, 6, 2), (5, 4, 2), (4, 4, 1)])
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
  np.testing.assert_allclose(encode(found, 2), images)


def test_encode_takes_the_nearest_pixels():
  small = np.arange(2 * 9 * 25.0, dtype=np.float32).reshape(18, 5, 5, 1)
  found = encode(jnp.asarray(small), 3)  # tiles of 2 x 2, of which the last are cut off
  assert found.shape == (2, 5, 5, 1)
  np.testing.assert_array_equal(found[1, 2:4, :2], small[7][[0, 2]][:, [0, 2]])
  np.testing.assert_array_equal(found[0, 4:, 4:], small[16][:1, :1])


@pytest.mark.parametrize(
  ("factor", "message"), [(0, "factor is 0"), (4, "factor is 4, which cuts images of 6 x 6")]
)
def test_factors_that_do_not_fit(factor, message):
  check_factor("here: ", 3, (6, 6, 1))
  with pytest.raises(LtddError, match=f"here: {message}"):
    check_factor("here: ", factor, (6, 6, 1))
