"""Distilled sets for other programs; `interop.distilled_sets` reads all of them again.

    write(found, "torch", "out/edc")      # found: a `record.DistilledSet`

`python -m launch.export` is the same as a command. A format is an entry of `FORMATS`.
"""

import os
import pathlib
from collections.abc import Callable
from typing import Any

from etils import epath

from ltdd_jax.core import files
from ltdd_jax.core.registry import check_choice
from ltdd_jax.core.types import LtddError
from ltdd_jax.interop import read as read_lib
from ltdd_jax.interop import write as write_lib
from ltdd_jax.interop.exports import fkd, folders, huggingface, npz, record, torch_files

FORMATS: dict[str, Callable[[record.DistilledSet, Any], None]] = {
  "folder": folders.write,
  "npz": npz.write,
  "huggingface": huggingface.write,
  "torch": torch_files.write,
  "ddranking": torch_files.write_ddranking,
  "fkd": fkd.write,
}
_BLOCK = 4096  # bytes that a small file takes on disk


def write(
  found: record.DistilledSet, to: str, out: files.Pathlike, *, overwrite: bool = False
) -> pathlib.Path:
  """Writes a distilled set, whole or not at all, and returns its path.

  Args:
    found: what to write.
    to: a key of `FORMATS`.
    out: a name that ends in .npz, or for the other formats the name of a folder.
    overwrite: whether an export that is there may be replaced; other folders never are.

  Raises:
    LtddError: an unknown format, a set that it cannot hold, a package that is not installed, a
      target that is there or cannot be written, or a full disk.
  """
  check_choice("--to", to, FORMATS)
  need = _bytes(found, to)
  if to == "npz":
    path = write_lib.check_target(
      out, overwrite=overwrite, need=need, what="--out", formats=(".npz",)
    )
    FORMATS[to](found, path)
    return path
  path = _check_folder(out, overwrite)
  what, root = f"export {path}", epath.Path(path.parent)
  files.check_space(what, root, need)
  new, old = (root / f"{files.TEMPORARY}{kind}-{os.urandom(6).hex()}" for kind in ("new", "old"))
  with files.explained(what, folder=root, need=need), files.appearing(new, root) as unfinished:
    unfinished.mkdir()
    FORMATS[to](found, unfinished)
  with files.explained(what, folder=root):
    if path.exists():
      os.rename(path, old)
    os.rename(new, path)
    files.remove(old)
    files.sync_folder(root)
  return path


def _check_folder(out: files.Pathlike, overwrite: bool) -> pathlib.Path:
  """The path of a folder to write; refuses one that is there, unless it may be replaced."""
  here = f"--out is {os.fspath(out)}"
  path = pathlib.Path(read_lib.local(epath.Path(out).expanduser(), here)).absolute()
  if not path.parent.is_dir():
    raise LtddError(f"{here}, but there is no folder {path.parent}. Make it first.")
  if not os.access(path.parent, os.W_OK):
    raise LtddError(f"{here}, in a folder that may not be written; expected another one.")
  if not os.path.lexists(path):
    return path
  if path.is_symlink() or not (path / record.ABOUT).is_file():
    raise LtddError(f"{here}, which is there and no export; expected a name that is free.")
  if not overwrite:
    raise LtddError(f"{here}, which is there already. Use another name, or --overwrite.")
  return path


def _bytes(found: record.DistilledSet, to: str) -> int:
  """An estimate, from above, of what an export takes on disk."""
  n, k = len(found.images), len(found.class_names)
  floats = to in ("torch", "ddranking")
  total = found.images.size * 4 if floats else found.images.nbytes
  if to == "ddranking" and found.images.dtype != "uint8":
    total += found.images.nbytes  # pixels.npy
  total += sum(x.nbytes for x in record.beside(found).values())
  if to == "folder":
    total += (n + k) * _BLOCK
  if found.views is not None and to == "fkd":
    total += found.views.num_epochs * n * (4 * k + 48)
  return total + 64 * n
