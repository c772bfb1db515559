"""Names of arrays in files: "z.npy", "store.npz:logits", "z.raw:float16,300x50000x1000"."""

import os
import pathlib
import re
from collections.abc import Sequence
from typing import NamedTuple

from ltdd_jax.core import config
from ltdd_jax.core.types import LtddError

RAW = (".raw", ".bin", ".dat", ".mmap", ".memmap")
PARQUET = (".parquet", ".pq")
ARRAYS = (".npy", ".npz", ".safetensors", *PARQUET, *RAW)
TEXTS = (".txt", ".csv", ".json")
_PICKLES = (".pt", ".pth", ".pkl", ".pickle", ".ckpt")
_SPLIT = re.compile(
  r"(.*?(?:{}))(?::(.*))?".format("|".join(map(re.escape, (*ARRAYS, *TEXTS)))), re.IGNORECASE
)


class Name(NamedTuple):
  """A file, and which array in it."""

  text: str  # as it was given, for messages
  path: pathlib.Path
  key: str | None  # what follows the colon
  wanted: str  # "logits", "labels", "counts" or "target_prior"

  @property
  def suffix(self) -> str:
    return self.path.suffix.lower()


def parse(text: str | os.PathLike[str], wanted: str) -> Name:
  """Splits "file:key" and checks that the file is there and of a known kind.

  Raises:
    LtddError: a file that is not there or cannot be read, or an extension that says nothing.
  """
  text = os.fspath(text)
  match = _SPLIT.fullmatch(text)
  path, key = (match[1], match[2]) if match else (text, None)
  name = Name(text, pathlib.Path(path).expanduser(), key or None, wanted)
  _check_readable(name)
  _check_suffix(name)
  return name


def _check_suffix(name: Name) -> None:
  known = ARRAYS if name.wanted == "logits" else (*ARRAYS, *TEXTS)
  if name.suffix in known:
    return
  if name.suffix in _PICKLES:
    raise LtddError(
      f"{name.text}: {name.suffix} files are pickles, which run code when they are read, and are "
      "refused. In PyTorch, save the tensor as an array: "
      'np.save("z.npy", tensor.detach().cpu().float().numpy())'
    )
  raise LtddError(
    f"{name.text}: {name.suffix or 'no extension'} says nothing about the format of the "
    f"{name.wanted}; expected one of {' '.join(known)}"
  )


def _check_readable(name: Name) -> None:
  path = name.path
  try:
    if path.is_dir():
      raise LtddError(f"{name.text} is a folder; expected a file with the {name.wanted}.")
    with open(path, "rb"):
      pass
  except FileNotFoundError as error:
    folder = path.parent
    near = config.suggest(path.name, os.listdir(folder)) if folder.is_dir() else ""
    place = f"in {folder}" if folder.is_dir() else f"and no folder {folder}"
    hint = f" {near}" if near else ""
    raise LtddError(f"{name.text}: there is no file {path.name} {place}.{hint}") from error
  except OSError as error:
    raise LtddError(f"{name.text}: cannot be read: {error.strerror or error}.") from error


def choose(name: Name, present: Sequence[str]) -> str:
  """Which of the arrays in a file is meant.

  Raises:
    LtddError: an unknown key, or none where there are several arrays; names are listed.
  """
  listed = ", ".join(present[:20]) + (", ..." if len(present) > 20 else "")
  if name.key is not None:
    if name.key in present:
      return name.key
    hint = config.suggest(name.key, present)
    raise LtddError(
      f"{name.text}: {name.path.name} has no {name.key!r}. {hint}{' ' if hint else ''}"
      f"It holds: {listed or 'nothing'}."
    )
  if name.wanted in present:
    return name.wanted
  if len(present) == 1:
    return present[0]
  if not present:
    raise LtddError(f"{name.text}: {name.path.name} holds no array; expected the {name.wanted}.")
  raise LtddError(
    f"{name.text}: {name.path.name} holds several arrays ({listed}), none called "
    f"{name.wanted!r}. Say which: {name.text}:NAME"
  )


def brief(value: object) -> str:
  """The first line of what another library says, or of a value in a file, cut where it is long."""
  line = next(iter(str(value).strip().splitlines()), type(value).__name__).rstrip(".")
  return line if len(line) <= 120 else line[:120] + "..."
