"""Lists of numbers in .txt, .csv and .json files, as spreadsheets and other programs write them."""

import codecs
import contextlib
import itertools
import json
import re
from typing import Any

import numpy as np

_WORD = re.compile(r'"[^"]*"|' + r"'[^']*'|[^\s,;]+")


def parse(data: bytes, *, is_json: bool) -> np.ndarray:
  """Numbers of a JSON list, or of lines that separate them by commas, semicolons or blanks.

  A byte-order mark, quotes, a first line without a number (a header) and lines that begin with "#"
  do not count.

  Returns:
    (m,) integers or floats; (rows, columns) if there are several of both.

  Raises:
    ValueError: what keeps this from being a list of numbers.
  """
  utf16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))  # of Windows programs
  text = data.decode("utf-16" if utf16 else "utf-8-sig")
  found = _from_json(text) if is_json else _from_lines(text)
  if found.dtype.kind not in "iuf":
    raise ValueError("expected a list of numbers")
  return found


def _from_json(text: str) -> np.ndarray:
  values = json.loads(text)
  if isinstance(values, dict):
    keys = ", ".join(list(values)[:5])
    raise ValueError(f"it is an object with the keys {keys}; expected a list, by number of class")
  found = np.asarray(values)
  if found.dtype.kind == "U":
    found = np.asarray([_number(word) for word in found.flat]).reshape(found.shape)
  return found


def _from_lines(text: str) -> np.ndarray:
  lines = [_WORD.findall(line) for line in text.splitlines() if line[:1] != "#"]
  lines = [words for words in lines if words]
  if lines and not any(map(_is_number, lines[0])):
    lines = lines[1:]
  rows = [[_number(word) for word in words] for words in lines]
  widths = [len(row) for row in rows]
  if len(set(widths)) > 1:  # a list that is wrapped, with a shorter last line, or no list at all
    if len(set(widths[:-1])) > 1 or widths[-1] > widths[0]:
      raise ValueError(f"lines have {min(widths)} to {max(widths)} numbers; expected one in each")
    rows = [list(itertools.chain(*rows))]
  found = np.asarray(rows)
  return found.reshape(-1) if 1 in found.shape else found


def _number(word: str) -> int | float:
  word = word.strip("\"' ")
  for kind in (int, float):
    with contextlib.suppress(ValueError):
      return kind(word)
  raise ValueError(f"{brief(word)!r} is no number")


def _is_number(word: str) -> bool:
  try:
    _number(word)
  except ValueError:
    return False
  return True


def brief(value: Any) -> str:
  """The first line of what another library says, or of a value in a file, cut where it is long."""
  line = next(iter(str(value).strip().splitlines()), type(value).__name__).rstrip(".")
  return line if len(line) <= 120 else line[:120] + "..."
