"""Confident crops: the crops of a class's images that the teachers find easiest, in many rounds.

RLDD's initialisation (AAAI 2026). Every training image gives `num_crops` crops. Round 1 has the
best crop of every image, easiest first; round 2 the second best of every image, in the order of
round 1; and so on. Slot number r of a class of n images shows crop `r // n` of image `r % n`.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ltdd_jax.core.types import LtddError, Slots
from ltdd_jax.data import crops
from ltdd_jax.distil import features, selection
from ltdd_jax.distil.base import Env, Resources, check_not_whitened
from ltdd_jax.training import losses


def draw(
  env: Env, res: Resources, slots: Slots, num_crops: int, chunk_size: int
) -> Float[Array, "n h w c"]:
  """Makes the crops of all slots, normalised; boxes are drawn from `res["key"]`."""
  check_not_whitened("a start from crops", env)
  by_class = selection.by_class(res["labels"], env.num_classes)
  labels, rank = (jnp.asarray(x, jnp.int32) for x in slots)
  scores = score(env, res, by_class, labels, num_crops, chunk_size)
  place, number = choose(scores, by_class, labels, rank)
  rows = by_class.rows[place]
  chunk = lambda i: cut(env, res, rows[i], number[i], num_crops)
  return features.in_chunks(chunk, len(labels), chunk_size)


def score(
  env: Env,
  res: Resources,
  by_class: selection.ByClass,
  labels: Int[Array, " n"],
  num_crops: int,
  chunk_size: int,
) -> Float[Array, "N m"]:
  """Computes the teachers' cross-entropy of every crop of the images in the order of `by_class`.

  It is that of their mean logits, in eval mode. Chunks without an image of a class in `labels` are
  left out; they have zeros.
  """
  wanted = jnp.bincount(labels, length=env.num_classes) > 0
  of_row = jnp.asarray(res["labels"])

  def chunk(i):
    rows = by_class.rows[i // num_crops]
    evaluate = lambda: one_chunk(rows, i % num_crops)
    return jax.lax.cond(wanted[of_row[rows]].any(), evaluate, lambda: jnp.zeros(i.shape))

  def one_chunk(rows, number):
    logits = features.mean_logits(env, res["teachers"], cut(env, res, rows, number, num_crops))
    return losses.cross_entropy_rows(logits, of_row[rows])

  total = len(by_class.rows)
  return features.in_chunks(chunk, total * num_crops, chunk_size).reshape(total, num_crops)


def cut(
  env: Env, res: Resources, rows: Int[Array, " b"], number: Int[Array, " b"], num_crops: int
) -> Float[Array, "b h w c"]:
  """Cuts crop `number` of training images: square boxes of .08 to 1 of the area, as RDED's."""
  h, w, _ = env.image_shape

  def one(image: jax.Array, i: jax.Array) -> jax.Array:
    key = jax.random.fold_in(res["key"], i)
    box = crops.rrc_box(key, h, w, scale=(0.08, 1.0), ratio=(1.0, 1.0))
    return crops.crop_shrink(image, box, (h, w))

  return jax.vmap(one)(features.real_images(env, res, rows), rows * num_crops + number)


def choose(
  scores: Float[Array, "N m"],
  by_class: selection.ByClass,
  labels: Int[Array, " n"],
  rank: Int[Array, " n"],
) -> tuple[Int[Array, " n"], Int[Array, " n"]]:
  """Chooses for each slot the image, by its place in `by_class.rows`, and the number of its crop.

  No crop is chosen twice where a class has no more than `N_c m` slots.
  """
  of_place = jnp.repeat(
    jnp.arange(len(by_class.counts)), by_class.counts, total_repeat_length=len(scores)
  )
  order = jnp.lexsort((scores.min(1), of_place))  # classes stay where they are
  best_first = jnp.argsort(scores, axis=1)
  have = jnp.maximum(by_class.counts[labels], 1)
  place = order[by_class.start[labels] + rank % have]
  return place, best_first[place, rank // have]


def check_slots(num_crops: int, have: np.ndarray, want: np.ndarray) -> tuple[str, ...]:
  """Returns notes on classes of which images give several crops.

  Raises:
    LtddError: a class has more slots than crops.
  """
  each = np.where(have > 0, -(-want // np.maximum(have, 1)), 0)  # empty classes: another error
  if (each > num_crops).any():
    c = int(np.argmax(each))
    raise LtddError(
      f"init 'crops': class {c} has {want[c]} slots, and {num_crops} crops of {have[c]} training "
      f"images. Write init={{'name': 'crops', 'num_crops': {each[c]}}}, or give it fewer slots"
    )
  return tuple(
    f"class {c}: {want[c]} slots start from crops of {have[c]} training images, up to "
    f"{each[c]} of each"
    for c in np.flatnonzero((have < want) & (have > 0))
  )
