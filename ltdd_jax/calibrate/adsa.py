"""Adaptive soft-label alignment as a calibrator, with its options."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ltdd_jax import adsa as adsa_lib
from ltdd_jax.calibrate import base, criteria, head_bound, streaming
from ltdd_jax.calibrate import bootstrap as bootstrap_lib
from ltdd_jax.calibrate.base import Calibrator
from ltdd_jax.calibrate.criteria import CRITERIA
from ltdd_jax.core.registry import check_choice
from ltdd_jax.core.types import Leaf, LtddError

VERSION = 1

CURVE = 128  # points of a stored curve; finer searches are interpolated
_BOUNDED = {  # what a status adds to the message of a bounded tau
  "flat": " But it is flat: these logits do not determine tau.",
  "edge": " Without the bound tau is no minimum but an edge. Check labels and class_counts.",
}


class AdsaParams(NamedTuple):
  """An `adsa.AdsaResult` as arrays of fixed shapes, and what options add to it."""

  tau: Leaf  # [] float32
  objective: Leaf  # (2,) float32, before and after
  confidence: Leaf  # (2, k) float32, before and after, NaN for classes without an image
  curve: Leaf  # (CURVE, 2) float32, (tau, objective)
  status: Leaf  # [] int32, number in adsa.STATUSES
  interval: Leaf  # (2,) float32, of the bootstrap, or NaN
  free_tau: Leaf  # [] float32, tau without the bound on the head
  head_curve: Leaf  # (CURVE, 4) float32: tau, objective, head and tail confidence; or (0, 4)


def adsa(
  *,
  criterion: str = "confidence",
  target_prior: Sequence[float] | None = None,
  bootstrap: int = 0,
  max_head_drop: float | None = None,
  head: Sequence[int] | None = None,
  tau_range: tuple[float, float] = (0.0, 3.0),
) -> Calibrator:
  """Adaptive soft-label alignment: subtracts `tau * log pi`, with the tau that `adsa.fit` finds.

  Args:
    criterion: one of `CRITERIA`; "confidence" is the published one.
    target_prior: (k,) frequencies q of the classes where students will be used; the shift is then
      `tau * log pi - log q`. Uniform gives plain ADSA.
    bootstrap: replicates, 20 or more, for the 95 % interval of tau over draws of images
      (`calibrate.bootstrap`), of the tau without the bound of `max_head_drop`. There is none where
      a class has one image.
    max_head_drop: how much the mean confidence of head classes may fall from its value at tau = 0
      (`calibrate.head_bound`); tau is the best that satisfies it.
    head: classes that it protects; by default the first third by training images.
    tau_range: as for `adsa.fit`.

  Raises:
    LtddError: bad options; from `init` and `fit`, a target prior or a head that is not one of k
      classes; from `fit`, whatever `ltdd_jax.adsa.fit` refuses.
  """
  check_choice("adsa: criterion", criterion, tuple(CRITERIA))
  if bootstrap != 0 and bootstrap < bootstrap_lib.LEAST:
    raise LtddError(
      f"adsa: bootstrap is {bootstrap}; expected {bootstrap_lib.LEAST} replicates or more, or 0 "
      "for no interval."
    )
  base.check_range("adsa", tau_range)
  if max_head_drop is not None:
    base.check_number("adsa", "max_head_drop", max_head_drop)
  elif head is not None:
    raise LtddError(f"adsa: head is {head} without max_head_drop, which uses it; give both.")
  head = None if head is None else tuple(head)

  def init(log_prior: Any) -> AdsaParams:
    k = log_prior.shape[0]
    if max_head_drop is not None:
      head_bound.head_and_tail(head, np.zeros(k))
    return _init(k, CURVE if max_head_drop is not None else 0)

  def fit(logits: Any, labels: Any, log_prior: Any) -> AdsaParams:
    base.check_prior(log_prior)
    lp = np.asarray(log_prior, np.float64)
    init(lp)  # refuses a head for another number of classes
    with base.named("adsa"):
      rows = base.open_rows(logits, labels, lp)
      if bootstrap:
        bootstrap_lib.check_size(rows, criterion, bootstrap)
      result = criteria.fit(rows, lp, criterion, tau_range)
      params = _to_params(result)
      if bootstrap:
        interval = bootstrap_lib.interval(rows, lp, result, criterion, bootstrap)
        params = params._replace(interval=base.single(interval))
      if max_head_drop is not None:
        tau, curve = head_bound.bounded(rows, lp, result, criterion, max_head_drop, head)
        params = params._replace(head_curve=_resample(curve))
        if tau != result.tau:
          params = _with_tau(params, rows, lp, tau, criterion)
    return params

  def apply(params: AdsaParams, logits: jax.Array, log_prior: jax.Array) -> jax.Array:
    return base.shift(params.tau, logits, log_prior)

  def report(params: AdsaParams) -> dict[str, Any]:
    return _report(params, criterion, bootstrap, max_head_drop)

  return base.with_target("adsa", Calibrator(init, fit, apply, report), target_prior)


def _init(k: int, points: int) -> AdsaParams:
  nan = lambda *shape: jnp.full(shape, jnp.nan, jnp.float32)
  zero = jnp.float32(0)
  return AdsaParams(
    zero, nan(2), nan(2, k), nan(CURVE, 2), jnp.int32(0), nan(2), zero, nan(points, 4)
  )


def _to_params(result: adsa_lib.AdsaResult) -> AdsaParams:
  return _init(len(result.confidence_before), 0)._replace(
    tau=jnp.float32(result.tau),
    objective=base.single([result.objective_before, result.objective_after]),
    confidence=base.single([result.confidence_before, result.confidence_after]),
    curve=_resample(result.curve),
    status=jnp.int32(adsa_lib.STATUSES.index(result.status)),
    free_tau=jnp.float32(result.tau),
  )


def _resample(curve: np.ndarray) -> jax.Array:
  """A curve (m, 1 + f) at CURVE evenly spaced tau: (CURVE, 1 + f) float32."""
  taus = np.linspace(curve[0, 0], curve[-1, 0], CURVE)
  columns = [np.interp(taus, curve[:, 0], column) for column in curve.T[1:]]
  return base.single(np.stack([taus, *columns], 1))


def _with_tau(
  params: AdsaParams, rows: adsa_lib.Rows, log_prior: np.ndarray, tau: float, criterion: str
) -> AdsaParams:
  """The params of a fit with another tau."""
  summary = streaming.describe(rows, None, tau * log_prior)
  after = streaming.spread_of(summary, criterion)
  return params._replace(
    tau=jnp.float32(tau),
    objective=params.objective.at[1].set(after),
    confidence=params.confidence.at[1].set(base.single(summary.confidence)),
  )


def _report(
  params: AdsaParams, criterion: str, replicates: int, max_head_drop: float | None
) -> dict[str, Any]:
  report = base.fit_report(params)
  report |= {"criterion": criterion, "curve": base.plain(params.curve)}
  tau, free = report["tau"], float(params.free_tau)
  status, (before, after) = adsa_lib.STATUSES[int(params.status)], map(float, params.objective)
  if tau == free:
    message = criteria.explain(status, tau, before, after, criterion)
  else:
    message = (
      f"tau = {tau:.3f}, bounded by max_head_drop={max_head_drop:g} (without it {free:.3f}): the "
      f"objective goes from {before:.4f} to {after:.4f}."
    ) + _BOUNDED.get(status, "")
  report |= {"flat": status in ("flat", "uniform"), "message": message}
  if max_head_drop is not None:
    report |= {"free_tau": free, "head_curve": base.plain(params.head_curve)}
  return report | _interval(report, params.interval, replicates) if replicates else report


def _interval(report: dict[str, Any], interval: Any, replicates: int) -> dict[str, Any]:
  """What a bootstrap adds to a report: replicates have no bound on the head."""
  low, high = base.plain(interval)
  found = None if low is None else [low, high]
  bounded = report.get("free_tau", report["tau"]) != report["tau"]
  out = {"tau_interval": None if bounded else found}
  if "free_tau" in report:
    out["free_tau_interval"] = found
  message = report["message"]
  if found:
    of = " of tau without the bound," if bounded else ""
    message += f" 95 % interval{of} over {replicates} draws of images: {low:.3f} to {high:.3f}."
  elif report["objective_before"] is not None:  # it was fitted
    message += " No interval of tau: a class has one image only."
  return out | {"message": message}
