"""DSA: differentiable Siamese augmentation, one operation for a whole batch.

  views = dsa(key, images)                                 # each image has its own strengths
  real_view = dsa(key, real, shared=True)                  # one key and `shared`: two batches of
  distilled_view = dsa(key, distilled, shared=True)        # any size get the same view

Crop, flip, scale and rotate are one bilinear warp, so that the operation may be an array: images of
one batch may have different ones (`apply_op` under `vmap`). Gradients flow to the images.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from ltdd_jax.core.types import LtddError

OPS = ("color", "crop", "cutout", "flip", "scale", "rotate")
STRATEGY = "_".join(OPS)
ALWAYS = ("flip", "color", "cutout")  # see `apply_combined`

BRIGHTNESS, SATURATION, CONTRAST = 1.0, 2.0, 0.5
CROP, CUTOUT = 0.125, 0.5  # shares of the side
SCALE, DEGREES = 1.2, 15.0


def dsa(
  key: Key[Array, ""],
  images: Float[Array, "b h w c"],
  *,
  strategy: str = STRATEGY,
  shared: bool = False,
) -> Float[Array, "b h w c"]:
  """Applies one operation of the strategy to all images (Zhao and Bilen, ICML 2021, mode "S").

  Args:
    key: a typed key.
    images: a batch, normalised: what comes in from outside is 0.
    strategy: see `check_strategy`; leave out "flip" for digits.
    shared: one set of strengths for the whole batch ("Siamese").
  """
  op, numbers = draw(key, strategy, 1 if shared else len(images))
  numbers = jnp.broadcast_to(numbers, (len(images), 3))
  return jax.vmap(apply_op, (0, None, 0))(images, op, numbers)


def draw(
  key: Key[Array, ""], strategy: str, num: int
) -> tuple[Int[Array, ""], Float[Array, "num 3"]]:
  """Draws an operation, uniform on the strategy, and `num` sets of its numbers, U(0, 1)."""
  known = jnp.asarray([OPS.index(name) for name in check_strategy(strategy)])
  op_key, number_key = jax.random.split(key)
  op = known[jax.random.randint(op_key, (), 0, len(known))]
  return op, jax.random.uniform(number_key, (num, 3))


def check_strategy(strategy: str) -> list[str]:
  """Returns the names in a strategy, joined by "_"; raises LtddError if one is none of `OPS`."""
  names = strategy.split("_")
  for name in names:
    if name not in OPS:
      raise LtddError(
        f"DSA strategy {strategy!r}: operation {name!r} is not known; expected names joined by "
        f"'_', such as {STRATEGY!r}"
      )
  return names


def apply_op(
  image: Float[Array, "h w c"], op: Int[Array, ""], numbers: Float[Array, "3"]
) -> Float[Array, "h w c"]:
  """Applies operation number `op` of `OPS` with strengths made of three numbers in [0, 1).

      color   x + (u0 - 0.5); then 2 u1 times as far from the mean of the pixel's channels; then
              u2 + 0.5 times as far from the mean of the image
      crop    shift of rows and columns by whole numbers in -s..s, s = side / 8, zeros outside
      cutout  a square of half the side is set to 0, cut off at the border
      flip    left and right, if u0 < 0.5
      scale   rows and columns by factors from 1 / 1.2 to 1.2, more than 1 zooms out
      rotate  by -15 to 15 degrees

  Scale and rotate are PyTorch's `affine_grid` and `grid_sample` (bilinear, zeros outside) with
  `align_corners=False`, as the code of DC, DSA and DM runs them; MTT and its successors use True,
  which is the same on square images.
  """
  h, w, _ = image.shape
  image = _recolor(image, jnp.where(op == OPS.index("color"), 1.0, 0.0), numbers)
  image = _warp(image, _matrices(numbers, h, w)[op])
  hidden = _square(numbers, h, w) & (op == OPS.index("cutout"))
  return jnp.where(hidden[..., None], 0.0, image)


def draw_combined(
  key: Key[Array, ""], strategy: str, num: int
) -> tuple[Int[Array, ""], Float[Array, "num 4 3"]]:
  """Draws what `apply_combined` takes, for `num` images."""
  known = [OPS.index(name) for name in check_strategy(strategy) if name not in ALWAYS]
  op_key, number_key = jax.random.split(key)
  ops = jnp.asarray(known or [OPS.index("color")])  # which moves no pixel
  op = ops[jax.random.randint(op_key, (), 0, len(ops))]
  return op, jax.random.uniform(number_key, (num, 4, 3))


def apply_combined(
  image: Float[Array, "h w c"],
  op: Int[Array, ""],
  numbers: Float[Array, "4 3"],
  strategy: str,
) -> Float[Array, "h w c"]:
  """Applies several operations in one view, as IDC (Kim et al., ICML 2022), DREAM and NCFM do.

  Of the strategy "flip" and "color" come first, then operation number `op`, one of the others, then
  "cutout": each has numbers of its own, in this order.
  """
  h, w, _ = image.shape
  names = check_strategy(strategy)
  if "flip" in names:
    image = jnp.where(numbers[0, 0] < 0.5, image[:, ::-1], image)
  if "color" in names:
    image = _recolor(image, jnp.ones(()), numbers[1])
  if set(names) - set(ALWAYS):
    image = _warp(image, _matrices(numbers[2], h, w)[op])
  if "cutout" in names:
    image = jnp.where(_square(numbers[3], h, w)[..., None], 0.0, image)
  return image


def _recolor(image: jax.Array, active: jax.Array, numbers: jax.Array) -> jax.Array:
  """Returns the image itself, to the bit, where `active` is 0."""
  image = image + active * BRIGHTNESS * (numbers[0] - 0.5)
  saturation, contrast = SATURATION * numbers[1], numbers[2] + CONTRAST
  image = image + active * (saturation - 1) * (image - image.mean(-1, keepdims=True))
  return image + active * (contrast - 1) * (image - image.mean())


def _matrices(numbers: jax.Array, h: int, w: int) -> Float[Array, "6 2 3"]:
  """For each of `OPS`, where a pixel comes from: (row, column, 1) from the centre to such."""
  reach = [int(side * CROP + 0.5) for side in (h, w)]
  shifts = [_whole(u, -most, most) for u, most in zip(numbers[:2], reach, strict=True)]
  zooms = 1 / SCALE + numbers * (SCALE - 1 / SCALE)
  angle = jnp.deg2rad(DEGREES * (2 * numbers[0] - 1))
  cos, sin = jnp.cos(angle), jnp.sin(angle)
  same = ((1, 0, 0), (0, 1, 0))
  known = {
    "crop": ((1, 0, shifts[0]), (0, 1, shifts[1])),
    "flip": ((1, 0, 0), (0, jnp.where(numbers[0] < 0.5, -1, 1), 0)),
    "scale": ((zooms[1], 0, 0), (0, zooms[0], 0)),
    "rotate": ((cos, sin * h / w, 0), (-sin * w / h, cos, 0)),  # of the square [-1, 1]^2
  }
  return jnp.asarray([known.get(op, same) for op in OPS], jnp.float32)


def _warp(image: jax.Array, matrix: Float[Array, "2 3"]) -> jax.Array:
  """Takes each pixel from where the matrix says, bilinear, zeros outside."""
  h, w, _ = image.shape
  middle = ((h - 1) / 2, (w - 1) / 2)
  row, column = jnp.arange(h)[:, None] - middle[0], jnp.arange(w)[None, :] - middle[1]
  source = [a * row + b * column + c + m for (a, b, c), m in zip(matrix, middle, strict=True)]
  sample = lambda x: jax.scipy.ndimage.map_coordinates(x, source, order=1, mode="constant")
  return jax.vmap(sample, in_axes=-1, out_axes=-1)(image)


def _square(numbers: Float[Array, "3"], h: int, w: int) -> jax.Array:
  """Which pixels (h, w) a cutout covers."""
  rows, columns = (_hidden(u, n) for u, n in zip(numbers[:2], (h, w), strict=True))
  return rows[:, None] & columns[None, :]


def _hidden(u: Float[Array, ""], side: int) -> jax.Array:
  """Which rows, or columns, a cutout with a uniform centre covers."""
  size = int(side * CUTOUT + 0.5)
  first = _whole(u, 0, side - size % 2) - size // 2
  first, last = (jnp.clip(edge, 0, side - 1) for edge in (first, first + size - 1))
  at = jnp.arange(side)
  return (first <= at) & (at <= last)


def _whole(u: jax.Array, low: int, high: int) -> jax.Array:
  """A whole number, uniform on low..high."""
  return jnp.floor(u * (high - low + 1)) + low
