"""Calibrators: what is done to a teacher's logits before a student learns from them.

    calibrator = calibrate.make_calibrator("adsa", criterion="marginal")
    params = calibrator.fit(logits, labels, log_prior)  # once, on the label store
    logits = calibrator.apply(params, logits, log_prior)  # in the student's step, on each batch
    calibrator.report(params)  # plain numbers for a report

A calibrator is a NamedTuple of pure functions. To add one, write a factory like those in this
package and put it in `CALIBRATORS`; `tests/contract/test_calibrators.py` says what it must satisfy.
`docs/reference/calibrators.md` has a table of all of them. Where things are:

    base.py         the interface, and what the calibrators share
    simple.py       none, fixed
    adsa.py         adsa; its options are in criteria.py (averages at many tau at once),
                    bootstrap.py and head_bound.py
    class_bias.py   adsa_vector
    probe.py        adsa_probe
    prior_shift.py  em
    scaling.py      temperature and vector_scaling
    streaming.py    statistics and gradients of rows of logits in one pass
    lbfgs.py        L-BFGS on the gradients, and the report of such a fit
"""

import sys
from collections.abc import Callable, Mapping
from typing import Any

from ltdd_jax.calibrate.adsa import adsa
from ltdd_jax.calibrate.base import Calibrator, check_classes, check_prior, shift
from ltdd_jax.calibrate.class_bias import adsa_vector
from ltdd_jax.calibrate.prior_shift import em
from ltdd_jax.calibrate.probe import adsa_probe
from ltdd_jax.calibrate.scaling import temperature, vector_scaling
from ltdd_jax.calibrate.simple import fixed, none
from ltdd_jax.core import registry

__all__ = [
  "CALIBRATORS", "Calibrator", "adsa", "adsa_probe", "adsa_vector", "check_classes", "check_prior",
  "em", "fixed", "make_calibrator", "none", "shift", "temperature", "vector_scaling", "version",
]  # fmt: skip

# In the order of reports: simple ones first.
CALIBRATORS: Mapping[str, Callable[..., Calibrator]] = {
  "none": none,
  "fixed": fixed,
  "adsa": adsa,
  "adsa_vector": adsa_vector,
  "adsa_probe": adsa_probe,
  "em": em,
  "temperature": temperature,
  "vector_scaling": vector_scaling,
}


def make_calibrator(name: str, **kwargs: Any) -> Calibrator:
  """A calibrator by its name in `CALIBRATORS`.

  Raises:
    LtddError: an unknown name or argument, with what may have been meant, or one out of range.
  """
  return registry.make("calibrator", CALIBRATORS, name, kwargs)


def version(name: str) -> int:
  """The code version of a calibrator, `VERSION` of its module: raised when what it fits changes."""
  return sys.modules[CALIBRATORS[name].__module__].VERSION
