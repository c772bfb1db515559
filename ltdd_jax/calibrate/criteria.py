"""What tau is fitted by, over rows of any source: the criterion of `adsa.fit`, and two of our own.

    "confidence"    standard deviation over c of the mean over { n : y_n = c } of p(c | x_n; tau)
    "marginal"      standard deviation over c of K * (mean over all n of p(c | x_n; tau))
    "nll"           mean over all n of -log p(y_n | x_n; tau)

Means over all n give every class of y_n the same weight (docs/explanation/criteria.md). One pass
over the logits at many tau each, in memory O(block x k) and that of the answer.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ltdd_jax import adsa
from ltdd_jax.adsa import Rows
from ltdd_jax.calibrate import streaming

CRITERIA = {
  "confidence": "the spread of confidences",
  "marginal": "the spread of predicted masses, of mean 1,",
  "nll": "the mean log-loss",
}


def fit(rows: Rows, log_prior: np.ndarray, criterion: str, tau_range: Any) -> adsa.AdsaResult:
  """What `adsa.fit` finds for "confidence", and the like by another criterion."""
  if criterion == "confidence":
    return adsa.search(rows, log_prior, tau_range)
  taus = adsa.grid(tau_range, log_prior)
  means = class_means(rows, log_prior, [*taus, 0.0], criterion)
  q = means(taus)
  tau, status = adsa.lowest(
    taus, smooth(q, criterion), value=lambda at: smooth(means(at), criterion)
  )
  if np.ptp(log_prior) < adsa.UNIFORM:
    tau, status = 0.0, "uniform"
  elif np.ptp(objective(q, criterion)) < adsa.FLAT:
    status = "flat"
  ends = np.array([0.0, tau])
  before, after = map(float, objective(means(ends), criterion))
  at_zero, at_tau = adsa.class_means(rows, log_prior, ends)
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


# ---- averages at many tau ----


def class_means(rows: Rows, log_prior: np.ndarray, taus: Any, criterion: str) -> Callable:
  """Means of what a criterion averages at any tau between some: from (g,) to (g, k) float64.

  Classes without an image have NaN.
  """

  def means(at: np.ndarray) -> np.ndarray:
    if criterion != "marginal":
      return adsa.class_means(rows, log_prior, at, SCORES[criterion])
    masses = predicted_masses(rows, log_prior, at, np.ones((1, rows.lead[-1])))[0]
    keep = streaming.present(rows)
    return np.where(keep, keep.sum() * masses, np.nan)

  return adsa.polynomial(means, log_prior, taus)


@jax.jit
def true_class_log_loss(z: Any, y: Any, log_prior: Any, taus: Any) -> jax.Array:
  """-log p_y at each tau, (r, g), as `adsa.true_class` gives p_y."""
  gaps, w, total = adsa.exponentials(z, log_prior, taus)
  return jnp.log(total) - jnp.take_along_axis(gaps, y[:, None], 1) - jnp.log(w[y])


SCORES = {"confidence": adsa.true_class, "nll": true_class_log_loss}  # what criteria average


def image_scores(rows: Rows, log_prior: np.ndarray, taus: np.ndarray, criterion: str) -> np.ndarray:
  """Mean over label epochs of p_y, or of -log p_y, of each image: (n, g) float64."""
  n = rows.lead[-1]
  sums = np.zeros((n, len(taus)))
  lp, at = log_prior.astype(np.float32), taus.astype(np.float32)

  def step(start: int, z: np.ndarray, y: np.ndarray, w: np.ndarray) -> tuple[Any, Any]:
    del start, w
    p = SCORES[criterion](z, y, lp, at)
    return p, ~jnp.isnan(p[:, 0])

  for start, y, _, p in streaming.each(rows, np.ones(rows.k), step):
    np.add.at(sums, np.arange(start, start + len(y)) % n, np.asarray(p))
  return rows.total(sums) * (n / rows.n)


def predicted_masses(
  rows: Rows, log_prior: np.ndarray, taus: np.ndarray, weights: np.ndarray
) -> np.ndarray:
  """Mean predicted mass of each class, every class of y_n weighted equally: (b, g, k) float64.

  `weights` (b, n) are times that each of the n images counts. Raises ValueError for a row that is
  not finite.
  """
  n = rows.lead[-1]
  lp, taus = log_prior.astype(np.float32), taus.astype(np.float32)

  def step(start: int, z: np.ndarray, y: np.ndarray, w: np.ndarray) -> tuple[Any, Any]:
    images = np.arange(start, start + len(y)) % n
    return _masses(z, lp, taus, (weights[:, images] * w).astype(np.float32))

  out = np.zeros((len(weights), len(taus), rows.k))
  for *_, part in streaming.each(rows, streaming.row_weights(rows), step):
    out += np.asarray(part, np.float64)
  return rows.total(out)


@jax.jit
def _masses(z: Any, lp: Any, taus: Any, weights: Any) -> tuple[jax.Array, jax.Array]:
  """Sums over rows of v p_c, for weights v (b, r): (b, g, k); and whether rows are finite."""
  gaps, w, total = adsa.exponentials(z, lp, taus)
  dot = functools.partial(jnp.dot, precision="highest")
  mass = lambda v: w.T * dot((v[:, None] / total).T, jnp.exp(gaps))
  return jax.lax.map(mass, weights), streaming.finite_rows(z)
