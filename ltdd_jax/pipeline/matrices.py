"""Matrices of classes for the report: what labels say of images, and what students take for what.

  write(ctx, folder)     # folder/matrices.npz, which `report` reads without data and networks

Classes are sorted from head to tail and, if there are many, put together in bins of neighbours.
"""

import numpy as np

from ltdd_jax.core import files
from ltdd_jax.data import longtail
from ltdd_jax.labels import by_class
from ltdd_jax.pipeline import graph, stages
from ltdd_jax.pipeline.context import HARD, Context, Row

FILE = "matrices.npz"
MAX_SIDE = 100  # bins of classes
_MAX_LABELS = 1 << 26  # numbers that are read for one matrix of labels


def write(ctx: Context, folder: files.Pathlike) -> None:
  """Writes `collect` as `folder/matrices.npz`."""
  files.write_npz(files.path(folder) / FILE, **collect(ctx))


def collect(ctx: Context) -> dict[str, np.ndarray]:
  """Gathers the matrices of a run, float32 (b, b) for b bins of classes.

  Returns:
    `labels|IMAGES|LABELS|CALIBRATOR`: the mean soft label of images of a class (row) at temperature
    1, on the first label epochs; not if one has more than 2^26 logits.
    `confusion|IMAGES|LABELS|CALIBRATOR`: the share of a class's test images that students, the mean
    over seeds, take for another. NaN without images. Classes of a bin are averaged in rows and
    summed in columns.
  """
  members = longtail.bins(ctx.counts, MAX_SIDE)
  found = {}
  for row in graph.rows(ctx.config):
    name = "|".join(x or "" for x in row)
    student = ctx.workdir.load(row.stage("student")).arrays
    total = np.where(student["total"] > 0, student["total"], np.nan)[:, None]
    found[f"confusion|{name}"] = student["confusion"].mean(0) / total
    if (means := _mean_labels(ctx, row)) is not None:
      found[f"labels|{name}"] = means
  return {name: binned(matrix, members) for name, matrix in found.items()}


def _mean_labels(ctx: Context, row: Row) -> np.ndarray | None:
  """The mean soft labels (k, k) of a row; None of hard ones, on line, or of a large epoch."""
  if row.labels == HARD or ctx.label_source(row.labels).online:
    return None
  _, n, k = ctx.store(row).shape
  if n * k > _MAX_LABELS:
    return None
  chunks = stages.label_chunks(ctx, row, max(1, _MAX_LABELS // (n * k)))
  labels = ctx.workdir.load(row.stage("label")).arrays["labels"]
  return by_class.class_means(by_class.mean_soft_labels(chunks), np.asarray(labels), k)


def binned(matrix: np.ndarray, members: tuple[np.ndarray, ...]) -> np.ndarray:
  """Averages rows (k, k) and sums columns over bins of classes: float32 (b, b)."""
  columns = np.stack([matrix[:, m].sum(1) for m in members], 1)
  there = np.isfinite(columns[:, :1])
  total = lambda x: np.stack([x[m].sum(0) for m in members])
  with np.errstate(invalid="ignore", divide="ignore"):
    return (total(np.where(there, columns, 0)) / total(there)).astype(np.float32)
