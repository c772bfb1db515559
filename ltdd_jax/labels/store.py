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

import dataclasses
import itertools
import json
import math
import reprlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from ltdd_jax.core import config as config_lib
from ltdd_jax.core import files
from ltdd_jax.core.types import LtddError
from ltdd_jax.labels import zarr_files
from ltdd_jax.labels.encoding import Encoding

FORMAT = 1
KEY = "ltdd_jax.labels"  # of the group's attributes
_GROUP = "zarr.json"


class LabelStore:
  """Encoded logits of label epochs, from `create` or `open_store`.

  Attributes:
    path: its folder.
    shape: (e, n, k).
    dtype: of decoded logits, float32.
    encoding: how logits are stored.
  """

  dtype = np.dtype(np.float32)

  def __init__(
    self,
    path: epath.Path,
    about: Mapping[str, Any],
    arrays: Mapping[str, Any],
    whole: "LabelStore | None" = None,
  ):
    self.path = path
    self.shape: tuple[int, int, int] = tuple(about["shape"])
    self.encoding = Encoding(**about["encoding"])
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
    return disk_bytes((len(self.present()), *self.shape[1:]), self.encoding)

  def present(self) -> set[int]:
    """Those of its label epochs that are there; `values` are written last."""
    return zarr_files.epochs(self._arrays["values"]) & set(range(self.shape[0]))

  def read(self, start: int = 0, stop: int | None = None) -> dict[str, np.ndarray]:
    """Whole label epochs, encoded: arrays (stop - start, n, numbers) for `encoding.decode`.

    Raises:
      LtddError: an epoch that is not there, numbers beyond the store's, or a damaged file.
    """
    stop = self.shape[0] if stop is None else stop
    self._check_range("label epochs", start, stop, self.shape[0])
    return self._read([np.s_[start:stop]])

  def rows(self, start: int, stop: int) -> np.ndarray:
    """Logits of rows e * n + i, decoded: (stop - start, k) float32; LtddError as of `read`."""
    e, n, k = self.shape
    self._check_range("rows", start, stop, e * n)
    if start == stop:
      return np.zeros((0, k), self.dtype)
    epochs = range(start // n, math.ceil(stop / n))
    parts = [np.s_[i, max(start - i * n, 0) : min(stop - i * n, n)] for i in epochs]
    return self.encoding.decode(self._read(parts), k)

  def logits(self, start: int = 0, stop: int | None = None) -> np.ndarray:
    """Logits of whole label epochs, decoded: (stop - start, n, k) float32."""
    return self.encoding.decode(self.read(start, stop), self.shape[2])

  def _check_range(self, what: str, start: int, stop: int, count: int) -> None:
    if not 0 <= start <= stop <= count:
      raise LtddError(
        f"{what} {start} to {stop} of label store {self.path}; expected 0 <= start <= stop <= "
        f"{count}, the number of its {what}"
      )

  def _read(self, parts: list[Any]) -> dict[str, np.ndarray]:
    with zarr_files.readable(self.path):
      waiting = {
        name: [array[part].read() for part in parts] for name, array in self._arrays.items()
      }
      found = {name: [future.result() for future in futures] for name, futures in waiting.items()}
    layout = self.encoding.layout(self.shape[2])
    whole = {name: x[0] if len(x) == 1 else np.concatenate(x) for name, x in found.items()}
    return {name: x.view(layout[name][1]) for name, x in whole.items()}

  def write(self, epochs: Mapping[int, Mapping[str, Any]]) -> None:
    """Writes label epochs: {number: encoded arrays (n, numbers)}.

    Raises:
      LtddError: another number, shape or dtype than the store's, numbers that are not finite, or a
        full disk.
    """
    if not epochs:
      return
    layout = self.encoding.layout(self.shape[2])
    plain = {e: {k: np.asarray(v) for k, v in arrays.items()} for e, arrays in epochs.items()}
    for number, arrays in plain.items():
      self._check_range("epochs", number, number + 1, self.shape[0])
      self._check_layout(number, arrays, layout)
      self._check_finite(number, arrays)
    what = f"label epochs {min(plain)} to {max(plain)}"
    need = disk_bytes((len(plain), *self.shape[1:]), self.encoding)
    files.check_space(what, self.path, need)
    with files.explained(what, folder=self.path, need=need, errors=files.TENSORSTORE):
      for name in sorted(layout, key="values".__eq__):  # values come last: they say it is whole
        dtype = zarr_files.stored(layout[name][1])
        target = self._arrays[name]
        waiting = [target[e].write(arrays[name].view(dtype)) for e, arrays in plain.items()]
        for future in waiting:
          future.result()

  def _check_layout(
    self, number: int, arrays: Mapping[str, np.ndarray], layout: Mapping[str, tuple[int, np.dtype]]
  ) -> None:
    have = {name: (x.shape, x.dtype) for name, x in arrays.items()}
    want = {name: ((self.shape[1], width), dtype) for name, (width, dtype) in layout.items()}
    if have != want:
      raise LtddError(
        f"label epoch {number} has {have}; expected {want}, what the store's encoding gives for "
        f"logits {self.shape[1:]}"
      )

  def _check_finite(self, number: int, arrays: Mapping[str, np.ndarray]) -> None:
    for name, x in arrays.items():
      if x.dtype.kind not in "iu" and not np.isfinite(x.astype(np.float32)).all():
        raise LtddError(
          f"label epoch {number}: {name} holds NaN or infinity; expected finite numbers. Logits "
          f"may not fit into {self.encoding.dtype}: set config.label.dtype='float32'"
        )


def create(
  path: files.Pathlike,
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
  folder = files.absolute(files.path(path))
  encoding.check(shape[2])
  about = config_lib.canonical(
    {
      "format": FORMAT,
      "shape": [int(x) for x in shape],
      "encoding": dataclasses.asdict(encoding),
      "columns": encoding.columns(shape[2]),
      "class_names": list(class_names),
      "facts": facts or {},
    },
    "label store",
  )
  if wrong := _wrong_field(about):
    raise LtddError(f"label store {folder} cannot be made: {wrong}")
  if (folder / _GROUP).exists():
    _check_same(folder, about, _read_about(folder))
  else:
    _check_free(folder)
    group = {"zarr_format": 3, "node_type": "group", "attributes": {KEY: about}}
    files.write_text(folder / _GROUP, json.dumps(group, indent=1, allow_nan=False) + "\n")
  return LabelStore(folder, about, zarr_files.open_arrays(folder, shape, encoding, create=True))


def open_store(path: files.Pathlike, *, class_names: Sequence[str] | None = None) -> LabelStore:
  """Opens a store for reading.

  Args:
    path: its folder.
    class_names: the class map that it must have, or None for any.

  Raises:
    LtddError: no store, a damaged one, or one of another class map.
  """
  folder = files.absolute(files.path(path))
  about = _read_about(folder)
  if class_names is not None:
    _check_classes(folder, class_names, about["class_names"])
  encoding = Encoding(**about["encoding"])
  arrays = zarr_files.open_arrays(folder, about["shape"], encoding, create=False)
  return LabelStore(folder, about, arrays)


def disk_bytes(shape: Sequence[int], encoding: Encoding) -> int:
  """Bytes of a full store (e, n, k): `LabelStore.nbytes`, before there is one."""
  e, n, k = shape
  return e * sum(zarr_files.file_bytes(n, *numbers) for numbers in encoding.layout(k).values())


# ---- attributes ----


def _check_free(path: epath.Path) -> None:
  """Raises LtddError if files are there; removes what a kill left of a first zarr.json."""
  found = list(path.iterdir()) if path.is_dir() else []
  left = [x for x in found if x.name.startswith(files.TEMPORARY)]
  if path.is_file() or len(found) > len(left):
    what = "is a file" if path.is_file() else "has files"
    raise LtddError(f"{path} {what}, but is no label store; use another folder, or delete it")
  for file in left:
    file.unlink()


def _read_about(path: epath.Path) -> dict[str, Any]:
  """The attributes of the store in folder `path`; LtddError if there is none, or a damaged one."""
  try:
    about = dict(json.loads((path / _GROUP).read_text())["attributes"][KEY])
  except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
    raise LtddError(
      f"{path} is no label store of ltdd_jax: {_GROUP} is missing, damaged or another program's "
      f"({type(error).__name__}: {error})"
    ) from error
  if wrong := _wrong_field(about):
    raise LtddError(
      f"label store {path} is damaged: {wrong}, in the attributes of {_GROUP}. Delete {path} and "
      "label the images anew."
    )
  return about


def _wrong_field(about: Mapping[str, Any]) -> str | None:
  """Says what is wrong with the attributes of a store: "shape is [0, 2, 3]; expected ..."."""
  shape, names = about.get("shape", ()), about.get("class_names", ())
  sizes = isinstance(shape, list) and [type(x) for x in shape] == [int] * 3 and min(shape) > 0
  k = shape[2] if sizes else 0
  strings = isinstance(names, list) and all(isinstance(name, str) for name in names)
  good = {
    "format": (about.get("format") == FORMAT, f"{FORMAT}, the one that this version reads"),
    "shape": (sizes, "three sizes, 1 or more each"),
    "encoding": (_is_encoding(about.get("encoding"), k), f"dtype and top_k for {k} classes"),
    "class_names": (strings and len(names) == k, f"{k} names, one for each class"),
    "facts": (isinstance(about.get("facts"), dict), "an object"),
  }
  for key, (fine, expected) in good.items():
    if not fine:
      return f"{key} is {reprlib.repr(about.get(key))}; expected {expected}"
  return None


def _is_encoding(value: Any, k: int) -> bool:
  try:
    Encoding(**value).check(k)
  except (LtddError, TypeError):
    return False
  return set(value) == {field.name for field in dataclasses.fields(Encoding)}


def _check_same(path: epath.Path, want: Mapping[str, Any], found: Mapping[str, Any]) -> None:
  """Raises LtddError with what differs between the attributes that are wanted and found."""
  _check_classes(path, want["class_names"], found["class_names"])
  if changes := config_lib.diff(found, want):
    lines = [f"  {k}: {json.dumps(a)} -> {json.dumps(b)}" for k, (a, b) in changes.items()]
    raise LtddError(
      "\n".join([f"label store {path} holds other labels:", *lines])
      + f"\nUse another folder, or delete {path}"
    )


def _check_classes(path: epath.Path, want: Sequence[str], found: Sequence[str]) -> None:
  """Raises LtddError with the first class that differs: there may be a thousand."""
  for c, (there, here) in enumerate(itertools.zip_longest(found, want)):
    if there != here:
      raise LtddError(
        f"label store {path} was made with another class map: class {c} is {there!r} there (of "
        f"{len(found)}) and {here!r} here (of {len(want)}). Use labels of this data set, or label "
        "its images anew."
      )
