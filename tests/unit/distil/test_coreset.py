"""Coresets in the features of teachers, and the passes that give these."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ltdd_jax import distil
from ltdd_jax.core.types import LtddError
from ltdd_jax.data import augment
from ltdd_jax.distil import features
from ltdd_jax.models import taps
from tests import small
from tests.reference import coreset_ref as ref

WANT = np.array([3, 5, 2])  # of 7, 3 and 1 images
SLOTS = small.slots(*WANT)


def features_by_hand(res):
  t = small.teacher()
  x = augment.normalize(res["images"], small.SPEC.mean, small.SPEC.std)
  return np.asarray(taps.features(t.model, t.variables, x)[1], np.float64)


def chosen(name, env, res, **kwargs):
  """Row of each slot's image, in the order of the slots."""
  method = distil.make_method(env, name, **kwargs)
  synth = jax.jit(method.init)(jax.random.key(0), SLOTS, res)
  pixels = np.asarray(augment.denormalize(synth.images, small.SPEC.mean, small.SPEC.std))
  rows = [np.flatnonzero((res["images"] == x).all((1, 2, 3))) for x in pixels]
  assert all(len(r) == 1 for r in rows)
  return np.concatenate(rows)


def test_herding_is_that_of_the_penultimate_features():
  res = small.resources()
  rows = chosen("herding", small.env(), res, chunk_size=4)
  x = features_by_hand(res)
  for c in range(small.K):
    mine = np.flatnonzero(res["labels"] == c)
    assert rows[SLOTS.labels == c].tolist() == mine[ref.herding(x[mine], WANT[c])].tolist()


def test_two_equal_teachers_choose_as_one():
  res = small.resources()
  two = res | {"teachers": res["teachers"] * 2}
  one_rows = chosen("k_center", small.env(), res)
  np.testing.assert_array_equal(chosen("k_center", small.env(2), two), one_rows)


def test_teachers_have_an_equal_say():
  res = small.resources()
  louder = jax.tree.map(lambda v: 10 * v, res["teachers"][0]["params"]["norm0"])
  loud = {**res["teachers"][0], "params": {**res["teachers"][0]["params"], "norm0": louder}}
  both = features.features(small.env(2), res | {"teachers": (res["teachers"][0], loud)}, 11)
  half = both.shape[1] // 2
  for part in (both[:, :half], both[:, half:]):
    assert jnp.square(part).sum(1).mean() == pytest.approx(1, rel=1e-5)


def test_several_teachers_have_the_mean_of_their_logits():
  env, res = small.env(2), small.resources()
  teachers = (res["teachers"][0], small.teacher(1).variables)
  x = augment.normalize(res["images"][:2], small.SPEC.mean, small.SPEC.std)
  one, two = (small.teacher().model.apply(v, x, train=False) for v in teachers)
  np.testing.assert_allclose(features.mean_logits(env, teachers, x), (one + two) / 2, rtol=1e-5)


def test_kmeans_uses_every_image_before_any_twice():
  rows = chosen("kmeans", small.env(), small.resources(), num_iterations=3)
  for c, count in enumerate((7, 3, 1)):
    mine = rows[SLOTS.labels == c].tolist()
    distinct = min(count, WANT[c])
    assert len(set(mine[:distinct])) == distinct
    assert mine == ref.evenly(mine[:distinct], WANT[c])


@pytest.mark.parametrize(("count", "size"), [(7, 3), (6, 3), (2, 5)])
def test_chunks_give_each_number_once(count, size):
  out = features.in_chunks(lambda i: {"x": i[:, None] * jnp.ones((1, 2))}, count, size)
  np.testing.assert_array_equal(out["x"], np.arange(count)[:, None] * np.ones((1, 2)))


@pytest.mark.parametrize("name", ["herding", "k_center", "kmeans"])
def test_a_method_without_teachers_is_refused(name):
  with pytest.raises(LtddError, match=f"{name!r} needs a teacher"):
    distil.make_method(small.env(0), name)


def test_bad_arguments_are_refused():
  with pytest.raises(LtddError, match="chunk_size is 0"):
    distil.make_method(small.env(), "herding", chunk_size=0)
  with pytest.raises(LtddError, match="num_iterations is -1"):
    distil.make_method(small.env(), "kmeans", num_iterations=-1)


def test_short_classes_are_noted():
  method = distil.make_method(small.env(), "k_center")
  notes = distil.check_resources("k_center", method, SLOTS, small.resources(), small.env())
  assert notes == (
    "class 1: 5 slots but 3 training images; images are repeated",
    "class 2: 2 slots but 1 training images; images are repeated",
  )
