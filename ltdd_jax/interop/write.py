"""Arrays written block by block into .npy and .npz files that are whole or not there at all."""

import math
import os
import pathlib
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import IO

import numpy as np
from etils import epath

from ltdd_jax.core import files
from ltdd_jax.core.types import LtddError
from ltdd_jax.interop import read

FORMATS = (".npz", ".npy")
_SLACK = 1 << 20  # bytes for what goes beside the array


def check_target(
  path: str | os.PathLike[str],
  *,
  overwrite: bool,
  need: int,
  inputs: Iterable[epath.Path] = (),
  what: str = "out",
  formats: Sequence[str] = FORMATS,
) -> pathlib.Path:
  """Says before any work what would keep a file from being written; returns its path.

  Args:
    path: of the file, on this machine.
    overwrite: whether one that is there may be replaced.
    need: its bytes.
    inputs: files that it must not replace.
    what: it is called in messages.
    formats: extensions that it may have.

  Raises:
    LtddError: another extension, no such folder or one that may not be written, a file that is
      there, a full disk.
  """
  here = f"{what} is {os.fspath(path)}"
  path = pathlib.Path(read.local(epath.Path(path).expanduser(), here))
  if path.suffix not in formats:
    raise LtddError(f"{here}; expected a name that ends in {' or '.join(formats)}.")
  if not path.parent.is_dir():
    raise LtddError(f"{here}, but there is no folder {path.parent}. Make it first.")
  if not os.access(path.parent, os.W_OK):
    raise LtddError(f"{here}, in a folder that may not be written; expected another one.")
  if any(path.resolve() == other.resolve() for other in inputs):
    raise LtddError(f"{here}, which is one of the inputs; expected another name.")
  if path.is_dir():
    raise LtddError(f"{here}, which is a folder; expected the name of a file.")
  if path.exists() and not overwrite:
    raise LtddError(f"{here}, which is there already. Use another name, or overwrite.")
  files.check_space(f"file {path}", path.parent, need + _SLACK)
  return path


def write(
  path: pathlib.Path,
  shape: tuple[int, ...],
  dtype: np.dtype,
  blocks: Iterable[np.ndarray],
  beside: Callable[[], Mapping[str, np.ndarray]],
) -> None:
  """Writes an array in C order; a file of that name is replaced when the new one is whole.

  Args:
    path: .npz, where the array is called "labels", or .npy.
    shape: of the array.
    dtype: of the array.
    blocks: consecutive parts of it.
    beside: called after the last block: the other arrays of an .npz file.

  Raises:
    LtddError: the disk is full or the folder cannot be written.
  """
  need = math.prod(shape) * dtype.itemsize
  with files.explained(f"file {path}", folder=path.parent, need=need):
    with files.replacing(path) as file:
      if path.suffix == ".npy":
        _write_array(file, shape, dtype, blocks)
      else:  # like np.savez, without the array in memory; without dates, so equal files are equal
        with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
          with archive.open(zipfile.ZipInfo("labels.npy"), "w", force_zip64=True) as member:
            _write_array(member, shape, dtype, blocks)
          for name, array in beside().items():
            with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as member:
              np.lib.format.write_array(member, np.asarray(array), allow_pickle=False)
    files.sync_folder(path.parent)


def _write_array(
  file: IO[bytes], shape: tuple[int, ...], dtype: np.dtype, blocks: Iterable[np.ndarray]
) -> None:
  header = {"descr": dtype.str, "fortran_order": False, "shape": shape}
  np.lib.format.write_array_header_1_0(file, header)
  for block in blocks:
    file.write(np.ascontiguousarray(block, dtype).data)
