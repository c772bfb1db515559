"""ADSA: measure the long-tail bias of soft labels and remove it with one number.

    result = adsa.fit(logits, labels, class_counts)  # a teacher's logits on distilled images
    print(result.message)                            # tau, and the spread before and after
    aligned = adsa.align(logits, class_counts, result.tau)
    soft_labels = jax.nn.softmax(aligned / temperature)

NumPy or JAX arrays from any pipeline, memory maps too; this file needs nothing but NumPy and JAX.
Adaptive Soft-label Alignment is due to Jiang et al., NeurIPS 2025. With class frequencies `pi` of
the long-tailed training set and `y_n` the class that image `n` was distilled for,

    p(c | x; tau) = softmax(f(x) - tau * log pi)_c
    q_c(tau)      = mean over { n : y_n = c } of p(c | x_n; tau)
    tau*          = argmin over tau of the population standard deviation of q_1 .. q_K

which is the criterion "confidence". There are two more, ours, for the same tau
(docs/explanation/criteria.md); means over all n give every class of y_n the same weight:

    "marginal"      standard deviation over c of K * (mean over all n of p(c | x_n; tau))
    "nll"           mean over all n of -log p(y_n | x_n; tau)

Where we differ: a grid is followed by Newton's method with analytic derivatives; classes without a
distilled image do not count; a range whose best tau is its edge is widened, but not to where the
confidences are alike only because a few classes take everything; and an objective so flat that its
minimum means nothing is reported as such.
"""

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy import ndarray

Either = Array | ndarray
Means = Callable[..., np.ndarray]  # (taus (g,), order=0) -> (order + 1, g, k), see class_means

FLAT = 1e-3  # the range of the objective, or 1 - every class confidence at tau = 0, is below this
CRITERIA = ("confidence", "marginal", "nll")
COLLAPSED = 0.5  # confidences are alike for being low: their mean is below this part of its best
STATUSES = ("fitted", "uniform", "flat", "bound", "edge")
_MAX_WIDENINGS, _MAX_NEWTON, _MAX_BRACKETS = 3, 12, 4  # a widening doubles the searched range
_CHUNK = 2**20  # elements of a chunk: 4 MB of float32 stay in a core's cache
_UNIFORM, _NOISE = 1e-5, 1e-7  # spans of a log prior and of confidences that count as none
FAR = 100.0  # no range of tau goes further out
_LEAST_WIDTH = 1.0  # of a range of tau: in a narrower one every objective looks flat
_SAFE_EXPONENT = 60.0  # of |tau| * span(log pi): what float32 flushes, below -87, is negligible


class AdsaResult(NamedTuple):
  """What `fit` found; objectives are those of the criterion, confidences are always `q_c`."""

  tau: float
  objective_before: float  # at tau = 0: the spread of class confidences, or of another criterion
  objective_after: float
  confidence_before: ndarray  # (k,) float64, NaN for classes without an image
  confidence_after: ndarray  # (k,) float64
  curve: ndarray  # (m, 2) float64, the searched (tau, objective) pairs, tau increasing
  flat: bool  # the objective does not determine tau
  message: str  # one or two sentences for people
  status: str  # one of STATUSES; "bound": tau is the least allowed, "edge": no minimum was found


def fit(
  logits: Either,
  labels: Either,
  class_counts: Any,
  *,
  tau_range: tuple[float, float] = (0.0, 3.0),
  allow_negative: bool = False,
  smoothing: float = 0.0,
  chunk_size: int | None = None,
  criterion: str = "confidence",
) -> AdsaResult:
  """Finds the tau whose class confidences are spread least, within 1e-6 (tau to about 1e-3).

  Args:
    logits: (..., n, k) float16, bfloat16, float32 or float64; leading axes are label epochs and
      are simply more rows. Average an ensemble beforehand. Or a row source, see `Rows`.
    labels: (n,) or (..., n) integers, the classes that the images were distilled for.
    class_counts: (k,) training images of each class, or anything proportional to them.
    tau_range: searched first, and at least one wide; widened up to eight times while the best tau
      is an edge.
    allow_negative: search below zero when the minimum asks for it.
    smoothing: added to every count; needed if a class has no training image.
    chunk_size: rows in one step; memory beyond the logits is O(chunk_size * k). By default about
      a million logits, which stay in a core's cache.
    criterion: one of `CRITERIA`.

  Raises:
    ValueError: an unknown criterion; a range that is none; shapes or dtypes that do not fit; a NaN
      or infinite logit, a label outside [0, k) or a class without training images, naming the
      first; fewer than two classes with an image.

  Example:
    >>> logits = np.array([[2.0, 0.0], [0.5, 0.0]], np.float32)
    >>> round(fit(logits, np.array([0, 1]), [100, 10]).tau, 2)
    0.54
  """
  lo, hi = check_range(tau_range, allow_negative)
  hi = max(hi, lo + _LEAST_WIDTH)
  rows = Rows(logits, labels, chunk_size)
  prior = _log_prior(class_counts, smoothing, rows.k)
  if criterion not in CRITERIA:
    raise ValueError(f"criterion is {criterion!r}; expected one of {', '.join(CRITERIA)}.")
  goal = _Goal(functools.partial(class_means, rows, prior, criterion=criterion), criterion)
  if np.ptp(prior) < _UNIFORM:
    means = goal.means(np.zeros(2))[0]
    curve = np.stack([np.linspace(lo, hi, 31), np.full(31, goal.score(means[0]))], 1)
    found = "uniform", 0.0, means, curve
  else:
    found = _search(goal, lo, hi, -math.inf if allow_negative else 0.0, float(np.ptp(prior)))
  status, tau, means, curve = found
  before, after = goal.score(means)
  if criterion != "confidence":
    means = class_means(rows, prior, np.array([0.0, tau]))[0]
  message = explain(status, tau, before, after, criterion)
  flat, (at_zero, at_tau) = status in ("flat", "uniform"), means
  return AdsaResult(tau, float(before), float(after), at_zero, at_tau, curve, flat, message, status)


def align(
  logits: Any, class_counts: Any, tau: Any, *, centered: bool = False, smoothing: float = 0.0
) -> Array:
  """Returns `logits - tau * log pi` for logits (..., k): pure, jit-able, at least float32.

  Args, where they are not those of `fit`:
    centered: take the mean over classes from `log pi`, so that the mean of each row stays what it
      was. A softmax cannot see the difference; a loss on raw logits, such as MSE, can.

  Raises:
    ValueError: counts of another length, or (unless traced) a class without training images.
  """
  z = jnp.asarray(logits)
  z = z.astype(jnp.promote_types(z.dtype, jnp.float32))
  if isinstance(class_counts, jax.core.Tracer):
    counts = class_counts.astype(z.dtype) + smoothing
    prior = jnp.log(counts / counts.sum())
  else:
    prior = jnp.asarray(_log_prior(class_counts, smoothing, z.shape[-1]), z.dtype)
  shift = prior - prior.mean() if centered else prior
  return z - jnp.expand_dims(tau * shift, tuple(range(z.ndim - 1)))


def confidence(
  logits: Either, labels: Either, class_counts: Any, tau: float, *, smoothing: float = 0.0
) -> ndarray:
  """Returns `q_c(tau)`, (k,) float64, NaN for classes without an image; arguments as of `fit`."""
  if not math.isfinite(tau):
    raise ValueError(f"tau is {tau}; expected a finite number.")
  rows = Rows(logits, labels)
  prior = _log_prior(class_counts, smoothing, rows.k)
  return class_means(rows, prior, np.array([float(tau)]))[0, 0]


def objective(
  logits: Either, labels: Either, class_counts: Any, tau: float, *, smoothing: float = 0.0
) -> float:
  """Returns the population standard deviation over classes of `confidence`."""
  return float(np.nanstd(confidence(logits, labels, class_counts, tau, smoothing=smoothing)))


def explain(
  status: str, tau: float, before: float, after: float, criterion: str = "confidence"
) -> str:
  """The message of a result, from its status, tau, objectives and criterion."""
  what = {
    "confidence": "the spread of class confidences",
    "marginal": "the spread of predicted masses, of mean 1,",
    "nll": "the mean log-loss",
  }[criterion]
  change = f"{what} goes from {before:.4f} to {after:.4f}"
  return {
    "fitted": f"tau = {tau:.3f}: {change}.",
    "uniform": "tau = 0: all classes have equally many training images, no prior to remove.",
    "flat": f"tau = {tau:.3f}, but the objective is flat ({change}): these logits do not determine "
    "tau. Fit on the augmented views that students see (random resized crop, flip, CutMix).",
    "bound": f"tau = {tau:.3f}, the lower bound: {change}. allow_negative=True searches below.",
    "edge": f"tau = {tau:.3f}, an edge of tau_range: {change}. Further out there is no minimum "
    "but where a few classes take everything. Check labels and class_counts.",
  }[status]


def check_range(tau_range: Any, allow_negative: bool) -> tuple[float, float]:
  """The two ends of a range of tau; raises ValueError for what is none."""
  try:
    lo, hi = (float(t) for t in tau_range)
  except (TypeError, ValueError):
    lo = hi = math.nan
  if not -FAR <= lo < hi <= FAR:
    raise ValueError(
      f"tau_range is {tau_range}; expected two numbers within {FAR:g} of zero, the lower first."
    )
  if lo < 0 and not allow_negative:
    raise ValueError(f"tau_range is {tau_range}; pass allow_negative=True to search below zero.")
  return lo, hi


def _log_prior(class_counts: Any, smoothing: float, k: int) -> ndarray:
  """Log class frequencies (k,) in float64."""
  counts = np.asarray(class_counts, np.float64)
  if counts.shape != (k,):
    raise ValueError(f"class_counts has shape {counts.shape}; logits of {k} classes need ({k},).")
  if not np.all((counts >= 0) & (counts < np.inf)):
    raise ValueError(f"class_counts is {counts}; expected numbers of training images.")
  if not 0 <= smoothing < math.inf:
    raise ValueError(f"smoothing is {smoothing}; expected a number of images, 0 or more.")
  counts = counts + smoothing
  if counts.min() <= 0:
    raise ValueError(
      f"class {int(np.argmin(counts))} has no training image, so its log frequency is minus "
      "infinity. Pass smoothing=1.0 to add an image to every class, or leave the class out."
    )
  return np.log(counts / counts.sum())


def _check_labels(labels: Either, lead: tuple[int, ...], k: int) -> ndarray:
  y = np.asarray(labels)
  if y.dtype.kind not in "iu":
    raise ValueError(f"labels have dtype {y.dtype}; expected integers: labels.astype(int).")
  if y.shape not in (lead, lead[-1:]):
    shapes = " or ".join(str(s) for s in dict.fromkeys((lead[-1:], lead)))
    raise ValueError(f"labels have shape {y.shape}; logits of shape {(*lead, k)} need {shapes}.")
  y = y.reshape(-1)
  bad = (y < 0) | (y >= k)
  if bad.any():
    i = int(np.argmax(bad))
    raise ValueError(f"label {y[i]} (number {i}) is outside [0, {k}), the classes of the logits.")
  if np.ptp(y) == 0:
    raise ValueError("fewer than two classes have an image: there is no spread to minimise.")
  return y.astype(np.int32)


class Rows:
  """Checked logits as rows (n, k) with their classes; a JAX array on CPU is seen through NumPy.

  Besides arrays, `logits` may be a *row source*: an object with `shape` (..., n, k), `dtype` and
  `rows(start, stop)`, which gives NumPy logits (stop - start, k); leading axes count in C order.
  """

  def __init__(self, logits: Any, labels: Either, chunk_size: int | None = None) -> None:
    away = isinstance(logits, Array) and {d.platform for d in logits.devices()} != {"cpu"}
    lazy = hasattr(logits, "rows")
    z = logits if away or lazy else np.asanyarray(logits)  # a view of a JAX array on CPU
    shape = tuple(z.shape)
    if len(shape) < 2 or 0 in shape or not jnp.issubdtype(z.dtype, jnp.floating):
      raise ValueError(f"logits are {z.dtype} of shape {shape}; expected floats (..., n, k).")
    if chunk_size is not None and chunk_size < 1:
      raise ValueError(f"chunk_size is {chunk_size}; expected a number of rows.")
    self.lead, self.k, self.n = shape[:-1], shape[-1], math.prod(shape[:-1])
    self.labels = _check_labels(labels, self.lead, self.k)
    self.counts = np.bincount(self.labels, minlength=self.k) * (self.n // len(self.labels))
    self.size = min(self.n, chunk_size or max(1, _CHUNK // max(self.k, 64)))
    flat = z if lazy else z.reshape(-1, self.k)
    self._read = flat.rows if lazy else lambda start, stop: flat[start:stop]

  def chunks(self) -> Iterator[tuple[int, int, Any, ndarray]]:
    """Yields (first row, rows to skip, logits (r, k), classes (r,)), of one shape."""
    for i in range(-(-self.n // self.size)):
      start = min(i * self.size, self.n - self.size)  # the last overlaps the one before it
      y = self.labels[np.arange(start, start + self.size) % len(self.labels)]
      z = self._read(start, start + self.size)
      if isinstance(z, ndarray):
        if z.dtype.itemsize > 4:  # float32 has no room for large offsets
          with np.errstate(invalid="ignore", over="ignore"):
            z = (z - z.max(1, keepdims=True)).astype(np.float32)
        z = z.astype(z.dtype.newbyteorder("="), copy=False)
      yield start, i * self.size - start, z, y


@jax.jit
def _exponentials(z: Array, y: Array, shift: Array | None) -> tuple[Array, Array]:
  """exp(z - shift) scaled by row, (r, k) float32, and log of its true class (r, 1), NaN if bad."""
  z = z.astype(jnp.promote_types(z.dtype, jnp.float32))
  finite = jnp.isfinite(z.min(1, keepdims=True)) & jnp.isfinite(z.max(1, keepdims=True))
  z = z if shift is None else z - shift[None]
  gaps = (z - z.max(1, keepdims=True)).astype(jnp.float32)
  return jnp.exp(gaps), jnp.where(finite, jnp.take_along_axis(gaps, y[:, None], 1), jnp.nan)


@functools.partial(jax.jit, static_argnames=("order", "criterion"))
def _statistics(
  exps: Array, true: Array, y: Array, v: Array, w: Array, lp: Array, order: int, criterion: str
) -> Array:
  """What a criterion averages, and its tau-derivatives up to `order` (0 or 2).

  With weights w = exp(-tau * lp) of each class and tau, the denominators S of all rows and all taus
  are one matrix product, and so are the moments m1, m2 of lp = log pi that the derivatives need:
  dp_c/dtau = p_c (m1 - lp_c) and d2p_c/dtau2 = p_c ((m1 - lp_c)^2 - (m2 - m1^2)).

  Returns:
    (r, order + 1, g), p_y or -log p_y of each row; or, with criterion "marginal", the sums over
    rows (k, order + 1, g) of v p_c, with the weights v (r,) of rows.
  """
  dot = functools.partial(jnp.dot, precision="highest")
  powers = jnp.concatenate([w * lp[:, None] ** i for i in range(order + 1)], 1)
  total, *moments = jnp.split(dot(exps, powers), order + 1, 1)
  mean, square = (m / total for m in moments) if moments else (total, total)
  if criterion == "marginal":
    mass = lambda x: w * dot(exps.T, v[:, None] / total * x)
    m, c = mass(jnp.ones_like(total)), lp[:, None]
    if not order:
      return m[:, None]
    tilted = mass(mean)
    bent = mass(2 * mean**2 - square) - 2 * c * tilted + c**2 * m
    return jnp.stack([m, tilted - c * m, bent], 1)
  gap = mean - lp[y][:, None]
  if criterion == "nll":
    parts = [jnp.log(total) - true - jnp.log(w[y]), -gap, square - mean**2]
  else:
    p = jnp.exp(true) * w[y] / total
    parts = [p, p * gap, p * (gap**2 - square + mean**2)]
  return jnp.stack(parts[: order + 1], 1)


def class_means(
  rows: Rows, prior: ndarray, taus: ndarray, order: int = 0, criterion: str = "confidence"
) -> ndarray:
  """Class means of what a criterion averages, at each tau, in one pass over the rows.

  Args:
    rows: logits with their classes.
    prior: (k,) log class frequencies, float64.
    taus: (g,).
    order: of the highest derivative by tau to return with them, 0 or 2.
    criterion: one of `CRITERIA`.

  Returns:
    (order + 1, g, k) float64, NaN for classes without an image.

  Raises:
    ValueError: a NaN or infinite logit.
  """
  lp = prior - (prior.min() + prior.max()) / 2
  width = 2 * _SAFE_EXPONENT / max(float(np.ptp(lp)), 1e-30)
  windows = np.round(taus / width)
  out = np.empty((order + 1, len(taus), rows.k))
  for window in np.unique(windows):
    # Far from zero, exponentials are taken of logits that are shifted already.
    base, here = window * width, windows == window
    shift = (base * lp).astype(np.float32) if window else None
    exponent = -np.outer(lp, taus[here] - base)
    w = jnp.asarray(np.exp(exponent - exponent.max(0)), jnp.float32)
    sums = _class_sums(rows, shift, w, jnp.asarray(lp, jnp.float32), order, criterion)
    out[:, here] = np.moveaxis(sums, 0, 2)
  return out


def _class_sums(rows: Rows, shift: Any, w: Array, lp: Array, order: int, criterion: str) -> ndarray:
  """Means over each class of `_statistics`, NaN without an image: (k, order + 1, g) float64."""
  shape = (rows.k, order + 1, w.shape[1])
  sums, columns = np.zeros(math.prod(shape)), np.arange(math.prod(shape[1:]))
  with np.errstate(divide="ignore"):
    per_row = np.where(rows.counts, 1 / rows.counts, np.nan)

  def add(start: int, skip: int, y: ndarray, true: Array, p: Array) -> None:
    bad = np.isnan(np.asarray(true)[:, 0])
    if bad.any():
      index = map(int, np.unravel_index(start + int(np.argmax(bad)), rows.lead))
      raise ValueError(
        f"logits{[*index]} is the first row with a NaN or infinite value (as float32)."
      )
    if criterion == "marginal":
      sums[:] += np.asarray(p, np.float64).reshape(-1)
      return
    values = np.asarray(p).reshape(len(y), -1)
    cells = y[skip:, None] * np.int64(len(columns)) + columns
    sums[:] += np.bincount(cells.reshape(-1), values[skip:].reshape(-1), len(sums))

  waiting: list[tuple[int, int, ndarray, Array, Array]] = []
  for start, skip, z, y in rows.chunks():
    exps, true = _exponentials(z, y, shift)
    v = np.where(np.arange(len(y)) < skip, 0, per_row[y]).astype(np.float32)
    p = _statistics(exps, true, y, v, w, lp, order, criterion)
    waiting.append((start, skip, y, true, p))
    if len(waiting) > 2:  # the device is two chunks ahead of the host
      add(*waiting.pop(0))
  for last in waiting:
    add(*last)
  scale = np.where(rows.counts, 1.0, np.nan) if criterion == "marginal" else per_row
  return sums.reshape(shape) * scale[:, None, None]


def score(q: ndarray, criterion: str) -> Any:
  """The objective of a criterion from its class means (..., k) -> (...); NaN does not count."""
  return np.nanmean(q, axis=-1) if criterion == "nll" else np.nanstd(q, axis=-1)


class _Goal(NamedTuple):
  """What is minimised: a spread over classes, or a mean, of class means."""

  means: Means
  criterion: str

  def score(self, q: ndarray) -> Any:
    return score(q, self.criterion)

  def level(self, q: ndarray) -> Any:
    """How confident the labels are, where a low spread may only mean that they are not."""
    return np.nanmean(q, -1) if self.criterion == "confidence" else np.ones(q.shape[:-1])

  def taylor(self, q: ndarray) -> ndarray:
    """Square of the spread, or the mean, with two derivatives: (3, g, k) -> (3, g)."""
    if self.criterion == "nll":
      return np.nanmean(q, axis=-1)
    d, d1, d2 = q - np.nanmean(q, axis=-1, keepdims=True)
    return np.nanmean(np.stack([d**2, 2 * d * d1, 2 * (d1**2 + d * d2)]), axis=-1)

  def power(self, score: ndarray) -> ndarray:
    """What `taylor` expands, from the objective."""
    return score if self.criterion == "nll" else score**2

  def root(self, value: ndarray) -> ndarray:
    """Undoes `power`."""
    return value if self.criterion == "nll" else np.sqrt(np.maximum(value, 0))


def _grid(lo: float, hi: float, step: float) -> ndarray:
  return np.linspace(lo, hi, min(math.ceil(round((hi - lo) / step, 6)), 255) + 1)


def _search(
  goal: _Goal, lo: float, hi: float, floor: float, span: float
) -> tuple[str, float, ndarray, ndarray]:
  """A grid, wider if need be, then Newton's method in the best brackets.

  Returns status, tau, class means at 0 and at tau (2, k), and the searched curve.
  """
  step = min((hi - lo) / 30, 0.6 / span)  # a class confidence moves within about 4 / span
  taus = _grid(lo, hi, step)
  *q, before = goal.means(np.append(taus, 0.0))[0]
  q = np.stack(q)
  flat = np.ptp(goal.score(q)) < FLAT and goal.level(before) > COLLAPSED  # certain, if not right
  flat |= goal.criterion == "confidence" and np.nanmin(before) > 1 - FLAT  # certain and right
  if not flat:
    taus, q = _widen(goal, taus, q, floor, step)
  curve = goal.score(q)
  best, status = _choose(goal, taus, q, (taus >= lo) & (taus <= hi), floor)
  found = [_refine(goal, taus, curve, best, span)] if status == "fitted" else []
  tau, after = min([*found, (float(taus[best]), q[best])], key=lambda pair: goal.score(pair[1]))
  status = "flat" if flat or np.ptp(curve) < FLAT else "bound" if tau == floor else status
  return status, tau, np.stack([before, after]), np.stack([taus, curve], 1)


def _widen(goal: _Goal, taus: ndarray, q: ndarray, floor: float, step: float) -> list[ndarray]:
  """Doubles the grid where its minimum is an edge, and up where one class takes all near zero."""
  for _ in range(_MAX_WIDENINGS):
    curve, level, top = goal.score(q), goal.level(q), len(taus) - 1
    best, width = int(np.argmax(curve <= curve.min() + _NOISE)), taus[-1] - taus[0]
    rising = best == 0 and level[top] > level[:top].max() + _NOISE
    if best == top or rising or np.ptp(curve) < FLAT:
      new = _grid(taus[-1], taus[-1] + width, step)[1:]
    elif best == 0 and taus[0] > floor:
      new = _grid(max(floor, taus[0] - width), taus[0], step)[:-1]
    else:
      break
    order = np.argsort(np.append(taus, new))
    taus, q = np.append(taus, new)[order], np.concatenate([q, goal.means(new)[0]])[order]
  return [taus, q]


def _choose(
  goal: _Goal, taus: ndarray, q: ndarray, inside: ndarray, floor: float
) -> tuple[int, str]:
  """The grid point to refine: the lowest, if it is a minimum or the bound at zero; and a status.

  On an edge or outside the range that was asked for, it may be low because a few classes take all;
  then the lowest minimum where they do not, if it is any use, else the lowest point of the range.
  """
  curve, level = goal.score(q), goal.level(q)
  healthy = level >= COLLAPSED * level.max()
  low = np.flatnonzero(curve <= curve.min() + _NOISE)
  best = int(low[np.argmin(np.abs(taus[low]))])  # of equals, the mildest
  minimum = 0 < best < len(taus) - 1 and (healthy[best] or inside[best])
  if minimum or (best == 0 and taus[0] <= floor):
    return best, "fitted"
  useful = healthy & (curve <= curve[np.argmin(np.abs(taus))])
  minima = [i for i in _minima(curve) if useful[i]]
  if minima:
    return minima[0], "fitted"
  return int(np.flatnonzero(inside)[np.argmin(curve[inside])]), "edge"


def _minima(curve: ndarray) -> list[int]:
  """Interior local minima, the lowest first."""
  middle = curve[1:-1]
  found = 1 + np.flatnonzero((middle <= curve[:-2]) & (middle <= curve[2:]))
  return sorted(found.tolist(), key=lambda i: curve[i])


def _refine(goal: _Goal, taus: ndarray, curve: ndarray, best: int, span: float) -> Any:
  """Newton's method on what `taylor` expands, or bisection, in all brackets at once.

  Returns tau and the class means (k,) there; the last small step is on their expansion.
  """
  slack = 0.25 * np.max(np.abs(np.diff(curve, 2)), initial=0.0)  # what a bracket may hide
  rivals = [i for i in _minima(curve) if i != best and 0 <= curve[i] - curve[best] <= slack]
  at = np.array([best, *rivals[: _MAX_BRACKETS - 1]])
  left, right = np.maximum(at - 1, 0), np.minimum(at + 1, len(taus) - 1)
  a, b, v = taus[left], taus[right], goal.power(curve)
  bend = v[left] - 2 * v[at] + v[right]
  inner = (right - left == 2) & (bend > 0)  # start at the vertex of a parabola
  t = taus[at] + np.where(inner, (v[left] - v[right]) / np.where(inner, bend, 1) * (b - a) / 4, 0)
  for _ in range(_MAX_NEWTON):
    q = goal.means(t, order=2)
    value, slope, curvature = goal.taylor(q)
    a, b = np.where(slope > 0, a, t), np.where(slope > 0, t, b)
    newton = t - slope / np.where(curvature > 0, curvature, 1)
    sound = (curvature > 0) & (newton >= a) & (newton <= b)
    step = np.where(sound, newton, (a + b) / 2) - t
    gain = goal.root(value) - goal.root(value - np.abs(slope * step))
    short = np.abs(step) * span < 0.01
    if np.all((gain < 1e-10) | (gain < 5e-6) & short):
      break
    t = t + step
  step = np.where(short, step, 0)
  final = q[0] + step[:, None] * (q[1] + step[:, None] / 2 * q[2])
  winner = int(np.argmin(goal.score(final)))
  return float((t + step)[winner]), final[winner]
