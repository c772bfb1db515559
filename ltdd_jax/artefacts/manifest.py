"""The folder of one artefact: its arrays, its trees and the manifest that vouches for them.

`workdir.py` is what to use; this file holds the format. A folder has one `.npy` file for each
array, one Orbax folder `trees/<name>` for each tree, folders `<name>` that the stage wrote by
itself, and `meta.json` with the size and SHA-256 of every file, and of itself.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from ltdd_jax.artefacts import checkpoint
from ltdd_jax.core import config as config_lib
from ltdd_jax.core import files
from ltdd_jax.core.types import LtddError

META = "meta.json"
_MMAP_BYTES = 1 << 24  # larger arrays are mapped, not read
_PART = re.compile(r"[A-Za-z0-9_+=@-][A-Za-z0-9_+=@.-]*")


def canonical_json(value: Any) -> str:
  """The one JSON text of a value: keys sorted, tuples as lists, floats by repr, no NaN."""
  plain = config_lib.canonical(value)
  return json.dumps(plain, sort_keys=True, separators=(",", ":"), allow_nan=False)


def fingerprint(config: Mapping[str, Any], inputs: Mapping[str, str]) -> str:
  """Identifies the result of a stage.

  Args:
    config: the part of the config that the stage depends on, with the versions of its code.
    inputs: {stage: fingerprint} of what it reads.

  Returns:
    A SHA-256 in hexadecimal. It depends on nothing but the values: not on the order of keys, on
    tuples or lists, or on versions of packages.
  """
  text = canonical_json({"config": config, "inputs": inputs})
  return hashlib.sha256(text.encode()).hexdigest()


class Artefact(NamedTuple):
  """A finished stage; its large arrays are mapped, not read.

  `meta` has the keys stage, config, inputs {stage: fingerprint}, fingerprint, split_sha256,
  class_names, versions, code {revision, dirty}, hardware, seconds, peak_bytes, arrays
  {name: {dtype, shape}}, trees [name], folders [name], files {path: {bytes, sha256}}, extra and
  meta_sha256.
  """

  meta: dict[str, Any]
  arrays: Mapping[str, np.ndarray]
  path: epath.Path

  def tree(self, name: str) -> Any:
    """Reads a tree of NumPy arrays: dicts as they were, tuples as lists."""
    if name not in self.meta["trees"]:
      raise LtddError(f"{self.path} has no tree {name!r}; it has {self.meta['trees']}")
    return checkpoint.load_tree(self.path / "trees" / name)

  def folder(self, name: str) -> epath.Path:
    """A folder that the stage wrote by itself."""
    if name not in (found := self.meta["folders"]):
      raise LtddError(f"{self.path} has no folder {name!r}; it has {found}")
    return self.path / name


# ---- folders of artefacts ----


def about_array(name: str, array: np.ndarray) -> dict[str, Any]:
  """Describes an array for the manifest; raises LtddError for one that cannot be stored."""
  check_name("array", name)
  if array.dtype.hasobject or array.dtype.fields:
    raise LtddError(f"array {name!r} has dtype {array.dtype}; expected numbers, not objects")
  dtype = array.dtype.name if _is_extension(array.dtype) else array.dtype.str
  return {"dtype": dtype, "shape": list(array.shape)}


def _is_extension(dtype: np.dtype) -> bool:
  """Whether a dtype is one that NumPy's files cannot hold, such as bfloat16."""
  return dtype.isbuiltin == 2


def write_content(
  folder: epath.Path,
  arrays: Mapping[str, np.ndarray],
  trees: Mapping[str, Any],
  folders: Mapping[str, epath.Path],
) -> None:
  """Writes arrays and trees into a new folder, and links the folders that are there into it."""
  folder.mkdir(parents=True, exist_ok=True)
  for name, array in arrays.items():
    plain = array.view(f"u{array.dtype.itemsize}") if _is_extension(array.dtype) else array
    with (folder / f"{name}.npy").open("wb") as file:
      np.save(file, plain, allow_pickle=False)
  for name, tree in trees.items():
    checkpoint.save_tree(folder / "trees" / name, tree)
  for name, source in folders.items():
    files.link_tree(source, folder / name)


def seal(folder: epath.Path, meta: dict[str, Any]) -> None:
  """Writes the manifest, with size and hash of every file and of itself."""
  meta["files"] = {
    p.relative_to(folder).as_posix(): {"bytes": files.num_bytes(p), "sha256": files.sha256(p)}
    for p in sorted(files.below(folder))
  }
  meta["meta_sha256"] = _meta_hash(meta)
  files.write_text(folder / META, json.dumps(meta, indent=1, allow_nan=False) + "\n")


def read_meta(folder: epath.Path) -> dict[str, Any]:
  """Reads and checks a manifest.

  Raises:
    LtddError: it is damaged.
  """
  path = folder / META
  try:
    meta = json.loads(path.read_text())
    intact = meta["meta_sha256"] == _meta_hash(meta)
  except (OSError, ValueError, KeyError, TypeError) as error:
    if files.of_store(error):
      raise  # a bucket that does not answer is not damage
    intact, meta = False, {}
  if not intact:
    raise LtddError(_damaged(path, "it was truncated or altered", folder))
  return meta


def open_artefact(folder: files.Pathlike) -> Artefact:
  """Opens an artefact after checking every file.

  Raises:
    LtddError: a file is missing, truncated or altered.
  """
  place = files.path(folder)
  meta = read_meta(place)
  for name, about in meta["files"].items():
    path = place / name
    if not path.exists():
      raise LtddError(_damaged(path, "it is missing", place))
    if (size := files.num_bytes(path)) != about["bytes"]:
      raise LtddError(_damaged(path, f"it has {size} bytes, expected {about['bytes']}", place))
    if files.sha256(path) != about["sha256"]:
      raise LtddError(_damaged(path, "its content was altered (SHA-256 differs)", place))
  arrays = {name: _array(place / f"{name}.npy", about) for name, about in meta["arrays"].items()}
  return Artefact(meta, arrays, place)


def _array(path: epath.Path, about: Mapping[str, Any]) -> np.ndarray:
  if files.is_local(path) and files.num_bytes(path) > _MMAP_BYTES:
    array = np.load(path, mmap_mode="r", allow_pickle=False)
  else:
    with path.open("rb") as file:
      array = np.load(file, allow_pickle=False)
    array.flags.writeable = False  # as those that are mapped
  return array.view(np.dtype(about["dtype"]))


def check_name(kind: str, name: str) -> None:
  """Raises LtddError unless a name can be a file's name everywhere."""
  if not _PART.fullmatch(name):
    raise LtddError(
      f"{kind} name {name!r}: expected letters, digits and any of _ + = @ . - (not . first)"
    )


def _damaged(path: epath.Path, what: str, folder: epath.Path) -> str:
  return (
    f"{path} is damaged: {what}. Delete {folder} and give the same command again to make it anew."
  )


def _meta_hash(meta: Mapping[str, Any]) -> str:
  text = canonical_json({k: v for k, v in meta.items() if k != "meta_sha256"})
  return hashlib.sha256(text.encode()).hexdigest()
