"""Calibrators: what is done to a teacher's logits before a student learns from them.

    calibrator = calibrate.make_calibrator("adsa", criterion="marginal")
    params = calibrator.fit(logits, labels, log_prior)  # once, on the label store
    logits = calibrator.apply(params, logits, log_prior)  # in the student's step, on each batch
    calibrator.report(params)  # plain numbers for a report

A calibrator is a NamedTuple of pure functions. To add one, write a factory like those in this
package and put it in `CALIBRATORS`; `tests/contract/test_calibrators.py` says what it must satisfy.
`docs/reference/calibrators.md` has a table of all of them. Where things are:

    base.py       the interface, and what the calibrators share
    simple.py     none, fixed
    aligned.py    adsa; bootstrap.py and headroom.py hold its options, curves.py what they measure
    vector.py     adsa_vector
    matrix.py     adsa_matrix
    probe.py      adsa_probe
    priors.py     em and ltkd
    scaling.py    temperature and vector_scaling
    stream.py     statistics and gradients, chunk by chunk
    fitting.py    L-BFGS on them
"""

from collections.abc import Callable, Mapping
from typing import Any

from ltdd_jax.calibrate.adsa import adsa
from ltdd_jax.calibrate.base import Calibrator, check_classes, check_prior, shift
from ltdd_jax.calibrate.class_bias import adsa_vector
from ltdd_jax.calibrate.matrix import adsa_matrix
from ltdd_jax.calibrate.priors import em, ltkd
from ltdd_jax.calibrate.probe import adsa_probe
from ltdd_jax.calibrate.scaling import temperature, vector_scaling
from ltdd_jax.calibrate.simple import fixed, none
from ltdd_jax.core import registry

__all__ = [
  "CALIBRATORS", "VERSIONS", "WITHOUT_PRIOR", "WITH_STUDENT", "Calibrator", "adsa", "adsa_matrix",
  "adsa_probe", "adsa_vector", "check_classes", "check_prior", "em", "fixed",
  "ltkd", "make_calibrator", "none", "shift", "temperature", "vector_scaling",
]  # fmt: skip

# In the order of reports: simple ones first.
CALIBRATORS: Mapping[str, Callable[..., Calibrator]] = {
  "none": none,
  "fixed": fixed,
  "adsa": adsa,
  "adsa_matrix": adsa_matrix,
  "adsa_vector": adsa_vector,
  "adsa_probe": adsa_probe,
  "em": em,
  "ltkd": ltkd,
  "temperature": temperature,
  "vector_scaling": vector_scaling,
}

# These do not look at the prior, so a class without training images does not disturb them.
WITHOUT_PRIOR = ("none", "temperature", "vector_scaling")

# These have a `refine`: the calibrate stage trains a student for them.
WITH_STUDENT = ("adsa_probe",)


# Raised when a fit finds something else that `apply` uses, or params get other arrays: what an
# older version fitted, in a work directory or cache, is then not used. The others have version 1.
VERSIONS: Mapping[str, int] = {"adsa_matrix": 2, "adsa_probe": 2}


def make_calibrator(name: str, **kwargs: Any) -> Calibrator:
  """A calibrator by its name in `CALIBRATORS`.

  Raises:
    LtddError: an unknown name or argument, with what may have been meant, or one out of range.
  """
  return registry.make("calibrator", CALIBRATORS, name, kwargs)


def version(name: str) -> int:
  """The code version of a calibrator: raised when what it fits changes."""
  return VERSIONS.get(name, 1)
