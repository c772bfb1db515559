"""Logits in Parquet: a column of lists, or k columns of floats; read by row groups.

Needs pyarrow (`pip install -e '.[files]'`), imported when such a file is opened.
"""

import contextlib
import fnmatch
from collections.abc import Iterator
from typing import Any

import numpy as np

from ltdd_jax.core import config
from ltdd_jax.core.types import LtddError
from ltdd_jax.interop import names, rows
from ltdd_jax.interop.names import Name


def source(name: Name) -> rows.StreamSource:
  """A row source of the logits in a Parquet file.

  They are the column that is named after the colon, or "logits", or the only column of lists, or
  else all columns of floats in the order of the file; "z.parquet:logit_*" names columns by a
  pattern. Memory is that of a block and of what pyarrow holds of a row group.

  Raises:
    LtddError: a damaged file, columns that cannot be logits, rows of different lengths.
  """
  file = _open(name)
  columns, k, dtype = _columns(name, file)
  counts = [file.metadata.row_group(g).num_rows for g in range(file.metadata.num_row_groups)]
  starts = np.concatenate([[0], np.cumsum(counts)]).astype(int)

  def begin(row: int) -> tuple[int, Iterator[np.ndarray]]:
    group = int(np.searchsorted(starts, row, side="right")) - 1
    return int(starts[group]), _blocks(name, file, columns, k, dtype, range(group, len(counts)))

  return rows.StreamSource((file.metadata.num_rows, k), dtype, begin)


def column(name: Name) -> np.ndarray:
  """A whole column (n,), for labels and counts."""
  file = _open(name)
  key = names.choose(name, file.schema_arrow.names)
  _check_single(name, file, [key])
  with _damage(name):
    values = file.read(columns=[key]).column(key)
    if values.null_count:
      raise LtddError(f"{name.text}: column {key!r} has {values.null_count} nulls; expected none.")
    return values.to_numpy()


def _open(name: Name) -> Any:
  try:
    from pyarrow import parquet
  except ImportError as error:
    raise LtddError(
      f"{name.text}: reading Parquet needs pyarrow. Install it: pip install -e '.[files]', or "
      "pip install pyarrow"
    ) from error
  with _damage(name):
    return parquet.ParquetFile(name.path, memory_map=True)


@contextlib.contextmanager
def _damage(name: Name) -> Iterator[None]:
  """Turns pyarrow's errors, which are ValueErrors and OSErrors, into one that names the file."""
  try:
    yield
  except LtddError:
    raise
  except (OSError, ValueError) as error:
    raise LtddError(
      f"{name.text} is truncated or no Parquet file: {names.brief(error)}. Copy it or write it "
      "again."
    ) from error


def _is_list(kind: Any) -> bool:
  return any(part in str(kind) for part in ("list<", "list["))


def _is_float(kind: Any) -> bool:
  return str(kind) in ("halffloat", "float", "double")


def _columns(name: Name, file: Any) -> tuple[list[str], int, np.dtype]:
  """Names of the columns of the logits, number of classes, dtype."""
  kinds = {f.name: f.type for f in file.schema_arrow}
  chosen = _choose(name, kinds)
  _check_single(name, file, chosen)
  if len(chosen) == 1 and _is_list(kinds[chosen[0]]):
    kind = kinds[chosen[0]].value_type
    if not _is_float(kind):
      raise LtddError(f"{name.text}: column {chosen[0]!r} has lists of {kind}; expected floats.")
    return chosen, _list_length(name, file, chosen[0]), np.dtype(kind.to_pandas_dtype())
  bad = [c for c in chosen if not _is_float(kinds[c])]
  if bad:
    raise LtddError(
      f"{name.text}: column {bad[0]!r} is {kinds[bad[0]]}; expected one column of lists of floats, "
      "or columns of floats, one for each class."
    )
  return chosen, len(chosen), np.result_type(*(kinds[c].to_pandas_dtype() for c in chosen))


def _choose(name: Name, kinds: dict[str, Any]) -> list[str]:
  lists = [c for c, kind in kinds.items() if _is_list(kind)]
  if name.key is None:
    if lists or "logits" in kinds:
      return ["logits"] if "logits" in kinds else [names.choose(name, lists)]
    chosen, hint = [c for c, kind in kinds.items() if _is_float(kind)], ""
  else:
    chosen = [c for c in kinds if fnmatch.fnmatchcase(c, name.key)]
    hint = config.suggest(name.key, kinds)
  if chosen:
    return chosen
  listed = ", ".join(f"{c} ({kind})" for c, kind in list(kinds.items())[:20])
  raise LtddError(
    f"{name.text}: found no column of lists of floats, and no columns of floats, to take as "
    f"logits. {hint}{' ' if hint else ''}Columns: {listed}."
  )


def _check_single(name: Name, file: Any, columns: list[str]) -> None:
  for c in columns:
    if (count := file.schema_arrow.names.count(c)) > 1:
      raise LtddError(f"{name.text}: {count} columns are called {c!r}; expected one. Rename them.")


def _list_length(name: Name, file: Any, column: str) -> int:
  with _damage(name):
    for batch in file.iter_batches(batch_size=1, columns=[column]):
      length = batch.column(0).value_lengths()[0].as_py()
      if not length:
        found = "null" if length is None else "empty"
        raise LtddError(f"{name.text}: row 0 is {found}; expected a list of logits in each row.")
      return int(length)
  raise LtddError(f"{name.text} has no rows; expected logits.")


def _blocks(
  name: Name, file: Any, columns: list[str], k: int, dtype: np.dtype, groups: range
) -> Iterator[np.ndarray]:
  with _damage(name):
    done = sum(file.metadata.row_group(g).num_rows for g in range(groups.start))
    size = rows.block_rows(k)
    for batch in file.iter_batches(batch_size=size, row_groups=list(groups), columns=columns):
      if len(columns) == 1 and _is_list(batch.column(0).type):
        yield _from_lists(name, batch.column(0), k, done).astype(dtype, copy=False)
      else:
        arrays = [batch.column(c).to_numpy(zero_copy_only=False) for c in columns]
        yield np.stack(arrays, 1).astype(dtype, copy=False)
      done += batch.num_rows


def _from_lists(name: Name, column: Any, k: int, first: int) -> np.ndarray:
  lengths = column.value_lengths().fill_null(-1).to_numpy(zero_copy_only=False)
  wrong = np.flatnonzero(lengths != k)
  if wrong.size:
    found = "null" if lengths[wrong[0]] < 0 else f"of {lengths[wrong[0]]} numbers"
    raise LtddError(
      f"{name.text}: row {first + wrong[0]} is {found}; the first row has {k}, and all must."
    )
  return column.flatten().to_numpy(zero_copy_only=False).reshape(-1, k)
