"""Averages of aligned labels at many tau at once, over classes, images and resampled images.

    p(c | x; tau) = softmax(f(x) - tau * log pi)_c

One pass over the logits each, in memory O(chunk x k) and that of the answer.
"""

import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ltdd_jax import adsa
from ltdd_jax.calibrate import streaming
from ltdd_jax.calibrate.streaming import Rows


def class_means(
  rows: Rows, log_prior: np.ndarray, taus: np.ndarray, criterion: str = "confidence"
) -> np.ndarray:
  """Class means of what a criterion averages: (g, k) float64, NaN for classes without an image.

  Raises:
    ValueError: a row that is not finite.
  """
  if criterion == "marginal":
    masses = predicted_masses(rows, log_prior, taus, np.ones((1, rows.lead[-1])))[0]
    keep = streaming.present(rows)
    return np.where(keep, keep.sum() * masses, np.nan)
  sums = np.zeros((rows.k, len(taus)))
  for start, skip, y, p in _true_class(rows, log_prior, taus, criterion == "nll"):
    del start
    sums += adsa.sum_by(y[skip:], p[skip:], rows.k)
  with np.errstate(invalid="ignore"):
    return (sums / rows.counts[:, None]).T


def image_scores(rows: Rows, log_prior: np.ndarray, taus: np.ndarray, log: bool) -> np.ndarray:
  """Mean over label epochs of p_y, or of -log p_y, of each image: (n, g) float64."""
  n = rows.lead[-1]
  sums = np.zeros((n, len(taus)))
  for start, skip, y, p in _true_class(rows, log_prior, taus, log):
    np.add.at(sums, np.arange(start + skip, start + len(y)) % n, p[skip:])
  sums *= n / rows.n
  return sums


def _true_class(
  rows: Rows, log_prior: np.ndarray, taus: np.ndarray, log: bool
) -> Iterator[tuple[int, int, np.ndarray, np.ndarray]]:
  """Yields first row, rows to skip, classes (r,), and p_y or -log p_y at each tau (r, g)."""
  lp, taus = log_prior.astype(np.float32), taus.astype(np.float32)
  parts = (
    (start, skip, y, adsa.true_class(z, y, lp, taus, log)) for start, skip, z, y in rows.chunks()
  )
  for start, skip, y, p in streaming.ahead(parts):
    p = np.asarray(p)
    adsa.check_finite(~np.isnan(p[:, 0]), start, rows.lead)
    yield start, skip, y, p


def predicted_masses(
  rows: Rows, log_prior: np.ndarray, taus: np.ndarray, weights: np.ndarray
) -> np.ndarray:
  """Mean predicted mass of each class, every class of y_n weighted equally: (b, g, k) float64.

  Args:
    rows: logits.
    log_prior: (k,).
    taus: (g,).
    weights: (b, n) times that each of the n images counts.

  Raises:
    ValueError: a row that is not finite.
  """
  per_class, n = streaming.row_weights(rows), rows.lead[-1]
  out = np.zeros((len(weights), len(taus), rows.k))
  lp, taus = log_prior.astype(np.float32), taus.astype(np.float32)

  def parts() -> Iterator[tuple[int, jax.Array, jax.Array]]:
    for start, _, z, y, v in streaming.weighted_chunks(rows, per_class):
      images = np.arange(start, start + len(y)) % n
      yield start, *_masses(z, lp, taus, (weights[:, images] * v).astype(np.float32))

  for start, part, finite in streaming.ahead(parts()):
    adsa.check_finite(finite, start, rows.lead)
    out += np.asarray(part, np.float64)
  return out


@jax.jit
def _masses(z: Any, lp: Any, taus: Any, weights: Any) -> tuple[jax.Array, jax.Array]:
  """Sums over rows of v p_c, for weights v (b, r): (b, g, k); and whether rows are finite."""
  gaps, w, total = adsa.exponentials(z, lp, taus)
  dot = functools.partial(jnp.dot, precision="highest")
  mass = lambda v: w.T * dot((v[:, None] / total).T, jnp.exp(gaps))
  return jax.lax.map(mass, weights), streaming.finite_rows(z)
