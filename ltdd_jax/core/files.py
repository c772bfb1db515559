"""Files that are whole or not there at all, and disks that fill up with a clear message.

write_text(path, text)                       # the old file or the new one, never half of one
with explained("stage teacher", need=size):  # OSError becomes an LtddError that says what to do
  ...
move_into_place(temporary, folder)           # a finished folder appears in one step
"""

import contextlib
import errno
import hashlib
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator
from typing import IO

from ltdd_jax.core.types import LtddError

TEMPORARY = ".ltdd-tmp-"  # how names of unfinished files and folders begin


def write_text(path: str | os.PathLike[str], text: str) -> None:
  """Writes a text file atomically, making its folder if need be.

  Raises:
    LtddError: the disk is full or the folder cannot be written.
  """
  path = pathlib.Path(path)
  with explained(f"file {path}", folder=path.parent, need=len(text)):
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
      file.write(text.encode("utf-8"))
    sync_folder(path.parent)


@contextlib.contextmanager
def replacing(path: pathlib.Path) -> Iterator[IO[bytes]]:
  """A temporary file in the same folder, which gets the name at the end, or is removed."""
  handle, name = tempfile.mkstemp(dir=path.parent, prefix=TEMPORARY)
  try:
    with os.fdopen(handle, "w+b") as file:
      yield file
      file.flush()
      os.fsync(file.fileno())
    os.chmod(name, 0o644)
    os.replace(name, path)
  except BaseException:
    pathlib.Path(name).unlink(missing_ok=True)
    raise


def sync_folder(folder: pathlib.Path) -> None:
  """Makes the names in a folder survive a power cut."""
  handle = os.open(folder, os.O_RDONLY)
  try:
    os.fsync(handle)
  finally:
    os.close(handle)


def sync_tree(folder: pathlib.Path) -> None:
  """Makes all files and folders below `folder` survive a power cut."""
  for path in [folder, *folder.rglob("*")]:
    sync_folder(path)  # opens files and folders alike


def move_into_place(temporary: pathlib.Path, folder: pathlib.Path) -> None:
  """Renames a finished folder, and makes the rename durable; OSError if `folder` has content."""
  sync_tree(temporary)
  folder.parent.mkdir(parents=True, exist_ok=True)
  os.rename(temporary, folder)
  sync_folder(folder.parent)


def sha256(path: pathlib.Path) -> str:
  """The SHA-256 of a file, in hexadecimal."""
  with open(path, "rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()


def link_tree(source: pathlib.Path, target: pathlib.Path) -> None:
  """Copies a folder by hard links, or file by file where the file system has none."""

  def link(src: str, dst: str) -> None:
    try:
      os.link(src, dst)
    except OSError as error:
      if error.errno not in (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP, errno.EACCES):
        raise
      shutil.copyfile(src, dst)

  shutil.copytree(source, target, copy_function=link, dirs_exist_ok=True)


def existing_parent(path: pathlib.Path) -> pathlib.Path:
  """The nearest folder at or above `path` that exists."""
  path = path.absolute()
  return next(p for p in (path, *path.parents) if p.exists())


def check_space(what: str, folder: pathlib.Path, need: int) -> None:
  """Raises LtddError if `need` bytes do not fit, before anything is written."""
  free = shutil.disk_usage(existing_parent(folder)).free
  if free < need:
    raise LtddError(_full(what, folder, need))


@contextlib.contextmanager
def explained(what: str, *, folder: pathlib.Path, need: int | None = None) -> Iterator[None]:
  """Turns an OSError of the block into an LtddError.

  Args:
    what: the thing that is written, for the message: "stage teacher".
    folder: where it is written.
    need: bytes that it needs, if known.
  """
  try:
    yield
  except OSError as error:
    short = need is not None and shutil.disk_usage(existing_parent(folder)).free < need
    if short or error.errno in (errno.ENOSPC, errno.EDQUOT):  # NumPy's error has no number
      raise LtddError(_full(what, folder, need)) from error
    raise LtddError(
      f"{what}: could not be written in {folder}: {error}. Artefacts that were finished before "
      "stay valid; give the same command again once this is mended."
    ) from error


def _full(what: str, folder: pathlib.Path, need: int | None) -> str:
  free = shutil.disk_usage(existing_parent(folder)).free
  needed = "" if need is None else f" needs {size(need)} and"
  return (
    f"{what}{needed} cannot be written: the disk of {folder} has {size(free)} free. Artefacts "
    "that were finished before stay valid; make room and give the same command again."
  )


def size(count: float) -> str:
  """A number of bytes for people: "6.4 kB"."""
  for unit in ("bytes", "kB", "MB"):
    if count < 1000:
      return f"{count:.4g} {unit}"
    count /= 1000
  return f"{count:.4g} GB"
