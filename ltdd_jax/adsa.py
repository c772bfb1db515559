"""ADSA: measure the long-tail bias of soft labels and remove it with one number.

    result = adsa.fit(logits, labels, class_counts)  # a teacher's logits on distilled images
    print(result.message)                            # tau, and the spread before and after
    aligned = adsa.align(logits, class_counts, result.tau)
    soft_labels = jax.nn.softmax(aligned / temperature)

Adaptive Soft-label Alignment is due to Jiang et al., NeurIPS 2025. With class frequencies `pi` of
the long-tailed training set and `y_n` the class that image `n` was distilled for,

    p(c | x; tau) = softmax(f(x) - tau * log pi)_c
    q_c(tau)      = mean over { n : y_n = c } of p(c | x_n; tau)
    tau*          = argmin over tau of the population standard deviation of q_1 .. q_K

In one pass over the logits, at Chebyshev points; the polynomial through them gives q on a fine grid
of taus, and a parabola through the best three gives tau. Classes without a distilled image do not
count. This file needs nothing but NumPy and JAX.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy import ndarray
from numpy.polynomial import chebyshev

FLAT = 1e-3  # the range of the objective, or 1 - every class confidence at tau = 0, is below this
COLLAPSED = 0.5  # confidences are alike for being low: their mean is below this part of tau = 0's
FAR = 10.0  # no tau is further from zero
CHUNK = 2**19  # logits in one step: 2 MB of float32 stay in a core's cache
UNIFORM = 1e-5  # the range of a log prior that counts as none
_STEP = 0.01  # of the grid of taus
_NOISE = 1e-8  # rounding of what is minimised
_SAFE = 120.0  # range of tau * log pi that one pass can span; float32 exponents end at 87
MESSAGES = {  # by status
  "fitted": "tau = {tau:.3f}: {change}.",
  "uniform": "tau = 0: all classes have equally many training images, no prior to remove.",
  "flat": "tau = {tau:.3f}, but the objective is flat ({change}): these logits do not determine "
  "tau. Fit on the augmented views that students see (random resized crop, flip, CutMix).",
  "bound": "tau = {tau:.3f}, the lower bound: {change}. Check the order of class_counts; if it is "
  "right, a tau_range from -1 searches below.",
  "edge": "tau = {tau:.3f} is no minimum but an edge, of tau_range or of where a few classes "
  "take everything: {change}. Check labels and class_counts, or widen tau_range.",
}
STATUSES = tuple(MESSAGES)


class AdsaResult(NamedTuple):
  """What `fit` found."""

  tau: float
  objective_before: float  # the spread of class confidences at tau = 0
  objective_after: float
  confidence_before: ndarray  # (k,) float64, NaN for classes without an image
  confidence_after: ndarray  # (k,) float64
  curve: ndarray  # (m, 2) float64, the searched (tau, objective) pairs, tau increasing
  flat: bool  # the objective does not determine tau
  message: str  # one or two sentences for people
  status: str  # one of STATUSES


def fit(
  logits: Any, labels: Any, class_counts: Any, *, tau_range: tuple[float, float] = (0.0, 3.0)
) -> AdsaResult:
  """Finds the tau whose class confidences are spread least, to about 1e-3.

  Args:
    logits: (..., n, k) floats; leading axes are label epochs and are simply more rows. Average an
      ensemble beforehand.
    labels: (n,) or (..., n) integers, the classes that the images were distilled for.
    class_counts: (k,) training images of each class, or anything proportional to them.
    tau_range: what is searched, at least 1 wide.

  Raises:
    ValueError: what does not fit; a NaN or infinite logit, a label outside [0, k) or a class
      without training images, naming the first; probabilities, or the same logit for all classes.

  Example:
    >>> logits = np.array([[2.0, 0.0], [0.5, 0.0]], np.float32)
    >>> round(fit(logits, np.array([0, 1]), [100, 10]).tau, 2)
    0.54
  """
  rows = Rows(logits, labels).alive()
  return search(rows, log_frequencies(class_counts, rows.k), tau_range)


def align(logits: Any, class_counts: Any, tau: Any, *, centered: bool = False) -> jax.Array:
  """Returns `logits - tau * log pi` for logits (..., k): jit-able, at least float32.

  With `centered`, `log pi` has mean zero, so that the mean of each row stays: for losses on logits.
  """
  check_tau(tau)
  z = jnp.asarray(logits)
  z = z.astype(jnp.promote_types(z.dtype, jnp.float32))
  if isinstance(class_counts, jax.core.Tracer):
    counts = class_counts.astype(z.dtype)
    prior = jnp.log(counts / counts.sum())
  else:
    prior = jnp.asarray(log_frequencies(class_counts, z.shape[-1]), z.dtype)
  shift = prior - prior.mean() if centered else prior
  return z - jnp.expand_dims(tau * shift, tuple(range(z.ndim - 1)))


def confidence(logits: Any, labels: Any, class_counts: Any, tau: float) -> ndarray:
  """Returns `q_c(tau)`, (k,) float64, NaN for classes without an image; arguments as of `fit`."""
  check_tau(tau)
  rows = Rows(logits, labels).alive()
  return class_means(rows, log_frequencies(class_counts, rows.k), np.array([float(tau)]))[0]


def check_tau(tau: Any) -> None:
  """Raises ValueError unless tau is one number, and finite unless it is traced."""
  single = isinstance(tau, int | float) or getattr(tau, "shape", None) == ()
  if not single or not (isinstance(tau, jax.core.Tracer) or math.isfinite(tau)):
    raise ValueError(f"tau is {tau!r:.40}; expected a finite number, as `fit(...).tau` is.")


def search(rows: "Rows", log_prior: ndarray, tau_range: Any) -> AdsaResult:
  """Fits tau to rows of logits, for log class frequencies (k,)."""
  taus = grid(tau_range, log_prior)
  means = polynomial(lambda at: class_means(rows, log_prior, at), log_prior, [*taus, 0.0])
  [before], q = means([0.0]), means(taus)
  values, levels = np.nanvar(q, axis=1), np.nanmean(q, axis=1)
  healthy = levels >= COLLAPSED * np.nanmean(before)
  allowed = healthy if healthy.any() else levels == levels.max()
  tau, status = lowest(taus, values, allowed, lambda at: np.nanvar(means(at), axis=1))
  if np.ptp(log_prior) < UNIFORM:
    tau, status = 0.0, "uniform"
  elif np.ptp(np.sqrt(values)) < FLAT or np.nanmin(before) > 1 - FLAT:
    status = "flat"
  [after] = means([tau])
  ends = float(np.nanstd(before)), float(np.nanstd(after))
  curve = np.stack([taus, np.sqrt(values)], 1)
  change = "the spread of confidences goes from {:.4f} to {:.4f}".format(*ends)
  message, flat = MESSAGES[status].format(tau=tau, change=change), status in ("flat", "uniform")
  return AdsaResult(tau, *ends, before, after, curve, flat, message, status)


def grid(tau_range: Any, log_prior: ndarray) -> ndarray:
  """The taus to search; raises ValueError for what is no range, or one too wide for this prior."""
  try:
    lo, hi = map(float, tau_range)
  except (TypeError, ValueError):
    lo = hi = math.nan
  if not (lo >= -FAR and hi <= FAR and hi - lo > 1 - 1e-6):
    raise ValueError(
      f"tau_range is {tau_range}; expected two numbers within {FAR:g} of zero, the lower first, at "
      "least 1 apart."
    )
  widest = _SAFE / max(np.ptp(log_prior), UNIFORM)
  if max(hi, 0) - min(lo, 0) > widest:
    raise ValueError(
      f"tau_range is {tau_range}; with these counts it may be {widest:.1f} wide, zero included."
    )
  return np.linspace(lo, hi, math.ceil(round((hi - lo) / _STEP, 6)) + 1)


def lowest(
  taus: ndarray, values: ndarray, allowed: Any = True, value: Callable | None = None
) -> tuple[float, str]:
  """The tau of the least allowed value, by the parabola through its neighbours; and a status.

  Where hardly anything is left of the values, a parabola may err by more than that: with `value`,
  which gives them at any taus, tau is no worse than the allowed ones beside it.
  """
  masked = np.where(allowed, values, np.inf)
  low = np.flatnonzero(masked <= masked.min() + _NOISE)
  best, last = int(low[np.argmin(np.abs(taus[low]))]), len(taus) - 1  # of equals, the mildest
  left, right = max(best - 1, 0), min(best + 1, last)
  if values[best] > min(values[left], values[right]) + _NOISE:  # lower ones are not allowed
    return float(taus[best]), "edge"
  middle = min(max(best, 1), last - 1)
  a, b, c = values[middle - 1 : middle + 2]
  bend, tau = a - 2 * b + c, taus[best]
  if bend > 0:
    vertex = taus[middle] + (a - c) / bend * (taus[1] - taus[0]) / 2
    tau = min(max(vertex, taus[left]), taus[right])
  if value is not None:
    beside = np.flatnonzero(np.isfinite(masked[left : right + 1])) + left
    near = np.array([tau, *taus[beside]])
    tau = near[np.argmin(value(near))]
  if taus[0] < tau < taus[-1]:
    return float(tau), "fitted"
  return float(tau), "bound" if tau == 0 == taus[0] else "edge"


@jax.jit
def true_class(z: Any, y: Any, log_prior: Any, taus: Any) -> jax.Array:
  """p_y at each tau, (r, g), from logits (r, k); NaN in rows that are not finite."""
  gaps, w, total = exponentials(z, log_prior, taus)
  return jnp.exp(jnp.take_along_axis(gaps, y[:, None], 1)) * w[y] / total


def exponentials(z: Any, log_prior: Any, taus: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Parts of p_c(tau) = exp(gaps)_c * W_c / total: gaps (r, k), W (k, g) and total (r, g).

  Totals of all rows and taus are one matrix product. Taus count from their middle, and log priors
  from theirs, so that no exponential leaves float32.
  """
  middle = (taus.min() + taus.max()) / 2
  lp = log_prior - (log_prior.min() + log_prior.max()) / 2
  z = z.astype(jnp.float32)
  z = jnp.where(jnp.isfinite(z).all(1, keepdims=True), z, jnp.nan) - middle * lp[None]
  gaps, w = z - z.max(1, keepdims=True), jnp.exp(-jnp.outer(lp, taus - middle))
  return gaps, w, jnp.dot(jnp.exp(gaps), w, precision="highest")


def class_means(
  rows: "Rows", log_prior: ndarray, taus: ndarray, score: Any = true_class
) -> ndarray:
  """Means of a score, p_y by default, over the rows of each class: (g, k) float64, NaN without."""
  sums, width = np.zeros(rows.k * len(taus)), np.int64(len(taus))
  for start, z, y in rows.blocks():
    p = np.asarray(score(z, y, np.float32(log_prior), np.float32(taus)))
    rows.check_finite(~np.isnan(p[:, 0]), start)
    cells = y[:, None] * width + np.arange(width)
    sums += np.bincount(cells.reshape(-1), p.reshape(-1), len(sums))
  with np.errstate(invalid="ignore"):
    return (rows.total(sums).reshape(rows.k, -1) / rows.counts[:, None]).T


def polynomial(means: Callable[[ndarray], ndarray], log_prior: ndarray, taus: Any) -> Callable:
  """Class means at any tau between some: a function from (g,) to (g, k), in one call of `means`.

  Softmax has no pole within pi / range(log pi) of the real axis: with n Chebyshev points the error
  falls like exp(-n asinh(pi / (half the width * range))), here to exp(-14) = 8e-7 or less.
  """
  middle, half = (max(taus) + min(taus)) / 2, np.ptp(taus) / 2
  n = 8 * math.ceil(1.75 / math.asinh(math.pi / half / max(np.ptp(log_prior), UNIFORM)))
  basis = chebyshev.chebvander(x := chebyshev.chebpts1(n), n - 1)
  terms = basis.T @ means(middle + half * x) * np.r_[1, np.full(n - 1, 2)][:, None] / n
  return lambda tau: chebyshev.chebvander((np.asarray(tau) - middle) / half, n - 1) @ terms


class Share(NamedTuple):
  """Which blocks of rows are read here, and what adds sums up with those of others."""

  process: int = 0
  processes: int = 1
  total: Callable[[ndarray], ndarray] = lambda x: x  # of float64 arrays of any shape


class Rows:
  """Checked logits (..., n, k) as rows with their classes, read a block at a time.

  They may be a *row source*: `shape`, `dtype` and `rows(start, stop)`, NumPy (stop - start, k). If
  it has a `share`, a `Share`, then every process reads some of the blocks, and sums are added up.
  """

  def __init__(self, logits: Any, labels: Any) -> None:
    lazy = hasattr(logits, "rows")
    z, y = logits if lazy else np.asanyarray(logits), np.asarray(labels)  # no copy on a CPU
    if len(z.shape) < 2 or 0 in z.shape or not jnp.issubdtype(z.dtype, jnp.floating):
      raise ValueError(f"logits are {z.dtype} of shape {z.shape}; expected floats (..., n, k).")
    self.lead, self.k = tuple(z.shape[:-1]), z.shape[-1]
    if y.dtype.kind not in "iu":
      raise ValueError(f"labels have dtype {y.dtype}; expected integers: labels.astype(int).")
    if y.shape not in (self.lead, self.lead[-1:]):
      shapes = " or ".join(str(s) for s in dict.fromkeys((self.lead[-1:], self.lead)))
      raise ValueError(f"labels have shape {y.shape}; logits of shape {z.shape} need {shapes}.")
    if (bad := np.flatnonzero((y < 0) | (y >= self.k))).size:
      raise ValueError(f"label {y.flat[bad[0]]} (number {bad[0]}) is outside [0, {self.k}).")
    if np.ptp(y) == 0:
      raise ValueError("fewer than two classes have an image: there is no spread to minimise.")
    self.labels, self.n = y.reshape(-1).astype(np.int32), math.prod(self.lead)
    self.counts = np.bincount(self.labels, minlength=self.k) * (self.n // len(self.labels))
    self.size = max(1, CHUNK // max(self.k, 256))  # rows of a block; a grid has hundreds of taus
    flat = z if lazy else z.reshape(-1, self.k)
    self._read = z.rows if lazy else lambda start, stop: flat[start:stop]
    self._share = getattr(z, "share", Share())

  def blocks(self) -> Iterator[tuple[int, ndarray, ndarray]]:
    """Yields (first row, logits (r, k) of at most 4 bytes each, classes (r,)) of this share."""
    process, processes, _ = self._share
    for start in range(process * self.size, self.n, processes * self.size):
      stop = min(start + self.size, self.n)
      z = self._read(start, stop)
      if z.dtype.itemsize > 4:  # float32 has less room than float64
        with np.errstate(invalid="ignore", over="ignore"):
          z = (z - z.max(1, keepdims=True)).astype(np.float32)
      yield start, z, self.labels[np.arange(start, stop) % len(self.labels)]

  def total(self, sums: ndarray | float) -> ndarray:
    """The sums over all blocks, from those over `blocks()`: float64 of the same shape."""
    return self._share.total(np.asarray(sums, np.float64))

  def alive(self) -> "Rows":
    """Refuses probabilities and rows that say nothing; mostly reads no more than a block."""
    first = self._read(0, min(self.size, self.n))
    if first.min() >= 0 and np.all(np.abs(first.sum(1, dtype=np.float64) - 1) < 1e-2):
      raise ValueError("rows are probabilities. Expected logits; if lost, give log(probabilities).")
    if not self.total(any((z.max(1) != z.min(1)).any() for _, z, _ in self.blocks())):
      raise ValueError("logits are the same for all classes in every row: the teacher is dead.")
    return self

  def check_finite(self, finite: Any, start: int) -> None:
    """Refuses rows (r,), the first of which is number `start`, unless all are finite."""
    if not np.all(finite):
      index = map(int, np.unravel_index(start + int(np.argmin(finite)), self.lead))
      raise ValueError(f"logits{[*index]} is the first row with a NaN or infinite value.")


def log_frequencies(class_counts: Any, k: int) -> ndarray:
  """Log class frequencies (k,) in float64; raises ValueError."""
  counts = np.asarray(class_counts, np.float64)
  if counts.shape != (k,):
    raise ValueError(f"class_counts has shape {counts.shape}; logits of {k} classes need ({k},).")
  if not np.all((counts >= 0) & (counts < np.inf)):
    raise ValueError(f"class_counts is {counts}; expected numbers of training images.")
  if counts.min() <= 0:
    raise ValueError(f"class {counts.argmin()} has no training image. Add one to every count.")
  return np.log(counts / counts.sum())
