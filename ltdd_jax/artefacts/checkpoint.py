"""Work in progress: saved by time, restored bit for bit, stopped cleanly by a signal.

  progress = Progress(folder, every_seconds=30)
  first, state = progress.restore(state) or (0, state)
  with interruptible():
    for t in range(first, num_steps):
      state = step(state)
      progress.maybe_save(t + 1, state)
      if stop_requested():
        progress.save(t + 1, state)
        raise Interrupted(f"stopped after step {t + 1}")

Orbax does the writing. A checkpoint holds the leaves of the state in order and a description of
them; their places in the tree come from the template, so that empty dicts, None and the states of
optimisers come back as they were.
"""

import contextlib
import errno
import json
import logging
import os
import pathlib
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging as absl_logging

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
    every_seconds: least time between two checkpoints by `maybe_save`.
    keep: how many to keep, the newest.
  """

  def __init__(self, folder: str | os.PathLike[str], *, every_seconds: float = 30.0, keep: int = 2):
    ocp = _orbax()
    self.folder = pathlib.Path(folder).absolute()
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

  def maybe_save(self, step: int, state: Any) -> bool:
    """Saves if it is time to; returns whether it did."""
    if not self.due():
      return False
    self.save(step, state)
    return True

  def save(self, step: int, state: Any) -> None:
    """Saves a state; returns once it is on disk.

    Args:
      step: number of steps done, which names the checkpoint.
      state: a pytree of arrays.

    Raises:
      LtddError: the disk is full; checkpoints that were there stay.
    """
    ocp = _orbax()
    leaves = jax.tree.leaves(state)
    need = sum(np.size(x) * _dtype(x).itemsize for x in leaves)
    what = f"checkpoint of step {step}"
    if step not in self._manager.all_steps():  # else it holds this very state
      files.check_space(what, self.folder, need)
      args = ocp.args.Composite(
        state=ocp.args.StandardSave(_stored(leaves)), about=ocp.args.JsonSave(describe(state))
      )
      with files.explained(what, folder=self.folder, need=need), _full_disk_is_oserror():
        self._manager.save(step, args=args, force=True)
        if jax.process_index() == 0:
          _note_sizes(self.folder / str(step))
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
    ocp = _orbax()
    restore = lambda **args: self._manager.restore(step, args=ocp.args.Composite(**args))
    about = restore(about=ocp.args.JsonRestore())["about"]
    if differences := _differences(about, describe(template)):
      raise LtddError(
        f"the checkpoint of step {step} in {self.folder} does not fit the state: it was saved by "
        "another version of the code or of the config.\n" + "\n".join(differences[:10]) + "\n"
        f"Delete {self.folder} to start this loop anew."
      )
    leaves, treedef = jax.tree.flatten(template)
    wanted = {k: _abstract(x) for k, x in _stored(leaves).items()}
    stored = restore(state=ocp.args.StandardRestore(wanted))["state"]
    return treedef.unflatten([_like(stored.get(_key(i)), x) for i, x in enumerate(leaves)])

  def close(self) -> None:
    """Releases the folder."""
    self._manager.close()


def _sizes(folder: pathlib.Path) -> dict[str, int]:
  paths = (p for p in folder.rglob("*") if p.is_file() and p.name != _SIZES)
  return {p.relative_to(folder).as_posix(): p.stat().st_size for p in paths}


def _note_sizes(folder: pathlib.Path) -> None:
  """Writes down the size of each file, beside the description, which Orbax leaves alone."""
  files.write_text(folder / "about" / _SIZES, json.dumps(_sizes(folder)))


def _check_sizes(folder: pathlib.Path) -> None:
  """Raises ValueError if a file is missing or short; Orbax would say so less clearly.

  A run that was killed right after Orbax was done has noted no sizes; then Orbax judges alone.
  """
  path = folder / "about" / _SIZES
  if not path.exists():
    return
  found = _sizes(folder)
  for name, size in json.loads(path.read_text()).items():
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


def _key(index: int) -> str:
  return f"leaf_{index:05d}"


def _stored(leaves: list[Any]) -> dict[str, Any]:
  """The leaves that are written: those with elements, as Orbax demands, and one more."""
  kept = {_key(i): x for i, x in enumerate(leaves) if np.size(x)}
  return {"nothing": np.zeros(1, np.uint8)} | {
    k: x if isinstance(x, jax.Array | jax.ShapeDtypeStruct) else np.asarray(x)
    for k, x in kept.items()
  }


def _abstract(x: Any) -> Any:
  """What Orbax restores into: a host array, or a device array with the template's sharding."""
  if isinstance(x, np.ndarray) or not getattr(x, "committed", True):
    return np.empty(x.shape, x.dtype)
  sharding = x.sharding or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)


def _like(value: Any, template: Any) -> Any:
  """Gives a restored leaf the template's kind: a device array, a host array, a Python number."""
  if value is None:
    value = np.zeros(template.shape, template.dtype)
  if isinstance(template, jax.Array | jax.ShapeDtypeStruct):
    if isinstance(value, jax.Array):
      return value
    sharding = getattr(template, "sharding", None)
    committed = getattr(template, "committed", sharding is not None)
    return jax.device_put(value, sharding) if committed else jnp.asarray(value)
  return value if isinstance(template, np.ndarray) else type(template)(value)


# ---- trees of artefacts ----


def save_tree(folder: pathlib.Path, tree: Any) -> None:
  """Writes a tree of host arrays, made of dicts and lists, as an Orbax checkpoint."""
  with _full_disk_is_oserror(), _checkpointer() as checkpointer:
    checkpointer.save(folder.absolute(), tree)


def load_tree(folder: pathlib.Path) -> Any:
  """Reads what `save_tree` wrote, as host arrays, on any number of devices."""
  with _checkpointer() as checkpointer:
    return checkpointer.restore(folder.absolute())


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


@contextlib.contextmanager
def _full_disk_is_oserror() -> Iterator[None]:
  """Makes an OSError of what TensorStore raises when the disk is full."""
  try:
    yield
  except (ValueError, RuntimeError) as error:
    if "ENOSPC" not in str(error) and "No space left" not in str(error):
      raise
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error


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
