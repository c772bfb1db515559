"""Statistics and gradients of rows of logits, in one pass and memory O(block x k).

Every calibrator that is fitted here makes of logits z (k,)

    x(z) = scale * (z - mean z) - bias        or, with scale None, z - bias

and looks at softmax(x) restricted to the classes in `keep`. Means over rows give every class with
an image the same weight: a row of class c weighs v = 1 / (number of such classes * rows of c).
"""

import collections
import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ltdd_jax.adsa import Rows, Share
from ltdd_jax.core import mesh as mesh_lib

# (first row, logits (r, k), classes (r,), weights (r,)) -> value, whether rows are finite (r,)
Step = Callable[[int, np.ndarray, np.ndarray, np.ndarray], tuple[Any, Any]]
# (scale (k,) or None, bias (k,)) -> value, its gradients by scale (0 for None) and by bias
Objective = Callable[[Any, np.ndarray], tuple[float, np.ndarray, np.ndarray]]


class Shared:
  """A row source of which every process reads some rows; all of them have to fit the same."""

  def __init__(self, source: Any) -> None:
    self.shape, self.dtype, self.rows = source.shape, source.dtype, source.rows
    self.share = Share(jax.process_index(), jax.process_count(), mesh_lib.total)


class Summary(NamedTuple):
  """What labels say on average."""

  confidence: np.ndarray  # (k,) mean of p(c | x_n) over the rows of class c, NaN without one
  mass: np.ndarray  # (k,) mean of p(c | x_n) over all rows, by the weights v
  log_loss: float  # mean of -log p(y_n | x_n), by the weights v


def adjust(z: jax.Array, scale: Any, bias: Any) -> jax.Array:
  """`scale * (z - mean z) - bias` of each row, for z (r, k): float32 (r, k)."""
  z = z.astype(jnp.float32)
  if scale is None:  # the mean would cost precision where one logit is huge
    return z - bias[None]
  return scale[None] * (z - z.mean(1, keepdims=True)) - bias[None]


def present(rows: Rows) -> np.ndarray:
  """Which classes have an image, (k,) bool."""
  return rows.counts > 0


def row_weights(rows: Rows) -> np.ndarray:
  """Weight of a row of each class, (k,) float64, 0 for classes without one."""
  return np.where(rows.counts > 0, 1 / (present(rows).sum() * np.maximum(rows.counts, 1)), 0.0)


def ahead(items: Iterable[Any], depth: int = 2) -> Iterator[Any]:
  """Yields the items in order, made `depth` ahead: the device works while the host adds."""
  waiting: collections.deque[Any] = collections.deque()
  for item in items:
    waiting.append(item)
    if len(waiting) > depth:
      yield waiting.popleft()
  yield from waiting


def each(rows: Rows, weights: np.ndarray, step: Step) -> Iterator[tuple[Any, ...]]:
  """Yields (first row, classes, weights, value) of each block, in one pass over the rows.

  Args:
    rows: logits with their classes.
    weights: (k,) of a row of each class.
    step: (first row, logits (r, k), classes (r,), weights (r,) float32) -> a value and whether each
      row is finite (r,).

  Raises:
    ValueError: a row that is not finite.
  """

  def parts() -> Iterator[tuple[Any, ...]]:
    for start, z, y in rows.blocks():
      w = weights[y].astype(np.float32)
      yield start, y, w, step(start, z, y, w)

  for *block, (value, finite) in ahead(parts()):
    rows.check_finite(finite, block[0])
    yield *block, value


def finite_rows(z: jax.Array) -> jax.Array:
  """Whether each row of z (r, k) is finite."""
  return jnp.isfinite(z.min(1)) & jnp.isfinite(z.max(1))


@jax.jit
def _describe(z: Any, y: Any, v: Any, scale: Any, bias: Any, keep: Any) -> tuple[Any, ...]:
  """Log-probability of each row's class (r,) and sum of v p (k,); whether rows are finite."""
  log_p, true = _log_probabilities(z, y, scale, bias, keep)
  return (true, jnp.dot(v, jnp.exp(log_p), precision="highest")), finite_rows(z)


def _log_probabilities(z: Any, y: Any, scale: Any, bias: Any, keep: Any) -> tuple[Any, Any]:
  """Log-softmax over the classes in keep (r, k), and its value at each row's class (r,)."""
  log_p = jax.nn.log_softmax(jnp.where(keep[None], adjust(z, scale, bias), -jnp.inf))
  return log_p, jnp.take_along_axis(log_p, y[:, None], 1)[:, 0]


def _single(values: Any) -> np.ndarray | None:
  return None if values is None else np.asarray(values, np.float32)


def describe(rows: Rows, scale: Any, bias: Any, keep: np.ndarray | None = None) -> Summary:
  """What labels say, for a scale (k,) or None, a bias (k,) or one, and the classes in keep (k,)."""
  k = rows.k
  keep = np.ones(k, bool) if keep is None else keep
  theta = _single(scale), np.broadcast_to(np.asarray(bias, np.float32), (k,)), keep
  confidence, mass, log_loss = np.zeros(k), np.zeros(k), 0.0
  step = lambda start, z, y, w: _describe(z, y, w, *theta)
  for _, y, w, (true, part) in each(rows, row_weights(rows), step):
    true = np.asarray(true, np.float64)
    confidence += np.bincount(y, np.exp(true), k)
    mass += np.asarray(part, np.float64)
    log_loss -= float(w.astype(np.float64) @ true)
  with np.errstate(invalid="ignore"):
    confidence = rows.total(confidence) / rows.counts
  return Summary(confidence, rows.total(mass), float(rows.total(log_loss)))


def spread_of(summary: Summary, criterion: str) -> float:
  """The objective of a criterion, as of `criteria.objective`, from a summary."""
  if criterion == "nll":
    return summary.log_loss
  some = ~np.isnan(summary.confidence)
  values = summary.confidence if criterion == "confidence" else some.sum() * summary.mass
  return float(np.std(values[some]))


# ---- objectives with gradients ----


@functools.partial(jax.jit, static_argnames="term")
def _gradients(scale: Any, bias: Any, z: Any, y: Any, w: Any, keep: Any, term: str) -> Any:
  """p_y or -log p_y of each row (r,); gradients of their sum, weighted by w, by scale and bias;
  and whether rows are finite.

  The sum itself is left to the host in float64: a line search sees its rounding.
  """

  def total(scale: jax.Array, bias: jax.Array) -> tuple[jax.Array, jax.Array]:
    _, true = _log_probabilities(z, y, scale, bias, keep)
    terms = jnp.exp(true) if term == "confidence" else -true
    return w @ terms, terms

  (_, terms), gradients = jax.value_and_grad(total, argnums=(0, 1), has_aux=True)(scale, bias)
  return (terms, gradients), finite_rows(z)


def _pass(
  rows: Rows, weights: np.ndarray, term: str, scale: Any, bias: Any
) -> tuple[float, np.ndarray, np.ndarray]:
  keep, theta = present(rows), (_single(scale), _single(bias))
  value, by_scale, by_bias = 0.0, np.zeros(rows.k), np.zeros(rows.k)
  step = lambda start, z, y, w: _gradients(*theta, z, y, w, keep, term)
  for *_, w, (terms, (ds, db)) in each(rows, weights, step):
    value += float(w.astype(np.float64) @ np.asarray(terms, np.float64))
    by_scale += 0.0 if ds is None else np.asarray(ds, np.float64)
    by_bias += np.asarray(db, np.float64)
  return float(rows.total(value)), rows.total(by_scale), rows.total(by_bias)


def log_loss(rows: Rows) -> Objective:
  """Mean of -log p_y by the weights v: convex in the bias.

  By the bias of class c its gradient is (1 / number of classes with an image) - m_c, with the mean
  predicted mass m: at its minimum the mass is uniform.
  """
  return functools.partial(_pass, rows, row_weights(rows), "nll")


def confidence_variance(rows: Rows) -> Objective:
  """Variance over classes of the mean confidences q_c: two passes, since q enters its gradient."""
  keep, counts = present(rows), np.maximum(rows.counts, 1)

  def objective(scale: Any, bias: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
    q = describe(rows, scale, bias, keep).confidence
    gaps = np.where(keep, q - np.nanmean(q), 0.0)
    weights = 2 * gaps / (keep.sum() * counts)
    _, by_scale, by_bias = _pass(rows, weights, "confidence", scale, bias)
    return float(gaps @ gaps / keep.sum()), by_scale, by_bias

  return objective
