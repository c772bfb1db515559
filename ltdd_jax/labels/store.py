"""The label store: logits of views (e, n, k) on disk, encoded, label epoch by label epoch.

  store = create(folder, (e, n, k), Encoding("uint8"), class_names=names)
  store.write({0: store.encoding.encode(logits)})  # an epoch is there as a whole or not at all
  store = open_store(folder, class_names=names)    # any number of processes at once
  store.rows(0, 500)                               # (500, k) float32, epochs one after another
  store.read(0, 10)                                # encoded arrays (10, n, ...), for a device

The folder is a Zarr v3 group, written and read by tensorstore: arrays `values`, and where the
encoding needs them `indices` and `rows`, each with one chunk (a shard of chunks of about a megabyte
if it is large) and so one file for each label epoch. docs/reference/formats.md says how other
programs read it. A store is a row source for `adsa.Rows`: calibrators stream it.
"""

import contextlib
import math
import os
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ltdd_jax.core import files
from ltdd_jax.core.types import LtddError
from ltdd_jax.labels import store_attributes
from ltdd_jax.labels.encoding import Encoding as Encoding

_CHUNK_BYTES = 1 << 20
_EPOCH = re.compile(r"c\.(\d+)\.0\.0")
_CRC_BYTES, _INDEX_BYTES = 4, 16  # a checksum; place and size of a chunk in a shard


class LabelStore:
  """Encoded logits of label epochs, from `create` or `open_store`.

  Attributes:
    path: its folder.
    shape: (e, n, k).
    dtype: of decoded logits, float32.
    encoding: how logits are stored.
    class_names: the class map, number to name.
    facts: what the labels were made from.
  """

  dtype = np.dtype(np.float32)

  def __init__(
    self,
    path: pathlib.Path,
    about: Mapping[str, Any],
    arrays: Mapping[str, Any],
    whole: "LabelStore | None" = None,
  ):
    self.path = path
    self.shape: tuple[int, int, int] = tuple(about["shape"])
    self.encoding = Encoding(**about["encoding"])
    self.class_names = tuple(about["class_names"])
    self.facts = dict(about["facts"])
    self._about, self._arrays = about, arrays
    self._whole = whole  # its folder may go when it does

  def first(self, num_epochs: int) -> "LabelStore":
    """The store, restricted to its first label epochs, for reading, `present` and `nbytes`."""
    if num_epochs < 1:
      raise LtddError(f"first {num_epochs} label epochs of {self.path}; expected 1 or more")
    e, n, k = self.shape
    about = {**self._about, "shape": [min(e, num_epochs), n, k]}
    return LabelStore(self.path, about, self._arrays, self)

  @property
  def nbytes(self) -> int:
    """Bytes on disk of its label epochs that are there: values, indices, numbers of rows."""
    return sum(x.stat().st_size for name in self._arrays for x in self._epochs(name).values())

  def present(self) -> set[int]:
    """Those of its label epochs that are there; `values` are written last."""
    return set(self._epochs("values"))

  def _epochs(self, name: str) -> dict[int, os.DirEntry]:
    """Files of an array; what tensorstore leaves when it is killed (`c.0.0.0.__lock`) is none."""
    found = ((_EPOCH.fullmatch(x.name), x) for x in os.scandir(self.path / name))
    return {int(m[1]): x for m, x in found if m and int(m[1]) < self.shape[0]}

  def read(self, start: int = 0, stop: int | None = None) -> dict[str, np.ndarray]:
    """Reads whole label epochs.

    Returns:
      Encoded arrays (stop - start, n, numbers), for `encoding.decode`.

    Raises:
      LtddError: an epoch that is not there, numbers beyond the store's, or a damaged file.
    """
    stop = self.shape[0] if stop is None else stop
    self._check_range("label epochs", start, stop, self.shape[0])
    return self._read(np.s_[start:stop])

  def rows(self, start: int, stop: int) -> np.ndarray:
    """Logits of rows e * n + i, decoded: (stop - start, k) float32; LtddError as of `read`."""
    e, n, k = self.shape
    self._check_range("rows", start, stop, e * n)
    if start == stop:
      return np.zeros((0, k), self.dtype)
    first, last = start // n, (stop - 1) // n
    ends = {first: start - first * n}, {last: stop - last * n}
    parts, whole = [], [e for e in range(first, last + 1) if (e not in ends[0] | ends[1])]
    parts.append(np.s_[first, ends[0][first] : ends[1].get(first, n)])
    if whole:
      parts.append(np.s_[whole[0] : whole[-1] + 1])
    if last > first:
      parts.append(np.s_[last, : ends[1][last]])
    read = [self.encoding.decode(self._read(part), k).reshape(-1, k) for part in parts]
    return read[0] if len(read) == 1 else np.concatenate(read)

  def logits(self, start: int = 0, stop: int | None = None) -> np.ndarray:
    """Logits of whole label epochs, decoded: (stop - start, n, k) float32."""
    return self.encoding.decode(self.read(start, stop), self.shape[2])

  def _check_range(self, what: str, start: int, stop: int, count: int) -> None:
    if not 0 <= start <= stop <= count:
      raise LtddError(
        f"{what} {start} to {stop} of label store {self.path}; expected 0 <= start <= stop <= "
        f"{count}, the number of its {what}"
      )

  def _read(self, part: Any) -> dict[str, np.ndarray]:
    with _readable(self.path):
      waiting = {name: array[part].read() for name, array in self._arrays.items()}
      found = {name: future.result() for name, future in waiting.items()}
    layout = self.encoding.layout(self.shape[2])
    return {name: x.view(layout[name][1]) for name, x in found.items()}

  def write(self, epochs: Mapping[int, Mapping[str, Any]]) -> None:
    """Writes label epochs: {number: encoded arrays (n, numbers)}.

    Raises:
      LtddError: arrays that do not fit the store, numbers that are not finite, classes that do not
        exist, or a full disk.
    """
    if not epochs:
      return
    layout = self.encoding.layout(self.shape[2])
    plain = {e: {k: np.asarray(v) for k, v in arrays.items()} for e, arrays in epochs.items()}
    for number, arrays in plain.items():
      self._check(number, arrays, layout)
    what = f"label epochs {min(plain)} to {max(plain)}"
    need = sum(disk_bytes((1, *self.shape[1:]), self.encoding) for _ in plain)
    files.check_space(what, self.path, need)
    with files.explained(what, folder=self.path, need=need), _writable(self.path):
      for name in sorted(layout, key="values".__eq__):  # values come last: they say it is whole
        stored = _stored(layout[name][1])
        target = self._arrays[name]
        waiting = [target[e].write(arrays[name].view(stored)) for e, arrays in plain.items()]
        for future in waiting:
          future.result()

  def _check(self, number: int, arrays: Mapping[str, np.ndarray], layout: Any) -> None:
    e, n, k = self.shape
    if not 0 <= number < e:
      raise LtddError(f"label epoch {number} does not exist; {self.path} has {e}, counted from 0")
    got = {name: (x.shape, x.dtype) for name, x in arrays.items()}
    want = {name: ((n, count), dtype) for name, (count, dtype) in layout.items()}
    if got != want:
      raise LtddError(f"label epoch {number} has arrays {got}; {self.path} stores {want}")
    if "indices" in arrays and (last := arrays["indices"].max()) >= k:
      raise LtddError(
        f"label epoch {number}: indices has class {last}; expected 0 to {k - 1}, the classes of "
        f"{self.path}"
      )
    for name, x in arrays.items():
      if x.dtype.kind not in "iu" and not np.isfinite(x.astype(np.float32)).all():
        raise LtddError(
          f"label epoch {number}: {name} holds NaN or infinity; expected finite numbers. Logits "
          f"may not fit into {self.encoding.dtype}: set config.label.dtype='float32'"
        )


def create(
  path: str | os.PathLike[str],
  shape: Sequence[int],
  encoding: Encoding,
  *,
  class_names: Sequence[str],
  facts: Mapping[str, Any] | None = None,
) -> LabelStore:
  """Makes a store without label epochs, or opens the one that is there if it is to be the same.

  Args:
    path: its folder.
    shape: (e, n, k).
    encoding: how logits are stored.
    class_names: the class map, number to name.
    facts: what the labels are made from, JSON values; a store of other facts is another one.

  Raises:
    LtddError: a size below 1, not a name for each class, top_k above k, another store or other
      files are there, or a damaged store.
  """
  path = pathlib.Path(path).absolute()
  encoding.check(shape[2])
  about = store_attributes.make(shape, encoding, class_names, facts or {})
  if wrong := store_attributes.wrong_field(about):
    raise LtddError(f"label store {path} cannot be made: {wrong}")
  if (path / store_attributes.NAME).exists():
    store_attributes.check_same(path, about, store_attributes.read(path))
  else:
    _check_free(path)
    store_attributes.write(path, about)
  return LabelStore(path, about, _open_arrays(path, shape, encoding, create=True))


def _check_free(path: pathlib.Path) -> None:
  """Raises LtddError if files are there; removes what a kill left of a first zarr.json."""
  found = list(path.iterdir()) if path.is_dir() else []
  left = [x for x in found if x.is_file() and x.name.startswith(files.TEMPORARY)]
  if path.is_file() or len(found) > len(left):
    what = "is a file" if path.is_file() else "has files"
    raise LtddError(f"{path} {what}, but is no label store; use another folder, or delete it")
  for file in left:
    file.unlink()


def open_store(
  path: str | os.PathLike[str], *, class_names: Sequence[str] | None = None
) -> LabelStore:
  """Opens a store for reading.

  Args:
    path: its folder.
    class_names: the class map that it must have, or None for any.

  Raises:
    LtddError: no store, a damaged one, or one of another format or class map.
  """
  path = pathlib.Path(path).absolute()
  about = store_attributes.read(path)
  if class_names is not None:
    store_attributes.check_classes(path, class_names, about["class_names"])
  encoding = Encoding(**about["encoding"])
  return LabelStore(path, about, _open_arrays(path, about["shape"], encoding, create=False))


def disk_bytes(shape: Sequence[int], encoding: Encoding) -> int:
  """Bytes of a full store (e, n, k): `LabelStore.nbytes`, before there is one."""
  e, n, k = shape
  return e * sum(_file_bytes(n, *numbers) for numbers in encoding.layout(k).values())


# ---- tensorstore ----


def _open_arrays(
  path: pathlib.Path, shape: Sequence[int], encoding: Encoding, *, create: bool
) -> dict[str, Any]:
  import tensorstore  # brings a thread pool: late

  e, n, k = shape
  specs = {
    name: {
      "driver": "zarr3",
      "kvstore": {"driver": "file", "path": str(path / name)},
      "metadata": _metadata(e, n, count, dtype),
      "store_data_equal_to_fill_value": True,  # else an epoch of zeros would not be there
      "fill_missing_data_reads": False,
    }
    for name, (count, dtype) in encoding.layout(k).items()
  }
  how = {"open": True, "create": create, "read": True, "write": create}
  with _readable(path):
    waiting = {name: tensorstore.open(spec, **how) for name, spec in specs.items()}
    return {name: future.result() for name, future in waiting.items()}


def _metadata(e: int, n: int, count: int, dtype: np.dtype) -> dict[str, Any]:
  """Zarr v3 metadata of an array (e, n, count) with a file for each of the first axis."""
  stored = _stored(dtype)
  size, chunks = _chunks(n, count, stored)
  little = {"name": "bytes"} | (
    {"configuration": {"endian": "little"}} if stored.itemsize > 1 else {}
  )
  codecs: list[dict[str, Any]] = [little, {"name": "crc32c"}]
  if chunks > 1:
    index = [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}]
    inner = {"chunk_shape": [1, size, count], "codecs": codecs, "index_codecs": index}
    codecs = [{"name": "sharding_indexed", "configuration": inner}]
  chunk = {"chunk_shape": [1, size * chunks, count]}
  return {
    "shape": [e, n, count],
    "data_type": stored.name,
    "chunk_grid": {"name": "regular", "configuration": chunk},
    "chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}},
    "codecs": codecs,
    "fill_value": 0,
    "dimension_names": ["label_epoch", "image", "number"],
  }


def _stored(dtype: np.dtype) -> np.dtype:
  """What is in the files: bfloat16, which few readers of Zarr know, as its bits."""
  return np.dtype("uint16" if dtype.name == "bfloat16" else dtype.name)


def _chunks(n: int, count: int, dtype: np.dtype) -> tuple[int, int]:
  """Rows of a chunk, and chunks of a label epoch."""
  chunks = math.ceil(n * count * dtype.itemsize / _CHUNK_BYTES)
  size = math.ceil(n / chunks)
  return size, math.ceil(n / size)


def _file_bytes(n: int, count: int, dtype: np.dtype) -> int:
  """Bytes of the file of a label epoch."""
  size, chunks = _chunks(n, count, dtype)
  content = chunks * (size * count * dtype.itemsize + _CRC_BYTES)
  return content if chunks == 1 else content + chunks * _INDEX_BYTES + _CRC_BYTES


@contextlib.contextmanager
def _readable(path: pathlib.Path) -> Iterator[None]:
  """Turns tensorstore's errors into an LtddError; they name the file."""
  try:
    yield
  except (ValueError, OSError, IndexError) as error:
    if isinstance(error, LtddError):
      raise
    why = re.split(r" \[[\w ]+=", str(error))[0][:400]  # without [tensorstore_spec='...
    raise LtddError(
      f"label store {path} cannot be read: {why}. If labelling stopped before its end, give the "
      f"same command again; if that fails too, delete {path} and label the images anew."
    ) from error


@contextlib.contextmanager
def _writable(path: pathlib.Path) -> Iterator[None]:
  """Turns tensorstore's errors, which are of several kinds, into an OSError."""
  try:
    yield
  except (ValueError, RuntimeError, MemoryError) as error:
    raise OSError(f"label store {path}: {error}") from error
