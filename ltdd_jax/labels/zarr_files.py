"""The Zarr arrays of a label store, by tensorstore: one file for each label epoch of an array."""

import contextlib
import math
import os
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from etils import epath

from ltdd_jax.core import files
from ltdd_jax.core.types import LtddError
from ltdd_jax.labels.encoding import Encoding

_CHUNK_BYTES = 1 << 20
_EPOCH = re.compile(rb"c\.(\d+)\.0\.0")
_CRC_BYTES, _INDEX_BYTES = 4, 16  # a checksum; place and size of a chunk in a shard
_LITTLE = {"name": "bytes", "configuration": {"endian": "little"}}


def open_arrays(
  path: epath.Path, shape: Sequence[int], encoding: Encoding, *, create: bool
) -> dict[str, Any]:
  import tensorstore  # brings a thread pool: late

  how: dict[str, Any] = {"open": True, "create": create, "read": True, "write": create}
  layout = encoding.layout(shape[2])
  with readable(path):
    waiting = {
      name: tensorstore.open(spec(path / name, shape[0], shape[1], *layout[name]), **how)
      for name in layout
    }
    return {name: future.result() for name, future in waiting.items()}


def spec(path: epath.Path, e: int, n: int, count: int, dtype: np.dtype) -> dict[str, Any]:
  """An array (e, n, count) with a file for each of the first axis."""
  kept = stored(dtype)
  size, chunks = _chunks(n, count, kept)
  folder = os.fspath(path) + "/"
  codecs: list[dict[str, Any]] = [_LITTLE, {"name": "crc32c"}]
  if chunks > 1:
    codecs = [{"name": "sharding_indexed", "configuration": {"codecs": codecs}}]
  return {
    "driver": "zarr3",
    "kvstore": {"driver": "file", "path": folder} if files.is_local(path) else folder,
    "schema": {
      "dtype": kept.name,
      "domain": {"shape": [e, n, count], "labels": ["label_epoch", "image", "number"]},
      "fill_value": 0,
      "chunk_layout": {
        "write_chunk": {"shape": [1, size * chunks, count]},
        "read_chunk": {"shape": [1, size, count]},
      },
      "codec": {"driver": "zarr3", "codecs": codecs},
    },
    "metadata": {"chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}}},
    "store_data_equal_to_fill_value": True,  # else an epoch of zeros would not be there
    "fill_missing_data_reads": False,
  }


def stored(dtype: np.dtype) -> np.dtype:
  """The dtype in the files: of bfloat16, which few readers of Zarr know, the bits."""
  return np.dtype("uint16" if dtype.name == "bfloat16" else dtype.name)


def _chunks(n: int, count: int, dtype: np.dtype) -> tuple[int, int]:
  """Rows of a chunk, and chunks of a label epoch."""
  chunks = math.ceil(n * count * dtype.itemsize / _CHUNK_BYTES)
  size = math.ceil(n / chunks)
  return size, math.ceil(n / size)


def file_bytes(n: int, count: int, dtype: np.dtype) -> int:
  """Bytes of the file of a label epoch."""
  size, chunks = _chunks(n, count, dtype)
  content = chunks * (size * count * dtype.itemsize + _CRC_BYTES)
  return content if chunks == 1 else content + chunks * _INDEX_BYTES + _CRC_BYTES


def epochs(array: Any) -> set[int]:
  """Label epochs of an array that are there.

  What tensorstore leaves when it is killed (`c.0.0.0.__lock`) is none.
  """
  keys = array.kvstore.list().result()
  return {int(m[1]) for m in map(_EPOCH.fullmatch, keys) if m}


@contextlib.contextmanager
def readable(path: epath.Path) -> Iterator[None]:
  """Turns tensorstore's errors into an LtddError; they name the file."""
  try:
    yield
  except (ValueError, OSError, IndexError) as error:
    if isinstance(error, LtddError):
      raise
    raise LtddError(
      f"label store {path} cannot be read: {files.reason(error)}. If labelling stopped before its "
      f"end, give the same command again; if that fails too, delete {path} and label again."
    ) from error
