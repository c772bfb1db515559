"""Methods that choose real images: the controls that every table needs."""

import jax
import jax.numpy as jnp

from ltdd_jax.data import augment
from ltdd_jax.distil.base import Env, Feed, Method
from ltdd_jax.types import Slots, SynthSet


def random(env: Env, /) -> Method:
  """Real training images, drawn without replacement in each class.

  Slot number r of class c gets image number r mod n_c of a random order of the class's n_c
  training images: a class with fewer images than slots repeats them, evenly.
  """

  def init(key: jax.Array, slots: Slots, feed: Feed) -> SynthSet:
    labels = jnp.asarray(feed.labels)
    noise = jax.random.uniform(key, labels.shape)
    by_class = jnp.lexsort((noise, labels))  # sorted by class, in random order within it
    counts = jnp.bincount(labels, length=env.num_classes)
    start = jnp.cumsum(counts) - counts
    slot_labels = jnp.asarray(slots.labels, jnp.int32)
    rank = jnp.asarray(slots.rank, jnp.int32)
    rows = by_class[start[slot_labels] + rank % jnp.maximum(counts[slot_labels], 1)]
    images = augment.normalize(jnp.asarray(feed.images)[rows], env.mean, env.std)
    return SynthSet(images, slot_labels)

  def step(
    key: jax.Array, state: SynthSet, feed: Feed, *, turn: int = 0
  ) -> tuple[SynthSet, dict[str, jax.Array]]:
    del key, feed, turn
    return state, {}

  return Method(
    init, step, read=lambda state: state, needs=("images", "labels"), num_steps=0, real_images=True
  )
