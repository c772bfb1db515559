"""Methods that choose real images: the controls that every table needs.

`random` needs no teacher. `herding`, `k_center` and `kmeans` choose in the penultimate features of
the teachers (`models.taps.features`; those of several side by side, see `features.features`), of
the clean images. All take unequal slots and classes without slots, and repeat the images of a class
that has fewer of them than slots evenly, after all were used once.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from ltdd_jax.core.types import Distilled, LtddError, Slots
from ltdd_jax.data import augment
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
    labels = jnp.asarray(res["labels"])
    noise = jax.random.uniform(key, labels.shape)
    by_class = jnp.lexsort((noise, labels))  # sorted by class, in random order within it
    counts = jnp.bincount(labels, length=env.num_classes)
    start = jnp.cumsum(counts) - counts
    slot_labels = jnp.asarray(slots.labels, jnp.int32)
    rank = jnp.asarray(slots.rank, jnp.int32)
    rows = by_class[start[slot_labels] + rank % jnp.maximum(counts[slot_labels], 1)]
    images = augment.normalize(jnp.asarray(res["images"])[rows], env.mean, env.std)
    return Distilled(images, slot_labels)

  return select(init, needs=("images", "labels"))


def herding(env: Env, /, *, unit_norm: bool = False, chunk_size: int = 500) -> Method:
  """Real images whose mean feature follows that of the class: see `selection.herding`.

  Draws nothing: every key gives the same images. iCaRL first scales each image's features to unit
  norm (`unit_norm=True`); the controls of dataset distillation, which this is, do not.

  Args:
    env: with one teacher or more.
    unit_norm: whether each image's features are scaled to norm 1.
    chunk_size: images in one forward pass.
  """
  choose = lambda key, x, labels, slots: selection.herding(x, labels, slots, env.num_classes)
  return _by_features("herding", env, choose, unit_norm, chunk_size)


def k_center(env: Env, /, *, unit_norm: bool = False, chunk_size: int = 500) -> Method:
  """Real images that leave no image of the class far away: see `selection.k_center`.

  Starts at the image nearest the class's mean. Draws nothing: every key gives the same images.

  Args:
    env: with one teacher or more.
    unit_norm: whether each image's features are scaled to norm 1.
    chunk_size: images in one forward pass.
  """
  choose = lambda key, x, labels, slots: selection.k_center(x, labels, slots, env.num_classes)
  return _by_features("k_center", env, choose, unit_norm, chunk_size)


def kmeans(
  env: Env, /, *, num_iterations: int = 20, unit_norm: bool = False, chunk_size: int = 500
) -> Method:
  """The real images nearest the centres of the class's clusters: see `selection.k_means`.

  Each class is clustered by itself into as many clusters as it has slots: one k-means++ start and a
  fixed number of Lloyd's iterations. scikit-learn tries several candidates for each centre of the
  start, and stops when nothing moves.

  Args:
    env: with one teacher or more.
    num_iterations: of Lloyd's algorithm.
    unit_norm: whether each image's features are scaled to norm 1.
    chunk_size: images in one forward pass.
  """
  if num_iterations < 0:
    raise LtddError(f"method 'kmeans': num_iterations is {num_iterations}; expected 0 or more")

  def choose(key, x, labels, slots):
    return selection.k_means(key, x, labels, slots, env.num_classes, num_iterations)

  return _by_features("kmeans", env, choose, unit_norm, chunk_size)


def _by_features(name: str, env: Env, choose: Choose, unit_norm: bool, chunk_size: int) -> Method:
  """Makes a method of a function that chooses rows by their features."""
  features.check_teachers(name, env, chunk_size)

  def init(key: jax.Array, slots: Slots, res: Resources) -> Distilled:
    labels = jnp.asarray(res["labels"], jnp.int32)
    slots = Slots(*(jnp.asarray(x, jnp.int32) for x in slots))
    x = features.features(env, res, chunk_size)
    if unit_norm:
      x = x / jnp.maximum(jnp.linalg.norm(x, axis=1, keepdims=True), 1e-12)
    rows = choose(key, x, labels, slots)
    images = augment.normalize(jnp.asarray(res["images"])[rows], env.mean, env.std)
    return Distilled(images, slots.labels)

  return select(init, needs=("teachers", "images", "labels"))
