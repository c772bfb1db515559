"""ADSA twice: on labels, and on what a student of those labels says of the training set."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ltdd_jax.calibrate import base, class_bias
from ltdd_jax.calibrate.adsa import AdsaParams, adsa
from ltdd_jax.calibrate.base import Calibrator
from ltdd_jax.calibrate.class_bias import BiasParams
from ltdd_jax.core.types import LtddError

VERSION = 2

RANGE = (-3.0, 3.0)  # of the slope that a student's bias may have; a student may overshoot
REACH = 0.8  # of the classes, and of the range of log pi: what those with unseen images cover


class ProbeParams(NamedTuple):
  """What ADSA found, and the bias that a student had left; NaN objectives before it is read."""

  labels: AdsaParams
  student: BiasParams


def adsa_probe(
  *,
  criterion: str = "confidence",
  strength: float = 0.03,
  tau_range: tuple[float, float] = (0.0, 3.0),
  max_iterations: int = 200,
) -> Calibrator:
  """Subtracts `tau log pi + b`: ADSA's tau, and the bias b that a student of such labels has.

  A student learns the shift of its labels in part, and has a bias of its own. So a probe student is
  trained on labels with ADSA's tau, and its bias is read on training images that it has not seen,
  with the same weight for each class, as `adsa_vector` with "nll" reads it:

      b = argmin  mean -log softmax(g(x_n) - b)_{y_n} + strength * mean_c (b_c - slope log pi_c)^2

  for the student's logits g (label shift by maximum likelihood; docs/explanation/criteria.md).
  Images that are in the distilled set as they are, are left out; crops or changes of them (RDED,
  EDC) are not recognised, and make b of their class too large. A class without an image left gets
  the value of the regression of the others' b on log pi, if these are four fifths of the classes
  and cover four fifths of its range. If not, nothing is taken off, and the report says so. No test
  data are used. Ours, from no paper.

  Args:
    criterion: of ADSA, one of `CRITERIA`.
    strength: of the pull of b towards a multiple of log pi; a large one leaves that multiple.
    tau_range: of ADSA.
    max_iterations: of L-BFGS.

  Raises:
    LtddError: bad options; from `fit` and `refine`, whatever `adsa.fit` refuses.
  """
  base.check_range("adsa_probe", tau_range)
  if min(tau_range) < 0:
    raise LtddError(f"adsa_probe: tau_range is {tau_range}; expected numbers from 0 up")
  with base.named("adsa_probe", "adsa"):
    first = adsa(criterion=criterion, tau_range=tau_range)
  with base.named("adsa_probe", "adsa_vector"):
    second = class_bias.adsa_vector(
      criterion="nll", strength=strength, tau_range=RANGE, max_iterations=max_iterations
    )

  def init(log_prior: Any) -> ProbeParams:
    return ProbeParams(first.init(log_prior), second.init(log_prior))

  def fit(logits: Any, labels: Any, log_prior: Any) -> ProbeParams:
    with base.named("adsa_probe", "adsa"):
      return ProbeParams(first.fit(logits, labels, log_prior), second.init(log_prior))

  def refine(params: ProbeParams, logits: Any, labels: Any, log_prior: Any) -> ProbeParams:
    if not len(labels):
      return params
    with base.named("adsa_probe, student's logits"):
      base.open_rows(logits, labels, log_prior)
    if not enough(labels, log_prior):
      return params
    present = np.unique(labels)
    with base.named("adsa_probe, student's logits", "adsa_vector"):
      if len(present) == len(log_prior):
        return params._replace(student=second.fit(logits, labels, log_prior))
      labels = np.searchsorted(present, labels)
      found = second.fit(np.asarray(logits)[:, present], labels, log_prior[present])
    return params._replace(student=_for_all(found, present, np.asarray(log_prior, np.float64)))

  def apply(params: ProbeParams, logits: jax.Array, log_prior: jax.Array) -> jax.Array:
    return base.subtract(params.student.bias, first.apply(params.labels, logits, log_prior))

  def report(params: ProbeParams) -> dict[str, Any]:
    found, left = first.report(params.labels), second.report(params.student)
    extra = {"label_tau": found["tau"], "student_tau": left["tau"], "student_bias": left["bias"]}
    if not np.isnan(params.student.objective[0]):
      # Nobody has looked at the labels since: what they say now is not known.
      found["confidence_after"] = [None] * len(found["confidence_before"])
      found["message"] += (
        f" A student of such labels has a bias of slope {left['tau']:.3f} on training images that "
        "are not in the distilled set; without it its mean log-loss goes from "
        f"{left['objective_before']:.4f} to {left['objective_after']:.4f}. In all the slope is "
        f"{found['tau'] + left['tau']:.3f}."
      )
      if on_line := int(np.isnan(params.student.mass[0]).sum()):
        found["message"] += f" {on_line} classes without such images follow the line of the others."
    else:
      found["message"] += (
        " No bias of a student was taken off: that takes classes of unequal numbers, and training "
        "images outside the distilled set in four fifths of them and of the range of log pi."
      )
    return found | {"tau": found["tau"] + left["tau"]} | extra

  return Calibrator(init, fit, apply, report, refine, ("prior", "probe"))


def enough(labels: Any, log_prior: Any) -> bool:
  """Whether these classes (m,), of those with a log prior (k,), say what the bias is of all."""
  prior = np.asarray(log_prior, np.float64)
  known = prior[np.unique(labels)]
  return len(known) >= REACH * len(prior) and np.ptp(known) >= REACH * np.ptp(prior)


def _for_all(found: BiasParams, present: np.ndarray, log_prior: np.ndarray) -> BiasParams:
  """The params of some of k classes as those of all; the others get a bias, but no confidence."""
  k = len(log_prior)
  bias, many = np.zeros(k), np.full((2, 2, k), np.nan, np.float32)
  bias[present], many[..., present] = found.bias, (found.confidence, found.mass)
  bias = base.centered(base.on_the_line(bias, np.isin(np.arange(k), present), log_prior))
  confidence, mass = jnp.asarray(many)
  return found._replace(bias=jnp.asarray(bias, jnp.float32), confidence=confidence, mass=mass)
