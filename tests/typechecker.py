"""Checks shapes and dtypes of arrays at run time, wherever jaxtyping says what they are.

Functions without such an annotation are left alone: mypy reads their types, and what users get
wrong has messages of its own.
"""

import typing
from collections.abc import Callable
from typing import Any

from beartype import BeartypeConf, beartype
from jaxtyping import AbstractArray

_checked = beartype(conf=BeartypeConf(is_pep484_tower=True))  # an int may stand for a float


def check(function: Callable[..., Any]) -> Callable[..., Any]:
  """The function with its arguments and its result checked, if it has an array among them."""
  return _checked(function) if _has_array(function.__annotations__.values()) else function


def _has_array(annotations: Any) -> bool:
  return any(
    (isinstance(a, type) and issubclass(a, AbstractArray)) or _has_array(typing.get_args(a))
    for a in annotations
  )
