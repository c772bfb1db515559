"""Geometric views: crop, shift, flip, cutout, roll. Pure, jit-able, differentiable in the images.

  view = crop_resize(image, rrc_box(key, h, w))       # of one image, from its own key
  views = random_resized_crop(key, images)            # of a batch

`shared=True` uses one draw for the whole batch, as the published methods do.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int, Key

from ltdd_jax.core.registry import check_at_least
from ltdd_jax.core.types import LtddError

Box = tuple[Int[Array, ""], Int[Array, ""], Int[Array, ""], Int[Array, ""]]  # top left height width
_TRIES = 10


def random_crop(
  key: Key[Array, ""], images: Float[Array, "b h w c"], *, padding: int, shared: bool = False
) -> Float[Array, "b h w c"]:
  """Pads every side by `padding` zeros and cuts a window of the original size.

  On normalised images 0 is the mean colour of the data set.
  """
  return _translate(key, images, padding, "constant", shared)


def random_translate(
  key: Key[Array, ""], images: Float[Array, "b h w c"], *, padding: int, shared: bool = False
) -> Float[Array, "b h w c"]:
  """Shifts by up to `padding` pixels, the rest being reflected: `random_crop` without zeros."""
  return _translate(key, images, padding, "reflect", shared)


def _translate(
  key: Key[Array, ""], images: Float[Array, "b h w c"], padding: int, mode: str, shared: bool
) -> Float[Array, "b h w c"]:
  sides = (padding, padding)
  canvas = jnp.pad(images, ((0, 0), sides, sides, (0, 0)), mode=mode)
  corner = jax.random.randint(key, (2,) if shared else (len(images), 2), 0, 2 * padding + 1)
  cut = lambda image, yx: jax.lax.dynamic_slice(image, (yx[0], yx[1], 0), images.shape[1:])
  return jax.vmap(cut, (0, None if shared else 0))(canvas, corner)


def cutout(
  key: Key[Array, ""],
  images: Float[Array, "b h w c"],
  fill: Float[Array, " c"] | None = None,
  *,
  size: int,
) -> Float[Array, "b h w c"]:
  """Covers a square of `size` pixels a side, inside each image, with a colour (0 by default).

  Raises:
    LtddError: images smaller than the square.
  """
  b, h, w, c = images.shape
  if size > min(h, w):
    raise LtddError(f"augmentation cutout: size is {size}; expected {min(h, w)} or less, as images")
  top_key, left_key = jax.random.split(key)
  top = jax.random.randint(top_key, (b, 1), 0, h - size + 1)
  left = jax.random.randint(left_key, (b, 1), 0, w - size + 1)
  inside = lambda first, n: (jnp.arange(n)[None] >= first) & (jnp.arange(n)[None] < first + size)
  covered = inside(top, h)[:, :, None, None] & inside(left, w)[:, None, :, None]
  colour = jnp.zeros(c, images.dtype) if fill is None else fill.astype(images.dtype)
  return jnp.where(covered, colour.reshape(1, 1, 1, c), images)


def random_flip(
  key: Key[Array, ""], images: Float[Array, "b h w c"], *, shared: bool = False
) -> Float[Array, "b h w c"]:
  """Mirrors left and right with probability one half."""
  flip = jax.random.bernoulli(key, 0.5, (1 if shared else len(images),))
  return jnp.where(flip[:, None, None, None], images[:, :, ::-1], images)


def alternating_flip(
  key: Key[Array, ""],
  images: Float[Array, "b h w c"],
  flipped: Bool[Array, " b"] | None = None,
) -> Float[Array, "b h w c"]:
  """Mirrors left and right those that are `flipped`: in pass e, coin(i) XOR (e odd) (airbench).

  So an image is never the same in two passes in a row. Where passes are not known (None), as
  outside the training of teachers, this is `random_flip`.
  """
  if flipped is None:
    return random_flip(key, images)
  return jnp.where(flipped[:, None, None, None], images[:, :, ::-1], images)


def random_resized_crop(
  key: Key[Array, ""],
  images: Float[Array, "b h w c"],
  *,
  scale: tuple[ArrayLike, ArrayLike] = (0.08, 1.0),
  shared: bool = False,
) -> Float[Array, "b h w c"]:
  """Cuts a random box and resizes it to the size of the image: torchvision's RandomResizedCrop.

  `scale` is the range of the box's share of the area, and may be traced (a curriculum moves it).
  """
  b, h, w, _ = images.shape
  if shared:
    return crop_resize(images, rrc_box(key, h, w, scale))
  boxes = jax.vmap(lambda k: rrc_box(k, h, w, scale))(jax.random.split(key, b))
  return jax.vmap(crop_resize)(images, boxes)


def rrc_box(
  key: Key[Array, ""],
  h: int,
  w: int,
  scale: tuple[ArrayLike, ArrayLike] = (0.08, 1.0),
  ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> Box:
  """Draws the box of a random resized crop: (top, left, height, width), int32.

  As torchvision: up to ten tries of area `h w U(scale)` and aspect `exp(U(log ratio))`, sides
  rounded, the first that fits is placed uniformly; else the central box of clipped aspect.
  """
  area_key, aspect_key, top_key, left_key = jax.random.split(key, 4)
  area = h * w * jax.random.uniform(area_key, (_TRIES,), minval=scale[0], maxval=scale[1])
  low, high = math.log(ratio[0]), math.log(ratio[1])
  aspect = jnp.exp(jax.random.uniform(aspect_key, (_TRIES,), minval=low, maxval=high))
  height, width, fits = first_fit(area, aspect, h, w)
  top = jax.random.randint(top_key, (), 0, h - height + 1)
  left = jax.random.randint(left_key, (), 0, w - width + 1)
  fallback = central_box(h, w, ratio)
  first, second, third, fourth = (
    jnp.where(fits, a, b) for a, b in zip((top, left, height, width), fallback, strict=True)
  )
  return first, second, third, fourth


def draw_box(
  draws: np.random.Generator, h: int, w: int, scale: tuple[float, float] = (0.08, 1.0)
) -> tuple[int, int, int, int]:
  """Draws the box of a random resized crop on the host: `rrc_box`, from a generator of NumPy."""
  low, high = math.log(3 / 4), math.log(4 / 3)
  for _ in range(_TRIES):
    area, aspect = h * w * draws.uniform(*scale), math.exp(draws.uniform(low, high))
    width, height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
    if 0 < width <= w and 0 < height <= h:
      top, left = (int(draws.integers(n + 1)) for n in (h - height, w - width))
      return top, left, height, width
  return central_box(h, w, (3 / 4, 4 / 3))


def first_fit(
  area: Float[Array, " tries"], aspect: Float[Array, " tries"], h: int, w: int
) -> tuple[Int[Array, ""], Int[Array, ""], Bool[Array, ""]]:
  """Returns height and width of the first try that fits, and whether any does (else h, w)."""
  width = jnp.round(jnp.sqrt(area * aspect)).astype(jnp.int32)
  height = jnp.round(jnp.sqrt(area / aspect)).astype(jnp.int32)
  ok = (width > 0) & (width <= w) & (height > 0) & (height <= h)
  first = jnp.argmax(ok)
  fits = ok[first]
  return jnp.where(fits, height[first], h), jnp.where(fits, width[first], w), fits


def central_box(h: int, w: int, ratio: tuple[float, float]) -> tuple[int, int, int, int]:
  """Returns the largest central box whose aspect lies in `ratio`: torchvision's fallback."""
  height, width = h, w
  if w / h < ratio[0]:
    height = round(w / ratio[0])
  elif w / h > ratio[1]:
    width = round(h * ratio[1])
  return (h - height) // 2, (w - width) // 2, height, width


def crop_resize(images: Float[Array, "*b h w c"], box: Box) -> Float[Array, "*b h w c"]:
  """Resizes a box of images to the images' size, bilinear, never looking outside the box.

  Half-pixel centres with the edge repeated, as PyTorch's `align_corners=False`. The box is at most
  as large as the image, so no anti-aliasing is called for.
  """
  h, w, _ = images.shape[-3:]
  top, left, height, width = box
  return _resample(_interpolation(top, height, h), _interpolation(left, width, w), images)


def crop_shrink(
  image: Float[Array, "h w c"], box: Box, size: tuple[int, int]
) -> Float[Array, "a b c"]:
  """Resizes a box of an image to any size, bilinear with anti-aliasing where that shrinks it.

  As PyTorch's `antialias=True`, and Pillow: the half width of the hat is the step between outputs,
  or one pixel if that is more, and the hat is cut off at the edge of the box.
  """
  h, w, _ = image.shape
  top, left, height, width = box
  return _resample(
    _antialiased(top, height, h, size[0]), _antialiased(left, width, w, size[1]), image
  )


def _resample(
  rows: Float[Array, "o i"], columns: Float[Array, "p j"], images: Float[Array, "*b i j c"]
) -> Float[Array, "*b o p c"]:
  images = jnp.einsum("oi,...ijc->...ojc", rows, images, precision="highest")
  return jnp.einsum("pj,...ojc->...opc", columns, images, precision="highest")


def _antialiased(
  start: Int[Array, ""], length: Int[Array, ""], size: int, out: int
) -> Float[Array, "out size"]:
  """Row i holds the weights with which output i mixes the inputs; each row sums to 1."""
  pixel = jnp.arange(size, dtype=jnp.float32)
  step = length / out
  centre = start + (jnp.arange(out, dtype=jnp.float32) + 0.5) * step - 0.5
  hat = jnp.maximum(0, 1 - jnp.abs(centre[:, None] - pixel[None, :]) / jnp.maximum(step, 1))
  inside = (pixel >= start) & (pixel < start + length)
  weights = jnp.where(inside[None, :], hat, 0)
  return weights / weights.sum(1, keepdims=True)


def _interpolation(
  start: Int[Array, ""], length: Int[Array, ""], size: int
) -> Float[Array, "size size"]:
  """Row i holds the weights with which output i mixes the inputs: a hat around its source."""
  pixel = jnp.arange(size, dtype=jnp.float32)
  source = (pixel + 0.5) * length / size - 0.5
  source = start + jnp.clip(source, 0, length - 1)
  return jnp.maximum(0, 1 - jnp.abs(source[:, None] - pixel[None, :]))


def random_roll(
  key: Key[Array, ""], images: Float[Array, "b h w c"], *, low: int, high: int, shared: bool = True
) -> Float[Array, "b h w c"]:
  """Shifts rows and columns in a circle by independent integers uniform on {low, ..., high}."""
  shift = jax.random.randint(key, (2,) if shared else (len(images), 2), low, high + 1)
  roll = lambda image, yx: jnp.roll(image, yx, axis=(0, 1))
  return jax.vmap(roll, (0, None if shared else 0))(images, shift)


def shuffle_patches(
  key: Key[Array, ""], image: Float[Array, "h w c"], *, factor: int
) -> Float[Array, "h w c"]:
  """Permutes the `factor` strips of columns, then those of rows: RDED's ShufflePatches.

  Raises:
    LtddError: sides that cannot be cut into so many strips of one width.
  """
  h, w, c = image.shape
  if h % factor or w % factor:
    raise LtddError(
      f"shuffle_patches is {factor}; expected a number that divides the sides of images, {h} and "
      f"{w}"
    )
  column_key, row_key = jax.random.split(key)
  columns = jax.random.permutation(column_key, factor)
  rows = jax.random.permutation(row_key, factor)
  image = image.reshape(h, factor, w // factor, c)[:, columns].reshape(h, w, c)
  return image.reshape(factor, h // factor, w, c)[rows].reshape(h, w, c)


def check_factor(where: str, factor: int, image_shape: tuple[int, int, int]) -> None:
  """Raises LtddError for a factor below 1, or with parts that are not all within the image."""
  check_at_least(where, 1, factor=factor)
  h, w, _ = image_shape
  if any((factor - 1) * -(-side // factor) >= side for side in (h, w)):
    raise LtddError(
      f"{where}factor is {factor}, which cuts images of {h} x {w} pixels into parts of which some "
      "lie outside; expected a small number, such as 1, 2 or 3"
    )


def partition(pixels: Float[Array, "*b h w c"], factor: int) -> Float[Array, "parts *b u v c"]:
  """Cuts images into `factor` x `factor` parts, row by row, with sides of ceil(side / factor).

  Where these do not divide, 0.5 is added on the right and below, as in IDC's released code: it
  is grey of pixels in [0, 1], and in other units the factor has to divide. See `check_factor`.
  """
  *b, h, w, c = pixels.shape
  u, v, n = -(-h // factor), -(-w // factor), len(b)
  around = [(0, 0)] * n + [(0, factor * u - h), (0, factor * v - w), (0, 0)]
  cut = jnp.pad(pixels, around, constant_values=0.5).reshape(*b, factor, u, factor, v, c)
  return cut.transpose(n, n + 2, *range(n), n + 1, n + 3, n + 4).reshape(factor**2, *b, u, v, c)


def enlarge(images: Float[Array, "*b u v c"], h: int, w: int) -> Float[Array, "*b h w c"]:
  """Makes images larger, bilinearly, with half-pixel centres.

  As PyTorch's `interpolate` with `align_corners=False`: the edge is repeated.
  """
  *b, _, _, c = images.shape
  return jax.image.resize(images, (*b, h, w, c), "linear")
