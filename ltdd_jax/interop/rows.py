"""Row sources: logits of any origin as rows (n, k), read a few at a time.

A row source has `shape` (..., n, k), `dtype` and `rows(start, stop)`, which gives native NumPy
logits (stop - start, k); rows are numbered over the leading axes in C order. `adsa.Rows` reads
them, so whatever is one can be calibrated without fitting into memory.
"""

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

BLOCK = 2**20  # elements that a stream reads at once


def block_rows(k: int) -> int:
  """Rows of a block."""
  return max(1, BLOCK // max(k, 1))


class ArraySource:
  """An array in memory, or a memory map: slices of it, in the byte order of this machine."""

  def __init__(self, array: np.ndarray):
    array = np.asarray(array)  # a plain view: slicing a np.memmap costs more
    self.shape, self.dtype = array.shape, array.dtype.newbyteorder("=")
    self._array, self._flat = array, None
    with contextlib.suppress(ValueError, IndexError):  # Fortran order, or no array of rows at all
      self._flat = np.reshape(array, (-1, array.shape[-1]), copy=False)

  def rows(self, start: int, stop: int) -> np.ndarray:
    if self._flat is not None:
      part = self._flat[start:stop]
    else:
      part = self._array[np.unravel_index(np.arange(start, stop), self.shape[:-1])]
    return part.astype(self.dtype, copy=False)


class StreamSource:
  """Rows of a file that can only be read onwards, such as a compressed one.

  Args:
    shape: (n, k), or with more leading axes.
    dtype: of the rows.
    begin: begin(row) gives the number of a row, at or before `row`, and an iterator of blocks
      (r, k) from there on.

  What was asked for last is kept, so that reading onwards with some overlap never begins again.
  """

  def __init__(
    self,
    shape: tuple[int, ...],
    dtype: np.dtype,
    begin: Callable[[int], tuple[int, Iterator[np.ndarray]]],
  ):
    self.shape, self.dtype = shape, np.dtype(dtype).newbyteorder("=")
    self._begin, self._blocks = begin, iter(())
    self._first, self._held = math.inf, np.empty((0, shape[-1]), self.dtype)

  def rows(self, start: int, stop: int) -> np.ndarray:
    if start < self._first:
      self._first, self._blocks = self._begin(start)
      self._held = self._held[:0]
    parts, end = [self._held], self._first + len(self._held)
    while end < stop:
      block = next(self._blocks)
      end += len(block)
      parts.append(block)
      if end <= start:
        parts, self._first = [], end
    held = parts[0] if len(parts) == 1 else np.concatenate(parts)
    self._held, self._first = held[start - self._first :], start
    return self._held[: stop - start].astype(self.dtype, copy=False)


def from_array(value: Any) -> np.ndarray:
  """A NumPy array from what notebooks hold: NumPy and JAX arrays, lists, torch tensors."""
  if type(value).__module__.partition(".")[0] == "torch":  # without importing it
    value = value.detach().cpu()
    value = value.float() if str(value.dtype) == "torch.bfloat16" else value
    return value.numpy()
  return np.asanyarray(value)
