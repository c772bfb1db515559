"""Which images make up a batch.

  sampler = BatchSampler(seed, "teacher", num_items=n, batch_size=128)
  batch = images_on_device[sampler(step)]

A sampler is a pure function of the step, so resuming at step 1000 needs no state.
"""

import functools

import numpy as np

from ltdd_jax.core import rng
from ltdd_jax.core.types import LtddError


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
    self.num_items = num_items
    self.batch_size = min(batch_size, num_items)
    self._seed, self._name = seed, name
    self._known: dict[int, np.ndarray] = {}

  def _permutation(self, epoch: int) -> np.ndarray:
    if epoch not in self._known:
      if len(self._known) == 2:  # as many epochs as meet in a batch
        del self._known[next(iter(self._known))]
      draws = rng.np_rng(self._seed, self._name, "epoch", epoch)
      self._known[epoch] = draws.permutation(self.num_items).astype(np.int32)
    return self._known[epoch]

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


class ClassAwareSampler:
  """Cuts an endless stream in which all classes are equally frequent into batches of equal size.

  The classes come in a random order, a new one in each pass over them. A class gives the next
  `each` of its images, of an endless stream of permutations of them. An epoch has as many images as
  the classes would have if each were as large as the largest (Shen et al., ECCV 2016; with `each`
  of 4, as LTDD trains its classifiers). Classes without an image are left out. A batch size above
  an epoch is clamped to it.
  """

  def __init__(self, seed: int, name: str, labels: np.ndarray, batch_size: int, each: int = 4):
    counts = np.bincount(labels) if len(labels) else np.zeros(0, int)
    classes = np.flatnonzero(counts)
    if not len(classes) or batch_size < 1 or each < 1:
      raise LtddError(
        f"sampler {name!r}: {len(labels)} images, batch_size={batch_size}, each={each}; all must "
        "be >= 1."
      )
    self.num_items = class_aware_epoch(labels)
    self.batch_size = min(batch_size, self.num_items)
    self._num_classes, self._each = len(classes), each
    rows = [np.flatnonzero(labels == c).astype(np.int32) for c in classes]

    @functools.lru_cache(maxsize=(each + 1) * (len(classes) + 1))  # what a pass asks for at most
    def permutation(purpose: str | int, number: int) -> np.ndarray:
      draws = rng.np_rng(seed, name, purpose, number)
      return draws.permutation(rows[purpose] if isinstance(purpose, int) else len(rows))

    self._counts = counts[classes]
    self._permutation = permutation

  def _row(self, position: int) -> int:
    """The row of one image of the stream."""
    turn, offset = divmod(position, self._each)
    visit, place = divmod(turn, self._num_classes)
    c = int(self._permutation("classes", visit)[place])
    epoch, number = divmod(visit * self._each + offset, int(self._counts[c]))
    return self._permutation(c, epoch)[number]

  def __call__(self, step: int) -> np.ndarray:
    """Returns the indices of the batch of that step, (b,) int32."""
    first = step * self.batch_size
    return np.array([self._row(first + i) for i in range(self.batch_size)], np.int32)


def class_aware_epoch(labels: np.ndarray) -> int:
  """Returns the images in an epoch of `ClassAwareSampler`.

  Example:
    >>> class_aware_epoch(np.array([0, 0, 0, 2]))
    6
  """
  counts = np.bincount(labels)
  return int((counts > 0).sum() * counts.max())


def num_steps(num_items: int, batch_size: int, *, num_epochs: float | int) -> int:
  """Returns the number of batches that hold `num_epochs` epochs.

  Example:
    >>> num_steps(12406, 256, num_epochs=1)
    49

  Raises:
    LtddError: unless that is a whole number above 0.
  """
  if num_epochs < 1 or num_epochs != int(num_epochs):
    raise LtddError(f"num_epochs is {num_epochs}; expected a whole number >= 1")
  return -(-int(num_epochs) * num_items // min(batch_size, num_items))
