"""Arrays in .npy, .npz, .safetensors and raw files: where they lie, then a memory map of them.

Nothing is unpickled: arrays of objects are refused by their headers.
"""

import contextlib
import json
import lzma
import math
import mmap
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from ltdd_jax.core.types import LtddError
from ltdd_jax.interop import names, rows
from ltdd_jax.interop.names import Name

_HEADERS = {
  (1, 0): np.lib.format.read_array_header_1_0,
  (2, 0): np.lib.format.read_array_header_2_0,
}
_SAFETENSORS = {
  "F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "bfloat16",
  "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1", "U64": "<u8", "U32": "<u4", "U16": "<u2",
  "U8": "u1", "BOOL": "?",
}  # fmt: skip
_MAX_HEADER = 100_000_000  # bytes of a safetensors header, as in the library of that name
_MAX_SIZE = 2**48  # numbers in an array; NumPy fails beyond 2**63 bytes, even if another size is 0
_DAMAGE = (  # what NumPy, zipfile, json and the decompressors raise at bytes that make no sense
  ValueError, OSError, EOFError, NotImplementedError, RecursionError, SyntaxError, OverflowError,
  struct.error, tokenize.TokenError, zipfile.BadZipFile, zlib.error, lzma.LZMAError,
)  # fmt: skip


class Located(NamedTuple):
  """An array in a file."""

  name: Name
  shape: tuple[int, ...]
  dtype: np.dtype
  fortran: bool
  offset: int  # of its first byte, in the file or in the uncompressed member
  member: str | None = None  # of a zip archive, if it is compressed

  @property
  def nbytes(self) -> int:
    return math.prod(self.shape) * self.dtype.itemsize


def locate(name: Name) -> Located:
  """Reads the headers of a file; raises LtddError for one that is damaged or holds objects."""
  if name.suffix in names.RAW:
    return _in_raw(name)
  return {".npy": _in_npy, ".npz": _in_npz, ".safetensors": _in_safetensors}[name.suffix](name)


def mapped(at: Located) -> np.ndarray:
  """A read-only memory map of an array that is not compressed.

  Raises:
    LtddError: the file is shorter than its header says.
  """
  size = at.name.path.stat().st_size
  if at.offset + at.nbytes > size:
    raise LtddError(
      f"{at.name.text} is truncated: {at.dtype} of shape {at.shape} needs {at.offset + at.nbytes:,}"
      f" bytes, the file has {size:,}. Copy or write it again."
    )
  order = "F" if at.fortran else "C"
  if at.nbytes == 0:
    return np.empty(at.shape, at.dtype)
  with open(at.name.path, "rb") as file:
    pages = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
  if hasattr(mmap, "MADV_SEQUENTIAL"):
    pages.madvise(mmap.MADV_SEQUENTIAL)  # the system reads further ahead
  flat = np.frombuffer(pages, at.dtype, math.prod(at.shape), at.offset)
  return flat.reshape(at.shape, order=order)


def read(at: Located) -> np.ndarray:
  """The whole array, for small ones."""
  if at.member is None:
    return mapped(at)
  flat = list(_decompressed(at, 0, math.prod(at.shape)))
  flat = np.concatenate(flat) if flat else np.empty(0, at.dtype)
  return flat.reshape(at.shape, order="F" if at.fortran else "C")


def source(at: Located) -> Any:
  """A row source of an array."""
  if at.member is None:
    return rows.ArraySource(mapped(at))
  if at.fortran and len(at.shape) > 1:
    raise LtddError(
      f"{at.name.text} is compressed and in Fortran order, so that rows cannot be read one after "
      "another. Save np.ascontiguousarray(logits), or use np.savez, which does not compress."
    )
  k = at.shape[-1] if at.shape else 1
  count = rows.block_rows(k) * k

  def begin(row: int) -> tuple[int, Iterator[np.ndarray]]:
    return row, (b.reshape(-1, k) for b in _decompressed(at, row * k, count))

  return rows.StreamSource(at.shape, at.dtype, begin)


@contextlib.contextmanager
def _damage(name: Name, kind: str, *more: type[Exception]) -> Iterator[None]:
  """Turns what damaged bytes raise into one line that names the file."""
  try:
    yield
  except LtddError:
    raise
  except _DAMAGE + more as error:
    raise LtddError(
      f"{name.text} is truncated, damaged or no {kind}: {names.brief(error)}. Copy it or write it "
      "again."
    ) from error


def _are_sizes(shape: Sequence[Any]) -> bool:
  """Whether a header's shape can be one of an array: booleans and floats are no sizes."""
  whole = len(shape) <= 64 and all(type(x) is int and x >= 0 for x in shape)
  return whole and math.prod(x or 1 for x in shape) <= _MAX_SIZE


# ---- .npy ----


def _in_npy(name: Name) -> Located:
  if name.key is not None:
    raise LtddError(f"{name.text}: an .npy file holds one array; leave out ':{name.key}'.")
  with open(name.path, "rb") as file:
    shape, fortran, dtype = _npy_header(name, file)
    return Located(name, shape, dtype, fortran, file.tell())


def _npy_header(name: Name, file: Any) -> tuple[tuple[int, ...], bool, np.dtype]:
  """Reads a header, and refuses what is none, and objects."""
  if file.read(1) == b"\x80":
    raise LtddError(
      f"{name.text} is a pickle, which runs code when it is read, and is refused. Save the array "
      "with np.save."
    )
  file.seek(0)
  with _damage(name, ".npy array", MemoryError):  # from Python's parser, at deep expressions
    version = np.lib.format.read_magic(file)
    if version not in _HEADERS:
      raise ValueError(f"version {version} of the format, which holds records")
    shape, fortran, dtype = _HEADERS[version](file)
    if not _are_sizes(shape) or dtype.subdtype:
      raise ValueError(f"its header says {dtype} of shape {shape}")
  if dtype.hasobject:
    raise LtddError(
      f"{name.text} is an array of Python objects, which only unpickling could read, and is "
      "refused. Save numbers: np.save(file, np.stack(list(array)).astype(np.float32))"
    )
  return shape, fortran, _named_dtype(dtype)


def _named_dtype(dtype: np.dtype) -> np.dtype:
  """np.save writes bfloat16 as two bytes without a meaning ("V2"); nothing else does."""
  return jnp.dtype("bfloat16") if dtype == np.dtype("V2") else dtype


# ---- .npz ----


def _in_npz(name: Name) -> Located:
  with _damage(name, ".npz archive"):
    with zipfile.ZipFile(name.path) as archive:
      present = [n.removesuffix(".npy") for n in archive.namelist() if n.endswith(".npy")]
      info = archive.getinfo(names.choose(name, present) + ".npy")
      if info.flag_bits & 1:
        raise LtddError(f"{name.text} is encrypted; expected a file of np.savez.")
      with archive.open(info) as file:
        shape, fortran, dtype = _npy_header(name, file)
        skip = file.tell()
    at = Located(name, shape, dtype, fortran, skip, info.filename)
    if info.file_size != skip + at.nbytes:
      raise LtddError(
        f"{name.text} is damaged: {dtype} of shape {shape} needs {at.nbytes:,} bytes, "
        f"{info.filename} has {info.file_size - skip:,}."
      )
    if info.compress_type != zipfile.ZIP_STORED:
      return at
    return at._replace(member=None, offset=_data_start(name, info) + skip)


def _data_start(name: Name, info: zipfile.ZipInfo) -> int:
  """Where the bytes of a member begin: after its local header, a name and extra fields."""
  with open(name.path, "rb") as file:
    file.seek(info.header_offset)
    *_, name_length, extra_length = struct.unpack("<4s5H3I2H", file.read(30))
  return info.header_offset + 30 + name_length + extra_length


def _decompressed(at: Located, first: int, count: int) -> Iterator[np.ndarray]:
  """Yields `count` numbers at a time, from number `first` on."""
  end, size = math.prod(at.shape), at.dtype.itemsize
  with (
    _damage(at.name, ".npz archive"),
    zipfile.ZipFile(at.name.path) as archive,
    archive.open(at.member) as file,
  ):
    file.seek(at.offset + first * size)
    for start in range(first, end, max(count, 1)):
      data = file.read(min(count, end - start) * size)
      if len(data) < min(count, end - start) * size:
        raise EOFError(f"it ends after {start:,} numbers of {end:,}")
      yield np.frombuffer(data, at.dtype)


# ---- .safetensors ----


def _in_safetensors(name: Name) -> Located:
  entries, start = _safetensors_header(name)
  key = names.choose(name, [k for k in entries if k != "__metadata__"])
  entry = entries[key]
  try:
    code, shape, (begin, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
    if not (isinstance(code, str) and _are_sizes(shape) and type(begin) is type(end) is int):
      raise ValueError("a size, an offset or a type is none")
  except (KeyError, TypeError, ValueError) as error:
    raise LtddError(
      f"{name.text}: the header of {key!r} is damaged: {names.brief(entry)}. Write the file again."
    ) from error
  fit = [c for c in _SAFETENSORS if name.wanted != "logits" or "F" in c]
  if code not in _SAFETENSORS:
    raise LtddError(f"{name.text} is {code}; expected one of {', '.join(fit)}. Convert it first.")
  at = Located(name, shape, jnp.dtype(_SAFETENSORS[code]), False, start + begin)
  if end - begin != at.nbytes or begin < 0:
    raise LtddError(
      f"{name.text}: {key!r} is {code} of shape {shape}, which takes {at.nbytes:,} bytes, but its "
      f"header gives it {end - begin:,}: the file is damaged."
    )
  return at


def _safetensors_header(name: Name) -> tuple[dict[str, Any], int]:
  """The entries of a file, and where data begin."""
  with open(name.path, "rb") as file:
    prefix = file.read(8)
    length = int.from_bytes(prefix, "little")
    if len(prefix) < 8 or length > min(_MAX_HEADER, name.path.stat().st_size - 8):
      raise LtddError(f"{name.text} is truncated or no safetensors file: its header does not fit.")
    with _damage(name, "safetensors file"):
      entries = json.loads(file.read(length))
      if not isinstance(entries, dict):
        raise ValueError("its header is no JSON object")
  return entries, 8 + length


# ---- raw ----


def _in_raw(name: Name) -> Located:
  example = f"{name.path}:float16,300x50000x1000"
  if name.key is None:
    raise LtddError(
      f"{name.text}: raw bytes have no type and shape. Say them after a colon: {example}"
    )
  kind, _, text = name.key.partition(",")
  try:
    dtype, shape = jnp.dtype(kind.strip()), tuple(int(n) for n in text.lower().split("x"))
  except (TypeError, ValueError) as error:
    raise LtddError(
      f"{name.text}: {name.key!r} is no type and shape; expected for example {example} "
      "(big-endian: '>f2')"
    ) from error
  numbers = dtype.kind == "b" or jnp.issubdtype(dtype, jnp.number)  # bfloat16 has kind "V"
  if not numbers or not _are_sizes(shape):
    raise LtddError(f"{name.text}: {name.key!r} cannot be read; expected for example {example}")
  at, size = Located(name, shape, dtype, False, 0), name.path.stat().st_size
  if at.nbytes != size:
    rows = size / (dtype.itemsize * max(shape[-1], 1))
    raise LtddError(
      f"{name.text}: {dtype} of shape {shape} takes {at.nbytes:,} bytes, the file has {size:,}, "
      f"which is {rows:,.10g} rows of {shape[-1]}."
    )
  return at
