"""What tau is fitted by, over rows of any source: the criterion of `adsa.fit`, and two of our own.

    "confidence"    standard deviation over c of the mean over { n : y_n = c } of p(c | x_n; tau)
    "marginal"      standard deviation over c of K * (mean over all n of p(c | x_n; tau))
    "nll"           mean over all n of -log p(y_n | x_n; tau)

Means over all n give every class of y_n the same weight (docs/explanation/criteria.md).
"""

import functools
from typing import Any

import numpy as np

from ltdd_jax import adsa
from ltdd_jax.adsa import Rows
from ltdd_jax.calibrate import tau_curves

CRITERIA = {
  "confidence": "the spread of confidences",
  "marginal": "the spread of predicted masses, of mean 1,",
  "nll": "the mean log-loss",
}


def fit(rows: Rows, log_prior: np.ndarray, criterion: str, tau_range: Any) -> adsa.AdsaResult:
  """What `adsa.fit` finds for "confidence", and the like by another criterion.

  Raises:
    ValueError: a row that is not finite, or a range that is none.
  """
  confidences = functools.partial(tau_curves.class_means, rows, log_prior)
  if criterion == "confidence":
    return adsa.search(rows, log_prior, tau_range)
  taus = adsa.grid(tau_range, log_prior)
  q = confidences(taus, criterion)
  tau, status = adsa.lowest(taus, smooth(q, criterion))
  if np.ptp(log_prior) < adsa.UNIFORM:
    tau, status = 0.0, "uniform"
  elif np.ptp(objective(q, criterion)) < adsa.FLAT:
    status = "flat"
  ends = np.array([0.0, tau])
  before, after = map(float, objective(confidences(ends, criterion), criterion))
  at_zero, at_tau = confidences(ends)
  return adsa.AdsaResult(
    tau, before, after, at_zero, at_tau,
    curve=np.stack([taus, objective(q, criterion)], 1),
    flat=status in ("flat", "uniform"),
    message=explain(status, tau, before, after, criterion),
    status=status,
  )  # fmt: skip


def explain(status: str, tau: float, before: float, after: float, criterion: str) -> str:
  """The message of a result, as `adsa.fit` writes it for its criterion."""
  change = f"{CRITERIA[criterion]} goes from {before:.4f} to {after:.4f}"
  return adsa.MESSAGES[status].format(tau=tau, change=change)


def smooth(q: np.ndarray, criterion: str) -> np.ndarray:
  """What is minimised, without a kink, from class means (..., k): (...); NaN does not count."""
  return np.nanmean(q, axis=-1) if criterion == "nll" else np.nanvar(q, axis=-1)


def objective(q: np.ndarray, criterion: str) -> np.ndarray:
  """What is reported, from class means (..., k): (...)."""
  return np.nanmean(q, axis=-1) if criterion == "nll" else np.nanstd(q, axis=-1)
