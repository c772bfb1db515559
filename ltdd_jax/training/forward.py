"""The forward pass over many images: batches of one size, the last one filled up and masked.

  step = jax.jit(lambda images, rows, counts: model.apply(variables, images[rows], train=False))
  logits = outputs(step, images, len(images), batch_size=500)

One size means one compilation. Split the images of a batch with `mesh.split_batch` in the step.
"""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from ltdd_jax.core import mesh as mesh_lib
from ltdd_jax.core.types import LtddError

Step = Callable[[Any, np.ndarray, np.ndarray], Any]  # consts, rows (b,), counts (b,) -> output


def batch_of(n: int, size: int, t: int) -> tuple[np.ndarray, np.ndarray]:
  """Rows (b,) int32 of batch t of n images, and whether each counts (b,) bool.

  The last batch is filled up with the last image, which does not count there again.
  """
  rows = np.arange(t * size, (t + 1) * size, dtype=np.int32)
  return np.minimum(rows, n - 1), rows < n


def num_batches(n: int, size: int) -> int:
  """Batches of n images."""
  return -(-n // size)


def over_images(step: Step, consts: Any, n: int, batch_size: int) -> Iterator[Any]:
  """Calls a step, compiled by the caller, for each batch of n images; yields what it returns.

  Raises:
    LtddError: no images, or a batch of none.
  """
  if n < 1 or batch_size < 1:
    raise LtddError(f"forward pass: {n} images and batch_size={batch_size}; expected 1 or more.")
  size = min(batch_size, n)
  return (step(consts, *batch_of(n, size, t)) for t in range(num_batches(n, size)))


def outputs(step: Step, consts: Any, n: int, batch_size: int) -> Any:
  """Joins what a step returns for each image, arrays (b, ...), to arrays (n, ...) on the host."""
  parts = mesh_lib.get([*over_images(step, consts, n, batch_size)])
  return jax.tree.map(lambda *x: np.concatenate(x)[:n], *parts)
