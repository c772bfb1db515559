"""Logits, labels and class counts, from files or arrays, checked against each other."""

import os
from typing import Any

import jax.numpy as jnp
import numpy as np

from ltdd_jax.adsa import Rows
from ltdd_jax.calibrate import base
from ltdd_jax.core.types import LtddError
from ltdd_jax.interop import label_stores, read


def open_logits(value: Any) -> tuple[str, Any]:
  """Opens logits (..., n, k).

  Args:
    value: name of a file or of a run's labels, an array, or a row source.

  Returns:
    What messages call them, and a row source.

  Raises:
    LtddError: a bad file, no floats, or no rows.
  """
  text, source = "logits", value
  if label_stores.is_folder(value):
    text, source = f"logits {value}", label_stores.rows_of(value)
  elif isinstance(value, str | os.PathLike):
    name = read.parse(value, "logits")
    text, source = f"logits {name.text}", read.rows_of(name)
  elif not hasattr(value, "rows"):
    source = read.ArraySource(read.from_array(value))
  _check_logits(text, source)
  return text, source


def _check_logits(text: str, source: Any) -> None:
  shape, k = tuple(source.shape), source.shape[-1] if source.shape else 0
  if not jnp.issubdtype(source.dtype, jnp.floating):
    raise LtddError(f"{text}: {source.dtype} of shape {shape}; expected floats (..., n, k).")
  if len(shape) < 2 or 0 in shape or k < 2:
    raise LtddError(
      f"{text}: shape {shape}; expected (n, k) or (..., n, k): rows of k logits, k at least 2."
    )


def open_vector(value: Any, wanted: str) -> tuple[str, np.ndarray]:
  """Labels, counts or a target prior from a file or an array, and what messages call them."""
  if not isinstance(value, str | os.PathLike):
    return wanted, np.asarray(read.from_array(value))
  name = read.parse(value, wanted)
  return f"{wanted} {name.text}", read.array_of(name)


# ---- labels ----


def open_labels(value: Any, source: Any) -> tuple[str, np.ndarray]:
  """Labels as of `open_vector`; for None those that came with the logits."""
  if value is not None:
    return open_vector(value, "labels")
  if (own := getattr(source, "labels", None)) is None:
    raise LtddError(
      "labels are missing, and the logits come without; expected a file or an array with the "
      "classes of the images. Only labels of a run, WORKDIR/label/IMAGES/LABELS, bring theirs"
    )
  return "labels of the run", own


def check_labels(text: str, labels: np.ndarray, source: Any) -> tuple[np.ndarray, Rows]:
  """Returns labels (n,) or (..., n) if they are classes of logits (..., n, k), and the rows.

  Raises:
    LtddError: floats, one-hot rows, another shape, a class outside [0, k), one class only.
  """
  n, k = source.shape[-2:]
  if labels.shape[-2:] == (n, k) and labels.shape != tuple(source.shape[:-1]):
    raise LtddError(
      f"{text}: shape {labels.shape}, a row for each image: these look one-hot (or soft). "
      "Expected the number of the class: save labels.argmax(-1)."
    )
  if not labels.size:
    raise LtddError(f"{text}: no numbers; expected the classes of {n} images.")
  if labels.size == n:  # a column, or a list that is wrapped
    labels = labels.reshape(n)
  if labels.dtype.kind == "f" and np.all(labels == np.floor(labels)):
    few = ", ".join(f"{x:g}" for x in labels.reshape(-1)[:4])
    raise LtddError(
      f"{text}: {labels.dtype} ({few}, ...); expected integers. They are whole numbers: save "
      "labels.astype(int)."
    )
  if labels.dtype.kind in "iu" and (labels.min(), labels.max()) == (1, k):
    raise LtddError(
      f"{text}: labels start at 1 and end at {k}; expected classes from 0 to {k - 1}. Save "
      "labels - 1, and check that the counts begin with the same class."
    )
  with base.named(text):
    return labels, Rows(source, labels)


# ---- counts and priors ----


def check_counts(
  text: str, counts: np.ndarray, k: int, labels_size: int, smoothing: float
) -> np.ndarray:
  """Returns the training images of each class (k,) as float64, or numbers proportional to them.

  Args:
    text: what messages call them.
    counts: one for each class.
    k: classes of the logits.
    labels_size: of the labels, which are easily given in the place of counts.
    smoothing: added to every count.

  Raises:
    LtddError: another number of classes, negative or other numbers, a class without an image,
      frequencies with smoothing.
  """
  base.check_number("calibrate_logits", "smoothing", smoothing)
  if counts.dtype.kind not in "iuf":
    raise LtddError(f"{text}: {counts.dtype}; expected numbers of training images.")
  if counts.size != k:
    raise LtddError(
      f"{text}: shape {counts.shape}; logits of {k} classes need ({k},), the number of training "
      f"images of each class. {_advice_on_counts(counts, k, labels_size)}".rstrip()
    )
  counts = counts.astype(np.float64).reshape(k)  # maybe a column, or a list that is wrapped
  bad = np.flatnonzero(~((counts >= 0) & (counts < np.inf)))
  if bad.size:
    raise LtddError(
      f"{text}: class {bad[0]} has {counts[bad[0]]:g}; expected a number of training images."
    )
  if smoothing and abs(counts.sum() - 1) < 1e-2:
    raise LtddError(
      f"{text}: the sum is {counts.sum():.4g}, so these are frequencies, and smoothing is "
      f"{smoothing:g} images. Expected numbers of training images, or no smoothing."
    )
  counts = counts + smoothing
  empty = np.flatnonzero(counts == 0)
  if empty.size:
    others = f" (and {empty.size - 1} more)" if empty.size > 1 else ""
    raise LtddError(
      f"{text}: class {empty[0]}{others} has 0 training images, so its log frequency is minus "
      "infinity. Use smoothing=1, which adds an image to every class, or leave the class out."
    )
  return counts


def _advice_on_counts(counts: np.ndarray, k: int, labels_size: int) -> str:
  if counts.shape == (labels_size,):
    return "Are these the labels? counts = np.bincount(train_labels, minlength=k)."
  if counts.shape == (k + 1,) and counts[0] == 0:
    return "They begin with 0, as np.bincount of labels that start at 1 does: save counts[1:]."
  if counts.ndim == 2 and k in counts.shape:
    return "This is a table: keep the column (or line) with the counts."
  return ""


def check_prior(text: str, prior: np.ndarray, k: int) -> np.ndarray:
  """Returns class frequencies (k,) of a test set as float64.

  Raises:
    LtddError: another number of classes, a frequency that is not positive, a sum that is not 1
      within 1e-4, or 1e-3 in float16, which is as close as it can get.
  """
  if prior.size != k or prior.dtype.kind not in "iuf":
    raise LtddError(
      f"{text}: {prior.dtype} of shape {prior.shape}; logits of {k} classes need frequencies of "
      f"shape ({k},)."
    )
  near = 1e-3 if prior.dtype == np.float16 else 1e-4
  prior = prior.astype(np.float64).reshape(k)
  total, c = prior.sum(), int(np.argmin(prior))
  if not (prior[c] > 0 and abs(total - 1) <= near):
    raise LtddError(
      f"{text}: class {c} has {prior[c]:g}, and the sum is {total:.6g}; expected frequencies above "
      f"0 (a small number for a class that never occurs) with a sum of 1 within {near:g}. Save "
      "prior / prior.sum()."
    )
  return prior / total
