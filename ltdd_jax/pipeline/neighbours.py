"""The nearest training image of each distilled one, for the report, which shows them together."""

import numpy as np

from ltdd_jax.core import files
from ltdd_jax.interop import distilled_sets
from ltdd_jax.pipeline.context import Context
from ltdd_jax.report import leakage

_MOST = 1e12  # products of pixels: some ten seconds


def find(ctx: Context, images: str) -> np.ndarray | None:
  """Finds the nearest training image (n, h, w, c) uint8 of the same class of each image.

  Blank for a class without training images. None if images hold several small ones, or if it would
  take long.
  """
  stored, train = ctx.distilled(images), ctx.train_data(ctx.split_name(images))
  pixels, labels = stored["images"], np.asarray(stored["labels"])
  k = ctx.source.spec.num_classes
  own, known = (np.bincount(x, minlength=k).astype(float) for x in (labels, train.labels))
  if ctx.parts(images) > 1 or own @ known * pixels[0].size > _MOST:
    return None
  rows = leakage.nearest(pixels, labels, train.images, np.asarray(train.labels)).row
  near = train.images[np.maximum(rows, 0)]
  return np.where((rows < 0)[:, None, None, None], np.uint8(0), near)


def write(ctx: Context, images: str, folder: files.Pathlike) -> None:
  """Writes what `find` finds as `folder/neighbours-IMAGES.npz`, with the hash of the images."""
  near = find(ctx, images)
  if near is not None:
    stored = ctx.distilled(images)
    of = distilled_sets.content_sha256(stored["images"], stored["labels"])
    files.write_npz(files.path(folder) / f"neighbours-{images}.npz", images=near, of=of)
