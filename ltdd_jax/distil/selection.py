"""Choose rows of a feature matrix, class by class: herding, k-center and k-means.

All classes at once, in rounds: round r chooses the r-th image of every class. One round costs
O(N f) time and memory; no matrix of all pairs is made. Shapes do not depend on the labels, which
may be traced. `N` training images, `f` features, `n` slots, `k` classes.

Every image of a class is chosen once before any is repeated: slot number r of class c gets the
choice number r mod n_c, where n_c is the number of the class's images.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from ltdd_jax.core.types import Slots

Rows = Int[Array, " n"]
Features = Float[Array, "N f"]
Labels = Int[Array, " N"]


class ByClass(NamedTuple):
  """Rows of training images, class by class."""

  rows: Rows  # sorted by class
  start: Int[Array, " k"]  # where a class begins
  counts: Int[Array, " k"]  # its images

  def rows_of(
    self, labels: Int[Array | np.ndarray, "*n"], number: Int[Array, "*n"]
  ) -> Int[Array, "*n"]:
    """Returns the row of image `number` of a class, counted on from its first after its last."""
    place = self.start[labels] + number % jnp.maximum(self.counts[labels], 1)
    return self.rows[jnp.minimum(place, len(self.rows) - 1)]


def by_class(labels: Any, k: int, key: Key[Array, ""] | None = None) -> ByClass:
  """Sorts rows by their class, with a key in a random order within it."""
  labels = jnp.asarray(labels)
  counts = jnp.bincount(labels, length=k)
  keys = (labels,) if key is None else (jax.random.uniform(key, labels.shape), labels)
  return ByClass(jnp.lexsort(keys), jnp.cumsum(counts) - counts, counts)


def herding(features: Features, labels: Labels, slots: Slots, k: int) -> Rows:
  """Chooses so that the mean of the chosen follows the mean of the class, greedily.

  Round r takes the image x, not taken before, with the least `||(r+1) mean - sum - x||`, where
  `sum` is that of the images taken: the running mean comes as near to the class's mean as one image
  can bring it. iCaRL (Rebuffi et al. 2017, algorithm 4), after herding (Welling 2009).
  """
  mean = class_means(features, labels, k)

  def score(total, r):
    return distances(features, ((r + 1) * mean - total)[labels])

  return _in_rounds(score, jnp.add, jnp.zeros_like(mean), features, labels, slots, k)


def k_center(features: Features, labels: Labels, slots: Slots, k: int) -> Rows:
  """Chooses the image nearest the class's mean, then always the one farthest from the chosen.

  The greedy 2-approximation of the k-center problem (Gonzalez 1985; Sener and Savarese 2018), which
  leaves the start open.
  """
  mean = class_means(features, labels, k)
  to_mean = distances(features, mean[labels])
  nearest = jnp.full(labels.shape, jnp.inf)

  def score(nearest, r):
    return jnp.where(r == 0, to_mean, -nearest)

  def update(nearest, centres):
    return jnp.minimum(nearest, distances(features, centres[labels]))

  return _in_rounds(score, update, nearest, features, labels, slots, k)


def first_rank(slots: Slots, k: int) -> Int[Array, " n"]:
  """The lowest rank in the class of each slot: 0, or more in a set that goes on from another."""
  return jax.ops.segment_min(slots.rank, slots.labels, k)[slots.labels]


def k_means(
  key: Key[Array, ""],
  features: Features,
  labels: Labels,
  slots: Slots,
  k: int,
  num_iterations: int,
) -> Rows:
  """Clusters each class into as many clusters as it has slots; the image nearest each centre.

  Nearest in the order of the slots among those not yet taken, so that two centres never share one.
  """
  slots = slots._replace(rank=slots.rank - first_rank(slots, k))
  rows = plus_plus(key, features, labels, slots, k)
  counts = jnp.bincount(labels, length=k)[slots.labels]
  active = slots._replace(rank=jnp.where(slots.rank < counts, slots.rank, -1))
  centres = lloyd(features, labels, features[rows], active, k, num_iterations)

  def score(_, r):
    centre, _ = _of_round(r, centres, active, k)
    return distances(features, centre[labels])

  return _in_rounds(score, lambda carry, _: carry, (), features, labels, slots, k)


def plus_plus(
  key: Key[Array, ""], features: Features, labels: Labels, slots: Slots, k: int
) -> Rows:
  """Draws the start of k-means (k-means++, Arthur and Vassilvitskii 2007).

  With probability in proportion to the squared distance to the nearest centre drawn so far, the
  first uniformly.
  """

  def score(nearest, r):
    weight = jnp.where(r == 0, 1.0, jnp.maximum(nearest, 1e-30))  # a duplicate only if need be
    return -jnp.log(weight) - jax.random.gumbel(jax.random.fold_in(key, r), labels.shape)

  def update(nearest, centres):
    return jnp.minimum(nearest, distances(features, centres[labels]))

  nearest = jnp.full(labels.shape, jnp.finfo(jnp.float32).max)
  return _in_rounds(score, update, nearest, features, labels, slots, k)


def lloyd(
  features: Features,
  labels: Labels,
  centres: Float[Array, "n f"],
  slots: Slots,
  k: int,
  num_iterations: int,
) -> Float[Array, "n f"]:
  """Moves each slot's centre to the mean of the images nearest it, a fixed number of times.

  Slots of rank -1 take no part. A centre that no image is nearest to stays where it is.
  """
  n = len(slots.labels)

  def owners(centres):  # number of the slot whose centre is nearest, of the image's class, or n
    def round_fn(r, state):
      best, owner = state
      centre, slot = _of_round(r, centres, slots, k)
      distance = distances(features, centre[labels])
      closer = (distance < best) & (slot[labels] < n)
      return jnp.where(closer, distance, best), jnp.where(closer, slot[labels], owner)

    start = jnp.full(labels.shape, jnp.inf), jnp.full(labels.shape, n, jnp.int32)
    return jax.lax.fori_loop(0, jnp.max(slots.rank) + 1, round_fn, start)[1]

  def iteration(_, centres):
    owner = owners(centres)
    count = jax.ops.segment_sum(jnp.ones(labels.shape), owner, n)
    total = jax.ops.segment_sum(features, owner, n)
    mean = total / jnp.maximum(count, 1)[:, None]
    return jnp.where((count > 0)[:, None], mean, centres)

  return jax.lax.fori_loop(0, num_iterations, iteration, centres)


def _of_round(
  r: Int[Array, ""], centres: Float[Array, "n f"], slots: Slots, k: int
) -> tuple[Float[Array, "k f"], Int[Array, " k"]]:
  """Centre of rank r of each class, and its slot: n, and some centre or other, if there is none."""
  n = len(slots.labels)
  numbers = jnp.where(slots.rank == r, jnp.arange(n, dtype=jnp.int32), n)
  slot = jnp.minimum(jax.ops.segment_min(numbers, slots.labels, k), n)
  return centres[jnp.minimum(slot, n - 1)], slot


def class_means(features: Features, labels: Labels, k: int) -> Float[Array, "k f"]:
  """Returns the mean feature of each class; 0 of an empty class."""
  count = jnp.bincount(labels, length=k)
  return jax.ops.segment_sum(features, labels, k) / jnp.maximum(count, 1)[:, None]


def distances(features: Features, points: Features) -> Float[Array, " N"]:
  """Returns squared Euclidean distances, row by row."""
  return jnp.square(features - points).sum(1)


def _in_rounds(
  score: Callable[[Any, Int[Array, ""]], Float[Array, " N"]],
  update: Callable[[Any, Float[Array, "k f"]], Any],
  carry: Any,
  features: Features,
  labels: Labels,
  slots: Slots,
  k: int,
) -> Rows:
  """Takes in each round the image of the least score of each class, of those not taken before.

  Of equal scores the first row wins. `update(carry, x)` learns of the features (k, f) that were
  taken; what it is told of a class without images, or of one whose images are all taken, is never
  used.
  """
  n_c = jnp.bincount(labels, length=k)
  turn = slots.rank % jnp.maximum(n_c, 1)[slots.labels]

  def round_fn(r, state):
    taken, rows, carry = state
    pick = _least(jnp.where(taken, jnp.inf, score(carry, r)), labels, k)
    rows = jnp.where(turn == r, pick[slots.labels], rows)
    last = len(labels) - 1
    carry = update(carry, features[jnp.minimum(pick, last)])
    return taken.at[pick].set(True, mode="drop"), rows, carry

  start = jnp.zeros(labels.shape, bool), jnp.zeros(slots.rank.shape, jnp.int32), carry
  return jax.lax.fori_loop(0, jnp.max(turn) + 1, round_fn, start)[1]


def _least(score: Float[Array, " N"], labels: Labels, k: int) -> Int[Array, " k"]:
  """Row of the least score of each class, the first of equals; N of a class without images."""
  best = jax.ops.segment_min(score, labels, k)
  rows = jnp.arange(len(labels), dtype=jnp.int32)
  rows = jnp.where(score == best[labels], rows, len(labels))
  return jnp.minimum(jax.ops.segment_min(rows, labels, k), len(labels))
