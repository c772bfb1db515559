"""Data sets that are larger than memory: images stay where they are and are read by their rows.

  data = ArrayData(HostImages(source, "train", indices, workers=2), labels)
  data.images[rows]                          # uint8 (b, h, w, c), read now; in `jit` by a callback
  inputs = Prefetched(batch_of, num_steps, workers=2)
  inputs(t)                                  # what batch_of(t) gives, made ahead of time by Grain

A batch is a pure function of its step, so that a run that was killed sees the same batches again
and no state of a reader is kept.
"""

import contextlib
import dataclasses
import functools
import sys
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ltdd_jax.core import mesh as mesh_lib
from ltdd_jax.core import rng
from ltdd_jax.core.types import Leaf, LtddError
from ltdd_jax.data import images
from ltdd_jax.data.specs import DataSource

_AHEAD = 8  # batches that are read before they are asked for


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, eq=False)
class HostImages:
  """The images of a split, in the place of an array (n, h, w, c) uint8.

  As a pytree it has no leaves: it goes into `jit` as it is. A function that needs all images at
  once is refused.
  """

  source: DataSource
  split: str  # "train" or "test"
  indices: np.ndarray  # (n,) of the split
  workers: int = 0  # processes that read ahead; 0 for threads of this one

  @property
  def shape(self) -> tuple[int, ...]:
    """(n, h, w, c)."""
    return (len(self.indices), *self.source.spec.image_shape)

  dtype = np.dtype(np.uint8)
  ndim = 4

  def __len__(self) -> int:
    return len(self.indices)

  def __getitem__(self, rows: Any) -> Any:
    """Images (*b, h, w, c) of rows (*b,) or of a slice; of a mask (n,), what reads those."""
    if isinstance(rows, jax.core.Tracer):
      out = jax.ShapeDtypeStruct((*rows.shape, *self.shape[1:]), self.dtype)
      return jax.pure_callback(self._read, out, rows, vmap_method="broadcast_all")
    if isinstance(rows, slice):
      rows = np.arange(len(self))[rows]
    if np.asarray(rows).dtype == bool:
      return dataclasses.replace(self, indices=self.indices[rows])
    return self._read(rows)

  def _read(self, rows: Any) -> np.ndarray:
    rows = np.asarray(rows)
    found = self.source.read(self.split, self.indices[rows.ravel()])
    return found.reshape(*rows.shape, *self.shape[1:])

  def crops(
    self, rows: np.ndarray, draws: Sequence[np.random.Generator], scale: tuple[float, float]
  ) -> np.ndarray:
    """Random resized crops (b, h, w, c) uint8 of the images as they are stored."""
    return images.read_crops(self.source, self.split, self.indices[rows], draws, scale)

  def __array__(self, *_: Any, **__: Any) -> np.ndarray:
    raise LtddError(
      f"{self.source.spec.name}: {len(self):,} images stay on disk "
      f"(config.data.stream_workers={self.workers}), and this part of the run needs them all at "
      "once. Expected config.data.stream_workers=None, which holds them in memory, or a method or "
      "network that reads them row by row, such as 'edc', 'sre2l' or 'rded', and 'resnet18'"
    )


def images_of(source: DataSource, split: str, indices: np.ndarray, workers: int | None) -> Any:
  """Images of a split: an array (n, h, w, c) for None, else `HostImages` with so many workers."""
  if workers is None:
    return source.read(split, indices)
  return HostImages(source, split, indices, workers)


def take(images: Any, rows: Any) -> Any:
  """Images (*b, h, w, c) of rows (*b,), on the device or on the host, in `jit` or outside."""
  return images[rows] if isinstance(images, HostImages) else jnp.asarray(images)[rows]


class Streamed(NamedTuple):
  """The images of a batch, read for one step."""

  pixels: Leaf  # (b, h, w, c) uint8
  rows: Leaf  # (b,) int32
  epochs: Leaf  # (b,) int32, passes that they belong to, or None


def batches(
  images: Any,
  rows_of: Callable[[int], tuple[np.ndarray, np.ndarray | None]],
  num_steps: int,
  *,
  seed: int,
  path: str,
  mesh: jax.sharding.Mesh,
  scale: tuple[float, float] | None = None,
) -> Callable[[int], Any]:
  """The inputs of a training's steps: `rows_of` itself, or `Streamed` of `HostImages`, read ahead.

  Of several processes each reads what its devices get.

  Args:
    images: of the training set, an array or `HostImages`.
    rows_of: step -> rows (b,) and the passes (b,) that they belong to, or None.
    num_steps: steps in all.
    seed: of the run.
    path: of the keys, with the seed, that crops are drawn from.
    mesh: devices that a batch is split over, if it divides; else every process reads all of it.
    scale: of random resized crops of the images as they are stored; None for whole images.
  """
  if not isinstance(images, HostImages):
    return rows_of
  if mesh_lib.has_shapes_alone():
    return functools.partial(_shapes, images, rows_of, mesh)
  number, processes = jax.process_index(), jax.process_count()
  everywhere = processes == 1 or len(rows_of(0)[0]) % mesh.size

  def batch(t: int) -> Streamed:
    rows, epochs = rows_of(t)
    own = slice(None) if everywhere else _block(len(rows), number, processes)
    if scale is None:
      return Streamed(images[rows[own]], rows, epochs)
    draws = rng.np_rng(seed, path, "crop", t).spawn(len(rows))
    return Streamed(images.crops(rows[own], draws[own], scale), rows, epochs)

  def joined(found: Streamed) -> Streamed:
    shape, split = (len(found.rows), *images.shape[1:]), mesh_lib.split(mesh)
    return found._replace(pixels=jax.make_array_from_process_local_data(split, found.pixels, shape))

  return Prefetched(batch, num_steps, images.workers, None if everywhere else joined)


def _shapes(images: HostImages, rows_of: Callable[[int], Any], mesh: Any, t: int) -> Streamed:
  """A batch without pixels, which lies where `batches` puts it: split if there are processes."""
  rows, epochs = rows_of(t)
  pixels = jax.ShapeDtypeStruct((len(rows), *images.shape[1:]), images.dtype)
  if len({device.process_index for device in mesh.devices.flat}) > 1:
    pixels = mesh_lib.put(pixels, mesh_lib.at_rest(mesh, len(rows)))
  return Streamed(pixels, rows, epochs)


def _block(size: int, number: int, count: int) -> slice:
  """Block `number` of so many, of equal sizes."""
  each = size // count
  return slice(number * each, (number + 1) * each)


def split_augment(
  images: Any, augment: Sequence[Mapping[str, Any]]
) -> tuple[tuple[float, float] | None, Sequence[Mapping[str, Any]]]:
  """The random resized crop that reading takes over, if it comes first, and what is left."""
  first = dict(augment[0]) if augment else {}
  crops = first.pop("name", None) == "random_resized_crop" and not first.get("shared")
  if not isinstance(images, HostImages) or not crops:
    return None, augment
  return tuple(first.get("scale", (0.08, 1.0))), augment[1:]


@contextlib.contextmanager
def _no_script() -> Iterator[None]:
  """Processes that are started here do not run the script of this one again, as Python's would.

  They need nothing of it, and one without `if __name__ == "__main__"` would begin the run anew.
  """
  script = sys.modules["__main__"]
  sys.modules["__main__"] = types.ModuleType("__main__")
  try:
    yield
  finally:
    sys.modules["__main__"] = script


class Prefetched:
  """A function of the step whose values are made ahead of time, in the order of the steps.

  Args:
    fn: step -> host arrays; pure, and picklable if there are workers.
    num_steps: steps in all.
    workers: processes that call it; 0 for threads of this process.
    then: what is done to a value when it is asked for, or None.
  """

  def __init__(
    self,
    fn: Callable[[int], Any],
    num_steps: int,
    workers: int,
    then: Callable[[Any], Any] | None = None,
  ):
    self._fn, self._num_steps, self._workers, self._then = fn, num_steps, workers, then
    self._next: int | None = None
    self._values: Any = None

  def __call__(self, t: int) -> Any:
    starts = t != self._next  # the first step, or one after a restart
    if starts:
      self.close()
      self._values = self._from(t)
    try:
      with _no_script() if starts and self._workers else contextlib.nullcontext():
        value = next(self._values)
    except RuntimeError as error:
      if "Worker process" not in str(error):
        raise
      raise LtddError(
        f"a process that reads images ahead has died ({error}); config.data.stream_workers is "
        f"{self._workers}. Maybe memory was short: expected fewer of them or smaller batches. Then "
        "the same command goes on"
      ) from error
    if self._workers:
      value = jax.tree.map(np.array, value)  # theirs is shared memory
    self._next = t + 1
    if self._next == self._num_steps:
      self.close()
    return self._then(value) if self._then else value

  def close(self) -> None:
    """Stops the workers."""
    if self._values is not None:
      self._values.close()
    self._values = self._next = None

  def _from(self, first: int) -> Any:
    import grain  # 0.7 s, and for streamed data alone
    from absl import flags

    if not flags.FLAGS.is_parsed():  # in a notebook: Grain reads flags of its own
      flags.FLAGS.mark_as_parsed()
    steps = grain.MapDataset.range(first, self._num_steps).map(self._fn)
    threads = 0 if self._workers else 1
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads * _AHEAD)
    values = steps.to_iter_dataset(options)
    if self._workers:
      ahead = max(1, _AHEAD // self._workers)
      values = values.mp_prefetch(grain.MultiprocessingOptions(self._workers, ahead))
    return iter(values)
