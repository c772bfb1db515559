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

from ltdd_jax.core.types import Leaf, LtddError
from ltdd_jax.data import augment, crops
from ltdd_jax.distil import features
from ltdd_jax.distil.base import Env, Notes, Resources

ARRANGEMENTS = ("strided", "consecutive")


class PatchOptions(NamedTuple):
  """The numbers of RDED, all static: see `rded.rded`."""

  factor: int
  num_crops: int
  pool: int
  arrangement: str
  chunk_size: int

  @property
  def candidates(self) -> int:
    """Candidate patches of one class."""
    return self.pool * self.num_crops


class Pool(NamedTuple):
  """What the number of a candidate means."""

  crop_key: Leaf  # typed key
  by_class: Leaf  # (N,) rows of the training set, sorted by class, in random order within it
  start: Leaf  # (k,) where a class begins
  counts: Leaf  # (k,) its images


def mosaics(
  key: jax.Array,
  env: Env,
  recipe: PatchOptions,
  res: Resources,
  labels: Int[Array, " n"],
  numbers: Int[Array, " n"],
  totals: Int[Array, " n"],
) -> Float[Array, "n h w c"]:
  """Makes mosaics of a distilled set: number `numbers[i]` of `totals[i]` of class `labels[i]`.

  Args:
    key: draws the pool and the crops.
    env: teachers and constants.
    recipe: see `rded.rded`.
    res: teachers, images, labels.
    labels: class of each mosaic.
    numbers: its number within its class.
    totals: images of its class in the whole set.

  Returns:
    Normalised images.
  """
  order_key, crop_key = jax.random.split(key)
  pool = draw_pool(order_key, crop_key, jnp.asarray(res["labels"]), env.num_classes)
  wanted = jnp.bincount(labels, length=env.num_classes) > 0
  scores = score_patches(pool, env, recipe, res, wanted)
  order = rank_patches(scores, pool.counts, recipe.num_crops)
  images = jnp.asarray(res["images"])
  cells = recipe.factor**2

  def chunk(i):
    place = places(recipe, numbers[i], totals[i])
    of_class = jnp.broadcast_to(labels[i][:, None], place.shape)
    best = order[of_class, place % recipe.candidates]
    flat = cut_patches(pool, env, recipe, images, of_class.ravel(), best.ravel())
    return join_cells(flat.reshape(len(i), cells, *flat.shape[1:]))

  return features.in_chunks(chunk, len(labels), max(recipe.chunk_size // cells, 1))


def draw_pool(order_key: jax.Array, crop_key: jax.Array, labels: Int[Array, " N"], k: int) -> Pool:
  """Draws a random order of each class's images."""
  noise = jax.random.uniform(order_key, labels.shape)
  counts = jnp.bincount(labels, length=k)
  return Pool(crop_key, jnp.lexsort((noise, labels)), jnp.cumsum(counts) - counts, counts)


def score_patches(
  pool: Pool, env: Env, recipe: PatchOptions, res: Resources, wanted: Bool[Array, " k"]
) -> Float[Array, "k e"]:
  """Returns the cross-entropy of the wanted classes' candidates; nothing of use for the others.

  Chunks without a candidate of a wanted class cost nothing: batch after batch of images, as a start
  asks for them, takes the passes that one set of all takes, if slots are in class-major order.
  """
  images = jnp.asarray(res["images"])

  def chunk(i):
    some = wanted[i // recipe.candidates].any()
    return jax.lax.cond(some, score, lambda i: jnp.zeros(i.shape, jnp.float32), i)

  def score(i):
    of_class, number = i // recipe.candidates, i % recipe.candidates
    patches = cut_patches(pool, env, recipe, images, of_class, number)
    logits = features.mean_logits(env, res["teachers"], pad_to(patches, env.image_shape))
    rows = jax.nn.log_softmax(logits.astype(jnp.float32))
    return -jnp.take_along_axis(rows, of_class[:, None], axis=1)[:, 0]

  scores = features.in_chunks(chunk, env.num_classes * recipe.candidates, recipe.chunk_size)
  return scores.reshape(env.num_classes, recipe.candidates)


def cut_patches(
  pool: Pool,
  env: Env,
  recipe: PatchOptions,
  images: Any,
  of_class: Int[Array, " b"],
  number: Int[Array, " b"],
) -> Float[Array, "b u v c"]:
  """Cuts candidates: normalised square boxes, resized to the side of a cell."""
  h, w, _ = env.image_shape
  entry = number // recipe.num_crops % jnp.maximum(pool.counts[of_class], 1)
  rows = pool.by_class[jnp.minimum(pool.start[of_class] + entry, len(pool.by_class) - 1)]
  size = (h // recipe.factor, w // recipe.factor)
  boxes = jax.vmap(lambda c, e: draw_box(pool.crop_key, recipe, env, c, e))(of_class, number)
  whole = augment.normalize(images[rows], env.mean, env.std)
  return jax.vmap(lambda x, box: crops.crop_shrink(x, box, size))(whole, boxes)


def draw_box(
  crop_key: jax.Array, recipe: PatchOptions, env: Env, of_class: Any, number: Any
) -> crops.Box:
  """Draws the box of a candidate, the same each time: scale (0.08, 1), square."""
  key = jax.random.fold_in(crop_key, of_class * recipe.candidates + number)
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
  recipe: PatchOptions, numbers: Int[Array, " b"], totals: Int[Array, " b"]
) -> Int[Array, "b cells"]:
  """Returns which patches, in the order of use, the cells of image number such of so many show."""
  cells = recipe.factor**2
  cell = jnp.arange(cells, dtype=jnp.int32)[None, :]
  if recipe.arrangement == "strided":
    return cell * totals[:, None] + numbers[:, None]
  return numbers[:, None] * cells + cell


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


def check_options(name: str, env: Env, recipe: PatchOptions) -> None:
  """Raises LtddError for numbers that make no mosaics of this image shape."""
  features.check_teachers(name, env, recipe.chunk_size)
  for field in ("factor", "num_crops", "pool"):
    value = getattr(recipe, field)
    if value < 1:
      raise LtddError(f"method {name!r}: {field} is {value}; expected 1 or more")
  h, w, _ = env.image_shape
  if h % recipe.factor or w % recipe.factor:
    raise LtddError(
      f"method {name!r}: factor is {recipe.factor}, which does not divide the sides of images of "
      f"{h} x {w} pixels; expected a divisor, such as 1 or 2"
    )
  if recipe.arrangement not in ARRANGEMENTS:
    raise LtddError(
      f"method {name!r}: arrangement is {recipe.arrangement!r}; expected one of "
      f"{', '.join(map(repr, ARRANGEMENTS))}"
    )


def make_notes(name: str, recipe: PatchOptions) -> Notes:
  """Returns the notes on classes with fewer images than the pool, or than patches in mosaics."""

  def notes(have: np.ndarray, want: np.ndarray) -> tuple[str, ...]:
    patches = want * recipe.factor**2
    if patches.max() > recipe.candidates:
      worst = int(np.argmax(patches))
      raise LtddError(
        f"method {name!r}: class {worst} has {want[worst]} slots of {recipe.factor**2} patches, "
        f"and there are {recipe.pool} x {recipe.num_crops} candidate patches of a class. Raise "
        "pool or num_crops."
      )
    said = []
    small = np.flatnonzero((want > 0) & (have < recipe.pool))
    if len(small):
      said.append(
        f"classes {', '.join(f'{c} ({have[c]})' for c in small)} have fewer training images "
        f"than the pool of {recipe.pool}; each image gives more candidate patches"
      )
    distinct = np.minimum(have, recipe.pool)
    most = -(-patches // np.maximum(distinct, 1))
    said += [
      f"class {c}: {patches[c]} patches of {distinct[c]} training images; up to {most[c]} of each"
      for c in np.flatnonzero(distinct < patches)
    ]
    return tuple(said)

  return notes
