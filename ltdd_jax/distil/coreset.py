"""Methods that choose real images: the controls that every table needs.

`random` needs no teacher. `herding`, `k_center` and `kmeans` choose in the penultimate features of
the teachers (see `features.features`) of the clean images, `chunk_size` in one forward pass. All
take unequal slots and classes without slots, and repeat the images of a class
that has fewer of them than slots evenly, after all were used once.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from ltdd_jax.core.registry import check_at_least
from ltdd_jax.core.types import Distilled, Slots
from ltdd_jax.distil import features, selection
from ltdd_jax.distil.base import Env, Method, Resources, select

VERSION = 1

Choose = Callable[[jax.Array, jax.Array, Int[Array, " N"], Slots], Int[Array, " n"]]


def random(env: Env, /) -> Method:
  """Real training images, drawn without replacement in each class.

  Slot number r of class c gets image number r mod n_c of a random order of the class's n_c
  training images: a class with fewer images than slots repeats them, evenly.
  """

  def init(key: jax.Array, slots: Slots, res: Resources) -> Distilled:
    by_class = selection.by_class(res["labels"], env.num_classes, key)
    labels, rank = (jnp.asarray(x, jnp.int32) for x in slots)
    rows = by_class.rows_of(labels, rank)
    return Distilled(features.real_images(env, res, rows), labels)

  return select(init, needs=("images", "labels"))


def herding(env: Env, /, *, chunk_size: int = 500) -> Method:
  """Real images whose mean feature follows that of the class: see `selection.herding`.

  Draws nothing: every key gives the same images. iCaRL first scales each image's features to unit
  norm; the controls of dataset distillation, which this is, do not.
  """
  choose = lambda key, x, labels, slots: selection.herding(x, labels, slots, env.num_classes)
  return _by_features("herding", env, choose, chunk_size)


def k_center(env: Env, /, *, chunk_size: int = 500) -> Method:
  """Real images that leave no image of the class far away: see `selection.k_center`.

  Starts at the image nearest the class's mean, and draws nothing.
  """
  choose = lambda key, x, labels, slots: selection.k_center(x, labels, slots, env.num_classes)
  return _by_features("k_center", env, choose, chunk_size)


def kmeans(env: Env, /, *, num_iterations: int = 20, chunk_size: int = 500) -> Method:
  """The real images nearest the centres of the class's clusters: see `selection.k_means`.

  Each class is clustered by itself into as many clusters as it has slots: one k-means++ start and
  `num_iterations` of Lloyd's. scikit-learn tries several candidates for each centre of the start,
  and stops when nothing moves.
  """
  check_at_least("method 'kmeans': ", 0, num_iterations=num_iterations)

  def choose(key, x, labels, slots):
    return selection.k_means(key, x, labels, slots, env.num_classes, num_iterations)

  return _by_features("kmeans", env, choose, chunk_size)


def _by_features(name: str, env: Env, choose: Choose, chunk_size: int) -> Method:
  """Makes a method of a function that chooses rows by their features."""
  check_at_least(f"method {name!r}: ", 1, chunk_size=chunk_size)

  def init(key: jax.Array, slots: Slots, res: Resources) -> Distilled:
    labels = jnp.asarray(res["labels"], jnp.int32)
    slots = Slots(*(jnp.asarray(x, jnp.int32) for x in slots))
    rows = choose(key, features.features(env, res, chunk_size), labels, slots)
    return Distilled(features.real_images(env, res, rows), slots.labels)

  return select(init, needs=("teachers", "images", "labels"))
