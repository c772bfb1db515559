"""One pass over logits: calibrated labels block by block, and what they do to the classes."""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ltdd_jax.adsa import Rows
from ltdd_jax.calibrate import streaming
from ltdd_jax.core.types import LtddError


class Pass:
  """The pass; iterate over it once, then ask for the confidences.

  Args:
    text: what messages call the logits.
    source: row source of logits (..., n, k).
    labels: (n,) or (..., n) int32.
    calibrated: logits (r, k) -> float32 (r, k), traced once.
    temperature: of the probabilities, or None for calibrated logits. Confidences are those at
      temperature 1.
    dtype: of the labels.
    chunk_size: rows of a block, or None for about a million logits.

  Raises:
    LtddError: a row that is not finite, or labels that the dtype cannot hold.
  """

  def __init__(
    self,
    text: str,
    source: Any,
    labels: np.ndarray,
    calibrated: Callable[[jax.Array], jax.Array],
    *,
    temperature: float | None,
    dtype: np.dtype,
    chunk_size: int | None,
  ):
    self._text, self._source, self._dtype = text, source, dtype
    self._rows = Rows(source, labels, chunk_size)
    self._probabilities = temperature is not None
    self._step = jax.jit(functools.partial(_step, calibrated, temperature))
    self._sums = np.zeros((2, self._rows.k))

  def __iter__(self) -> Iterator[np.ndarray]:
    """Yields labels (r, k) of consecutive rows."""
    blocks = ((*about, y, self._step(z, y)) for *about, z, y in self._rows.chunks())
    for start, skip, y, (labels, before, after, finite) in streaming.ahead(blocks):
      self._check_finite(start, np.asarray(finite))
      for sums, p in zip(self._sums, (before, after), strict=True):
        sums += np.bincount(y[skip:], np.asarray(p, np.float64)[skip:], self._rows.k)
      yield self._stored(start, np.asarray(labels))[skip:]

  def _check_finite(self, start: int, finite: np.ndarray) -> None:
    if not finite.all():
      index = map(int, np.unravel_index(start + int(np.argmin(finite)), self._rows.lead))
      raise LtddError(
        f"{self._text}: row {[*index]} is the first one with a NaN or infinite value."
      )

  def _stored(self, start: int, labels: np.ndarray) -> np.ndarray:
    """Labels in their dtype, if it can hold them."""
    out = labels
    if not self._probabilities and self._source.dtype.itemsize > 4:
      # `Rows` takes the largest float64 logit off each row; logits get it back
      out = out + self._source.rows(start, start + len(out)).max(1, keepdims=True)
    with np.errstate(over="ignore"):
      out = out.astype(self._dtype)
    # A softmax that overflows is NaN in all of its row, so that one column tells.
    if np.isfinite(out[:, 0] if self._probabilities else out).all():
      return out
    if self._probabilities:
      raise LtddError(f"{self._text}: probabilities overflow; use a larger temperature.")
    raise LtddError(
      f"{self._text}: calibrated logits reach {np.abs(labels).max():.4g}, beyond {self._dtype}; use "
      "float32."
    )

  def confidences(self) -> np.ndarray:
    """Mean true-class probability of each class before and after, (2, k); NaN without a row."""
    with np.errstate(invalid="ignore"):
      return self._sums / self._rows.counts


def _step(
  calibrated: Callable[[jax.Array], jax.Array],
  temperature: float | None,
  z: jax.Array,
  y: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
  """Labels (r, k), true-class probabilities before and after (r,), whether rows are finite (r,)."""
  z = z.astype(jnp.float32)
  out = calibrated(z)
  of_class = lambda x: jnp.take_along_axis(jax.nn.softmax(x), y[:, None], 1)[:, 0]
  labels = out if temperature is None else jax.nn.softmax(out / temperature)
  return labels, of_class(z), of_class(out), jnp.isfinite(z).all(1)
