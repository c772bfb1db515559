import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ltdd_jax.core.types import LtddError
from ltdd_jax.training import forward


@pytest.mark.parametrize("batch_size", [1, 2, 3, 7, 100])
def test_every_image_is_there_once_and_in_order(batch_size):
  images, traces = jnp.arange(14.0).reshape(7, 2), []

  @jax.jit
  def step(images, rows, counts):
    traces.append(rows.shape)
    return {"double": 2 * images[rows], "counts": counts}

  found = forward.outputs(step, images, 7, batch_size)
  np.testing.assert_array_equal(found["double"], 2 * images)
  assert found["counts"].all()
  assert traces == [(min(batch_size, 7),)]  # the last batch has the size of the others
  masks = [out["counts"] for out in forward.over_images(step, images, 7, batch_size)]
  assert sum(int(m.sum()) for m in masks) == 7


@pytest.mark.parametrize(("n", "size"), [(0, 4), (4, 0)])
def test_nothing_to_do_is_refused(n, size):
  with pytest.raises(LtddError, match=f"{n} images and batch_size={size}; expected 1 or more"):
    forward.outputs(lambda *x: None, None, n, size)
