"""Logits, labels and class counts, from files or arrays, checked against each other."""

import json
import math
import os
import re
from typing import Any

import jax.numpy as jnp
import numpy as np

from ltdd_jax.core.types import LtddError
from ltdd_jax.interop import arrays, names, parquet, rows

_PROBED = 100_000  # numbers of a vector whose byte order is looked at: labels may be many


def open_logits(value: Any) -> tuple[str, Any]:
  """Opens logits (..., n, k).

  Args:
    value: name of a file, an array, or a row source.

  Returns:
    What messages call them, and a row source.

  Raises:
    LtddError: a bad file, no floats, no rows, or probabilities instead of logits.
  """
  text, source = "logits", value
  if isinstance(value, str | os.PathLike):
    name = names.parse(value, "logits")
    text = f"logits {name.text}"
    is_parquet = name.suffix in names.PARQUET
    source = parquet.source(name) if is_parquet else arrays.source(arrays.locate(name))
  elif not hasattr(value, "rows"):
    source = rows.ArraySource(rows.from_array(value))
  _check_logits(text, source)
  return text, source


def _check_logits(text: str, source: Any) -> None:
  shape, k = tuple(source.shape), source.shape[-1] if source.shape else 0
  if not jnp.issubdtype(source.dtype, jnp.floating):
    raise LtddError(f"{text}: {source.dtype} of shape {shape}; expected floats (..., n, k).")
  if len(shape) < 2 or 0 in shape or k < 2:
    raise LtddError(
      f"{text}: shape {shape}; expected (n, k) or (epochs, n, k): rows of k logits, k at least 2."
    )
  first = source.rows(0, min(1000, math.prod(shape[:-1])))
  _check_byte_order(text, first, most=1e3)
  first = first.astype(np.float32)
  if first.min() >= 0 and np.all(np.abs(first.sum(1) - 1) < 1e-2):  # false where a NaN is
    raise LtddError(
      f"{text}: rows are probabilities: none is negative and each sums to 1. Expected logits, from "
      "before the softmax. Where only probabilities are left, give their logarithms."
    )


def _check_byte_order(text: str, numbers: np.ndarray, most: float) -> None:
  """Raises LtddError for numbers that make sense only if the bytes of each are turned round.

  Then the low bits of floats are exponents. Where these bits are anything, numbers are huge and
  tiny alike; where they are zero, as in floats that were halves or counts, numbers are next to
  nothing. Small integers become multiples of large powers of two.

  Args:
    text: what messages call them.
    numbers: of any shape.
    most: what none of them exceeds if they make sense.
  """
  with np.errstate(invalid="ignore", over="ignore"):
    sizes, turned = (np.abs(x.astype(np.float64)) for x in (numbers, numbers.byteswap()))
  sizes, turned = sizes[sizes != 0], turned[sizes != 0]
  if not sizes.size:
    return
  if numbers.dtype.kind in "iu":
    odd = sizes.max() > 1000 * turned.max()
  else:
    huge, tiny = np.mean(~(sizes <= 1e4)), np.mean(sizes < 1e-3)
    odd = min(huge, tiny) > 0.02 or np.mean(sizes < 1e-30) > 0.5
  if odd and np.all(turned <= most) and np.median(turned) > 1e-6:  # false where a NaN is
    raise LtddError(
      f"{text}: numbers make no sense as {numbers.dtype}, and do with their bytes turned round: "
      "the file was written in the other byte order. Say so in the type of raw bytes ('>f4' is "
      "big-endian, '<f4' little-endian), or in the header."
    )


def open_vector(value: Any, wanted: str) -> tuple[str, np.ndarray]:
  """Labels, counts or a target prior from a file or an array, and what messages call them.

  Raises:
    LtddError: a bad file, or numbers in the other byte order.
  """
  text, found = _read_vector(value, wanted)
  if found.dtype.kind in "iuf":
    _check_byte_order(text, found.reshape(-1)[:_PROBED], most=1e9)
  return text, found


def _read_vector(value: Any, wanted: str) -> tuple[str, np.ndarray]:
  if not isinstance(value, str | os.PathLike):
    return wanted, np.asarray(rows.from_array(value))
  name = names.parse(value, wanted)
  text = f"{wanted} {name.text}"
  if name.suffix in names.TEXTS:
    return text, _from_text(name)
  if name.suffix in names.PARQUET:
    return text, parquet.column(name)
  found = arrays.read(arrays.locate(name))
  return text, found.astype(found.dtype.newbyteorder("="), copy=False)


def _from_text(name: names.Name) -> np.ndarray:
  """Numbers of a .txt, .csv or .json file: a JSON list, or separated by commas and blanks."""
  if name.key is not None:
    raise LtddError(f"{name.text}: a {name.suffix} file holds one list; leave out ':{name.key}'.")
  try:
    text = name.path.read_text(encoding="utf-8")
    words = re.split(r"[\s,;]+", text.strip())
    values = json.loads(text) if name.suffix == ".json" else [_number(w) for w in words if w]
    found = np.asarray(values)
    if found.dtype.kind not in "iuf":
      raise ValueError("expected a list of numbers")
    return found
  except (ValueError, OverflowError, RecursionError) as error:
    raise LtddError(f"{name.text}: no list of numbers: {names.brief(error)}.") from error


def _number(word: str) -> int | float:
  try:
    return int(word)
  except ValueError:
    return float(word)


# ---- labels ----


def check_labels(text: str, labels: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
  """Returns labels (n,) or (..., n) as int32 if they are classes of logits of that shape.

  Raises:
    LtddError: floats, one-hot rows, another shape, a class outside [0, k).
  """
  k, lead = shape[-1], shape[:-1]
  _check_no_one_hot(text, labels, shape)
  if not labels.size:
    raise LtddError(f"{text}: no numbers; expected the classes of {lead[-1]} images.")
  if labels.dtype.kind == "f":
    whole = bool(np.all(labels == np.floor(labels)))  # false for NaN, too
    advice = (
      "They are whole numbers: save labels.astype(int)."
      if whole
      else "Expected the number of the class that each image was distilled for."
    )
    few = ", ".join(f"{x:g}" for x in labels.reshape(-1)[:4])
    raise LtddError(f"{text}: {labels.dtype} ({few}, ...); expected integers. {advice}")
  if labels.dtype.kind not in "iu":
    raise LtddError(f"{text}: {labels.dtype}; expected integers, the class of each row.")
  if labels.shape not in (lead, lead[-1:]):
    shapes = " or ".join(str(s) for s in dict.fromkeys((lead[-1:], lead)))
    raise LtddError(f"{text}: shape {labels.shape}; logits of shape {shape} need {shapes}.")
  flat = labels.reshape(-1)
  bad = (flat < 0) | (flat >= k)
  if bad.any():
    i = int(np.argmax(bad))
    base = flat.min() == 1 and flat.max() == k
    advice = " Classes count from 0: save labels - 1." if base else ""
    raise LtddError(
      f"{text}: label {flat[i]} (number {i}) is outside [0, {k}), the classes of the logits."
      f"{advice}"
    )
  return labels.astype(np.int32)


def _check_no_one_hot(text: str, labels: np.ndarray, shape: tuple[int, ...]) -> None:
  k, n = shape[-1], shape[-2]
  if labels.ndim >= 2 and labels.shape[-2:] == (n, k):
    raise LtddError(
      f"{text}: shape {labels.shape}, a row for each image: these look one-hot (or soft). "
      "Expected the number of the class: save labels.argmax(-1)."
    )


# ---- counts and priors ----


def check_counts(text: str, counts: np.ndarray, k: int, labels_size: int) -> np.ndarray:
  """Returns the training images of each class (k,) as float64, or numbers proportional to them.

  Raises:
    LtddError: another number of classes, a class without an image, negative or other numbers.
  """
  if counts.shape != (k,):
    advice = (
      " Are these the labels? counts = np.bincount(train_labels, minlength=k)."
      if counts.shape == (labels_size,)
      else ""
    )
    raise LtddError(
      f"{text}: shape {counts.shape}; logits of {k} classes need ({k},), the number of training "
      f"images of each class.{advice}"
    )
  if counts.dtype.kind not in "iuf":
    raise LtddError(f"{text}: {counts.dtype}; expected numbers of training images.")
  counts = counts.astype(np.float64)
  bad = ~((counts >= 0) & (counts < np.inf))
  if bad.any():
    c = int(np.argmax(bad))
    raise LtddError(f"{text}: class {c} has {counts[c]:g}; expected a number of training images.")
  return counts


def smooth(text: str, counts: np.ndarray, smoothing: float) -> np.ndarray:
  """Adds `smoothing` to every count; raises LtddError if a class has no training image even so."""
  if not 0 <= smoothing < math.inf:
    raise LtddError(f"smoothing is {smoothing}; expected a number of images, 0 or more.")
  counts = counts + smoothing
  empty = np.flatnonzero(counts == 0)
  if empty.size:
    others = f" (and {empty.size - 1} more)" if empty.size > 1 else ""
    raise LtddError(
      f"{text}: class {empty[0]}{others} has 0 training images, so its log frequency is minus "
      "infinity. Use smoothing=1, which adds an image to every class, or leave the class out."
    )
  return counts


def check_prior(text: str, prior: np.ndarray, k: int) -> np.ndarray:
  """Returns class frequencies (k,) of a test set as float64.

  Raises:
    LtddError: another number of classes, a frequency that is not positive, a sum that is not 1
      within 1e-4, or 1e-3 in float16, which is as close as it can get.
  """
  if prior.shape != (k,) or prior.dtype.kind not in "iuf":
    raise LtddError(
      f"{text}: {prior.dtype} of shape {prior.shape}; logits of {k} classes need frequencies of "
      f"shape ({k},)."
    )
  near = 1e-3 if prior.dtype == np.float16 else 1e-4
  prior = prior.astype(np.float64)
  bad = ~((prior > 0) & (prior < np.inf))
  if bad.any():
    c = int(np.argmax(bad))
    raise LtddError(
      f"{text}: class {c} has {prior[c]:g}; expected a frequency above 0. For a class that never "
      "occurs, give a small number."
    )
  if abs(prior.sum() - 1) > near:
    raise LtddError(
      f"{text}: sums to {prior.sum():.6g}; expected 1 within {near:g}. Save prior / prior.sum()."
    )
  return prior / prior.sum()
