"""Images side by side, as pictures that stand in a page as data."""

import base64
import io

import numpy as np
from PIL import Image

_GAP = 1  # pixels between images
_SMALL = 40_000  # pixels of a picture that is stored without loss


def per_class(image_shape: tuple[int, ...], num_classes: int, max_pixels: int, most: int) -> int:
  """Images of each class that a page has room for: 1 to `most`."""
  height, width = image_shape[:2]
  return int(np.clip(max_pixels // (height * width * num_classes), 1, most))


def strip(images: np.ndarray) -> str:
  """Puts images (n, h, w, c) in a row: a data URI, PNG, or JPEG if it has many pixels.

  Args:
    images: uint8, or float pixels from 0 to 1, which are clipped; c = 1 or 3.
  """
  pixels = np.asarray(images)
  if pixels.dtype != np.uint8:
    pixels = (255 * np.clip(pixels, 0, 1)).astype(np.uint8)
  n, h, w, c = pixels.shape
  row = np.full((h, n, w + _GAP, c), 255, np.uint8)
  row[:, :, :w] = pixels.transpose(1, 0, 2, 3)
  row = row.reshape(h, -1, c)[:, :-_GAP]
  kind = "png" if row.shape[0] * row.shape[1] <= _SMALL else "jpeg"
  content = io.BytesIO()
  Image.fromarray(row[..., 0] if c == 1 else row).save(content, format=kind, quality=90)
  return f"data:image/{kind};base64,{base64.b64encode(content.getvalue()).decode()}"
