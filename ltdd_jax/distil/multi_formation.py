"""Multi-formation: a slot holds f x f small images, and networks see each of them at full size.

  seen = decode(images, 2)                    # (n, h, w, c) -> (4n, h, w, c), part by part
  labels = jnp.tile(labels, 4)                # of what is seen
  images = encode(small, 2, nearest)          # (4n, h, w, c) -> (n, h, w, c), in the same order

IDC (Kim et al., ICML 2022) calls it multi-formation, IDM partition and expansion. Four times as
many images fit into the same pixels. Parts are numbered row by row (IDM's code: column by column).
Of stored images students see one part in each label epoch: `Method.parts`.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ltdd_jax.core.types import Slots
from ltdd_jax.data import crops
from ltdd_jax.distil import features, initial_images, selection
from ltdd_jax.distil.base import Env, Notes, Resources, check_not_whitened

Shrink = Callable[[jax.Array, int], jax.Array]  # (m, h, w, c), factor -> (m, u, v, c)


def decode(images: Float[Array, "n h w c"], factor: int) -> Float[Array, "m h w c"]:
  """Returns the m = factor^2 n images that are seen: first parts of all, second parts of all, ...

  Each part is enlarged to the size of the whole, bilinearly. Linear in the images.

  Args:
    images: pixels in [0, 1]; in other units the factor has to divide the sides.
    factor: parts a side; 1 gives the images back.
  """
  if factor == 1:
    return images
  _, h, w, c = images.shape
  return crops.enlarge(crops.partition(images, factor), h, w).reshape(-1, h, w, c)


def encode(small: Float[Array, "m h w c"], factor: int, shrink: Shrink) -> Float[Array, "n h w c"]:
  """Puts each factor^2 images into one, made small, in the order of `decode`.

  Pixels of parts that lie outside of the image are cut off.
  """
  _, h, w, _ = small.shape
  parts = shrink(small, factor)
  m, u, v, c = parts.shape
  cut = parts.reshape(factor, factor, m // factor**2, u, v, c).transpose(2, 0, 3, 1, 4, 5)
  return cut.reshape(-1, factor * u, factor * v, c)[:, :h, :w]


def block_mean(images: Float[Array, "m h w c"], factor: int) -> Float[Array, "m u v c"]:
  """Makes images smaller, each pixel the mean of a block; the factor has to divide the sides."""
  m, h, w, c = images.shape
  return images.reshape(m, h // factor, factor, w // factor, factor, c).mean((2, 4))


def nearest(images: Float[Array, "m h w c"], factor: int) -> Float[Array, "m u v c"]:
  """Makes images smaller by their nearest pixels: row i is row floor(i h / ceil(h / factor))."""
  rows, columns = (
    jnp.arange(-(-side // factor)) * side // -(-side // factor) for side in images.shape[1:3]
  )
  return images[:, rows][:, :, columns]


def real_parts(
  key: jax.Array, env: Env, slots: Slots, res: Resources, factor: int, shrink: Shrink
) -> Float[Array, "n h w c"]:
  """Fills all parts of all slots with real images of their class, made small.

  Part j of slot number r of class c gets image number j m_c + r of a random order of the class's,
  m_c being its slots. A class with fewer images than parts repeats them, evenly.
  """
  by_class = selection.by_class(res["labels"], env.num_classes, key)
  labels, rank = (jnp.asarray(x, jnp.int32) for x in slots)
  totals = jnp.bincount(labels, length=env.num_classes)[labels]
  number = jnp.arange(factor**2, dtype=jnp.int32)[:, None] * totals[None] + rank[None]
  rows = by_class.rows_of(jnp.broadcast_to(labels[None], number.shape), number)
  return encode(features.real_images(env, res, rows.ravel()), factor, shrink)


def make_start(
  env: Env, init: str | Mapping[str, Any], method: str, factor: int, shrink: Shrink
) -> initial_images.Start:
  """Makes the start of a method: "real", which is `real_parts`, or a set of the same formation."""
  if factor > 1:
    check_not_whitened("multi-formation", env)

  def real(env: Env, /) -> initial_images.Start:
    draw = lambda key, slots, res: real_parts(key, env, slots, res, factor, shrink)
    return initial_images.Start(draw, ("images", "labels"), make_notes(factor))

  return initial_images.make_start(env, init, method, {"real": real})


def make_notes(factor: int) -> Notes:
  """Returns the notes on classes with fewer training images than parts."""

  def notes(have: np.ndarray, want: np.ndarray) -> tuple[str, ...]:
    parts = want * factor**2
    return tuple(
      f"class {c}: {want[c]} slots of {factor**2} parts but {have[c]} training images; images are "
      "repeated"
      for c in np.flatnonzero(have < parts)
    )

  return notes
