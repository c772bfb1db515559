"""Work in progress: saved by time, restored bit for bit, stopped cleanly by a signal.

  progress = Progress(folder, every_seconds=30)
  first, state = progress.restore(state) or (0, state)
  with interruptible():
    for t in range(first, num_steps):
      state = step(state)
      if progress.due() or stop_requested():
        progress.save(t + 1, state)
      if stop_requested():
        raise Interrupted(f"stopped after step {t + 1}")
  discard(folder)                        # once the result is taken

Orbax does the writing; a description of the state goes along, for the message where a checkpoint
does not fit.
"""

import contextlib
import json
import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging as absl_logging
from etils import epath

from ltdd_jax.core import files
from ltdd_jax.core.types import LtddError

_SIZES = "sizes.json"
# What reading a damaged checkpoint raises, depending on the file that is damaged.
_UNREADABLE = (OSError, ValueError, KeyError, TypeError, RuntimeError)


class Interrupted(Exception):
  """A signal asked to stop; the work is saved."""


class Progress:
  """Checkpoints of one loop in one folder.

  Args:
    folder: theirs alone; made if it is not there.
    every_seconds: least time between two checkpoints, for `due`.
    keep: how many to keep, the newest.
  """

  def __init__(self, folder: files.Pathlike, *, every_seconds: float = 30.0, keep: int = 2):
    ocp = _orbax()
    self.folder = files.absolute(files.path(folder))
    self.every_seconds = every_seconds
    options = ocp.CheckpointManagerOptions(
      max_to_keep=keep,
      create=True,
      cleanup_tmp_directories=True,  # what a killed run left half written
      enable_async_checkpointing=False,
    )
    with files.explained(f"checkpoints {self.folder}", folder=self.folder):
      self._manager = ocp.CheckpointManager(self.folder, options=options)
    self._last = time.monotonic()

  def due(self) -> bool:
    """Whether `every_seconds` have passed since the last checkpoint."""
    return time.monotonic() - self._last >= self.every_seconds

  def save(self, step: int, state: Any) -> None:
    """Saves a state; returns once it is on disk.

    Args:
      step: number of steps done, which names the checkpoint.
      state: a pytree of arrays.

    Raises:
      LtddError: the disk is full; checkpoints that were there stay.
    """
    need = sum(np.size(x) * _dtype(x).itemsize for x in jax.tree.leaves(state))
    what = f"checkpoint of step {step}"
    if step not in self._manager.all_steps():  # else it holds this very state
      files.check_space(what, self.folder, need)
      args = _orbax().args.StandardSave(_written(state))
      with files.explained(what, folder=self.folder, need=need, errors=files.TENSORSTORE):
        self._manager.save(step, args=args, custom_metadata={"state": describe(state)}, force=True)
        if jax.process_index() == 0 and files.is_local(self.folder):
          sizes = json.dumps(_sizes(self.folder / str(step)))
          files.write_text(self.folder / str(step) / _SIZES, sizes)
    self._last = time.monotonic()

  def restore(self, template: Any) -> tuple[int, Any] | None:
    """Reads the newest checkpoint that can be read.

    Args:
      template: a pytree of arrays or ShapeDtypeStructs with the structure, shapes, dtypes and
        shardings of the state. Host arrays come back as host arrays.

    Returns:
      The step and the state, or None if there is no checkpoint.

    Raises:
      LtddError: a checkpoint of another structure is there, or there are some and all are damaged.
    """
    steps = sorted(self._manager.all_steps(), reverse=True)
    for step in steps:
      try:
        found = self._read(step, template)
      except _UNREADABLE as error:
        if isinstance(error, LtddError):
          raise
        folder, why = self.folder / str(step), str(error).split("\n")[0][:200]
        absl_logging.warning("checkpoint %s is damaged (%s); trying the one before", folder, why)
        continue
      for newer in (s for s in steps if s > step):
        self._manager.delete(newer)
      return step, found
    if steps:
      raise LtddError(
        f"all checkpoints in {self.folder} ({', '.join(map(str, steps))}) are damaged. Delete "
        f"{self.folder} to start this loop anew; finished stages are not touched."
      )
    return None

  def _read(self, step: int, template: Any) -> Any:
    _check_sizes(self.folder / str(step))
    about = self._manager.metadata(step).custom_metadata["state"]
    if differences := _differences(about, describe(template)):
      raise LtddError(
        f"the checkpoint of step {step} in {self.folder} does not fit the state: it was saved by "
        "another version of the code or of the config.\n" + "\n".join(differences[:10]) + "\n"
        f"Delete {self.folder} to start this loop anew."
      )
    wanted = jax.tree.map(_abstract, _written(template))
    stored = self._manager.restore(step, args=_orbax().args.StandardRestore(wanted))
    return jax.tree.map(_like, template, stored["state"])

  def close(self) -> None:
    """Releases the folder."""
    self._manager.close()


def discard(folder: files.Pathlike) -> None:
  """Removes the checkpoints of a loop of which the result is kept elsewhere."""
  if jax.process_index() == 0:
    files.remove(files.path(folder))


def _sizes(folder: epath.Path) -> dict[str, int]:
  return {str(p.relative_to(folder)): files.num_bytes(p) for p in files.below(folder)}


def _check_sizes(folder: epath.Path) -> None:
  """Raises ValueError if a file is missing or short, before Orbax starts to read them all at once.

  A run that was killed right after Orbax was done has noted no sizes, and an object store has no
  half files; then Orbax judges alone.
  """
  if (folder / _SIZES).exists():
    found = _sizes(folder)
    for name, size in json.loads((folder / _SIZES).read_text()).items():
      if found.get(name) != size:
        raise ValueError(f"{name} has {found.get(name, 0)} bytes, expected {size}")


def describe(tree: Any) -> dict[str, list[Any]]:
  """{path of a leaf: [shape, dtype]} of a tree of arrays or of their shapes."""
  leaves, _ = jax.tree.flatten_with_path(tree)
  return {jax.tree_util.keystr(path): [list(np.shape(x)), _dtype(x).name] for path, x in leaves}


def _dtype(x: Any) -> np.dtype:
  return x.dtype if hasattr(x, "dtype") else np.asarray(x).dtype


def _differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
  show = lambda x: f"{x[1]}{x[0]}" if x else "absent"
  return [
    f"  state{path}: {show(old.get(path))} in the checkpoint, {show(new.get(path))} expected"
    for path in [*old, *(p for p in new if p not in old)]
    if old.get(path) != new.get(path)
  ]


def _written(state: Any) -> dict[str, Any]:
  """The state as Orbax takes it: no tree without leaves, no array without elements."""
  full = lambda x: x if np.size(x) else np.zeros(1, np.uint8)
  return {"state": jax.tree.map(full, state), "some": np.zeros(1, np.uint8)}


def _abstract(x: Any) -> Any:
  """What Orbax restores into: a host array, or a device array with the template's sharding."""
  if not isinstance(x, jax.Array | jax.ShapeDtypeStruct) or not getattr(x, "committed", True):
    return np.empty(np.shape(x), _dtype(x))
  sharding = x.sharding or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)


def _like(template: Any, value: Any) -> Any:
  """Gives a restored leaf the template's kind: a device array, a host array, a Python number."""
  if not np.size(template):
    value = np.zeros(template.shape, template.dtype)
  if isinstance(template, jax.Array | jax.ShapeDtypeStruct):
    if isinstance(value, jax.Array):
      return value
    sharding = getattr(template, "sharding", None)
    committed = getattr(template, "committed", sharding is not None)
    return jax.device_put(value, sharding) if committed else jnp.asarray(value)
  return value if isinstance(template, np.ndarray) else type(template)(value)


# ---- trees of artefacts ----


def save_tree(folder: files.Pathlike, tree: Any) -> None:
  """Writes a tree of host arrays, made of dicts and lists, as an Orbax checkpoint."""
  with _checkpointer() as checkpointer:
    checkpointer.save(files.absolute(folder), tree)


def load_tree(folder: files.Pathlike) -> Any:
  """Reads what `save_tree` wrote, as host arrays, on any number of devices."""
  with _checkpointer() as checkpointer:
    return checkpointer.restore(files.absolute(folder))


@contextlib.contextmanager
def _checkpointer() -> Iterator[Any]:
  ocp = _orbax()
  options = ocp.options.MultiprocessingOptions()
  if jax.process_count() > 1:  # the others do not take part
    me = jax.process_index()
    options = ocp.options.MultiprocessingOptions(
      primary_host=me, active_processes={me}, barrier_sync_key_prefix=f"process{me}"
    )
  with ocp.StandardCheckpointer(multiprocessing_options=options) as checkpointer:
    yield checkpointer
    checkpointer.wait_until_finished()


# ---- Orbax's manners ----


def _orbax() -> Any:
  """Imports Orbax, late because it takes a while, and keeps its records out of our log.

  What matters in them comes as an exception too, which is turned into one clear message.
  """
  logger = logging.getLogger("absl")
  if _not_orbax not in logger.filters:
    logger.addFilter(_not_orbax)
  import orbax.checkpoint as ocp

  return ocp


def _not_orbax(record: logging.LogRecord) -> bool:
  return f"{os.sep}orbax{os.sep}" not in record.pathname


# ---- signals ----

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_stop = threading.Event()


def stop_requested() -> bool:
  """Whether SIGINT or SIGTERM came since `interruptible` was entered."""
  return _stop.is_set()


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
  """Within it, SIGINT and SIGTERM set a flag for loops to read; a second one acts as usual.

  Outside the main thread, where Python allows no handlers, it does nothing.
  """
  _stop.clear()
  if threading.current_thread() is not threading.main_thread():
    yield
    return
  before = {s: signal.getsignal(s) for s in _SIGNALS}

  def restore() -> None:
    for number, handler in before.items():
      signal.signal(number, handler)

  def handle(number: int, frame: Any) -> None:
    del frame
    _stop.set()
    restore()
    name = signal.Signals(number).name
    text = f"\n{name}: saving, then stopping; once more to stop at once and lose a little work\n"
    os.write(2, text.encode())

  for number in _SIGNALS:
    signal.signal(number, handle)
  try:
    yield
  finally:
    restore()
    _stop.clear()
