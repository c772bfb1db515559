"""Pictures of distilled images."""

import io

import jax
import numpy as np
from PIL import Image

from ltdd_jax.core import files
from ltdd_jax.report.pictures import to_uint8

MAX_COLUMNS, MAX_ROWS, MIN_SIDE = 10, 20, 32


def write_grid(path: files.Pathlike, images: np.ndarray, labels: np.ndarray) -> None:
  """Writes a PNG with one row for each class (20 at most) and up to ten images in it.

  Only the first process of a pod writes it.

  Args:
    path: of the file.
    images: (n,h,w,c) uint8, or float pixels from 0 to 1, which are clipped; c = 1 or 3.
    labels: (n,).

  Raises:
    LtddError: the disk is full or the folder cannot be written.
  """
  if jax.process_index() != 0:
    return
  images = to_uint8(images)
  _, h, w, c = images.shape
  classes = np.unique(labels)[:MAX_ROWS]
  columns = min(MAX_COLUMNS, max(int(np.sum(labels == k)) for k in classes))
  grid = np.full((len(classes), h + 1, columns, w + 1, c), 255, np.uint8)
  for row, k in enumerate(classes):
    for column, image in enumerate(images[labels == k][:columns]):
      grid[row, :h, column, :w] = image
  sheet = grid.reshape(len(classes) * (h + 1), columns * (w + 1), c)
  scale = max(1, -(-MIN_SIDE // h))
  sheet = sheet.repeat(scale, 0).repeat(scale, 1)
  png = io.BytesIO()
  Image.fromarray(sheet[..., 0] if c == 1 else sheet).save(png, format="png")
  files.write_bytes(path, png.getvalue(), what="picture")
