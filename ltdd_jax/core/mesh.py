"""One mesh axis over all devices, and where arrays lie on it.

Every program of the library is one global-array program: parameters are replicated, batches are
split along their first axis, and `jit` puts the collectives in. Batch-norm statistics are therefore
those of the whole batch, whatever the number of devices. A batch that does not divide by the
devices is split too: inside `jit` XLA pads it to the next multiple and masks the padding in sums.
"""

import contextlib
import contextvars
import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from ltdd_jax.core.types import LtddError

AXIS = "data"
_SHAPES_ALONE = contextvars.ContextVar("shapes_alone", default=False)


@contextlib.contextmanager
def shapes_alone() -> Iterator[None]:
  """Within, `put` and `call` give shapes: no array is on a device, which need not be there."""
  token = _SHAPES_ALONE.set(True)
  try:
    yield
  finally:
    _SHAPES_ALONE.reset(token)


def has_shapes_alone() -> bool:
  """Whether this is within `shapes_alone`."""
  return _SHAPES_ALONE.get()


def call(fn: Callable[..., Any], *args: Any) -> Any:
  """Calls a function of arrays; within `shapes_alone` it gives their shapes."""
  return jax.eval_shape(fn, *args) if has_shapes_alone() else fn(*args)


def make_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
  """Makes a one-dimensional mesh over the given devices (default: all, of all processes)."""
  devices = list(jax.devices() if devices is None else devices)
  return jax.make_mesh((len(devices),), (AXIS,), axis_types=(AxisType.Auto,), devices=devices)


def replicated(mesh: Mesh) -> NamedSharding:
  """The sharding of an array that every device holds whole."""
  return NamedSharding(mesh, PartitionSpec())


def split(mesh: Mesh, axis: int = 0) -> NamedSharding:
  """The sharding of an array that is split along `axis`."""
  return NamedSharding(mesh, PartitionSpec(*([None] * axis), AXIS))


def at_rest(mesh: Mesh, size: int) -> NamedSharding:
  """The sharding of stored arrays of `size` rows: only rows that divide can lie split.

  Where they do not divide every device stores all rows; `split_batch` splits the work on them.
  """
  return replicated(mesh) if size % mesh.size else split(mesh)


def lies_split(tree: Any) -> bool:
  """Whether an array of a tree lies split over devices."""
  found = (getattr(x, "sharding", None) for x in jax.tree.leaves(tree))
  return any(x is not None and not x.is_fully_replicated for x in found)


def put(tree: Any, sharding: NamedSharding) -> Any:
  """Places host arrays that every process holds whole; works on one process and on many."""
  if has_shapes_alone():
    shape = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
    return jax.tree.map(lambda x: shape(x if hasattr(x, "dtype") else np.asarray(x)), tree)
  if jax.process_count() == 1:
    return jax.device_put(tree, sharding)

  def place(x: Any) -> jax.Array:
    x = np.asarray(x)
    return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])

  return jax.tree.map(place, tree)


def stacked_shape(x: jax.ShapeDtypeStruct, count: int) -> jax.ShapeDtypeStruct:
  """The shape of so many such arrays, stacked."""
  sharding = x.sharding
  if sharding is not None:
    sharding = NamedSharding(sharding.mesh, PartitionSpec(None, *sharding.spec))
  return jax.ShapeDtypeStruct((count, *x.shape), x.dtype, sharding=sharding)


def get(tree: Any) -> Any:
  """Copies arrays to the host, whole, on every process; all of them have to call it."""
  if jax.process_count() == 1:
    return jax.device_get(tree)
  from jax.experimental import multihost_utils

  def fetch(x: Any) -> Any:
    split = isinstance(x, jax.Array) and not (x.is_fully_addressable or x.is_fully_replicated)
    return multihost_utils.process_allgather(x, tiled=True) if split else jax.device_get(x)

  return jax.tree.map(fetch, tree)


def total(sums: np.ndarray) -> np.ndarray:
  """Adds up float64 arrays of any shape over the processes; all of them have to call it."""
  if jax.process_count() == 1:
    return sums
  from jax.experimental import multihost_utils

  bits = np.frombuffer(sums.tobytes(), np.uint32)  # since JAX has no float64
  found = np.ascontiguousarray(multihost_utils.process_allgather(bits))
  return found.view(np.float64).reshape(-1, *sums.shape).sum(0)


def any_process(*wishes: bool) -> tuple[bool, ...]:
  """Which of the wishes one process or more has; all of them have to ask."""
  if jax.process_count() == 1:
    return wishes
  from jax.experimental import multihost_utils

  return tuple(map(bool, multihost_utils.process_allgather(np.array(wishes)).any(0)))


def check_same(what: str, text: str) -> None:
  """Raises LtddError on every process unless all of them have the same text; all have to ask."""
  if jax.process_count() == 1:
    return
  from jax.experimental import multihost_utils

  digest = np.frombuffer(hashlib.sha256(text.encode()).digest(), np.uint8)
  found = multihost_utils.process_allgather(digest)
  if other := np.flatnonzero((found != found[0]).any(1)).tolist():
    raise LtddError(
      f"processes {other} of {len(found)} have {what} other than those of process 0; expected the "
      "same command, code and data on every host"
    )


def barrier(name: str) -> None:
  """Waits for the other processes, if there are any."""
  if jax.process_count() > 1:
    from jax.experimental import multihost_utils

    multihost_utils.sync_global_devices(f"ltdd_jax: {name}")


def evenly(fn: Callable[..., Any], mesh: Mesh) -> Callable[..., Any]:
  """Makes a function of arrays of rows (b, ...) that works on rows that divide by the devices.

  Rows that are missing are those of the beginning again, and what comes of them is dropped. XLA
  would exchange parts of small arrays otherwise.
  """

  def even(*args: Any) -> Any:
    b = len(jax.tree.leaves(args)[0])
    if not b % mesh.size:
      return fn(*args)
    more = np.arange(-(-b // mesh.size) * mesh.size) % b
    found = fn(*jax.tree.map(lambda x: x[more], args))
    return jax.tree.map(lambda x: x[:b], found)

  return even


def split_batch(mesh: Mesh | None, tree: Any, axis: int = 0) -> Any:
  """Inside `jit`: splits arrays along an axis over the mesh, whatever their length.

  The arrays must be computed, and not arguments of the compiled function, since those can only be
  split evenly. Without a mesh they stay as they are.
  """
  if mesh is None:
    return tree
  return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, split(mesh, axis)), tree)
