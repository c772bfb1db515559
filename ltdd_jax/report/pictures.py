"""Images side by side, as pictures that stand in a page as data."""

import base64
import io
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

MAX_PIXELS = 4_000_000  # of the images of all sources in a page
LOSSLESS = 500_000  # fewer pixels than that are stored without loss
MAX_IMAGES = 10  # of a class
_GAP = 1  # pixels between images


class Plan(NamedTuple):
  """How the images of one source are shown."""

  each: int  # images of a class
  side: int  # pixels; larger images are reduced
  lossless: bool

  def sentence(self, shape: Sequence[int]) -> str:
    """Says what is not as it is in the set; empty if nothing is."""
    reduced = [f"reduced to {self.side} pixels"] if max(shape[:2]) > self.side else []
    return " and ".join([*reduced, *([] if self.lossless else ["stored as JPEG"])])


def plan(image_shape: Sequence[int], num_classes: int, num_sources: int) -> Plan:
  """Chooses what fits on a page: fewer images first, then smaller ones."""
  room = MAX_PIXELS / (num_classes * num_sources)  # pixels of a class
  side = int(np.clip(room**0.5, 16, max(image_shape[:2])))
  each = int(np.clip(room // side**2, 1, MAX_IMAGES))
  return Plan(each, side, each * side**2 * num_classes <= LOSSLESS)


def to_uint8(images: np.ndarray) -> np.ndarray:
  """Pixels as uint8; float ones from 0 to 1 are clipped."""
  pixels = np.asarray(images)
  return pixels if pixels.dtype == np.uint8 else (255 * np.clip(pixels, 0, 1)).astype(np.uint8)


def strip(images: np.ndarray, plan: Plan) -> str:
  """Puts images (n, h, w, c) in a row: a data URI of a PNG, or of a JPEG.

  Args:
    images: uint8, or float pixels from 0 to 1, which are clipped; c = 1 or 3.
    plan: how; its `each` is not looked at.
  """
  pixels = to_uint8(images)
  n, h, w, c = pixels.shape
  row = np.full((h, n, w + _GAP, c), 255, np.uint8)
  row[:, :, :w] = pixels.transpose(1, 0, 2, 3)
  row = row.reshape(h, -1, c)[:, :-_GAP]
  picture = Image.fromarray(row[..., 0] if c == 1 else row)
  if h > plan.side:
    picture = picture.resize(
      (round(picture.width * plan.side / h), plan.side), Image.Resampling.BOX
    )
  kind, content = "png" if plan.lossless else "jpeg", io.BytesIO()
  picture.save(content, format=kind, quality=85)
  return f"data:image/{kind};base64,{base64.b64encode(content.getvalue()).decode()}"
