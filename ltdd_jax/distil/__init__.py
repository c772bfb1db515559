"""Distillation methods. To add one, see docs/adding_a_method.md."""

from collections.abc import Callable

from ltdd_jax.core import config
from ltdd_jax.core.types import LtddError
from ltdd_jax.distil.base import Env, Feed, Method, Network, check_feed, make_slots
from ltdd_jax.distil.coreset import herding, k_center, kmeans, random
from ltdd_jax.distil.gvbsm_edc import edc, gvbsm
from ltdd_jax.distil.rded import rded
from ltdd_jax.distil.sre2l import cda, sre2l

__all__ = [
  "METHODS",
  "NEEDS_STATISTICS",
  "SELECT",
  "WITHOUT_TEACHERS",
  "Env",
  "Feed",
  "Method",
  "Network",
  "check_feed",
  "make_method",
  "make_slots",
]

METHODS: dict[str, Callable[..., Method]] = {
  "cda": cda,
  "edc": edc,
  "gvbsm": gvbsm,
  "herding": herding,
  "k_center": k_center,
  "kmeans": kmeans,
  "random": random,
  "rded": rded,
  "sre2l": sre2l,
}

NEEDS_STATISTICS: frozenset[str] = frozenset({"edc", "gvbsm"})
"""Methods with "statistics" in their `needs`: their runs have a stage that collects them."""

SELECT: frozenset[str] = frozenset({"herding", "k_center", "kmeans", "random", "rded"})
"""Methods without steps: a run's batch size and order of slots do not reach them."""

WITHOUT_TEACHERS: frozenset[str] = frozenset({"random"})
"""Methods without "teachers" in their `needs`: their images do not depend on the teachers."""


def make_method(env: Env, name: str, **kwargs: object) -> Method:
  """Makes a method by its name; raises LtddError for an unknown name or argument."""
  if name not in METHODS:
    raise LtddError(
      f"unknown distillation method {name!r}. {config.suggest(name, METHODS)} "
      f"Known methods: {', '.join(sorted(METHODS))}."
    )
  config.bind(f"method {name!r}", METHODS[name], kwargs)
  return METHODS[name](env, **kwargs)
