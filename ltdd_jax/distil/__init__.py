"""Distillation methods. To add one, see docs/how-to/add_a_method.md."""

import sys
from collections.abc import Callable

from ltdd_jax.core import registry
from ltdd_jax.core.types import LtddError
from ltdd_jax.distil.base import Env, Method, Network, Resources, check_resources, make_slots
from ltdd_jax.distil.coreset import herding, k_center, kmeans, random
from ltdd_jax.distil.damed import damed
from ltdd_jax.distil.dm import dm
from ltdd_jax.distil.dream import dream
from ltdd_jax.distil.frepo import frepo
from ltdd_jax.distil.ftd_datm import datm, ftd
from ltdd_jax.distil.gradient_matching import dc, dsa
from ltdd_jax.distil.gvbsm_edc import edc, edc_released, gvbsm, rldd
from ltdd_jax.distil.idm import idm
from ltdd_jax.distil.imported import imported
from ltdd_jax.distil.mtt_tesla import mtt, tesla, tesla_released
from ltdd_jax.distil.ncfm import ncfm, ncfm_released
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
  "damed": damed,
  "datm": datm,
  "dc": dc,
  "dm": dm,
  "dream": dream,
  "dsa": dsa,
  "edc": edc,
  "edc_released": edc_released,
  "frepo": frepo,
  "ftd": ftd,
  "gvbsm": gvbsm,
  "herding": herding,
  "idm": idm,
  "imported": imported,
  "k_center": k_center,
  "kmeans": kmeans,
  "ncfm": ncfm,
  "ncfm_released": ncfm_released,
  "mtt": mtt,
  "random": random,
  "rded": rded,
  "rldd": rldd,
  "sre2l": sre2l,
  "tesla": tesla,
  "tesla_released": tesla_released,
}


def make_method(env: Env, name: str, **kwargs: object) -> Method:
  """Makes a method by its name.

  Raises:
    LtddError: an unknown name or argument, one out of range, or no teacher where one is needed.
  """
  method = registry.make("distillation method", METHODS, name, kwargs, env)
  if "teachers" in method.needs and not env.teachers:
    raise LtddError(
      f"method {name!r} needs a teacher, and there is none. Name a network in "
      "config.teacher.models, or use 'random', which needs none."
    )
  return method


def version(name: str) -> int:
  """The code version of a method, `VERSION` of its module: raised when its results change."""
  return sys.modules[METHODS[name].__module__].VERSION
