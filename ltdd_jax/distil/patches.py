"""Candidate patches of real images: draw, score, rank, and join to mosaics. See `rded.rded`.

Of the candidates only the scores are kept: a patch is the image and the box that its number and the
key stand for, and is cut again when it is used. Memory does not grow with the candidates' pixels.

Numbers: candidate e of a class, e = 0, ..., pool * num_crops - 1, is a crop of its pool's entry
e // num_crops. Entry p is image number p mod n_c of a random order of the class's n_c images.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from ltdd_jax.core.registry import check_at_least
from ltdd_jax.core.types import Leaf, LtddError, Slots
from ltdd_jax.data import crops
from ltdd_jax.distil import features, selection
from ltdd_jax.distil.base import Env, Notes, Resources, check_not_whitened


class PatchOptions(NamedTuple):
  """The numbers of RDED, all static: see `rded.rded`."""

  factor: int
  num_crops: int
  pool: int
  chunk_size: int

  @property
  def candidates(self) -> int:
    """Candidate patches of one class."""
    return self.pool * self.num_crops


class Pool(NamedTuple):
  """What the number of a candidate means."""

  crop_key: Leaf  # typed key
  by_class: selection.ByClass  # in a random order


def mosaics(
  key: jax.Array,
  env: Env,
  options: PatchOptions,
  res: Resources,
  slots: Slots,
  totals: Int[Array, " n"],
) -> Float[Array, "n h w c"]:
  """Makes mosaics of a distilled set with `totals` images of each slot's class.

  `slots` has the class of each mosaic and its number within it; the key draws pool and crops.
  """
  order_key, crop_key = jax.random.split(key)
  labels, numbers = (jnp.asarray(x, jnp.int32) for x in slots)
  pool = Pool(crop_key, selection.by_class(res["labels"], env.num_classes, order_key))
  wanted = jnp.bincount(labels, length=env.num_classes) > 0
  scores = score_patches(pool, env, options, res, wanted)
  order = rank_patches(scores, pool.by_class.counts, options.num_crops)
  cells = options.factor**2

  def chunk(i):
    place = places(options, numbers[i], totals[i])
    of_class = jnp.broadcast_to(labels[i][:, None], place.shape)
    best = order[of_class, place % options.candidates]
    flat = cut_patches(pool, env, options, res, of_class.ravel(), best.ravel())
    return join_cells(flat.reshape(len(i), cells, *flat.shape[1:]))

  return features.in_chunks(chunk, len(labels), max(options.chunk_size // cells, 1))


def score_patches(
  pool: Pool, env: Env, options: PatchOptions, res: Resources, wanted: Bool[Array, " k"]
) -> Float[Array, "k e"]:
  """Returns the cross-entropy of the wanted classes' candidates; nothing of use for the others.

  Chunks without a candidate of a wanted class cost nothing.
  """

  def chunk(i):
    some = wanted[i // options.candidates].any()
    return jax.lax.cond(some, score, lambda i: jnp.zeros(i.shape, jnp.float32), i)

  def score(i):
    of_class, number = i // options.candidates, i % options.candidates
    patches = cut_patches(pool, env, options, res, of_class, number)
    logits = features.mean_logits(env, res["teachers"], pad_to(patches, env.image_shape))
    rows = jax.nn.log_softmax(logits.astype(jnp.float32))
    return -jnp.take_along_axis(rows, of_class[:, None], axis=1)[:, 0]

  scores = features.in_chunks(chunk, env.num_classes * options.candidates, options.chunk_size)
  return scores.reshape(env.num_classes, options.candidates)


def cut_patches(
  pool: Pool,
  env: Env,
  options: PatchOptions,
  res: Resources,
  of_class: Int[Array, " b"],
  number: Int[Array, " b"],
) -> Float[Array, "b u v c"]:
  """Cuts candidates: normalised square boxes, resized to the side of a cell."""
  h, w, _ = env.image_shape
  rows = pool.by_class.rows_of(of_class, number // options.num_crops)
  size = (h // options.factor, w // options.factor)
  boxes = jax.vmap(lambda c, e: draw_box(pool.crop_key, options, env, c, e))(of_class, number)
  whole = features.real_images(env, res, rows)
  return jax.vmap(lambda x, box: crops.crop_shrink(x, box, size))(whole, boxes)


def draw_box(
  crop_key: jax.Array, options: PatchOptions, env: Env, of_class: Any, number: Any
) -> crops.Box:
  """Draws the box of a candidate, the same each time: scale (0.08, 1), square."""
  key = jax.random.fold_in(crop_key, of_class * options.candidates + number)
  return crops.rrc_box(key, *env.image_shape[:2], scale=(0.08, 1.0), ratio=(1.0, 1.0))


def rank_patches(
  scores: Float[Array, "k e"], counts: Int[Array, " k"], num_crops: int
) -> Int[Array, "k e"]:
  """Orders a class's candidates: the best of every image by score, then all second bests, ..."""
  place = jnp.arange(scores.shape[1])

  def one_class(scores, count):
    image = place // num_crops % jnp.maximum(count, 1)
    by_image = jnp.lexsort((scores, image))
    begins = jnp.searchsorted(image[by_image], image[by_image], side="left")
    turn = jnp.zeros_like(image).at[by_image].set(place - begins)  # 0 for the best of its image
    return jnp.lexsort((scores, turn))

  return jax.vmap(one_class)(scores, counts)


def places(
  options: PatchOptions, numbers: Int[Array, " b"], totals: Int[Array, " b"]
) -> Int[Array, "b cells"]:
  """Returns which patches, in the order of use, the cells of image number such of so many show."""
  cell = jnp.arange(options.factor**2, dtype=jnp.int32)[None, :]
  return cell * totals[:, None] + numbers[:, None]


def pad_to(patches: Float[Array, "b u v c"], shape: tuple[int, int, int]) -> Array:
  """Puts patches in the middle of a canvas of zeros, the mean colour."""
  (h, w, _), (_, u, v, _) = shape, patches.shape
  top, left = (h - u) // 2, (w - v) // 2
  return jnp.pad(patches, ((0, 0), (top, h - u - top), (left, w - v - left), (0, 0)))


def join_cells(patches: Float[Array, "b cells u v c"]) -> Float[Array, "b h w c"]:
  """Puts cells together, row by row."""
  b, cells, u, v, c = patches.shape
  f = round(cells**0.5)
  grid = patches.reshape(b, f, f, u, v, c).transpose(0, 1, 3, 2, 4, 5)
  return grid.reshape(b, f * u, f * v, c)


def check_options(name: str, env: Env, options: PatchOptions) -> None:
  """Raises LtddError for numbers that make no mosaics of this image shape, or whitened images."""
  check_not_whitened(f"method {name!r}", env)
  check_at_least(f"method {name!r}: ", 1, **options._asdict())
  h, w, _ = env.image_shape
  if h % options.factor or w % options.factor:
    raise LtddError(
      f"method {name!r}: factor is {options.factor}, which does not divide the sides of images of "
      f"{h} x {w} pixels; expected a divisor, such as 1 or 2"
    )


def make_notes(name: str, options: PatchOptions) -> Notes:
  """Returns the notes on classes with fewer images than the pool, or than patches in mosaics."""

  def notes(have: np.ndarray, want: np.ndarray) -> tuple[str, ...]:
    patches = want * options.factor**2
    if patches.max() > options.candidates:
      worst = int(np.argmax(patches))
      raise LtddError(
        f"method {name!r}: class {worst} has {want[worst]} slots of {options.factor**2} patches, "
        f"and there are {options.pool} x {options.num_crops} candidate patches of a class. Raise "
        "pool or num_crops."
      )
    said = []
    small = np.flatnonzero((want > 0) & (have < options.pool))
    if len(small):
      said.append(
        f"classes {', '.join(f'{c} ({have[c]})' for c in small)} have fewer training images "
        f"than the pool of {options.pool}; each image gives more candidate patches"
      )
    distinct = np.minimum(have, options.pool)
    most = -(-patches // np.maximum(distinct, 1))
    said += [
      f"class {c}: {patches[c]} patches of {distinct[c]} training images; up to {most[c]} of each"
      for c in np.flatnonzero(distinct < patches)
    ]
    return tuple(said)

  return notes
