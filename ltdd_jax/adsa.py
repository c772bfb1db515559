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
Means = Callable[..., np.ndarray]  # (taus (g,), order=0) -> (order + 1, g, k), see _class_means

FLAT = 1e-3  # the range of the objective, or 1 - every class confidence at tau = 0, is below this
COLLAPSED = 0.5  # confidences are alike for being low: their mean is below this part of its best
STATUSES = ("fitted", "uniform", "flat", "bound", "edge")
_MAX_WIDENINGS, _MAX_NEWTON, _MAX_BRACKETS = 3, 12, 4  # a widening doubles the searched range
_CHUNK = 2**20  # elements of a chunk: 4 MB of float32 stay in a core's cache
_UNIFORM, _NOISE = 1e-5, 1e-7  # spans of a log prior and of confidences that count as none
_SAFE_EXPONENT = 60.0  # of |tau| * span(log pi): what float32 flushes, below -87, is negligible


class AdsaResult(NamedTuple):
  """What `fit` found."""

  tau: float
  objective_before: float  # spread of class confidences at tau = 0
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
) -> AdsaResult:
  """Finds the tau whose class confidences are spread least, within 1e-6 (tau to about 1e-3).

  Args:
    logits: (..., n, k) float16, bfloat16, float32 or float64; leading axes are label epochs and
      are simply more rows. Average an ensemble beforehand. Or a row source, see `Rows`.
    labels: (n,) or (..., n) integers, the classes that the images were distilled for.
    class_counts: (k,) training images of each class, or anything proportional to them.
    tau_range: searched first; widened up to eight times while the best tau is an edge.
    allow_negative: search below zero when the minimum asks for it.
    smoothing: added to every count; needed if a class has no training image.
    chunk_size: rows in one step; memory beyond the logits is O(chunk_size * k). By default about
      a million logits, which stay in a core's cache.

  Raises:
    ValueError: shapes or dtypes that do not fit; a NaN or infinite logit, a label outside [0, k)
      or a class without training images, naming the first; fewer than two classes with an image.

  Example:
    >>> logits = np.array([[2.0, 0.0], [0.5, 0.0]], np.float32)
    >>> round(fit(logits, np.array([0, 1]), [100, 10]).tau, 2)
    0.54
  """
  lo, hi = (float(t) for t in tau_range)
  if not -math.inf < lo < hi < math.inf:
    raise ValueError(f"tau_range is {tau_range}; expected two finite numbers, the lower first.")
  if lo < 0 and not allow_negative:
    raise ValueError(f"tau_range is {tau_range}; pass allow_negative=True to search below zero.")
  rows = Rows(logits, labels, chunk_size)
  prior = _log_prior(class_counts, smoothing, rows.k)
  means = functools.partial(_class_means, rows, prior)
  if np.ptp(prior) < _UNIFORM:
    (q,) = means(np.zeros(1))[0]
    curve = np.stack([np.linspace(lo, hi, 31), np.full(31, _spread(q))], 1)
    return _result("uniform", 0.0, q, q, curve)
  return _search(means, lo, hi, -math.inf if allow_negative else 0.0, float(np.ptp(prior)))


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
  rows = Rows(logits, labels)
  prior = _log_prior(class_counts, smoothing, rows.k)
  return _class_means(rows, prior, np.array([float(tau)]))[0, 0]


def objective(
  logits: Either, labels: Either, class_counts: Any, tau: float, *, smoothing: float = 0.0
) -> float:
  """Returns the population standard deviation over classes of `confidence`."""
  return float(_spread(confidence(logits, labels, class_counts, tau, smoothing=smoothing)))


def explain(status: str, tau: float, before: float, after: float) -> str:
  """The message of a result, from its status, tau and objectives."""
  change = f"the spread of class confidences goes from {before:.4f} to {after:.4f}"
  return {
    "fitted": f"tau = {tau:.3f}: {change}.",
    "uniform": "tau = 0: all classes have equally many training images, no prior to remove.",
    "flat": f"tau = {tau:.3f}, but the objective is flat ({change}): these logits do not determine "
    "tau. Fit on the augmented views that students see (random resized crop, flip, CutMix).",
    "bound": f"tau = {tau:.3f}, the lower bound: {change}. allow_negative=True searches below.",
    "edge": f"tau = {tau:.3f}, an edge of tau_range: {change}. Further out there is no minimum "
    "but where a few classes take everything. Check labels and class_counts.",
  }[status]


def _log_prior(class_counts: Any, smoothing: float, k: int) -> ndarray:
  """Log class frequencies (k,) in float64."""
  counts = np.asarray(class_counts, np.float64)
  if counts.shape != (k,):
    raise ValueError(f"class_counts has shape {counts.shape}; logits of {k} classes need ({k},).")
  if not np.all((counts >= 0) & (counts < np.inf)):
    raise ValueError(f"class_counts is {counts}; expected numbers of training images.")
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
  """exp(z - shift), scaled by row, (r, k) float32, and its true classes (r, 1); bad rows NaN."""
  finite = jnp.isfinite(z.min(1, keepdims=True)) & jnp.isfinite(z.max(1, keepdims=True))
  z = z.astype(jnp.promote_types(z.dtype, jnp.float32))
  z = z if shift is None else z - shift[None]
  exps = jnp.exp((z - z.max(1, keepdims=True)).astype(jnp.float32))
  return exps, jnp.where(finite, jnp.take_along_axis(exps, y[:, None], 1), jnp.nan)


@functools.partial(jax.jit, static_argnames="order")
def _probabilities(exps: Array, true: Array, y: Array, w: Array, lp: Array, order: int) -> Array:
  """True-class probabilities and their tau-derivatives up to `order` (0 or 2): (r, order + 1, g).

  With weights w = exp(-tau * lp) of each class and tau, the denominators of all rows and all taus
  are one matrix product, and so are the moments of lp = log pi that the derivatives need:
  dp_y/dtau = p_y (m1 - lp_y) and d2p_y/dtau2 = p_y ((m1 - lp_y)^2 - (m2 - m1^2)).
  """
  powers = jnp.concatenate([w * lp[:, None] ** i for i in range(order + 1)], 1)
  total, *moments = jnp.split(jnp.dot(exps, powers, precision="highest"), order + 1, 1)
  p = true * w[y] / total
  if not moments:
    return p[:, None]
  mean, square = (m / total for m in moments)
  gap = mean - lp[y][:, None]
  return jnp.stack([p, p * gap, p * (gap**2 - square + mean**2)], 1)


def _class_means(rows: Rows, prior: ndarray, taus: ndarray, order: int = 0) -> ndarray:
  """Class confidences and their tau-derivatives at each tau: (order + 1, g, k) float64."""
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
    sums = _class_sums(rows, shift, w, jnp.asarray(lp, jnp.float32), order)
    with np.errstate(invalid="ignore"):
      out[:, here] = np.moveaxis(sums / rows.counts[:, None, None], 0, 2)
  return out


def _class_sums(rows: Rows, shift: Any, w: Array, lp: Array, order: int) -> ndarray:
  """Sums of `_probabilities` over the rows of each class: (k, order + 1, g) float64."""
  shape = (rows.k, order + 1, w.shape[1])
  sums, columns = np.zeros(math.prod(shape)), np.arange(math.prod(shape[1:]))

  def add(start: int, skip: int, y: ndarray, p: Array) -> None:
    values = np.asarray(p).reshape(len(y), -1)
    bad = np.isnan(values[:, 0])
    if bad.any():
      index = map(int, np.unravel_index(start + int(np.argmax(bad)), rows.lead))
      raise ValueError(f"logits{[*index]} is the first row with a NaN or infinite value.")
    cells = y[skip:, None] * np.int64(len(columns)) + columns
    sums[:] += np.bincount(cells.reshape(-1), values[skip:].reshape(-1), len(sums))

  waiting: list[tuple[int, int, ndarray, Array]] = []
  for start, skip, z, y in rows.chunks():
    exps = _exponentials(z, y, shift)
    waiting.append((start, skip, y, _probabilities(*exps, y, w, lp, order)))
    if len(waiting) > 2:  # the device is two chunks ahead of the host
      add(*waiting.pop(0))
  for last in waiting:
    add(*last)
  return sums.reshape(shape)


def _spread(q: ndarray) -> Any:
  """Population standard deviation over classes, (..., k) -> (...); NaN does not count."""
  return np.nanstd(q, axis=-1)


def _grid(lo: float, hi: float, step: float) -> ndarray:
  return np.linspace(lo, hi, min(math.ceil(round((hi - lo) / step, 6)), 255) + 1)


def _search(means: Means, lo: float, hi: float, floor: float, span: float) -> AdsaResult:
  """A grid, wider if need be, then Newton's method in the best brackets."""
  step = min((hi - lo) / 30, 0.6 / span)  # a class confidence moves within about 4 / span
  taus = _grid(lo, hi, step)
  q, before = np.split(means(np.append(taus, 0.0))[0], [-1])
  flat = np.ptp(_spread(q)) < FLAT and np.nanmean(before) > COLLAPSED  # certain, if not right
  flat |= np.nanmin(before) > 1 - FLAT  # certain and right
  if not flat:
    taus, q = _widen(means, taus, q, floor, step)
  curve = _spread(q)
  best, status = _choose(taus, q, (taus >= lo) & (taus <= hi), floor)
  found = [_refine(means, taus, curve, best, span)] if status == "fitted" else []
  tau, after = min([*found, (float(taus[best]), q[best])], key=lambda pair: _spread(pair[1]))
  status = "flat" if flat or np.ptp(curve) < FLAT else "bound" if tau == floor else status
  return _result(status, tau, before[0], after, np.stack([taus, curve], 1))


def _widen(means: Means, taus: ndarray, q: ndarray, floor: float, step: float) -> list[ndarray]:
  """Doubles the grid where its minimum is an edge, and up where one class takes all near zero."""
  for _ in range(_MAX_WIDENINGS):
    curve, level, top = _spread(q), np.nanmean(q, axis=-1), len(taus) - 1
    best, width = int(np.argmax(curve <= curve.min() + _NOISE)), taus[-1] - taus[0]
    rising = best == 0 and level[top] > level[:top].max() + _NOISE
    if best == top or rising or np.ptp(curve) < FLAT:
      new = _grid(taus[-1], taus[-1] + width, step)[1:]
    elif best == 0 and taus[0] > floor:
      new = _grid(max(floor, taus[0] - width), taus[0], step)[:-1]
    else:
      break
    order = np.argsort(np.append(taus, new))
    taus, q = np.append(taus, new)[order], np.concatenate([q, means(new)[0]])[order]
  return [taus, q]


def _choose(taus: ndarray, q: ndarray, inside: ndarray, floor: float) -> tuple[int, str]:
  """The grid point to refine: the lowest, if it is a minimum or the bound at zero; and a status.

  On an edge or outside the range that was asked for, it may be low because a few classes take all;
  then the lowest minimum where they do not, if it is any use, else the lowest point of the range.
  """
  curve, level = _spread(q), np.nanmean(q, axis=-1)
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


def _refine(means: Means, taus: ndarray, curve: ndarray, best: int, span: float) -> Any:
  """Newton's method on the squared spread, or bisection, in all brackets at once.

  Returns tau and the class confidences (k,) there; the last small step is on their expansion.
  """
  slack = 0.25 * np.max(np.abs(np.diff(curve, 2)), initial=0.0)  # what a bracket may hide
  rivals = [i for i in _minima(curve) if i != best and 0 <= curve[i] - curve[best] <= slack]
  at = np.array([best, *rivals[: _MAX_BRACKETS - 1]])
  left, right = np.maximum(at - 1, 0), np.minimum(at + 1, len(taus) - 1)
  a, b, v = taus[left], taus[right], curve**2
  bend = v[left] - 2 * v[at] + v[right]
  inner = (right - left == 2) & (bend > 0)  # start at the vertex of a parabola
  t = taus[at] + np.where(inner, (v[left] - v[right]) / np.where(inner, bend, 1) * (b - a) / 4, 0)
  for _ in range(_MAX_NEWTON):
    q = means(t, order=2)
    d, d1, d2 = q - np.nanmean(q, axis=-1, keepdims=True)
    parts = np.stack([d**2, 2 * d * d1, 2 * (d1**2 + d * d2)])  # of the variance, and d/dtau
    value, slope, curvature = np.nanmean(parts, axis=-1)
    a, b = np.where(slope > 0, a, t), np.where(slope > 0, t, b)
    newton = t - slope / np.where(curvature > 0, curvature, 1)
    sound = (curvature > 0) & (newton >= a) & (newton <= b)
    step = np.where(sound, newton, (a + b) / 2) - t
    gain = np.sqrt(value) - np.sqrt(np.maximum(value - np.abs(slope * step), 0))
    short = np.abs(step) * span < 0.01
    if np.all((gain < 1e-10) | (gain < 5e-6) & short):
      break
    t = t + step
  step = np.where(short, step, 0)
  final = q[0] + step[:, None] * (q[1] + step[:, None] / 2 * q[2])
  winner = int(np.argmin(_spread(final)))
  return float((t + step)[winner]), final[winner]


def _result(status: str, tau: float, before: ndarray, after: ndarray, curve: ndarray) -> AdsaResult:
  spreads = float(_spread(before)), float(_spread(after))
  flat, message = status in ("flat", "uniform"), explain(status, tau, *spreads)
  return AdsaResult(tau, *spreads, before, after, curve, flat, message, status)
