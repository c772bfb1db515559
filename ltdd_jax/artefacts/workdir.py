"""Artefacts: what each stage leaves in the work directory, whole or not at all.

  with Workdir("runs/a") as work:                     # one process at a time
    if work.status("teacher", config, inputs) == "missing":
      work.commit("teacher", config=config, inputs=inputs, arrays={"x": x}, trees={"net": params})
    artefact = work.load("teacher")                   # checks every file against its SHA-256
    artefact.arrays["x"], artefact.tree("net"), artefact.meta["seconds"]

`workdir/<stage>/` holds `meta.json`, one `.npy` file for each array, one Orbax folder for each
tree, and folders that a stage wrote by itself, such as a label store. A stage is identified by its
fingerprint, a hash of the part of the config that it depends on, which names the versions of its
code, and of the fingerprints of the stages that it read. Versions of packages and the git revision
are recorded, but are no part of the fingerprint. A cache folder, if there is one, holds artefacts
of many work directories under `cache/<stage>/<fingerprint>/`.

Both may be in an object store (`gs://...`), which has no locks: there it is for the user to start
one run at a time in a work directory.
"""

import contextlib
import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import filelock
import jax
import numpy as np
from absl import logging
from etils import epath

from ltdd_jax.artefacts import checkpoint, manifest, mismatch, provenance
from ltdd_jax.artefacts.manifest import META, Artefact, fingerprint
from ltdd_jax.core import config as config_lib
from ltdd_jax.core import files
from ltdd_jax.core.mesh import barrier
from ltdd_jax.core.types import LtddError

_POLL_SECONDS = 0.5  # between two looks at a lock of the cache
_STALE_SECONDS = 86400  # a temporary folder in the cache that is older has no owner


def check_same_classes(a: Artefact, b: Artefact) -> None:
  """Raises LtddError, showing both class maps, if two artefacts number classes differently."""
  names = [list(x.meta["class_names"]) for x in (a, b)]
  if names[0] == names[1]:
    return
  count = max(map(len, names))
  padded = [n + [config_lib.ABSENT] * (count - len(n)) for n in names]
  differ = [c for c in range(count) if padded[0][c] != padded[1][c]]
  maps = [
    f"  {x.path} ({len(n)} classes): " + ", ".join(f"{c}: {p[c]}" for c in differ[:20])
    for x, n, p in zip((a, b), names, padded, strict=True)
  ]
  raise LtddError(
    f"stages {a.meta['stage']} and {b.meta['stage']} were made with different class maps; they "
    f"differ at {len(differ)} classes:\n" + "\n".join(maps) + "\nUse artefacts of one data set: "
    "point config.data.data_dir at it, or use another --workdir."
  )


class Workdir:
  """A folder of artefacts, locked while it is open as a context manager.

  Without `with`, it can be asked (`status`, `exists`, `load`) but changes nothing.

  Args:
    path: the folder; made when it is opened.
    cache: folder of artefacts shared by several work directories, or None.
  """

  def __init__(self, path: files.Pathlike, cache: files.Pathlike | None = None):
    self.path = files.path(path)
    self.cache = None if cache is None else files.path(cache)
    self._writes = False  # process 0 of an open one; the others of a pod share it and only read
    self._lock: filelock.BaseFileLock | None = None
    self._checked: dict[str, Artefact] = {}

  # ---- the lock ----

  def __enter__(self) -> "Workdir":
    if jax.process_index() == 0:
      with files.explained(f"work directory {self.path}", folder=self.path):
        self.path.mkdir(parents=True, exist_ok=True)
        if files.is_local(self.path):
          self._acquire()
      self._writes = True
      self._sweep()
    barrier("workdir opened")
    return self

  def _acquire(self) -> None:
    lock = filelock.FileLock(self.path / ".lock")
    holder = self.path / ".lock.json"
    try:
      lock.acquire(blocking=False)
    except filelock.Timeout as error:
      raise LtddError(
        f"work directory {self.path} is in use by {_describe_holder(holder)}. Wait for it to end, "
        "stop it, or use another --workdir."
      ) from error
    self._lock = lock
    files.write_text(holder, json.dumps(provenance.this_process()))

  def __exit__(self, *unused: Any) -> None:
    self._checked.clear()
    self._writes = False
    if self._lock is not None:
      (self.path / ".lock.json").unlink(missing_ok=True)
      self._lock.release()
      self._lock = None

  def _sweep(self) -> None:
    """Removes what killed runs left behind; this process holds the lock, so it has no owner."""
    if not files.is_local(self.path):
      return
    own = [x for x in self.path.glob("*/") if not (x / ".lock").exists()]  # others have their owner
    for path in [p for x in (self.path, *own) for p in x.glob(f"{files.TEMPORARY}*")]:
      files.remove(path)
    cache = self.cache if self.cache is not None and files.is_local(self.cache) else None
    for path in cache.glob(f"{files.TEMPORARY}*") if cache is not None else ():
      with contextlib.suppress(FileNotFoundError):  # another run was faster
        if time.time() - os.path.getmtime(path) > _STALE_SECONDS:
          files.remove(path)

  # ---- what is there ----

  def folder(self, stage: str) -> epath.Path:
    """The folder of a stage's artefact."""
    for part in stage.split("/"):
      manifest.check_name("stage", part)
    return self.path / stage

  def exists(self, stage: str) -> bool:
    """Whether a stage has an artefact, whatever its config."""
    return (self.folder(stage) / META).exists()

  def status(self, stage: str, config: Mapping[str, Any], inputs: Mapping[str, str]) -> str:
    """Says whether a stage has to run.

    Args:
      stage: its name, "teacher" or "distil/sre2l".
      config: the part of the config that it depends on.
      inputs: {stage: fingerprint} of what it reads.

    Returns:
      "ready" if its artefact is there (or was brought from the cache), else "missing".

    Raises:
      LtddError: an artefact of another config or inputs is there, or a damaged one.
    """
    mark = fingerprint(config, inputs)
    if not self.exists(stage):
      self._check_free(self.folder(stage))
      if self._writes:
        self._fetch(stage, mark)
    barrier("artefact fetched")
    if not self.exists(stage):
      return "ready" if not self._writes and self._cached(stage, mark) else "missing"
    (meta,) = self.check([(stage, config, inputs)])
    if note := provenance.difference(meta["versions"]):
      logging.info("%s: made with %s; results may differ by rounding", stage, note)
    return "ready"

  def _check_free(self, folder: epath.Path) -> None:
    """Raises LtddError if other files are there; an object store may have unfinished ones."""
    if files.is_local(folder) and folder.exists() and any(True for _ in files.below(folder)):
      raise LtddError(
        f"{folder} has files but no {META}: it is no artefact. Delete it, or use another --workdir"
      )

  def check(self, wanted: Iterable[tuple[str, Any, Mapping[str, str]]]) -> list[dict[str, Any]]:
    """Reads the manifests of those stages, of (name, config, inputs), that have an artefact.

    Raises:
      LtddError: some are of another config or inputs, all of which are named; or one is damaged.
    """
    found = [
      (manifest.read_meta(self.folder(stage)), config, inputs)
      for stage, config, inputs in wanted
      if self.exists(stage)
    ]
    if bad := [x for x in found if x[0]["fingerprint"] != fingerprint(*x[1:])]:
      raise LtddError(mismatch.explain(self.path, bad))
    return [meta for meta, *_ in found]

  def _cached(self, stage: str, mark: str) -> bool:
    return self.cache is not None and (self.cache / stage / mark / META).exists()

  def load(self, stage: str) -> Artefact:
    """Opens an artefact after checking every file of it.

    Raises:
      LtddError: it is not there, or a file of it is missing, truncated or altered.
    """
    if stage not in self._checked:
      if not self.exists(stage):
        raise LtddError(f"{self.path} has no artefact of stage {stage!r}; run that stage first")
      self._checked[stage] = manifest.open_artefact(self.folder(stage))
    return self._checked[stage]

  # ---- writing ----

  def scratch(self, stage: str, config: Mapping[str, Any], inputs: Mapping[str, str]) -> epath.Path:
    """A folder for work in progress on a stage; other configs have others; gone after commit."""
    folder = self._scratch(stage) / fingerprint(config, inputs)[:16]
    folder.mkdir(parents=True, exist_ok=True)
    return folder

  def _scratch(self, stage: str) -> epath.Path:
    self.folder(stage)
    return self.path / ".scratch" / stage.replace("/", "+")

  def commit(
    self,
    stage: str,
    *,
    config: Mapping[str, Any],
    inputs: Mapping[str, str],
    arrays: Mapping[str, Any],
    trees: Mapping[str, Any] | None = None,
    folders: Mapping[str, epath.Path] | None = None,
    extra: Mapping[str, Any] | None = None,
    class_names: tuple[str, ...] | list[str] = (),
    split_sha256: str = "",
    seconds: float = 0.0,
    peak_bytes: int = 0,
  ) -> Artefact:
    """Writes a stage's artefact: in a temporary folder first, which then gets its name.

    Args:
      stage: its name.
      config: the part of the config that it depends on.
      inputs: {stage: fingerprint} of what it read.
      arrays: name -> array.
      trees: name -> pytree of arrays made of dicts and lists, such as variables of a network.
      folders: name -> folder that the stage wrote, in its scratch; it becomes part of the artefact.
      extra: further JSON values for the report.
      class_names: the class map, index to name.
      split_sha256: hash of the long-tailed split.
      seconds: wall time of the stage.
      peak_bytes: its peak memory.

    Returns:
      The artefact. If one with the same fingerprint is there already, that one.

    Raises:
      LtddError: another artefact is there, or the disk is full. Nothing is left half written.
    """
    if not self._writes and jax.process_index() == 0:
      raise LtddError(f"work directory {self.path} is not open; use 'with Workdir(...) as work:'")
    arrays = {k: np.asarray(jax.device_get(v)) for k, v in arrays.items()}
    trees = {k: jax.tree.map(np.asarray, jax.device_get(v)) for k, v in (trees or {}).items()}
    folders = dict(folders or {})
    for kind, names in (("tree", trees), ("folder", folders)):
      for name in names:
        manifest.check_name(kind, name)
    meta: dict[str, Any] = {
      "stage": stage,
      "config": config,
      "inputs": inputs,
      "fingerprint": fingerprint(config, inputs),
      "split_sha256": split_sha256,
      "class_names": list(class_names),
      "versions": provenance.versions(),
      "code": provenance.code_revision(),
      "hardware": provenance.hardware(),
      "seconds": float(seconds),
      "peak_bytes": int(peak_bytes),
      "arrays": {k: manifest.about_array(k, v) for k, v in arrays.items()},
      "trees": sorted(trees),
      "folders": sorted(folders),
      "extra": extra or {},
    }
    if self._writes:
      if self.exists(stage):
        self.check([(stage, config, inputs)])
      else:
        self._write(stage, config_lib.canonical(meta, "meta"), arrays, trees, folders)
        self._offer(stage, meta["fingerprint"])
      files.remove(self._scratch(stage))
    barrier("artefact committed")
    return self.load(stage)

  def _write(
    self,
    stage: str,
    meta: dict[str, Any],
    arrays: Mapping[str, np.ndarray],
    trees: Mapping[str, Any],
    folders: Mapping[str, epath.Path],
  ) -> None:
    need = sum(x.nbytes for x in jax.tree.leaves((dict(arrays), dict(trees)))) + 4096
    files.check_space(f"stage {stage}", self.path, need)
    with (
      files.explained(f"stage {stage}", folder=self.path, need=need, errors=files.TENSORSTORE),
      files.appearing(self.folder(stage), self.path) as folder,
    ):
      manifest.write_content(folder, arrays, trees, folders)
      manifest.seal(folder, meta)

  # ---- the cache ----

  def _fetch(self, stage: str, mark: str) -> None:
    """Brings an artefact from the cache, if it is there."""
    if self.cache is None or not self._cached(stage, mark):
      return
    source = self.cache / stage / mark
    manifest.open_artefact(source)
    with (
      files.explained(f"stage {stage}", folder=self.path),
      files.appearing(self.folder(stage), self.path) as folder,
    ):
      files.link_tree(source, folder, last=META)
    logging.info("%s: taken from the cache %s", stage, source)

  def share(self, stages: Iterable[str]) -> None:
    """Puts the artefacts of those of these stages that are here into the cache."""
    for stage in stages:
      if self.exists(stage):
        self._offer(stage, manifest.read_meta(self.folder(stage))["fingerprint"])

  def _offer(self, stage: str, mark: str) -> None:
    """Puts an artefact into the cache, unless another run was faster; a full cache is no error."""
    if self.cache is None or self._cached(stage, mark):
      return
    try:
      with (
        files.explained(stage, folder=self.cache),
        files.appearing(self.cache / stage / mark, self.cache) as folder,
      ):
        files.link_tree(self.folder(stage), folder, last=META)
    except LtddError as error:
      if not self._cached(stage, mark):
        why = files.reason(error.__cause__)
        logging.warning("%s: not put into the cache %s: %s", stage, self.cache, why)

  @contextlib.contextmanager
  def making(self, stage: str, config: Any, inputs: Mapping[str, str]) -> Iterator[None]:
    """While one run makes an artefact for the cache, others that need the same one wait.

    Ask for `status` again within. Without a cache, in an object store or on a pod nobody waits: the
    first to finish puts its artefact into the cache, and all of them are equal.

    Raises:
      checkpoint.Interrupted: a signal came meanwhile.
    """
    alone = jax.process_count() == 1 and self.cache is not None and files.is_local(self.cache)
    with (
      self._cache_lock(stage, fingerprint(config, inputs)) if alone else contextlib.nullcontext()
    ):
      yield

  @contextlib.contextmanager
  def _cache_lock(self, stage: str, mark: str) -> Iterator[None]:
    assert self.cache is not None
    lock, said = filelock.FileLock(self.cache / stage / f"{mark}.lock"), False
    try:
      (self.cache / stage).mkdir(parents=True, exist_ok=True)
      while True:
        with contextlib.suppress(filelock.Timeout):
          lock.acquire(timeout=_POLL_SECONDS if said else 0)
          break
        if checkpoint.stop_requested():
          raise checkpoint.Interrupted(f"stopped while another run makes {stage}")
        if not said:
          logging.info("%s: another run makes it for the cache %s; waiting", stage, self.cache)
        said = True
    except OSError as error:  # as for the cache itself: it is done without
      logging.warning("%s: no lock in the cache %s: %s", stage, self.cache, error)
    try:
      yield
    finally:
      lock.release()

  # ---- facts about the run ----

  def write_run_info(self, config: Any, changed: Mapping[str, Any] | None = None) -> None:
    """Writes `config.json`, and a line of `runs.jsonl` for this start.

    A line has the command, versions of packages, revision of the code, devices, process, time, and
    if given, the values that differ from defaults, {key: (default, value)}.
    """
    if jax.process_index() == 0:
      text = json.dumps(config_lib.canonical(config), indent=1, allow_nan=False) + "\n"
      files.write_text(self.path / "config.json", text)
      runs = self.path / "runs.jsonl"
      before = runs.read_text() if runs.exists() else ""
      line = provenance.run_info() | ({} if changed is None else {"changed": changed})
      files.write_text(runs, before + json.dumps(line, allow_nan=False) + "\n")


def _describe_holder(path: epath.Path) -> str:
  try:
    holder = json.loads(path.read_text())
    return f"process {holder['pid']} on {holder['host']}, since {holder['since']}"
  except (OSError, ValueError, KeyError):
    return "another process"
