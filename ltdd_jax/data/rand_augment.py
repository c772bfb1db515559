"""RandAugment with torchvision's defaults: two of fourteen operations on each image.

  view = rand_augment(key, image)               # (h, w, c) uint8 in, levels as int32 out
  view = apply_op(image, OPS.index("rotate"), negative=True)

Pixels are those of PIL, whose floats sometimes fall just short of a whole number: one level less.
Every operation is one gather (where a pixel comes from), one table of 256 levels for each channel,
and for `color` and `sharpness` a blend with a grey or smoothed image: it works under `vmap`.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int, Key, Num

OPS = (
  "identity", "shear_x", "shear_y", "translate_x", "translate_y", "rotate", "brightness", "color",
  "contrast", "sharpness", "posterize", "solarize", "auto_contrast", "equalize",
)  # fmt: skip
MAGNITUDE = 9 / 30
"""Share of the largest change, torchvision's default: shear 0.09, translation by 0.136 of the side,
9 degrees, factors 1 +- 0.27, 7 bits and the threshold 178.5."""
_GREY = (19595, 38470, 7471)  # weights of red, green and blue in 65536ths
_LEVELS = np.arange(256)

Image = Int[Array, "h w c"]  # levels 0..255
Table = Int[Array, "256 c"]  # new level of each level, by channel


def rand_augment(key: Key[Array, ""], image: Num[Array | np.ndarray, "h w c"]) -> Image:
  """Applies two operations, uniform with replacement, each with a random sign if it has one.

  torchvision's `RandAugment()` on PIL images: nearest neighbour, black where nothing was.

  Args:
    key: a typed key.
    image: levels 0 to 255, or pixels in [0, 1], which are rounded to levels; one channel or three.
  """
  image = jnp.asarray(image)
  if jnp.issubdtype(image.dtype, jnp.floating):
    image = jnp.rint(255 * jnp.clip(image, 0, 1))
  image = image.astype(jnp.int32)
  for op_key in jax.random.split(key, 2):
    choice_key, sign_key = jax.random.split(op_key)
    op = jax.random.randint(choice_key, (), 0, len(OPS))
    image = apply_op(image, op, jax.random.bernoulli(sign_key))
  return image


def apply_op(image: Image, op: ArrayLike, negative: ArrayLike) -> Image:
  """Applies operation number `op` of `OPS`; `negative` turns the sign of those that have one."""
  op, negative = jnp.asarray(op), jnp.asarray(negative)
  change = jnp.where(negative, jnp.float32(1 - 0.9 * MAGNITUDE), jnp.float32(1 + 0.9 * MAGNITUDE))
  image = _move(image, op, negative)
  tables = _tables(image, change)
  which = jnp.asarray([[*tables].index(name if name in tables else "identity") for name in OPS])
  table = jnp.stack([*tables.values()])[which[op]]
  levels = image.reshape(-1, image.shape[-1])
  image = jnp.take_along_axis(table, levels, axis=0).reshape(image.shape)
  image = jnp.where(op == OPS.index("color"), _blend(_grey(image), image, change), image)
  return jnp.where(op == OPS.index("sharpness"), _blend(_smooth(image), image, change), image)


# ---- where pixels come from ----


def _move(image: Image, op: jax.Array, negative: jax.Array) -> Image:
  """Gathers each pixel from where the operation takes it, in fixed point as PIL does."""
  h, w, _ = image.shape
  shares = (MAGNITUDE, -MAGNITUDE)
  matrices = np.asarray([[_matrix(name, share, h, w) for share in shares] for name in OPS])
  a, b, c, d, e, f = jnp.asarray(_fixed_point(matrices))[op, negative.astype(jnp.int32)]
  x, y = jnp.arange(w)[None, :], jnp.arange(h)[:, None]
  column, row = (a * x + b * y + c) >> 16, (d * x + e * y + f) >> 16
  inside = (column >= 0) & (column < w) & (row >= 0) & (row < h)
  moved = image[jnp.clip(row, 0, h - 1), jnp.clip(column, 0, w - 1)]
  return jnp.where(inside[..., None], moved, 0)


def _matrix(name: str, at: float, h: int, w: int) -> tuple[float, ...]:
  """The source (a x + b y + c, d x + e y + f) of a point, `at` in [-1, 1] of the largest change."""
  shear = 0.3 * at
  by_x, by_y = int(150 / 331 * w * at), int(150 / 331 * h * at)
  angle = math.radians(30 * at)
  cos, sin = math.cos(angle), math.sin(angle)
  known = {
    "shear_x": (1, shear, 0, 0, 1, 0),
    "shear_y": (1, 0, 0, shear, 1, 0),
    "translate_x": (1, 0, -by_x, 0, 1, 0),
    "translate_y": (1, 0, 0, 0, 1, -by_y),
    "rotate": (  # counter-clockwise about the centre
      cos, -sin, (w - cos * w + sin * h) / 2, sin, cos, (h - sin * w - cos * h) / 2
    ),
  }  # fmt: skip
  return known.get(name, (1, 0, 0, 0, 1, 0))


def _fixed_point(m: np.ndarray) -> np.ndarray:
  """Matrices (..., 6) in 65536ths, of pixel centres: the offsets of c and f take them in."""
  half = m.copy()
  half[..., 2] += (m[..., 0] + m[..., 1]) / 2
  half[..., 5] += (m[..., 3] + m[..., 4]) / 2
  return np.floor(half * 65536 + 0.5).astype(np.int32)


# ---- tables of levels ----


def _tables(image: Image, change: Float[Array, ""]) -> dict[str, Table]:
  """The table of each operation that has one, and of "identity"."""
  c = image.shape[-1]
  everywhere = lambda table: jnp.broadcast_to(jnp.asarray(table, jnp.int32)[:, None], (256, c))
  mask = 256 - (1 << round(4 * MAGNITUDE))  # keeps 8 - round(4 m) bits
  counts = _histogram(image)
  return {
    "identity": everywhere(_LEVELS),
    "brightness": everywhere(_blend(jnp.int32(0), jnp.asarray(_LEVELS), change)),
    "contrast": everywhere(_blend(_mean_grey(image), jnp.asarray(_LEVELS), change)),
    "posterize": everywhere(_LEVELS & mask),
    "solarize": everywhere(np.where(255 * (1 - MAGNITUDE) > _LEVELS, _LEVELS, 255 - _LEVELS)),
    "auto_contrast": _auto_contrast(counts),
    "equalize": _equalize(counts),
  }


def _histogram(image: Image) -> Table:
  """Pixels of each level and channel."""
  channels = jnp.broadcast_to(jnp.arange(image.shape[-1]), image.shape)
  return jnp.zeros((256, image.shape[-1]), jnp.int32).at[image, channels].add(1)


def _auto_contrast(counts: Table) -> Table:
  """Stretches the levels that occur over 0..255: int(level 255 / (high - low) + offset)."""
  seen = counts > 0
  low = jnp.argmax(seen, axis=0)
  high = 255 - jnp.argmax(seen[::-1], axis=0)
  span = jnp.maximum(high - low, 1)
  levels = jnp.asarray(_LEVELS)[:, None]
  stretched = jnp.clip(255 * (levels - low[None]) // span[None], 0, 255)
  return jnp.where((high > low)[None], stretched, levels)


def _equalize(counts: Table) -> Table:
  """PIL's: level -> (step // 2 + pixels below it) // step, with step = (all - the top) // 255."""
  total = counts.sum(0)
  highest = 255 - jnp.argmax((counts > 0)[::-1], axis=0)
  top = jnp.take_along_axis(counts, highest[None], axis=0)[0]
  step = (total - top) // 255
  below = jnp.cumsum(counts, axis=0) - counts
  some = jnp.maximum(step, 1)[None]
  table = jnp.clip((some // 2 + below) // some, 0, 255)
  return jnp.where((step > 0)[None], table, jnp.asarray(_LEVELS)[:, None])


# ---- blends ----


def _blend(base: jax.Array, image: jax.Array, share: Float[Array, ""]) -> jax.Array:
  """Truncates base + share (image - base), of levels, into 0..255."""
  mixed = base.astype(jnp.float32) + share * (image - base).astype(jnp.float32)
  return jnp.clip(mixed, 0, 255).astype(jnp.int32)


def _grey(image: Image) -> Int[Array, "h w #c"]:
  if image.shape[-1] != 3:
    return image
  weights = jnp.asarray(_GREY)[None, None]
  return (jnp.sum(image * weights, axis=-1, keepdims=True) + 0x8000) >> 16


def _mean_grey(image: Image) -> Int[Array, ""]:
  """Mean of the grey image, rounded half up."""
  grey = _grey(image)
  return (2 * grey.sum() + grey.size) // (2 * grey.size)


def _smooth(image: Image) -> Image:
  """Weighs each pixel 5 and its eight neighbours 1, rounded; the border stays."""
  h, w, _ = image.shape
  if min(h, w) < 3:
    return image
  shifted = [image[i : h - 2 + i, j : w - 2 + j] for i in range(3) for j in range(3)]
  inner = (2 * (sum(shifted) + 4 * image[1:-1, 1:-1]) + 13) // 26
  return image.at[1:-1, 1:-1].set(inner)
