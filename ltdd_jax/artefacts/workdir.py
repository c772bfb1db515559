"""Artefacts: what each stage leaves in the work directory, whole or not at all.

  with Workdir("runs/a") as work:                     # one process at a time
    if work.status("teacher", config, inputs) == "missing":
      work.commit("teacher", config=config, inputs=inputs, arrays={"x": x}, trees={"net": params})
    artefact = work.load("teacher")                   # checks every file against its SHA-256
    artefact.arrays["x"], artefact.tree("net"), artefact.meta["seconds"]

`workdir/<stage>/` holds `meta.json`, one `.npy` file for each array, one Orbax folder for each
tree, and folders that a stage wrote by itself, such as a label store. A stage is identified by its
fingerprint, a hash of the part of the config that it depends on and of the fingerprints of the
stages that it read. Versions of packages are recorded, but are no part of the fingerprint. A cache
folder, if there is one, holds artefacts of many work directories
under `cache/<stage>/<fingerprint>/`.
"""

import contextlib
import json
import os
import pathlib
import shutil
import time
from collections.abc import Mapping
from typing import Any

import filelock
import jax
import numpy as np
from absl import logging

from ltdd_jax.artefacts import manifest, provenance
from ltdd_jax.artefacts.manifest import META, Artefact, fingerprint
from ltdd_jax.core import config as config_lib
from ltdd_jax.core import files
from ltdd_jax.core.files import write_text as write_text
from ltdd_jax.core.mesh import barrier
from ltdd_jax.core.types import LtddError

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

  def __init__(self, path: str | os.PathLike[str], cache: str | os.PathLike[str] | None = None):
    self.path = pathlib.Path(path)
    self.cache = None if cache is None else pathlib.Path(cache)
    self._lock: filelock.BaseFileLock | None = None
    self._checked: dict[str, Artefact] = {}

  # ---- the lock ----

  def __enter__(self) -> "Workdir":
    if jax.process_index() == 0:  # the others of a pod share the folder and only read
      with files.explained(f"work directory {self.path}", folder=self.path):
        self.path.mkdir(parents=True, exist_ok=True)
        self._acquire()
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
    write_text(holder, json.dumps(provenance.this_process()))

  def __exit__(self, *unused: Any) -> None:
    self._checked.clear()
    if self._lock is not None:
      (self.path / ".lock.json").unlink(missing_ok=True)
      self._lock.release()
      self._lock = None

  def _sweep(self) -> None:
    """Removes what killed runs left behind; this process holds the lock, so it has no owner."""
    for path in [*self.path.glob(f"{files.TEMPORARY}*"), *self.path.glob(f"*/{files.TEMPORARY}*")]:
      _remove(path)
    for path in self.cache.glob(f"{files.TEMPORARY}*") if self.cache else ():
      with contextlib.suppress(FileNotFoundError):  # another run was faster
        if time.time() - path.stat().st_mtime > _STALE_SECONDS:
          _remove(path)

  # ---- what is there ----

  def folder(self, stage: str) -> pathlib.Path:
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
      LtddError: an artefact of another config or other inputs is there, or a damaged one.
    """
    mark = fingerprint(config, inputs)
    folder = self.folder(stage)
    if not self.exists(stage) and folder.exists() and any(p.is_file() for p in folder.iterdir()):
      raise LtddError(f"{folder} has files but no {META}: it is no artefact. Delete {folder}")
    if self._lock is not None and not self.exists(stage):
      self._fetch(stage, mark)
    barrier("artefact fetched")
    if not self.exists(stage):
      return "ready" if self._lock is None and self._cached(stage, mark) else "missing"
    meta = self._check(stage, config, inputs)
    if note := provenance.difference(meta["versions"]):
      logging.info("%s: made with %s; results may differ by rounding", stage, note)
    return "ready"

  def _check(self, stage: str, config: Any, inputs: Mapping[str, str]) -> dict[str, Any]:
    meta = manifest.read_meta(self.folder(stage))
    if meta["fingerprint"] != fingerprint(config, inputs):
      raise LtddError(self._explain(meta, config, inputs))
    return meta

  def _cached(self, stage: str, mark: str) -> bool:
    return self.cache is not None and (self.cache / stage / mark / META).exists()

  def _explain(self, meta: Mapping[str, Any], config: Any, inputs: Mapping[str, str]) -> str:
    folder = self.path / meta["stage"]
    advice = f"Use another --workdir, or delete {folder}"
    if later := self._after(meta["stage"]):
      advice += f" and what was made from it: {' '.join(str(self.path / x) for x in later)}"
    if changes := config_lib.diff(meta["config"], config):
      what = "was made with another config"
      lines = [f"  {k}: {_show(old)} -> {_show(new)}" for k, (old, new) in changes.items()]
    else:
      what = "has this config, but was made from other inputs (fingerprints)"
      old = dict(meta["inputs"])
      lines = [
        f"  {k}: {old.get(k, config_lib.ABSENT)[:12]} -> {inputs.get(k, config_lib.ABSENT)[:12]}"
        for k in sorted({*old, *inputs})
        if old.get(k) != inputs.get(k)
      ]
    return "\n".join([f"{folder} {what}:", *lines, advice])

  def _after(self, stage: str) -> list[str]:
    """Folders made from `stage`, directly or not; `student` alone stands for all below it."""
    reads = {}
    for path in self.path.glob(f"[!.]*/**/{META}"):
      name = path.parent.relative_to(self.path).as_posix()
      reads[name] = set(manifest.read_meta(path.parent)["inputs"])
    found: set[str] = set()
    while more := {s for s in reads if s not in found and reads[s] & {stage, *found}}:
      found |= more
    kind = lambda name: name.split("/")[0]
    partly = {kind(s) for s in reads if s not in found}
    return sorted({s if kind(s) in partly else kind(s) for s in found})

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

  def scratch(
    self, stage: str, config: Mapping[str, Any], inputs: Mapping[str, str]
  ) -> pathlib.Path:
    """A folder for work in progress on a stage; other configs have others; gone after commit."""
    folder = self._scratch(stage) / fingerprint(config, inputs)[:16]
    folder.mkdir(parents=True, exist_ok=True)
    return folder

  def _scratch(self, stage: str) -> pathlib.Path:
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
    folders: Mapping[str, pathlib.Path] | None = None,
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
    if self._lock is None and jax.process_index() == 0:
      raise LtddError(f"work directory {self.path} is not open; use 'with Workdir(...) as work:'")
    arrays = {k: np.asarray(jax.device_get(v)) for k, v in arrays.items()}
    trees = {k: jax.tree.map(np.asarray, jax.device_get(v)) for k, v in (trees or {}).items()}
    folders = dict(folders or {})
    for kind, names in (("tree", trees), ("folder", folders)):
      for name in names:
        manifest.check_name(kind, name)
    meta = {
      "format": manifest.FORMAT,
      "stage": stage,
      "config": config,
      "inputs": inputs,
      "fingerprint": fingerprint(config, inputs),
      "split_sha256": split_sha256,
      "class_names": list(class_names),
      "versions": provenance.versions(),
      "seconds": float(seconds),
      "peak_bytes": int(peak_bytes),
      "arrays": {k: manifest.about_array(k, v) for k, v in arrays.items()},
      "trees": sorted(trees),
      "folders": sorted(folders),
      "extra": extra or {},
    }
    if self._lock is not None:
      if self.exists(stage):
        self._check(stage, config, inputs)
      else:
        self._write(stage, config_lib.canonical(meta, "meta"), arrays, trees, folders)
        self._offer(stage, meta["fingerprint"])
      shutil.rmtree(self._scratch(stage), ignore_errors=True)
    barrier("artefact committed")
    return self.load(stage)

  def _write(
    self,
    stage: str,
    meta: dict[str, Any],
    arrays: Mapping[str, np.ndarray],
    trees: Mapping[str, Any],
    folders: Mapping[str, pathlib.Path],
  ) -> None:
    need = sum(x.nbytes for x in jax.tree.leaves((dict(arrays), dict(trees)))) + 4096
    files.check_space(f"stage {stage}", self.path, need)
    temporary = self._temporary(self.path)
    try:
      with files.explained(f"stage {stage}", folder=self.path, need=need):
        manifest.write_content(temporary, arrays, trees, folders)
        manifest.seal(temporary, meta)
        files.move_into_place(temporary, self.folder(stage))
    finally:
      shutil.rmtree(temporary, ignore_errors=True)

  def _temporary(self, root: pathlib.Path) -> pathlib.Path:
    return root / f"{files.TEMPORARY}{os.getpid()}-{os.urandom(6).hex()}"

  # ---- the cache ----

  def _fetch(self, stage: str, mark: str) -> None:
    """Brings an artefact from the cache, if it is there."""
    if not self._cached(stage, mark):
      return
    source = self.cache / stage / mark
    manifest.open_artefact(source)
    temporary = self._temporary(self.path)
    try:
      with files.explained(f"stage {stage}", folder=self.path):
        files.link_tree(source, temporary)
        files.move_into_place(temporary, self.folder(stage))
    finally:
      shutil.rmtree(temporary, ignore_errors=True)
    logging.info("%s: taken from the cache %s", stage, source)

  def _offer(self, stage: str, mark: str) -> None:
    """Puts an artefact into the cache, unless another run was faster; a full cache is no error."""
    if self.cache is None or (self.cache / stage / mark).exists():
      return
    temporary = self._temporary(self.cache)
    try:
      files.link_tree(self.folder(stage), temporary)
      files.move_into_place(temporary, self.cache / stage / mark)
    except OSError as error:
      if not (self.cache / stage / mark / META).exists():
        logging.warning("%s: not put into the cache %s: %s", stage, self.cache, error)
    finally:
      shutil.rmtree(temporary, ignore_errors=True)

  # ---- facts about the run ----

  def write_run_info(self, config: Any) -> None:
    """Writes `config.json` and `run.json`: versions, code revision and devices of this start."""
    if jax.process_index() == 0:
      dump = lambda x: json.dumps(x, indent=1, allow_nan=False) + "\n"
      write_text(self.path / "config.json", dump(config_lib.canonical(config)))
      write_text(self.path / "run.json", dump(provenance.run_info()))


def _describe_holder(path: pathlib.Path) -> str:
  try:
    holder = json.loads(path.read_text())
    return f"process {holder['pid']} on {holder['host']}, since {holder['since']}"
  except (OSError, ValueError, KeyError):
    return "another process"


def _remove(path: pathlib.Path) -> None:
  if path.is_dir():
    shutil.rmtree(path, ignore_errors=True)
  else:
    path.unlink(missing_ok=True)


def _show(value: Any) -> str:
  return value if value == config_lib.ABSENT else json.dumps(value)
