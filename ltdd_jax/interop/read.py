"""Arrays of files: "z.npy", "store.npz:logits", "z.safetensors:name", "gs://bucket/n.csv".

    rows_of(parse("z.npy", "logits"))        # a row source: logits (n, k), read a few at a time
    array_of(parse("n.csv", "counts"))       # a small array, whole

A row source has `shape` (..., n, k), `dtype` and `rows(start, stop)`, which gives native NumPy
logits (stop - start, k); rows are numbered over the leading axes in C order. Nothing is unpickled.
"""

import contextlib
import os
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import safetensors
from etils import epath

from ltdd_jax.core import config, files
from ltdd_jax.core.types import LtddError
from ltdd_jax.interop import number_lists

ARRAYS = (".npy", ".npz", ".safetensors")
TEXTS = (".txt", ".csv", ".json")
_SPLIT = re.compile(
  r"(.*?(?:{}))(?::(.*))?".format("|".join(map(re.escape, (*ARRAYS, *TEXTS)))), re.IGNORECASE
)


class Name(NamedTuple):
  """A file, and which array in it."""

  text: str  # as it was given, for messages
  path: epath.Path
  key: str | None  # what follows the colon
  wanted: str  # "logits", "labels", "counts" or "target_prior"

  @property
  def suffix(self) -> str:
    return self.path.suffix.lower()


# ---- names ----


def parse(text: str | os.PathLike[str], wanted: str, where: str = "") -> Name:
  """Splits "file:key" and checks that the file is there and of a known kind.

  Args:
    text: the file, and after a colon the array in it.
    wanted: what it holds.
    where: messages begin with this.

  Raises:
    LtddError: a file that is not there or cannot be read, or a format that is not read.
  """
  text = os.fspath(text)
  match = _SPLIT.fullmatch(text)
  path, key = (match[1], match[2]) if match else (text, None)
  name = Name(where + text, files.path(path), key or None, wanted)
  _check_readable(name)
  _check_suffix(name)
  if name.key is not None and name.suffix not in (".npz", ".safetensors"):
    raise LtddError(f"{name.text}: a {name.suffix} file holds one array; leave out ':{key}'.")
  return name


def _check_readable(name: Name) -> None:
  path, folder = name.path, name.path.parent
  try:
    if path.is_dir():
      raise LtddError(f"{name.text} is a folder; expected a file with the {name.wanted}.")
    with path.open("rb"):
      pass
  except FileNotFoundError as error:
    there = folder.is_dir()
    near = config.suggest(path.name, [p.name for p in folder.iterdir()]) if there else ""
    place = f"in the folder {str(folder)!r}" if there else f"and no folder {folder}"
    raise LtddError(
      f"{name.text}: there is no file {path.name} {place}. {near}".rstrip()
    ) from error
  except OSError as error:
    reason = error.strerror or number_lists.brief(error)
    raise LtddError(f"{name.text}: cannot be read: {reason}.") from error


def _check_suffix(name: Name) -> None:
  known = ARRAYS if name.wanted == "logits" else (*ARRAYS, *TEXTS)
  if name.suffix in known:
    return
  raise LtddError(
    f"{name.text}: {name.suffix or 'a file without extension'} is not read; expected one of "
    f"{' '.join(known)} for the {name.wanted} (pickles run code and are refused). Save an array: "
    'np.save("z.npy", tensor.detach().cpu().float().numpy())'
  )


def local(path: epath.Path, text: str) -> str:
  """The path of a file on this machine; raises LtddError for one elsewhere."""
  where = os.fspath(path)
  if "://" in where:
    raise LtddError(
      f"{text}: expected a file on this machine, since it is memory-mapped or written in place. "
      "Copy it, or for logits in a bucket use .npz."
    )
  return where


def _choose(name: Name, present: Sequence[str]) -> str:
  """Which of the arrays in a file is meant; raises LtddError that lists what is there."""
  wanted = name.key or name.wanted
  if wanted in present:
    return wanted
  if name.key is None and len(present) == 1:
    return present[0]
  hint = config.suggest(wanted, present)
  listed = ", ".join(present[:20]) + (", ..." if len(present) > 20 else "")
  raise LtddError(
    f"{name.text}: {name.path.name} has no array {wanted!r}. {hint}{' ' if hint else ''}"
    f"It holds: {listed or 'nothing'}. Say which: {name.path}:NAME"
  )


# ---- files ----


def array_of(name: Name) -> np.ndarray:
  """The whole array of a file, in the byte order of this machine."""
  with _explained(name):
    if name.suffix in TEXTS:
      return number_lists.parse(name.path.read_bytes(), is_json=name.suffix == ".json")
    if name.suffix == ".safetensors":
      with safetensors.safe_open(local(name.path, name.text), "numpy") as file:
        return file.get_tensor(_choose(name, list(file.keys())))
    with name.path.open("rb") as file:
      found = _load(name, file)
    return found.astype(found.dtype.newbyteorder("="), copy=False)


def rows_of(name: Name) -> Any:
  """A row source of an array; an .npy file is a memory map, an .npz file is read whole."""
  if name.suffix == ".npz":
    return ArraySource(array_of(name))
  path = local(name.path, name.text)
  with _explained(name):
    if name.suffix == ".npy":
      return ArraySource(_load(name, path, mmap_mode="r"))
    file = safetensors.safe_open(path, "numpy")
    return SliceSource(file.get_slice(_choose(name, list(file.keys()))))


def _load(name: Name, file: Any, **options: Any) -> np.ndarray:
  stored = np.load(file, allow_pickle=False, **options)
  if isinstance(stored, np.lib.npyio.NpzFile):
    with stored:
      stored = stored[_choose(name, stored.files)]
  if not isinstance(stored, np.ndarray):
    raise ValueError("the member is no array")
  # np.save writes bfloat16 as two bytes without a meaning ("V2"); nothing else does.
  return stored.view(jnp.bfloat16) if stored.dtype == np.dtype("V2") else stored


@contextlib.contextmanager
def _explained(name: Name) -> Iterator[None]:
  """Turns what damaged files and pickles raise, which is anything, into one line."""
  try:
    yield
  except LtddError:
    raise
  except Exception as error:
    raise LtddError(f"{name.text}{_cause(name.suffix, error)}") from error


def _cause(suffix: str, error: Exception) -> str:
  said = number_lists.brief(error)
  if isinstance(error, AttributeError):  # of safetensors, for float8 and the like
    return f" has a type that NumPy lacks ({said}): convert the tensor to float32."
  if suffix in TEXTS:
    return f": no list of numbers: {said}."
  if isinstance(error, MemoryError) and suffix == ".npz":
    return (
      f" does not fit into memory, or is damaged: {said}. Save large logits as .npy or "
      ".safetensors, of which a few rows are read at a time."
    )
  if re.search("pickled|object arrays|python objects", str(error), re.IGNORECASE):
    return (
      " holds no array of numbers, but Python objects (a pickle), which run code when they are "
      "read, and is refused. Save numbers: np.save(file, array.astype(np.float32))"
    )
  return f" is truncated, damaged or no {suffix} file: {said}. Copy it or write it again."


# ---- row sources ----


class ArraySource:
  """An array in memory, or a memory map: slices of it, in the byte order of this machine."""

  def __init__(self, array: np.ndarray):
    array = np.asarray(array)  # a plain view: slicing a np.memmap costs more
    self.shape, self.dtype = array.shape, array.dtype.newbyteorder("=")
    self._array, self._flat = array, None
    with contextlib.suppress(ValueError, IndexError):  # Fortran order, or no array of rows at all
      self._flat = np.reshape(array, (-1, array.shape[-1]), copy=False)

  def rows(self, start: int, stop: int) -> np.ndarray:
    if self._flat is not None:
      part = self._flat[start:stop]
    else:
      part = self._array[np.unravel_index(np.arange(start, stop), self.shape[:-1])]
    return part.astype(self.dtype, copy=False)


class SliceSource:
  """A tensor of a safetensors file, of which only the rows that are asked for are read."""

  def __init__(self, tensor: Any):
    self.shape, self.dtype = tuple(tensor.get_shape()), tensor[:0].dtype
    self._tensor = tensor

  def rows(self, start: int, stop: int) -> np.ndarray:
    n, parts = self.shape[-2], []
    while start < stop:
      lead, first = divmod(start, n)
      last = min(n, first + stop - start)
      index = map(int, np.unravel_index(lead, self.shape[:-2]))
      parts.append(self._tensor[(*index, slice(first, last))])
      start += last - first
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def from_array(value: Any) -> np.ndarray:
  """A NumPy array from what notebooks hold: NumPy and JAX arrays, lists, torch tensors."""
  if type(value).__module__.partition(".")[0] == "torch":  # without importing it
    value = value.detach().cpu()
    value = value.float() if str(value.dtype) == "torch.bfloat16" else value
    return value.numpy()
  return np.asanyarray(value)
