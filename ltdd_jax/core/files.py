"""Paths, files that are whole or not there at all, and full disks with a clear message.

path("~/runs/a"), path("gs://bucket/a")      # what every path of a user goes through
write_text(path, text)                       # the old file or the new one, never half of one
with explained("stage teacher", need=size):  # OSError becomes an LtddError that says what to do
  ...
with appearing(folder, root) as unfinished:  # a finished folder appears in one step
  ...

An object store (`gs://`) writes single files as a whole and has no locks, links, free space or
renaming of folders: there the last file of a folder says that it is finished.
"""

import contextlib
import errno
import hashlib
import importlib.util
import io
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from typing import IO, Any

import numpy as np
from etils import epath

from ltdd_jax.core.types import LtddError

TEMPORARY = ".ltdd-tmp-"  # how names of unfinished files and folders begin
_NO_LINKS = (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP, errno.EACCES)
_PACKAGES = {"gs": "gcsfs", "s3": "s3fs"}  # by which epath reads and writes there
_BLOCK = 1 << 20
_MANY_FILES = 1000
_STORES = ("aiohttp", "botocore", "gcsfs", "google", "requests")  # packages that raise for them
TENSORSTORE = (OSError, ValueError, RuntimeError, MemoryError)  # what it raises on a full disk

Pathlike = str | os.PathLike[str]


def path(name: Pathlike) -> epath.Path:
  """The path that a user means: `~` is expanded, `gs://...` stays.

  Raises:
    LtddError: it is empty, or an object store that is not known or whose package is not installed.
  """
  text = os.path.expanduser(os.fspath(name))
  if not text:
    raise LtddError("a path is empty; expected the name of a file or folder, or . for this folder")
  scheme, colon, _ = text.partition("://")
  if colon and scheme not in _PACKAGES:
    known = " or ".join(f"{scheme}://" for scheme in _PACKAGES)
    raise LtddError(f"path {text}: expected a local path, or one that begins with {known}")
  if colon and importlib.util.find_spec(package := _PACKAGES[scheme]) is None:
    raise LtddError(f"path {text} needs the package {package}; install it: pip install {package}")
  if colon:
    import fsspec  # of gcsfs and s3fs

    # A listing that is kept would lack what tensorstore and other processes write.
    fsspec.config.conf.setdefault(scheme, {})["use_listings_cache"] = False
  return epath.Path(text)


def is_local(name: Pathlike) -> bool:
  """Whether a path is in a file system and not in an object store."""
  return "://" not in os.fspath(name)


def absolute(name: Pathlike) -> epath.Path:
  """The path from the root, as Orbax and tensorstore demand."""
  return epath.Path(os.path.abspath(name)) if is_local(name) else epath.Path(name)


# ---- files ----


def write_text(name: Pathlike, text: str, what: str = "file") -> None:
  """Writes a text file; see `write_bytes`."""
  write_bytes(name, text.encode("utf-8"), what)


def write_bytes(name: Pathlike, content: bytes, what: str = "file") -> None:
  """Writes a file atomically, making its folder if need be.

  Raises:
    LtddError: the disk is full or the folder cannot be written.
  """
  file_path = path(name)
  with explained(f"{what} {file_path}", folder=file_path.parent, need=len(content)):
    file_path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(file_path) as file:
      file.write(content)
    if is_local(file_path):
      sync_folder(file_path.parent)


def write_npz(name: Pathlike, **arrays: Any) -> None:
  """Writes a compressed .npz file of small arrays; see `write_bytes`."""
  content = io.BytesIO()
  np.savez_compressed(content, allow_pickle=False, **arrays)
  write_bytes(name, content.getvalue())


@contextlib.contextmanager
def replacing(file_path: os.PathLike[str]) -> Iterator[IO[bytes]]:
  """A temporary file in the same folder, which gets the name at the end, or is removed."""
  if not is_local(file_path):
    buffer = io.BytesIO()
    yield buffer
    epath.Path(file_path).write_bytes(buffer.getvalue())
    return
  handle, name = tempfile.mkstemp(dir=epath.Path(file_path).parent, prefix=TEMPORARY)
  try:
    with os.fdopen(handle, "w+b") as file:
      yield file
      file.flush()
      os.fsync(file.fileno())
    os.chmod(name, 0o644)
    os.replace(name, file_path)
  except BaseException:
    epath.Path(name).unlink(missing_ok=True)
    raise


def below(folder: epath.Path) -> Iterator[epath.Path]:
  """All files in a folder and its folders; in an object store an empty folder is not there."""
  for found in folder.iterdir() if is_local(folder) or folder.exists() else ():
    yield from below(found) if found.is_dir() else (found,)


def num_bytes(file_path: epath.Path) -> int:
  """The size of a file; epath's own `stat` fails for users without a name, as in containers."""
  return os.stat(file_path).st_size if is_local(file_path) else file_path.stat().length


def sha256(file_path: epath.Path) -> str:
  """The SHA-256 of a file, in hexadecimal."""
  total = hashlib.sha256()
  with file_path.open("rb") as file:
    while block := file.read(_BLOCK):
      total.update(block)
  return total.hexdigest()


# ---- folders ----


@contextlib.contextmanager
def appearing(folder: epath.Path, root: epath.Path) -> Iterator[epath.Path]:
  """A folder to fill, which gets its name at the end; OSError if `folder` has content.

  In an object store it is filled in place: write the file last that says that all are there.

  Args:
    folder: to appear.
    root: folder above it, for the temporary one.
  """
  local = is_local(folder)
  unfinished = root / f"{TEMPORARY}{os.getpid()}-{os.urandom(6).hex()}" if local else folder
  try:
    if not local:
      folder.rmtree(missing_ok=True)  # what a killed run left
    yield unfinished
    if local:
      _sync_tree(unfinished)
      folder.parent.mkdir(parents=True, exist_ok=True)
      os.rename(unfinished, folder)
      sync_folder(folder.parent)
  except BaseException:
    remove(unfinished)
    raise


def sync_folder(folder: os.PathLike[str]) -> None:
  """Makes the names in a folder survive a power cut."""
  handle = os.open(folder, os.O_RDONLY)
  try:
    os.fsync(handle)
  finally:
    os.close(handle)


def _sync_tree(folder: epath.Path) -> None:
  """Makes what is in a folder survive a power cut."""
  found = [os.path.join(root, name) for root, _, names in os.walk(folder) for name in (".", *names)]
  if len(found) > _MANY_FILES:  # one by one they take milliseconds each
    os.sync()
    return
  for name in found:
    sync_folder(name)  # opens files and folders alike


def remove(name: epath.Path) -> None:
  """Removes a file or a folder, if it is there, as far as that is possible."""
  if is_local(name) and not name.is_dir():
    name.unlink(missing_ok=True)
  elif is_local(name):
    shutil.rmtree(name, ignore_errors=True)
  else:
    with contextlib.suppress(Exception):  # a bucket that is read-only, or does not answer
      name.rmtree(missing_ok=True)


def link_tree(source: Pathlike, target: epath.Path, last: str = "") -> None:
  """Copies a folder by hard links, or file by file where there are none; file `last` comes last."""
  source = path(source)
  for file in sorted(below(source), key=lambda p: p.name == last):
    to = target / file.relative_to(source)
    to.parent.mkdir(parents=True, exist_ok=True)
    try:
      if not (is_local(file) and is_local(to)):
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
      os.link(file, to)
    except OSError as error:
      if error.errno not in _NO_LINKS:
        raise
      file.copy(to)


# ---- full disks ----


def _free(folder: os.PathLike[str]) -> float:
  """Free bytes at the nearest folder that exists; infinite in an object store."""
  if not is_local(folder):
    return float("inf")
  full = absolute(folder)
  return shutil.disk_usage(next(p for p in (full, *full.parents) if p.exists())).free


def check_space(what: str, folder: os.PathLike[str], need: int) -> None:
  """Raises LtddError if `need` bytes do not fit, before anything is written."""
  if _free(folder) < need:
    raise LtddError(_full(what, folder, need))


@contextlib.contextmanager
def explained(
  what: str,
  *,
  folder: os.PathLike[str],
  need: int | None = None,
  errors: tuple[type[Exception], ...] = (OSError,),
) -> Iterator[None]:
  """Turns an OSError of the block, or what an object store raises, into an LtddError.

  Args:
    what: the thing that is written, for the message: "stage teacher".
    folder: where it is written.
    need: bytes that it needs, if known.
    errors: what to turn into one; `TENSORSTORE` where tensorstore or Orbax write.
  """
  try:
    yield
  except LtddError:
    raise
  except Exception as error:
    if not (isinstance(error, errors) or (of_store(error) and not is_local(folder))):
      raise
    full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
    full = full or "ENOSPC" in str(error) or "No space left" in str(error)
    if full or (need is not None and _free(folder) < need):  # NumPy's error has no number
      raise LtddError(_full(what, folder, need)) from error
    done, expected = "written", "a folder that can be written in"
    if not is_local(folder):
      done, expected = "read or written", "a bucket that answers and lets you read and write"
    raise LtddError(
      f"{what}: could not be {done} in {folder}: {reason(error)}. Expected {expected}; mend that "
      "or name another one. What was finished before stays valid."
    ) from error


def of_store(error: BaseException | None) -> bool:
  """Whether an error is of an object store: those of gcsfs have no number, or a type of its own."""
  numbered = not isinstance(error, OSError) or error.errno is not None
  return not numbered or type(error).__module__.split(".")[0] in _STORES


def reason(error: BaseException | None) -> str:
  """What an error says, in one line; without the requests that tensorstore appends."""
  if isinstance(error, FileNotFoundError) and error.errno is None:
    return f"not found: {error}"
  text = (not of_store(error) and getattr(error, "strerror", None)) or str(error)
  return re.split(r" \[[\w ]+=", text.strip(".\n").replace("\n", ": "))[0][:400]


def _full(what: str, folder: os.PathLike[str], need: int | None) -> str:
  needed = "" if need is None else f" needs {size(need)} and"
  return (
    f"{what}{needed} cannot be written: the disk of {folder} has {size(_free(folder))} free. "
    "Artefacts that were finished before stay valid; make room and give the same command again."
  )


def size(count: float) -> str:
  """A number of bytes for people: "6.4 kB"."""
  for unit in ("bytes", "kB", "MB"):
    if count < 1000:
      return f"{count:.4g} {unit}"
    count /= 1000
  return f"{count:.4g} GB"
