"""Make things by the names that configs use, and check values: one error text each."""

import contextlib
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

from ltdd_jax.core import config
from ltdd_jax.core.types import LtddError


def make(
  kind: str,
  registry: Mapping[str, Callable[..., Any]],
  name: str,
  kwargs: Mapping[str, Any],
  *args: Any,
) -> Any:
  """Calls `registry[name](*args, **kwargs)`.

  Args:
    kind: what the registry holds, for messages: "model".
    registry: factories; positional arguments are the program's, keyword arguments the user's.
    name: a key of the registry.
    kwargs: of that factory.
    *args: its positional arguments.

  Raises:
    LtddError: an unknown name or argument, with what may have been meant.
  """
  if name not in registry:
    hint = config.suggest(name, registry)
    raise LtddError(
      f"unknown {kind} {name!r}. {hint}{' ' if hint else ''}Known: {', '.join(sorted(registry))}."
    )
  config.bind(f"{kind} {name!r}", registry[name], kwargs)
  return registry[name](*args, **kwargs)


def check_choice(where: str, value: Any, known: Collection[Any]) -> None:
  """Raises LtddError for a value that is none of those known."""
  if value not in known:
    hint = config.suggest(value, map(str, known))
    text = f"{where} is {value!r}; expected one of {', '.join(map(repr, known))}. {hint}"
    raise LtddError(text.rstrip(". "))


@contextlib.contextmanager
def within(where: str) -> Iterator[None]:
  """Says in an error which part of the config it is about."""
  try:
    yield
  except LtddError as error:
    raise LtddError(f"{where}: {error}") from error


def check_at_least(where: str, least: float, **numbers: float) -> None:
  """Raises LtddError for the first number below the least; `where` is "method 'dm': " or so."""
  for key, value in numbers.items():
    if not value >= least:
      raise LtddError(f"{where}{key} is {value}; expected {least:g} or more")


def check_share(where: str, *, below_one: bool = False, **numbers: float) -> None:
  """Raises LtddError for the first number that is not in [0, 1], or in [0, 1) if `below_one`."""
  for key, value in numbers.items():
    if not 0 <= value <= 1 or (below_one and value == 1):
      end = ")" if below_one else "]"
      raise LtddError(f"{where}{key} is {value}; expected a number in [0, 1{end}")
