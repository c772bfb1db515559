"""Make things by the names that configs use: one error text for models, losses and schedules."""

from collections.abc import Callable, Mapping
from typing import Any

from ltdd_jax.core import config
from ltdd_jax.core.types import LtddError


def make(kind: str, registry: Mapping[str, Callable[..., Any]], name: str, kwargs: Mapping) -> Any:
  """Calls `registry[name](**kwargs)`.

  Args:
    kind: what the registry holds, for messages: "model".
    registry: factories with keyword arguments.
    name: a key of the registry.
    kwargs: of that factory.

  Raises:
    LtddError: an unknown name or argument, with what may have been meant.
  """
  if name not in registry:
    raise LtddError(
      f"unknown {kind} {name!r}. {config.suggest(name, registry)} "
      f"Known: {', '.join(sorted(registry))}."
    )
  config.bind(f"{kind} {name!r}", registry[name], kwargs)
  return registry[name](**kwargs)
