"""RandAugment: every operation against NumPy; the equalised image is large enough to have steps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ltdd_jax.data import rand_augment
from tests.reference import rand_augment_ref as ref

H, W = 20, 24


@pytest.fixture(scope="module", params=[1, 3])
def applied(request):
  """An image of blobs, and what all operations make of it, with both signs, in one program."""
  draws = np.random.RandomState(request.param)
  image = np.clip(draws.normal(110, 40, (H, W, request.param)), 0, 230).astype(np.uint8)
  every = jax.jit(jax.vmap(rand_augment.apply_op, (None, 0, 0)))
  ops, negative = np.repeat(np.arange(14), 2), np.tile([False, True], 14)
  out = every(jnp.asarray(image).astype(jnp.int32), ops, negative)
  return image, np.asarray(out).reshape(14, 2, *image.shape)


@pytest.mark.parametrize("name", rand_augment.OPS)
def test_each_operation(applied, name):
  image, out = applied
  for sign, got in zip((1, -1), out[rand_augment.OPS.index(name)], strict=True):
    off = np.abs(got - ref.apply(name, image, sign))
    assert off.max() <= 1
    assert (off > 0).mean() <= 0.002  # float32, where a blend is a whole number
    if name in rand_augment.OPS[:6]:
      assert not off.any()


def test_two_operations_of_each_image_by_its_key(key):
  image = np.random.RandomState(0).randint(0, 256, (H, W, 3)).astype(np.uint8)
  keys = jax.random.split(key, 60)
  out = np.asarray(jax.jit(jax.vmap(rand_augment.rand_augment, (0, None)))(keys, image))
  assert out.dtype == np.int32
  assert out.min() >= 0
  assert out.max() <= 255
  same = (out == image).all((1, 2, 3)).mean()
  assert same < 0.2  # 1/14 squared are the identity, and operations that do nothing here
  assert len(np.unique(out.reshape(60, -1), axis=0)) > 40
