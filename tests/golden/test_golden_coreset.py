"""Coresets against loops in float64, and k-means against scikit-learn.

Features are drawn, so no two scores are within rounding of each other and choices are equal.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.cluster import KMeans

from ltdd_jax.core.types import Slots
from ltdd_jax.distil import selection
from tests import small
from tests.reference import coreset_ref as ref

K = 5
COUNTS = (9, 1, 3, 0, 12)  # images: a class of one, and one without
WANT = (4, 3, 5, 0, 6)  # slots: more than images in two classes


@pytest.fixture(scope="module")
def data():
  """Features (25, 4) and labels in no order; slots."""
  rng = np.random.RandomState(0)
  labels = rng.permutation(np.repeat(np.arange(K), COUNTS)).astype(np.int32)
  features = (rng.randn(len(labels), 4) + labels[:, None]).astype(np.float32)
  slots = small.slots(*WANT)
  return jnp.asarray(features), jnp.asarray(labels), Slots(*map(jnp.asarray, slots))


def by_class(data, rows):
  """For each class: its features, and the chosen positions in the order of the slots."""
  features, labels, slots = map(np.asarray, (data[0], data[1], data[2].labels))
  for c in np.flatnonzero(WANT):
    mine = np.flatnonzero(labels == c)
    yield c, features[mine], [mine.tolist().index(r) for r in np.asarray(rows)[slots == c]]


@pytest.mark.parametrize("name", ["herding", "k_center"])
def test_greedy_choices(data, name):
  rows = jax.jit(getattr(selection, name), static_argnums=3)(*data, K)
  for c, x, got in by_class(data, rows):
    assert got == getattr(ref, name)(x, WANT[c])


def test_greedy_choices_with_ties_take_the_first_row():
  x, labels = jnp.zeros((6, 2)), jnp.array([0, 1, 0, 1, 0, 1], jnp.int32)
  slots = Slots(*map(jnp.asarray, small.slots(4, 2)))
  for choose in (selection.herding, selection.k_center):
    rows = np.asarray(choose(x, labels, slots, 2))
    assert rows[np.asarray(slots.labels) == 0].tolist() == [0, 2, 4, 0]
    assert rows[np.asarray(slots.labels) == 1].tolist() == [1, 3]


@pytest.fixture(scope="module")
def clustered(data):
  """Start, centres and choices of k-means, with 7 iterations."""
  features, labels, slots = data
  key = jax.random.key(1)

  @jax.jit
  def run(features, labels, slots):
    start = selection.plus_plus(key, features, labels, slots, K)
    active = slots.rank < jnp.bincount(labels, length=K)[slots.labels]
    there = slots._replace(rank=jnp.where(active, slots.rank, -1))
    centres = selection.lloyd(features, labels, features[start], there, K, 7)
    return start, centres, selection.k_means(key, features, labels, slots, K, 7)

  return jax.tree.map(np.asarray, run(features, labels, slots))


def test_k_means(data, clustered):
  _, centres, rows = clustered
  starts = {c: got for c, _, got in by_class(data, clustered[0])}
  for c, x, got in by_class(data, rows):
    count = min(WANT[c], len(x))
    assert len(set(starts[c])) == count  # a start without repetition
    mine = centres[np.asarray(data[2].labels) == c][:count]
    expected = ref.lloyd(x, x[starts[c][:count]], 7)
    np.testing.assert_allclose(mine, expected, atol=1e-5)
    best = ref.nearest_distances(x, expected, got)  # two images of one cluster are equally near
    np.testing.assert_allclose(np.linalg.norm(x[got[:count]] - expected, axis=1), best, atol=1e-5)
    assert len(set(got[:count])) == count
    assert got == ref.evenly(got[:count], WANT[c])


def test_k_means_equals_scikit_learn_from_the_same_start(data, clustered):
  start, centres, _ = clustered
  for c, x, first in by_class(data, start):
    count = min(WANT[c], len(x))
    theirs = KMeans(count, init=x[first[:count]], n_init=1, max_iter=50, tol=0).fit(x)
    mine = centres[np.asarray(data[2].labels) == c][:count]
    np.testing.assert_allclose(mine, theirs.cluster_centers_, atol=1e-5)


def test_k_means_start_is_drawn_by_squared_distance():
  """A class of three images, 0, 1 and 3: the second centre after the first, by hand."""
  x, labels = jnp.array([[0.0], [1.0], [3.0]]), jnp.zeros(3, jnp.int32)
  slots = Slots(jnp.zeros(2, jnp.int32), jnp.arange(2))
  draw = jax.vmap(lambda key: selection.plus_plus(key, x, labels, slots, 1))
  rows = np.asarray(jax.jit(draw)(jax.random.split(jax.random.key(0), 3000)))
  pairs = np.array([[np.mean((rows == (i, j)).all(1)) for j in range(3)] for i in range(3)])
  expected = np.array([[0, 1 / 10, 9 / 10], [1 / 5, 0, 4 / 5], [9 / 13, 4 / 13, 0]]) / 3
  np.testing.assert_allclose(pairs, expected, atol=4 * np.sqrt(0.3 * 0.7 / 3000))
