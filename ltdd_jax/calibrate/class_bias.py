"""A bias for each class instead of one tau, and the record that such fits leave."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ltdd_jax.adsa import Rows
from ltdd_jax.calibrate import base, criteria, lbfgs, streaming
from ltdd_jax.calibrate.base import Calibrator
from ltdd_jax.calibrate.criteria import CRITERIA
from ltdd_jax.core.registry import check_choice
from ltdd_jax.core.types import Leaf

VERSION = 1


class BiasParams(NamedTuple):
  """A bias that is subtracted from logits, and what it did."""

  bias: Leaf  # (k,) float32, of mean zero
  tau: Leaf  # [] float32, slope of the regression of the bias on log pi
  anchor: Leaf  # [] float32, tau of scalar ADSA, NaN where there is none
  objective: Leaf  # (2,) float32, before and after, of the criterion
  confidence: Leaf  # (2, k) float32, before and after, NaN for classes without an image
  mass: Leaf  # (2, k) float32, mean predicted probability of each class, before and after
  reason: Leaf  # [] int32, number in `lbfgs.REASONS`
  iterations: Leaf  # [] int32


def adsa_vector(
  *,
  criterion: str = "confidence",
  strength: float = 0.03,
  tau_range: tuple[float, float] = (0.0, 3.0),
  max_iterations: int = 200,
) -> Calibrator:
  """ADSA with a bias b for each class: subtracts b instead of `tau * log pi`.

      b = argmin  D(b) + strength * mean over c of (b_c - tau log pi_c)^2

  where tau is what scalar ADSA finds by the same criterion, and D is

      "confidence"         variance over classes of q_c: class confidences are made equal
      "marginal", "nll"    mean of logsumexp(f_n - b) + mean of b: mean predicted masses are made
                           uniform. Convex, and but for a constant the mean log-loss of b, so that
                           both criteria differ in their tau only.

  Classes without an image take no part in D (the softmax is over the others) and keep `tau log pi`.
  With a uniform prior b = 0. Our extension of ADSA; from no paper.

  Args:
    criterion: one of `CRITERIA`.
    strength: of the pull towards scalar ADSA, which a strong one gives.
    tau_range: as for `adsa.fit`.
    max_iterations: of L-BFGS; each reads the logits once or twice, "confidence" twice as often.

  Raises:
    LtddError: bad options; from `fit`, whatever `adsa.fit` refuses.
  """
  check_choice("adsa_vector: criterion", criterion, tuple(CRITERIA))
  base.check_number("adsa_vector", "strength", strength)
  base.check_number("adsa_vector", "max_iterations", max_iterations, least=1)
  base.check_range("adsa_vector", tau_range)

  def fit(logits: Any, labels: Any, log_prior: Any) -> BiasParams:
    base.check_prior(log_prior)
    lp = np.asarray(log_prior, np.float64)
    with base.named("adsa_vector"):
      rows = base.open_rows(logits, labels, lp)
      scalar = criteria.fit(rows, lp, criterion, tau_range)
    if base.is_uniform(lp):
      return to_params(rows, lp, np.zeros(rows.k), "uniform", 0, criterion, 0.0)
    anchor = scalar.tau * base.centered(lp)
    make = streaming.confidence_variance if criterion == "confidence" else streaming.log_loss
    bias, found = fit_bias(make(rows), anchor, streaming.present(rows), strength, max_iterations)
    reason = scalar.status if scalar.status in ("flat", "edge") else found.reason
    return to_params(rows, lp, bias, reason, found.iterations, criterion, scalar.tau)

  def report(params: BiasParams) -> dict[str, Any]:
    what = f"bias of slope {float(params.tau):.3f} on log pi, scalar tau {float(params.anchor):.3f}"
    reason = lbfgs.REASONS[int(params.reason)]
    if float(params.anchor) == 0 == tau_range[0] and reason not in ("uniform", "flat"):
      what += ", its lower bound (check the order of class counts; see tau_range)"
    extra = {"criterion": criterion, "anchor": base.plain(params.anchor)}
    return bias_report(params, what, CRITERIA[criterion]) | extra

  return Calibrator(init, fit, apply, report)


def init(log_prior: Any) -> BiasParams:
  """The params of a calibrator with a bias that changes nothing."""
  k = log_prior.shape[0]
  nan = lambda *shape: jnp.full(shape, jnp.nan, jnp.float32)
  zero, no = jnp.float32(0), jnp.int32(0)
  return BiasParams(jnp.zeros(k), zero, nan(), nan(2), nan(2, k), nan(2, k), no, no)


def fit_bias(
  objective: streaming.Objective,
  anchor: np.ndarray,
  keep: np.ndarray,
  strength: float,
  max_iterations: int,
) -> tuple[np.ndarray, lbfgs.Outcome]:
  """Minimises `objective + strength * mean over keep of offset^2` over biases anchor + offset.

  Args:
    objective: from `streaming`.
    anchor: (k,).
    keep: (k,) classes with an image; the rest keep the anchor.
    strength: of the penalty.
    max_iterations: of L-BFGS.
  """
  share = keep / keep.sum()

  def fn(x: np.ndarray) -> tuple[float, np.ndarray]:
    value, _, gradient = objective(None, anchor + x)
    penalty = strength * float(share @ x**2)
    return value + penalty, gradient + 2 * strength * share * x

  found = lbfgs.minimise(fn, np.zeros(len(anchor)), max_iterations=max_iterations)
  return anchor + found.x, found


def to_params(
  rows: Rows,
  log_prior: np.ndarray,
  bias: np.ndarray,
  reason: str,
  iterations: int,
  criterion: str,
  anchor: float = np.nan,
  certain_is_flat: bool = True,
) -> BiasParams:
  """The record of a bias (k,), with what labels say before and after, and a criterion of it.

  Labels that are certain determine no bias, unless something else does: `certain_is_flat=False`.
  """
  bias = base.centered(bias)
  ends = [streaming.describe(rows, None, b) for b in (np.zeros(rows.k), bias)]
  if certain_is_flat and reason != "uniform" and base.is_certain(ends[0].confidence):
    reason = "flat"
  single = base.single
  return BiasParams(
    bias=single(bias),
    tau=single(base.slope(bias, log_prior)),
    anchor=single(anchor),
    objective=single([streaming.spread_of(e, criterion) for e in ends]),
    confidence=single([e.confidence for e in ends]),
    mass=single([e.mass for e in ends]),
    reason=jnp.int32(lbfgs.REASONS.index(reason)),
    iterations=jnp.int32(iterations),
  )


def apply(params: BiasParams, logits: jax.Array, log_prior: jax.Array) -> jax.Array:
  """Subtracts the bias; the mean of a row stays."""
  del log_prior
  return base.subtract(params.bias, logits)


def bias_report(params: BiasParams, what: str, objective: str) -> dict[str, Any]:
  """The report of a calibrator with a bias; `what` begins its message, `objective` is a name."""
  return lbfgs.report(params, what, objective) | {
    "bias": base.plain(params.bias),
    "mass_before": base.plain(params.mass[0]),
    "mass_after": base.plain(params.mass[1]),
  }
