"""One pass over a row source: calibrated labels block by block, and what they do to the classes."""

import collections
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ltdd_jax.core.types import LtddError
from ltdd_jax.interop import rows


@functools.partial(jax.jit, static_argnames=("apply", "temperature", "probabilities"))
def _step(
  params: Any,
  z: jax.Array,
  y: jax.Array,
  log_prior: jax.Array,
  *,
  apply: Callable[..., jax.Array],
  temperature: float,
  probabilities: bool,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
  """Labels (r, k), true-class probabilities before and after (r,), whether rows are finite (r,)."""
  z = z.astype(jnp.float32)
  out = apply(params, z, log_prior)
  of_class = lambda x: jnp.take_along_axis(jax.nn.softmax(x), y[:, None], 1)[:, 0]
  labels = jax.nn.softmax(out / temperature) if probabilities else out
  return labels, of_class(z), of_class(out), jnp.isfinite(z).all(1)


class Pass:
  """The pass; iterate over it once, then ask for the confidences.

  Args:
    text: what messages call the logits.
    source: row source of logits (..., n, k).
    labels: (n,) or (..., n) int32.
    apply: of a calibrator; so are params and log_prior (k,).
    probabilities: whether to give probabilities or calibrated logits.
    temperature: of the probabilities; confidences are those at temperature 1.
    dtype: of the labels.
    chunk_size: rows of a block, or None for about a million logits.

  Raises:
    LtddError: a row that is not finite, or logits that the dtype cannot hold.
  """

  def __init__(
    self,
    text: str,
    source: Any,
    labels: np.ndarray,
    apply: Callable[..., jax.Array],
    params: Any,
    log_prior: np.ndarray,
    *,
    probabilities: bool,
    temperature: float,
    dtype: np.dtype,
    chunk_size: int | None,
  ):
    self._text, self._source, self._labels = text, source, labels.reshape(-1)
    self._lead, self._k = tuple(source.shape[:-1]), source.shape[-1]
    self._n, self._dtype, self._probabilities = math.prod(self._lead), dtype, probabilities
    self._size = min(self._n, chunk_size or rows.block_rows(self._k))
    self._step = functools.partial(
      _step, params, log_prior=jnp.asarray(log_prior), apply=apply, temperature=temperature,
      probabilities=probabilities,
    )  # fmt: skip
    self._sums = np.zeros((2, self._k))

  def __iter__(self) -> Iterator[np.ndarray]:
    """Yields labels (r, k) of consecutive rows."""
    waiting: collections.deque[tuple[Any, ...]] = collections.deque()
    for start in range(0, self._n, self._size):
      first = min(start, self._n - self._size)  # blocks have one shape: the last one overlaps
      waiting.append((first, start - first, *self._compute(first)))
      if len(waiting) > 2:  # the device is two blocks ahead of the disk
        yield self._finish(*waiting.popleft())
    while waiting:
      yield self._finish(*waiting.popleft())

  def _compute(self, first: int) -> tuple[Any, ...]:
    y = self._labels[np.arange(first, first + self._size) % len(self._labels)]
    z, top = self._source.rows(first, first + self._size), None
    if z.dtype.itemsize > 4:  # float32 has no room for large offsets
      with np.errstate(invalid="ignore", over="ignore"):
        top = z.max(1, keepdims=True)
        z = (z - top).astype(np.float32)
    return y, top, *self._step(z, y)

  def _finish(
    self, first: int, skip: int, y: np.ndarray, top: Any, labels: Any, before: Any, after: Any,
    finite: Any,
  ) -> np.ndarray:  # fmt: skip
    bad = ~np.asarray(finite)
    if bad.any():
      index = map(int, np.unravel_index(first + int(np.argmax(bad)), self._lead))
      raise LtddError(
        f"{self._text}: row {[*index]} is the first one with a NaN or infinite value."
      )
    for sums, p in zip(self._sums, (before, after), strict=True):
      sums += np.bincount(y[skip:], np.asarray(p, np.float64)[skip:], self._k)
    out = np.asarray(labels)
    if top is not None and not self._probabilities:
      out = out + top
    with np.errstate(over="ignore"):
      out = out.astype(self._dtype)
    # A softmax that overflows is NaN in all of its row, so that one column tells.
    if not np.isfinite(out[:, 0] if self._probabilities else out).all():
      if self._probabilities:
        raise LtddError(f"{self._text}: probabilities overflow; use a larger temperature.")
      raise LtddError(
        f"{self._text}: calibrated logits reach {np.abs(np.asarray(labels)).max():.4g}, beyond "
        f"{self._dtype}; use float32."
      )
    return out[skip:]

  def confidences(self) -> np.ndarray:
    """Mean true-class probability of each class before and after, (2, k); NaN without a row."""
    repeats = self._n // len(self._labels)
    counts = np.bincount(self._labels, minlength=self._k) * repeats
    with np.errstate(invalid="ignore"):
      return self._sums / counts
