"""Multi-formation: a slot holds f x f small images, and networks see each of them at full size.

  seen = decode(images, 2)                    # (n, h, w, c) -> (4n, h, w, c), part by part
  labels = jnp.tile(labels, 4)                # of what is seen
  images = real_parts(key, env, slots, res, 2, "mean")

IDC (Kim et al., ICML 2022) calls it multi-formation, IDM partition and expansion. Four times as
many images fit into the same pixels. Parts are numbered row by row (IDM's code: column by column).
Of stored images students see one part in each label epoch: `Method.parts`.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ltdd_jax.core.registry import check_at_least
from ltdd_jax.core.types import LtddError, Slots
from ltdd_jax.data import crops
from ltdd_jax.distil import features, patches, selection
from ltdd_jax.distil.base import Env, Notes, Resources


def decode(images: Float[Array, "n h w c"], factor: int) -> Float[Array, "m h w c"]:
  """Returns the m = factor^2 n images that are seen: first parts of all, second parts of all, ...

  Each part is enlarged to the size of the whole, bilinear. Linear in the images.
  """
  parts = crops.enlarge(crops.partition(images, factor), factor)
  return parts.reshape(-1, *images.shape[1:])


def block_mean(images: Float[Array, "*b h w c"], factor: int) -> Float[Array, "*b u v c"]:
  """Makes images smaller, each pixel the mean of a block of factor x factor."""
  *b, h, w, c = images.shape
  return images.reshape(*b, h // factor, factor, w // factor, factor, c).mean((-4, -2))


def nearest(images: Float[Array, "*b h w c"], factor: int) -> Float[Array, "*b u v c"]:
  """Makes images smaller, each pixel the upper left one of a block of factor x factor."""
  return images[..., ::factor, ::factor, :]


SHRINK: dict[str, Callable[..., jax.Array]] = {"mean": block_mean, "nearest": nearest}


def real_parts(
  key: jax.Array, env: Env, slots: Slots, res: Resources, factor: int, shrink: str
) -> Float[Array, "n h w c"]:
  """Fills all parts of all slots with real images of their class, made small by `SHRINK[shrink]`.

  Part j of slot number r of class c gets image number j m_c + r of a random order of the class's,
  m_c being its slots. A class with fewer images than parts repeats them, evenly.
  """
  by_class = selection.by_class(res["labels"], env.num_classes, key)
  labels, rank = (jnp.asarray(x, jnp.int32) for x in slots)
  totals = jnp.bincount(labels, length=env.num_classes)[labels]
  number = jnp.arange(factor**2, dtype=jnp.int32)[None, :] * totals[:, None] + rank[:, None]
  rows = by_class.rows_of(jnp.broadcast_to(labels[:, None], number.shape), number)
  return patches.join_cells(SHRINK[shrink](features.real_images(env, res, rows), factor))


def check_factor(name: str, env: Env, factor: int) -> None:
  """Raises LtddError unless images can be cut into factor x factor parts of one size."""
  check_at_least(f"method {name!r}: ", 1, factor=factor)
  h, w, _ = env.image_shape
  if h % factor or w % factor:
    raise LtddError(
      f"method {name!r}: factor is {factor}, which does not divide the sides of images of {h} x "
      f"{w} pixels; expected a divisor, such as 1 or 2"
    )


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
