"""RDED: the patches of real images that the teachers find easiest, put together to mosaics.

Sun et al., "On the diversity and realism of distilled dataset: an efficient dataset distillation
paradigm" (CVPR 2024). Nothing is optimised. The work is done in `patches`.
"""

import jax
import jax.numpy as jnp

from ltdd_jax.core.types import Distilled, Slots
from ltdd_jax.distil import patches, selection
from ltdd_jax.distil.base import Env, Method, Resources, select

VERSION = 1


def rded(
  env: Env,
  /,
  *,
  factor: int = 1,
  num_crops: int = 5,
  pool: int = 300,
  chunk_size: int = 500,
) -> Method:
  """Mosaics of the easiest patches. The defaults are those of CIFAR and Tiny-ImageNet.

  Of each class, `pool` random images give `num_crops` square random resized crops each, of the side
  of a mosaic's cell. A patch in the middle of a canvas of the mean colour is scored by the
  cross-entropy of its class under the teachers' mean logits (RDED has one teacher, EDC's tool the
  mean of several), in eval mode. The best patch of each image is kept, and the best of these fill
  the cells, easiest first: cell number c of a class's image r of n shows patch c * n + r.

  In what we differ: all is normalised by the data set's own constants, where RDED uses those of
  ImageNet everywhere; crops are cut from images of the final size, not from larger files; and a
  class may have fewer images than the pool or than patches, where RDED stops with an error. Such a
  class takes the pool's entries from its images in turn, each entry with its own crops; each
  image's best patch is used before any second best one, and so on.

  Args:
    env: with one teacher or more.
    factor: cells along a side of a mosaic (RDED: 2 on ImageNet, else 1).
    num_crops: candidate patches of each image of the pool.
    pool: images of each class that are looked at.
    chunk_size: patches in one forward pass.
  """
  options = patches.PatchOptions(factor, num_crops, pool, chunk_size)
  patches.check_options("rded", env, options)

  def init(key: jax.Array, slots: Slots, res: Resources) -> Distilled:
    labels = jnp.asarray(slots.labels, jnp.int32)
    totals = jnp.bincount(labels, length=env.num_classes)[labels]
    first = selection.first_rank(slots, env.num_classes)
    # Images of a set that this one goes on from have taken the first factor^2 * first patches.
    later = slots._replace(rank=slots.rank + (factor**2 - 1) * first)
    return Distilled(patches.mosaics(key, env, options, res, later, totals), labels)

  return select(init, ("teachers", "images", "labels"), patches.make_notes("rded", options))
