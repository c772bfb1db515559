"""Distillation methods. To add one, see docs/how-to/add_a_method.md."""

import sys
from collections.abc import Callable

from ltdd_jax.core import registry
from ltdd_jax.distil.base import Env, Method, Network, Resources, check_resources, make_slots
from ltdd_jax.distil.coreset import herding, k_center, kmeans, random
from ltdd_jax.distil.dm import dm
from ltdd_jax.distil.gvbsm_edc import edc, gvbsm
from ltdd_jax.distil.imported import imported
from ltdd_jax.distil.rded import rded
from ltdd_jax.distil.sre2l import cda, sre2l

__all__ = [
  "METHODS",
  "Env",
  "Method",
  "Network",
  "Resources",
  "check_resources",
  "make_method",
  "make_slots",
  "version",
]

METHODS: dict[str, Callable[..., Method]] = {
  "cda": cda,
  "dm": dm,
  "edc": edc,
  "gvbsm": gvbsm,
  "herding": herding,
  "imported": imported,
  "k_center": k_center,
  "kmeans": kmeans,
  "random": random,
  "rded": rded,
  "sre2l": sre2l,
}


def make_method(env: Env, name: str, **kwargs: object) -> Method:
  """Makes a method by its name; raises LtddError for an unknown name or argument."""
  return registry.make("distillation method", METHODS, name, kwargs, env)


def version(name: str) -> int:
  """The code version of a method, `VERSION` of its module: raised when its results change."""
  return sys.modules[METHODS[name].__module__].VERSION
