"""Checks of the numbers that augmentations and views take, with one message for each kind.

check("config.label.views.padding", "padding", -1)   # ... is -1; expected a whole number >= 0
"""

import math
import numbers
from typing import Any

from ltdd_jax.core.types import LtddError


def is_number(value: Any) -> bool:
  """Whether a value is a finite number and no bool."""
  real = isinstance(value, numbers.Real) and not isinstance(value, bool)
  return real and math.isfinite(value)


def is_whole(value: Any) -> bool:
  """Whether a value is a whole number and no bool."""
  return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def _is_scale(value: Any) -> bool:
  pair = isinstance(value, (tuple, list)) and len(value) == 2 and all(map(is_number, value))
  return pair and 0 < value[0] <= value[1] <= 1


_KINDS = {
  "alpha": (lambda x: is_number(x) and x > 0, "a number > 0"),
  "factor": (lambda x: is_whole(x) and x >= 1, "a whole number >= 1"),
  "padding": (lambda x: is_whole(x) and x >= 0, "a whole number >= 0"),
  "probability": (lambda x: is_number(x) and 0 < x <= 1, "a number > 0 and <= 1"),
  "size": (lambda x: is_whole(x) and x >= 1, "a whole number >= 1"),
  "scale": (_is_scale, "a pair of numbers with 0 < low <= high <= 1, such as (0.08, 1.0)"),
}


def check(where: str, kind: str, value: Any) -> None:
  """Raises LtddError unless a value suits arguments of this name; other names take anything."""
  fits, expected = _KINDS.get(kind, (lambda x: True, ""))
  if not fits(value):
    raise LtddError(f"{where} is {value!r}; expected {expected}")
