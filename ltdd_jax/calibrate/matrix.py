"""The tau that the whole matrix of class means asks for, in closed form."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ltdd_jax import adsa as adsa_lib
from ltdd_jax.calibrate import base, streaming
from ltdd_jax.calibrate.base import Calibrator
from ltdd_jax.core.types import Leaf

LEAST = 1e-4  # of the weights' sum for each class: labels with less confuse no classes


class MatrixParams(NamedTuple):
  """A tau and what it was read off."""

  tau: Leaf  # [] float32
  objective: Leaf  # (2,) float32, weighted root mean square of the log odds at 0 and tau, or NaN
  confidence: Leaf  # (2, k) float32, before and after, NaN for classes without an image


def adsa_matrix(*, chunk_size: int | None = None) -> Calibrator:
  """Subtracts `tau * log pi`, tau from the log odds of confusing two classes with each other.

  With Q[c, d] the mean of p(d | x_n) over the rows of class c, a teacher that has learnt
  `log p(x | c) + tau log pi_c` gives on images drawn from p(x | c), whatever these are,

      log Q[c, d] - log Q[d, c] = tau (log pi_d - log pi_c)

  since both entries are the same integral but for that factor. tau is the weighted least-squares
  slope over all pairs, with the weights Q[c, d] Q[d, c] / (Q[c, d] + Q[d, c]): a rare confusion
  says little. One pass over the logits gives tau, without a search, and another what it does.
  Nothing is asked of the diagonal: classes need not be equally hard. Where labels are so certain
  that they confuse no classes, tau is 0 and the report says so. Ours, from no paper;
  docs/explanation/criteria.md has what it is worth.

  Args:
    chunk_size: rows in one step.

  Raises:
    LtddError: bad options; from `fit`, whatever `ltdd_jax.adsa.fit` refuses.
  """

  base.check_chunk("adsa_matrix", chunk_size)

  def fit(logits: Any, labels: Any, log_prior: Any) -> MatrixParams:
    base.check_prior(log_prior)
    lp = base.centered(log_prior)
    with base.named("adsa_matrix"):
      rows = base.open_rows(logits, labels, lp, chunk_size)
      means = class_mean_matrix(rows)
    odds, weights = log_odds(means)
    gaps = lp[None, :] - lp[:, None]
    power = float(np.sum(weights * gaps**2))
    known = power > 0 and not base.is_uniform(lp)
    tau = float(np.sum(weights * gaps * odds)) / power if known else 0.0
    left = [float(np.sqrt(np.sum(weights * (odds - t * gaps) ** 2))) for t in (0.0, tau)]
    left = left if weights.any() else [np.nan, np.nan]
    ends = [np.diagonal(means), streaming.describe(rows, None, tau * lp).confidence]
    single = lambda x: jnp.asarray(np.asarray(x), jnp.float32)
    return MatrixParams(single(tau), single(left), single(ends))

  def report(params: MatrixParams) -> dict[str, Any]:
    tau, (before, after) = float(params.tau), map(float, params.objective)
    flat = bool(np.isnan(before) and not np.isnan(params.confidence).all())
    message = (
      f"tau = {tau:.3f}: the log odds of confusing one class with another and the other "
      f"with it go from {before:.4f} to {after:.4f} (weighted root mean square)."
    )
    if flat:
      message = (
        "tau = 0: labels confuse no class with another, so these logits do not determine tau. Fit "
        "on the augmented views that students see (random resized crop, flip, CutMix)."
      )
    return {
      "tau": tau,
      "flat": flat,
      "objective_before": base.plain(before),
      "objective_after": base.plain(after),
      "confidence_before": base.plain(params.confidence[0]),
      "confidence_after": base.plain(params.confidence[1]),
      "message": message,
    }

  return Calibrator(_init, fit, _apply, report)


def _init(log_prior: Any) -> MatrixParams:
  nan = lambda *shape: jnp.full(shape, jnp.nan, jnp.float32)
  return MatrixParams(jnp.float32(0), nan(2), nan(2, log_prior.shape[0]))


def _apply(params: MatrixParams, logits: jax.Array, log_prior: jax.Array) -> jax.Array:
  return base.shift(params.tau, logits, log_prior)


@functools.partial(jax.jit, static_argnames="k")
def _sums(z: Any, y: Any, w: Any, k: int) -> tuple[jax.Array, jax.Array]:
  """Sum of w p(. | x) over the rows of each class (k, k), and whether rows are finite."""
  p = jax.nn.softmax(z.astype(jnp.float32))
  return jax.ops.segment_sum(w[:, None] * p, y, num_segments=k), streaming.finite_rows(z)


def class_mean_matrix(rows: adsa_lib.Rows) -> np.ndarray:
  """Mean soft label of each class: (k, k) float64, rows of NaN for classes without an image.

  Raises:
    ValueError: a row that is not finite.
  """
  total = np.zeros((rows.k, rows.k))
  parts = (
    (start, _sums(z, y, w, rows.k))
    for start, _, z, y, w in streaming.weighted_chunks(rows, np.ones(rows.k))
  )
  for start, (part, finite) in streaming.ahead(parts):
    streaming.check_finite(rows, start, finite)
    total += np.asarray(part, np.float64)
  with np.errstate(invalid="ignore"):
    return total / rows.counts[:, None]


def log_odds(means: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Log odds (k, k) of the pairs of classes, `log means[c, d] - log means[d, c]`, and weights.

  Weights sum to one, or are all zero if there is less than `LEAST` for each class with an image;
  pairs without an estimate have weight and log odds zero.
  """
  known = np.isfinite(means) & np.isfinite(means.T) & (means > 0) & (means.T > 0)
  np.fill_diagonal(known, False)
  safe = np.where(known, means, 1.0)
  weights = np.where(known, safe * safe.T / (safe + safe.T), 0.0)
  total, classes = weights.sum(), np.isfinite(np.diagonal(means)).sum()
  weights = weights / total if total >= LEAST * classes else np.zeros_like(weights)
  return np.where(known, np.log(safe / safe.T), 0.0), weights
