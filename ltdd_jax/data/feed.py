"""Which images make up a batch, and the way to the device.

  sampler = BatchSampler(seed, "teacher", num_items=n, batch_size=128)
  batch = images_on_device[sampler(step)]

A sampler is a pure function of the step, so resuming at step 1000 needs no state.
"""

import jax
import numpy as np

from ltdd_jax.core import rng
from ltdd_jax.core.types import ArrayData, LtddError


class BatchSampler:
  """Cuts an endless stream of permutations, one an epoch, into batches of equal size.

  Each index occurs exactly once an epoch; a batch may hold the end of one epoch and the start of
  the next, so there is no short batch. A batch size above the number of items is clamped to it.
  """

  def __init__(self, seed: int, name: str, num_items: int, batch_size: int):
    if num_items < 1 or batch_size < 1:
      raise LtddError(
        f"sampler {name!r}: num_items={num_items}, batch_size={batch_size}; both must be >= 1."
      )
    self.seed = seed
    self.name = name
    self.num_items = num_items
    self.batch_size = min(batch_size, num_items)
    self._permutations: dict[int, np.ndarray] = {}

  def __call__(self, step: int) -> np.ndarray:
    """Returns the indices of the batch of that step, (b,) int32."""
    first, last = step * self.batch_size, (step + 1) * self.batch_size
    parts = []
    for epoch in range(first // self.num_items, (last - 1) // self.num_items + 1):
      start = epoch * self.num_items
      parts.append(self._permutation(epoch)[max(first - start, 0) : last - start])
    return np.concatenate(parts)

  def epoch(self, step: int) -> np.ndarray:
    """Returns the epoch that each item of that batch belongs to, (b,) int32."""
    positions = step * self.batch_size + np.arange(self.batch_size)
    return (positions // self.num_items).astype(np.int32)

  def _permutation(self, epoch: int) -> np.ndarray:
    if epoch not in self._permutations:
      if len(self._permutations) == 2:
        self._permutations.pop(next(iter(self._permutations)))
      draws = rng.np_rng(self.seed, self.name, "epoch", epoch)
      self._permutations[epoch] = draws.permutation(self.num_items).astype(np.int32)
    return self._permutations[epoch]


def num_steps(
  num_items: int,
  batch_size: int,
  *,
  num_epochs: float | int | None = None,
  num_steps: float | int | None = None,
) -> int:
  """Returns the length of a training run: `num_steps`, or enough steps for `num_epochs`.

  Example:
    >>> num_steps(12406, 256, num_epochs=1)
    49

  Raises:
    LtddError: unless exactly one of the two is given and positive.
  """
  if (num_epochs is None) == (num_steps is None):
    raise LtddError(f"num_epochs={num_epochs}, num_steps={num_steps}: give exactly one of the two.")
  length = num_steps or num_epochs or 0
  if length <= 0 or length != int(length):
    raise LtddError(f"the length of training is {length}: expected a whole number >= 1.")
  if num_steps is not None:
    return int(length)
  return -(-int(length) * num_items // min(batch_size, num_items))


def to_device(images: np.ndarray, labels: np.ndarray, sharding=None) -> ArrayData:
  """Puts a data set on the device as it is on disk: uint8 images and int32 labels.

  Args:
    images: (n, h, w, c) uint8.
    labels: (n,) integers.
    sharding: where to put both; None is JAX's default device.
  """
  if images.dtype != np.uint8:
    raise LtddError(f"images are {images.dtype}: only uint8 goes to the device; see `normalize`.")
  if len(images) != len(labels):
    raise LtddError(f"{len(images)} images but {len(labels)} labels.")
  return jax.device_put(ArrayData(images, np.asarray(labels, np.int32)), sharding)
