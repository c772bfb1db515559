"""From image files to uint8 arrays of one size, and the mean and std of a set of images."""

import contextlib
import functools
import io
import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from ltdd_jax.core.types import LtddError
from ltdd_jax.data import checks, class_folders, crops
from ltdd_jax.data.specs import DatasetSpec, DataSource

# What Pillow raises for files that it cannot turn into pixels.
UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError)
_MODES = {1: "L", 3: "RGB"}
_MEASURED = 10_000
_WORTH_A_THREAD = 10_000  # bytes; at 32 x 32 pixels threads take three times as long as none
_SIXTEEN_BITS = 65535
Constants = tuple[Sequence[float], Sequence[float]] | None  # mean and std of the channels


def image_shape(image_size: int | Sequence[int] | None) -> tuple[int, int] | None:
  """Returns (h, w) of a config's `image_size`: a side, a pair or None."""
  if image_size is None:
    return None
  pair = tuple(image_size) if isinstance(image_size, (tuple, list)) else (image_size,) * 2
  if len(pair) != 2 or any(type(n) is not int or n < 1 for n in pair):
    raise LtddError(f"image_size={image_size!r}: expected a side or (height, width) in pixels.")
  return pair


def check_crop_pct(value: float) -> None:
  """Raises LtddError unless it is a share of an image's side."""
  if not (checks.is_number(value) and 0 < value <= 1):
    raise LtddError(
      f"config.data.crop_pct is {value!r}; expected a number above 0 and at most 1, such as 0.875 "
      "for 224 pixels out of 256"
    )


def decode(
  data: bytes, channels: int, size: tuple[int, int] | None = None, crop_pct: float = 1.0
) -> np.ndarray:
  """Decodes an image file to uint8 (h, w, c), upright, in grey or RGB.

  An image of another shape than `size` is scaled (bilinear, anti-aliased) until it covers it, or
  1 / crop_pct times as much, and its centre is cut out. What becomes of each kind of image:

    16-bit grey        divided by 257 and rounded; 32-bit whole numbers from 0 to 65535 likewise.
                       Others and floats are refused, and TIFFs of 32 bits with no number above 255,
                       which may be levels of 8 bits or of 16
    1-bit              0 and 255
    palette            the colours that it names
    transparency       dropped: a pixel has the colour that is stored, however transparent it is
    CMYK, YCbCr        RGB by Pillow's formulas, without colour profiles
    EXIF orientation   applied, so that images are upright
    several frames     the first

  Raises:
    One of `UNREADABLE`.
  """
  return _fit(_open(data, channels), size, crop_pct)


def _open(data: bytes, channels: int) -> Image.Image:
  try:
    found = Image.open(io.BytesIO(data))
  except UnidentifiedImageError:  # whose text is an address in memory
    raise UnidentifiedImageError("its bytes are of no format that Pillow knows") from None
  with found as opened:
    opened.load()
    opened.getexif()  # is kept, and so is not written anew below, where a bad tag would fail
    opened.info.clear()
    ImageOps.exif_transpose(opened, in_place=True)
    return _eight_bits(opened).convert(_MODES[channels])


def read_crops(
  source: DataSource,
  split: str,
  indices: np.ndarray,
  draws: Sequence[np.random.Generator],
  scale: tuple[float, float],
) -> np.ndarray:
  """Reads random resized crops, torchvision's, of images as they are stored.

  Unlike a crop on the device, it is of the whole image, before that is scaled to the size of the
  data set, and anti-aliased.

  Args:
    source: whose `spec` has the size (h, w) of crops.
    split: "train" or "test".
    indices: (b,) of the split.
    draws: (b,) of each image.
    scale: range of the box's share of the area.

  Returns:
    (b, h, w, c) uint8.

  Raises:
    LtddError: an image that cannot be read.
  """
  h, w, channels = source.spec.image_shape

  def one(item: tuple[int, np.random.Generator]) -> np.ndarray:
    number, own = item
    if source.stored is None:
      image = _to_pillow(source.read(split, np.array([number]))[0])
    else:
      name, data = source.stored(split, number)
      with unreadable_named(name):
        image = _open(data, channels)
    top, left, height, width = crops.draw_box(own, image.height, image.width, scale)
    image = image.crop((left, top, left + width, top + height))
    return _pixels(image.resize((w, h), Image.Resampling.BILINEAR))

  return np.stack(map_threads(one, zip(indices.tolist(), draws, strict=True)))


@contextlib.contextmanager
def unreadable_named(name: str) -> Iterator[None]:
  """Raises LtddError for an image that is found bad in the midst of a run."""
  try:
    yield
  except UNREADABLE as error:
    raise LtddError(
      f"{name}: cannot be read as an image ({type(error).__name__}: {error}). Repair or delete it, "
      "or leave it out of the list of files, and give the same command again"
    ) from error


def decode_all(
  encoded: Sequence[bytes], channels: int, size=None, crop_pct: float = 1.0
) -> list[np.ndarray]:
  """Decodes many images; in threads where an image is large enough to be worth one."""
  one = lambda data: decode(data, channels, size, crop_pct)
  if len(encoded[0]) > _WORTH_A_THREAD:
    return map_threads(one, encoded)
  return [one(data) for data in encoded]


def _eight_bits(image: Image.Image) -> Image.Image:
  if image.mode.startswith("I"):  # Pillow would clip 16-bit grey at 255 instead of scaling it
    pixels = np.asarray(image).astype(np.float64)
    lowest, highest = pixels.min(), pixels.max()
    if lowest < 0 or highest > _SIXTEEN_BITS:
      raise ValueError(
        f"its pixels go from {lowest:.0f} to {highest:.0f}; expected whole numbers from 0 to "
        f"{_SIXTEEN_BITS}"
      )
    if (image.format, image.mode) == ("TIFF", "I") and 0 < highest <= 255:
      raise ValueError(
        f"its pixels have 32 bits and go from {lowest:.0f} to {highest:.0f}, so that white may be "
        f"255 or {_SIXTEEN_BITS}; expected 8 or 16 bits"
      )
    return Image.fromarray((pixels / 257).round().astype(np.uint8))
  if image.mode == "F":
    raise ValueError("its pixels are floats, whose range is not known; expected whole numbers")
  return image.convert("RGBA") if image.mode in ("P", "PA") else image


def _fit(image: Image.Image, size: tuple[int, int] | None, crop_pct: float = 1.0) -> np.ndarray:
  if size is not None and (image.size != (size[1], size[0]) or crop_pct < 1):
    border = (1 - crop_pct) / 2
    image = ImageOps.fit(image, (size[1], size[0]), Image.Resampling.BILINEAR, border)
  return _pixels(image)


def _pixels(image: Image.Image) -> np.ndarray:
  pixels = np.asarray(image)
  return pixels[..., None] if pixels.ndim == 2 else pixels


def resize(images: np.ndarray, size: tuple[int, int] | None) -> np.ndarray:
  """Resizes uint8 (n, h, w, c) to (n, *size, c) as `decode` does."""
  if size is None or images.shape[1:3] == size:
    return images
  return np.stack([_fit(_to_pillow(x), size) for x in images])


def _to_pillow(image: np.ndarray) -> Image.Image:
  return Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)


def through_jpeg(images: np.ndarray, quality: int) -> np.ndarray:
  """Returns uint8 images (n, h, w, c) as they come back from JPEG files, with 4:2:0 chroma."""

  def there_and_back(image: np.ndarray) -> np.ndarray:
    file = io.BytesIO()
    _to_pillow(image).save(file, "JPEG", quality=quality)
    return decode(file.getvalue(), image.shape[-1])

  return np.stack([there_and_back(x) for x in images])


def map_threads(fn: Callable[[Any], Any], items: Iterable[Any]) -> list[Any]:
  """Maps in threads: Pillow lets go of the interpreter lock while it decodes.

  Not in a process that was started to read: there is one for each core.
  """
  if multiprocessing.parent_process() is not None:
    return [fn(item) for item in items]
  with ThreadPoolExecutor(min(32, os.cpu_count() or 1)) as pool:
    return list(pool.map(fn, items))


def make_source(
  name: str,
  class_names: tuple[str, ...],
  labels: Mapping[str, np.ndarray],
  read: Callable[[str, np.ndarray], np.ndarray],
  notes: Sequence[str] = (),
  known: DatasetSpec | None = None,
  stored: Callable[[str, int], tuple[str, bytes]] | None = None,
  constants: Constants = None,
) -> DataSource:
  """Makes a data source of what is in a `DataSource`, with `labels` of "train" and "test".

  Sizes are those found; mean and std are `constants`, or those of `known`, or else measured.
  Classes without an image are noted.

  Raises:
    LtddError: fewer than two classes.
  """
  if len(class_names) < 2:
    raise LtddError(f"{name}: found {len(class_names)} class; expected two or more.")
  notes = list(notes)
  for split, found in labels.items():
    present = set(found.tolist())
    empty = [c for i, c in enumerate(class_names) if i not in present]
    which = f"{len(empty)} of {len(class_names)} classes: {class_folders.some(empty)}"
    notes += [f"{split}: no image of {which}"] if empty else []
  train, test = labels["train"], labels["test"]
  if constants is not None:
    mean, std = map(tuple, constants)
  elif known is None:
    mean, std = measure(functools.partial(read, "train"), len(train))
  else:
    mean, std = known.mean, known.std
  shape = read("train", np.arange(1)).shape[1:]
  spec = DatasetSpec(
    name, len(class_names), shape, mean, std, len(train), len(test), class_names=class_names
  )
  return DataSource(spec, train, test, read, class_names, stored, tuple(notes))


def measure(
  read: Callable[[np.ndarray], np.ndarray], num_images: int
) -> tuple[tuple[float, ...], tuple[float, ...]]:
  """Returns mean and std of each channel, pixels in [0, 1], over at most 10,000 images.

  Larger sets are sampled at even distances. A constant channel gets a std of one level.
  """
  chosen = np.unique(np.linspace(0, num_images - 1, min(num_images, _MEASURED)).astype(np.int64))
  total = squares = np.zeros(1)
  pixels = 0
  for block in np.array_split(chosen, -(-len(chosen) // 512)):
    images = read(block).astype(np.float64) / 255
    total = total + images.sum(axis=(0, 1, 2))
    squares = squares + np.square(images).sum(axis=(0, 1, 2))
    pixels += images[..., 0].size
  mean = total / pixels
  std = np.sqrt(np.maximum(squares / pixels - mean**2, (1 / 255) ** 2))
  return tuple(round(float(m), 6) for m in mean), tuple(round(float(s), 6) for s in std)
