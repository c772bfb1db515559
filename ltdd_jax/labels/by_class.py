"""Rows of numbers, one an image, by the classes of the images: checked, and averaged."""

from collections.abc import Iterable

import numpy as np
from scipy import special

from ltdd_jax.core.types import LtddError


def mean_soft_labels(chunks: Iterable[np.ndarray]) -> np.ndarray:
  """Averages the softmax of logits (e, n, k), some label epochs in each chunk: (n, k) float64."""
  total, epochs = np.zeros(()), 0
  for logits in chunks:
    total = total + special.softmax(np.asarray(logits, np.float64), -1).sum(0)
    epochs += len(logits)
  if not epochs:
    raise LtddError("no label epoch to average; expected logits (e, n, k) with e > 0")
  return total / epochs


def class_means(values: np.ndarray, labels: np.ndarray, num_classes: int) -> np.ndarray:
  """Averages rows (n, ...) within each class; (k, ...), NaN for a class without a row."""
  out = np.full((num_classes, *values.shape[1:]), np.nan)
  for c in np.unique(labels):
    out[c] = values[labels == c].mean(0)
  return out


def check_rows(
  name: str, values: np.ndarray, labels: np.ndarray, num_classes: int, of_labels: str = "classes"
) -> None:
  """Raises LtddError unless values (n, k) are finite and labels (n,) are classes, n above 0."""
  if np.shape(values) != (len(labels), num_classes) or not len(labels):
    raise LtddError(
      f"{name} has shape {np.shape(values)}; expected ({len(labels)}, {num_classes}), a row for "
      "each image, and at least one"
    )
  if not np.isfinite(values).all():
    raise LtddError(f"{name} has values that are not finite")
  if labels.dtype.kind not in "iu" or ((labels < 0) | (labels >= num_classes)).any():
    raise LtddError(f"{of_labels}: expected integers in [0, {num_classes})")


def check_no_probabilities(name: str, rows: np.ndarray) -> None:
  """Raises LtddError if rows (n, k), which are to be logits, are all probabilities."""
  if rows.size and rows.min() >= 0 and np.allclose(rows.sum(-1, dtype=np.float64), 1, 0, 1e-2):
    raise LtddError(
      f"{name} are probabilities, rows with a sum of 1; expected logits. Save those, or "
      "np.log(np.maximum(p, 1e-8)) of probabilities p"
    )
