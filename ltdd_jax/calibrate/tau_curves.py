"""Averages of aligned labels at many tau at once, over images and over resampled images.

    p(c | x; tau) = softmax(f(x) - tau * log pi)_c

Those over classes are `adsa.class_means`. One pass over the logits each, in memory O(chunk x k) and
that of the answer.
"""

import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ltdd_jax.adsa import COLLAPSED, Rows
from ltdd_jax.calibrate import streaming


@functools.partial(jax.jit, static_argnames="log")
def _true(z: Any, y: Any, lp: Any, taus: Any, log: bool) -> tuple[jax.Array, jax.Array]:
  """p_y (or its log) of each row and tau, (r, g), and whether rows are finite (r,)."""
  z = z.astype(jnp.float32)
  own = jnp.take_along_axis(z, y[:, None], 1)[:, 0]

  def at(tau: jax.Array) -> jax.Array:
    total = jax.nn.logsumexp(z - tau * lp[None], axis=1)
    return own - tau * lp[y] - total

  out = jax.lax.map(at, taus).T
  return out if log else jnp.exp(out), streaming.finite_rows(z)


def image_scores(
  rows: Rows, log_prior: np.ndarray, taus: np.ndarray, *, log: bool = False
) -> np.ndarray:
  """Mean over label epochs of p_y, or of -log p_y, of each image: (n, g) float64."""
  n = rows.lead[-1]
  sums = np.zeros((n, len(taus)))
  lp, taus = log_prior.astype(np.float32), taus.astype(np.float32)
  parts = ((start, skip, *_true(z, y, lp, taus, log)) for start, skip, z, y in rows.chunks())
  for start, skip, p, finite in streaming.ahead(parts):
    streaming.check_finite(rows, start, finite)
    np.add.at(sums, np.arange(start + skip, start + len(finite)) % n, np.asarray(p)[skip:])
  sums *= -1 if log else 1
  sums *= n
  sums /= rows.n
  return sums


@jax.jit
def _masses(z: Any, lp: Any, taus: Any, w: Any) -> jax.Array:
  """sum over rows of w_bn p_nc, for weights w (b, r): (g, b, k)."""
  z = z.astype(jnp.float32)

  def at(tau: jax.Array) -> jax.Array:
    p = jax.nn.softmax(z - tau * lp[None], axis=1)
    return jnp.dot(w, p, precision="highest")

  return jax.lax.map(at, taus)


def predicted_masses(
  rows: Rows, log_prior: np.ndarray, taus: np.ndarray, weights: np.ndarray
) -> np.ndarray:
  """Mean predicted mass of each class, every class of y_n weighted equally: (b, g, k) float64.

  Args:
    rows: logits, checked to be finite.
    log_prior: (k,).
    taus: (g,).
    weights: (b, n) times that each of the n images counts.
  """
  per_class, n = streaming.row_weights(rows), rows.lead[-1]
  out = np.zeros((len(taus), len(weights), rows.k))
  lp, taus = log_prior.astype(np.float32), taus.astype(np.float32)

  def parts() -> Iterator[jax.Array]:
    for start, _, z, y, v in streaming.weighted_chunks(rows, per_class):
      images = np.arange(start, start + len(y)) % n
      yield _masses(z, lp, taus, (weights[:, images] * v).astype(np.float32))

  for part in streaming.ahead(parts()):
    out += np.asarray(part, np.float64)
  return np.moveaxis(out, 0, 1)


def lowest(taus: np.ndarray, curve: np.ndarray, level: np.ndarray | None = None) -> float:
  """The tau of the least value of a curve (g,), between grid points by a parabola.

  Points where `level` (g,), the mean confidence, is below half of its best do not count: there the
  confidences are alike because a few classes take everything.
  """
  if level is not None:
    curve = np.where(level >= COLLAPSED * level.max(), curve, np.inf)
  i = int(np.argmin(curve))
  if 0 < i < len(taus) - 1 and np.all(np.isfinite(curve[i - 1 : i + 2])):
    a, b, c = np.polyfit(taus[i - 1 : i + 2] - taus[i], curve[i - 1 : i + 2], 2)
    del c
    if a > 0:
      return float(np.clip(taus[i] - b / (2 * a), taus[i - 1], taus[i + 1]))
  return float(taus[i])
