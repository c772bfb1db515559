"""Representative images of each class: the nearest to the centres of its clusters (DREAM).

Classes are clustered one by one and their images taken a few at a time: a pass costs products of
O(N f r), and no memory beyond the features. Shapes do not depend on the labels, which may be
traced. `N` training images, `f` features, `k` classes, `r` clusters of a class.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Int32, Key

from ltdd_jax.distil import selection

_SIZE = 512  # images in one product

Representatives = tuple[Int32[Array, "k r"], Float[Array, "k r"]]


def representatives(
  key: Key[Array, ""],
  features: Float[Array, "N f"],
  labels: Int[Array, " N"],
  k: int,
  num_clusters: int,
  num_iterations: int,
) -> Representatives:
  """Clusters each class by k-means; the image of the class nearest each centre.

  Lloyd's iterations from images drawn without replacement; a centre that no image is nearest to
  stays where it is. Two centres may have one image. A class of fewer images than `num_clusters` has
  as many clusters as images: so every one of them is chosen.

  Returns:
    Rows, and weights: 0 for clusters that a class does not have.
  """
  by_class = selection.by_class(labels, k, key)
  number = jnp.arange(num_clusters, dtype=jnp.int32)

  def one(c: jax.Array) -> tuple[jax.Array, jax.Array]:
    there = number < by_class.counts[c]
    start = features[by_class.rows_of(jnp.broadcast_to(c, number.shape), number)]
    over_images = lambda fn, first: _over_images(fn, first, features, by_class, c)
    move = lambda _, centres: _moved(over_images, centres, there)
    centres = jax.lax.fori_loop(0, num_iterations, move, start)
    return _nearest(over_images, centres, there), there.astype(jnp.float32)

  return jax.lax.map(one, jnp.arange(k))


Fold = Callable[
  [Any, jax.Array, jax.Array, jax.Array], Any
]  # carry, rows, features, there -> carry


def _over_images(
  fn: Fold, carry: Any, features: jax.Array, by_class: selection.ByClass, c: jax.Array
) -> Any:
  """Folds a function over the images of a class; those that are not `there` fill the last part."""

  def part(i: jax.Array, carry: Any) -> Any:
    place = i * _SIZE + jnp.arange(_SIZE, dtype=jnp.int32)
    rows = by_class.rows_of(jnp.broadcast_to(c, place.shape), place)
    return fn(carry, rows, features[rows], place < by_class.counts[c])

  return jax.lax.fori_loop(0, -(-by_class.counts[c] // _SIZE), part, carry)


def _moved(over_images: Callable[..., Any], centres: jax.Array, there: jax.Array) -> jax.Array:
  """The mean of the images nearest each centre."""

  def fn(carry, rows, x, counted):
    owner = jax.nn.one_hot(_distances(x, centres, there).argmin(1), len(centres))
    owner = owner * counted[:, None]
    return carry[0] + owner.sum(0), carry[1] + jnp.matmul(owner.T, x, precision="highest")

  count, total = over_images(fn, (jnp.zeros(len(centres)), jnp.zeros_like(centres)))
  return jnp.where(count[:, None] > 0, total / jnp.maximum(count, 1)[:, None], centres)


def _nearest(over_images: Callable[..., Any], centres: jax.Array, there: jax.Array) -> jax.Array:
  """The row of the image nearest each centre, the first of equals."""

  def fn(carry, rows, x, counted):
    best, nearest = carry
    distance = jnp.where(counted[:, None], _distances(x, centres, there), jnp.inf)
    closer = distance.min(0) < best
    nearest = jnp.where(closer, rows[distance.argmin(0)], nearest)
    return jnp.where(closer, distance.min(0), best), nearest

  start = jnp.full(len(centres), jnp.inf), jnp.zeros(len(centres), jnp.int32)
  return over_images(fn, start)[1]


def _distances(x: jax.Array, centres: jax.Array, there: jax.Array) -> jax.Array:
  """Squared distances (b, r); infinity to centres that are not there."""
  squares = jnp.square(x).sum(1)[:, None] + jnp.square(centres).sum(1)[None]
  distance = squares - 2 * jnp.matmul(x, centres.T, precision="highest")
  return jnp.where(there[None], distance, jnp.inf)
