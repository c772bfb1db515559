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

Where we differ: the search is a grid followed by Newton's method with the analytic derivative;
classes without a distilled image do not count; a range whose best tau is its edge is widened, but
not into the region where the confidences are alike only because one class takes everything; and
an objective that is flat, so that its minimum means nothing, is reported as such.
"""

import collections
import functools
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Array = np.ndarray | jax.Array

# The objective counts as flat if its range over the searched curve, or the doubt of every class
# confidence before calibration, is below this.
FLAT = 1e-3
# Confidences whose mean fell below this part of its best are alike because they all collapsed.
COLLAPSED = 0.5
_MAX_WIDENINGS = 3  # each doubles the searched range
_MAX_NEWTON = 12
_MAX_BRACKETS = 4
_CHUNK = 2**20  # elements of a chunk: 4 MB of float32 stay in a core's cache
_SMALL = 2**26  # bytes that may be kept whatever the size of the logits
_UNIFORM = 1e-5  # span of the log prior below which the prior is uniform
# exp() of float32 ends at -87. Up to this |tau| * span(log pi), what it flushes is negligible.
_SAFE_EXPONENT = 60.0


class AdsaResult(NamedTuple):
  """What `fit` found."""

  tau: float
  objective_before: float  # spread of class confidences at tau = 0
  objective_after: float
  confidence_before: np.ndarray  # (k,) float64, NaN for classes without an image
  confidence_after: np.ndarray  # (k,) float64
  curve: np.ndarray  # (m, 2) float64, the searched (tau, objective) pairs, tau increasing
  flat: bool  # the objective does not determine tau
  message: str  # one or two sentences for people
  status: str  # one of STATUSES


STATUSES = ("fitted", "uniform", "flat", "bound", "edge")


def fit(
  logits: Array,
  labels: Array,
  class_counts: Any,
  *,
  tau_range: tuple[float, float] = (0.0, 3.0),
  allow_negative: bool = False,
  smoothing: float = 0.0,
  chunk_size: int | None = None,
  chunked: bool | None = None,
) -> AdsaResult:
  """Finds the tau whose class confidences are spread least.

  Args:
    logits: (..., n, k) float16, bfloat16, float32 or float64, finite; leading axes are label
      epochs and are simply more rows. Averaged over an ensemble beforehand.
    labels: (n,) or (..., n) integers, the classes that the images were distilled for.
    class_counts: (k,) training images of each class (or anything proportional to them).
    tau_range: searched first; widened up to eight times while the best tau is an edge.
    allow_negative: search below zero when the minimum asks for it.
    smoothing: added to every count; needed if a class has no training image.
    chunk_size: rows in one step of the computation; by default about a million logits.
    chunked: recompute exponentials chunk by chunk, so that memory beyond the logits is
      O(chunk_size * k), in place of keeping them (as much again as float32 logits). By default
      kept if peak memory stays below 2.2 times the logits, or if they are small.

  Returns:
    An `AdsaResult`. Its objective is within 1e-6 of the minimum and tau within about 1e-3.

  Raises:
    ValueError: shapes or dtypes that do not fit; a NaN or infinite logit, a label outside [0, k)
      or a class without training images, each naming the first; fewer than two classes with an
      image; a range that is empty.

  Example:
    >>> logits = np.array([[2.0, 0.0], [0.5, 0.0]], np.float32)
    >>> round(fit(logits, np.array([0, 1]), [100, 10]).tau, 2)
    0.54
  """
  lo, hi = _check_range(tau_range, allow_negative)
  rows = _Rows(logits, labels, chunk_size, chunked)
  prior = _log_prior(class_counts, smoothing, rows.k)
  means = functools.partial(_class_means, rows, prior)
  span = float(np.ptp(prior))
  if span < _UNIFORM:
    taus = np.linspace(lo, hi, 33)
    q = means(np.zeros(1))[0]
    return _result("uniform", 0.0, q, q, np.stack([taus, np.full(33, _spread(q)[0])], 1))
  floor = -math.inf if allow_negative else 0.0
  return _search(means, lo, hi, floor, min((hi - lo) / 32, 0.45 / span))


def align(
  logits: Any, class_counts: Any, tau: Any, *, centered: bool = False, smoothing: float = 0.0
) -> jax.Array:
  """Returns `logits - tau * log pi`: pure, jit-able, at least float32.

  Args:
    logits: (..., k).
    class_counts: (k,), as given to `fit`.
    tau: scalar.
    centered: take the mean over classes from `log pi`, so that the mean of each row stays what it
      was. A softmax cannot see the difference; a loss on raw logits, such as MSE, can.
    smoothing: as given to `fit`.

  Raises:
    ValueError: counts of another length, or (unless traced) a class without training images.
  """
  z = jnp.asarray(logits)
  z = z.astype(jnp.promote_types(z.dtype, jnp.float32))
  if isinstance(class_counts, jax.core.Tracer):
    counts = class_counts.astype(z.dtype) + smoothing
    prior = jnp.log(counts) - jnp.log(counts.sum())
  else:
    prior = jnp.asarray(_log_prior(class_counts, smoothing, z.shape[-1]), z.dtype)
  shift = prior - prior.mean() if centered else prior
  return z - jnp.expand_dims(tau * shift, tuple(range(z.ndim - 1)))


def confidence(
  logits: Array,
  labels: Array,
  class_counts: Any,
  tau: float,
  *,
  smoothing: float = 0.0,
  chunk_size: int | None = None,
) -> np.ndarray:
  """Mean probability of the true class, class by class: `q_c(tau)`, arguments as of `fit`.

  Returns:
    (k,) float64, NaN for classes without an image.
  """
  rows = _Rows(logits, labels, chunk_size, chunked=True)
  prior = _log_prior(class_counts, smoothing, rows.k)
  return _class_means(rows, prior, np.array([float(tau)]))[0, 0]


def objective(logits: Array, labels: Array, class_counts: Any, tau: float, **kwargs: Any) -> float:
  """Population standard deviation over classes of `confidence`, whose arguments it takes."""
  return float(np.nanstd(confidence(logits, labels, class_counts, tau, **kwargs)))


def explain(status: str, tau: float, before: float, after: float) -> str:
  """The message of a result, from its status, tau and objectives."""
  change = f"the spread of class confidences goes from {before:.4f} to {after:.4f}."
  return {
    "fitted": f"tau = {tau:.3f}: {change}",
    "uniform": "tau = 0: all classes have equal numbers of training images, so there is no prior "
    "to remove.",
    "flat": f"tau = {tau:.3f}, but the objective is flat ({change[:-1]}): these images do not "
    "determine tau. Fit on the augmented views that students see (random resized crop, flip, "
    "CutMix), not on images that the labeler is certain of.",
    "bound": f"tau = {tau:.3f} is the lower bound of the search: {change} Pass "
    "allow_negative=True to search below zero.",
    "edge": f"tau = {tau:.3f} is an edge of tau_range: {change} The objective has no minimum "
    "beyond it but the one where a few classes take everything. Check labels and class_counts.",
  }[status]


# ---- checks ----


def _check_range(tau_range: tuple[float, float], allow_negative: bool) -> tuple[float, float]:
  lo, hi = (float(t) for t in tau_range)
  if not (math.isfinite(lo) and math.isfinite(hi) and lo < hi):
    raise ValueError(f"tau_range is {tau_range}; expected two finite numbers, the lower first.")
  if lo < 0 and not allow_negative:
    raise ValueError(f"tau_range is {tau_range}; pass allow_negative=True to search below zero.")
  return lo, hi


def _log_prior(class_counts: Any, smoothing: float, k: int) -> np.ndarray:
  """Log class frequencies (k,) in float64."""
  counts = np.asarray(class_counts, np.float64)
  if counts.shape != (k,):
    raise ValueError(f"class_counts has shape {counts.shape}; logits of {k} classes need ({k},).")
  bad = ~np.isfinite(counts) | (counts < 0)
  if bad.any():
    c = int(np.argmax(bad))
    raise ValueError(f"class_counts[{c}] is {counts[c]}; expected a number of training images.")
  counts = counts + smoothing
  if (counts <= 0).any():
    c = int(np.argmax(counts <= 0))
    raise ValueError(
      f"class {c} has no training image, so its log frequency is minus infinity. Pass "
      "smoothing=1.0 to add one image to every class, or leave the class out."
    )
  return np.log(counts) - math.log(counts.sum())


def _check_labels(labels: Array, lead: tuple[int, ...], k: int) -> np.ndarray:
  y = np.asarray(labels)
  if y.dtype.kind not in "iu":
    raise ValueError(f"labels have dtype {y.dtype}; expected integers: labels.astype(int).")
  if y.shape not in (lead, lead[-1:]):
    raise ValueError(
      f"labels have shape {y.shape}; logits of shape {(*lead, k)} need {lead[-1:]}"
      + (f" or {lead}." if len(lead) > 1 else ".")
    )
  y = y.reshape(-1)
  bad = (y < 0) | (y >= k)
  if bad.any():
    i = int(np.argmax(bad))
    raise ValueError(f"label {y[i]} (number {i}) is outside [0, {k}), the classes of the logits.")
  if np.count_nonzero(np.bincount(y, minlength=k)) < 2:
    raise ValueError(
      "fewer than two classes have an image, so there is no spread of confidences to minimise."
    )
  return y


# ---- rows, a chunk at a time ----


class _Chunk(NamedTuple):
  start: int  # number of its first row
  skip: int  # rows at its head that the chunk before it has counted
  labels: np.ndarray  # (r,)
  exps: jax.Array  # (r, k) float32, exp(z - rowmax z)
  true_exps: jax.Array  # (r,) float32, that of the true class
  finite: jax.Array  # (r,) bool


class _Rows:
  """Checked logits, seen as chunks of exponentials that are kept or made anew for each pass.

  All chunks have one shape, so that one compilation serves: the last overlaps the one before it.
  """

  def __init__(
    self, logits: Array, labels: Array, chunk_size: int | None, chunked: bool | None
  ) -> None:
    if not isinstance(logits, jax.Array):
      logits = np.asanyarray(logits)
    elif logits.is_fully_addressable and len(logits.devices()) == 1 and _on_cpu(logits):
      logits = np.asarray(logits)  # a view: slicing it compiles nothing
    if logits.ndim < 2 or not jnp.issubdtype(logits.dtype, jnp.floating):
      raise ValueError(
        f"logits have shape {logits.shape} and dtype {logits.dtype}; expected floats (..., n, k)."
      )
    if chunk_size is not None and chunk_size < 1:
      raise ValueError(f"chunk_size is {chunk_size}; expected a number of rows.")
    self.lead, self.k = logits.shape[:-1], logits.shape[-1]
    self.labels = _check_labels(labels, self.lead, self.k)
    self.n = math.prod(self.lead)
    self.size = min(self.n, chunk_size or max(1, _CHUNK // max(self.k, 64)))
    self.counts = np.bincount(self.labels, minlength=self.k) * (self.n // len(self.labels))
    self._logits = _as_matrix(logits)
    kept = 4 * self.n * self.k
    keep = kept <= _SMALL or (kept <= 1.1 * logits.nbytes and not _is_mapped(logits))
    self._kept: list[_Chunk] | None = [] if (keep if chunked is None else not chunked) else None

  def chunks(self, shift: np.ndarray | None = None) -> Iterator[_Chunk]:
    """Chunks of `logits - shift`; those without a shift may be kept."""
    if shift is None and self._kept:
      yield from self._kept
      return
    for i in range(-(-self.n // self.size)):
      start = min(i * self.size, self.n - self.size)
      y = self.labels[np.arange(start, start + self.size) % len(self.labels)].astype(np.int32)
      prepared = _prepare(self._read(start), y, shift)
      chunk = _Chunk(start, i * self.size - start, y, *prepared)
      if shift is None and self._kept is not None:
        self._kept.append(chunk)
      yield chunk

  def _read(self, start: int) -> Array:
    z = self._logits
    if isinstance(z, jax.Array):
      return _slice_rows(z, start, self.size)
    if z.ndim > 2:
      z = z[np.unravel_index(np.arange(start, start + self.size), self.lead)]
    else:
      z = z[start : start + self.size]
    if z.dtype.kind == "f" and z.dtype.itemsize == 8:
      with np.errstate(invalid="ignore"):
        z = z - z.max(1, keepdims=True)  # before float32, which has no room for large offsets
    return np.asarray(z, np.float32 if z.dtype.itemsize >= 4 else z.dtype.newbyteorder("="))

  def check(self, chunk: _Chunk) -> None:
    finite = np.asarray(chunk.finite)
    if not finite.all():
      where = np.unravel_index(chunk.start + int(np.argmin(finite)), self.lead)
      row = ", ".join(str(int(i)) for i in where)
      raise ValueError(f"logits[{row}] is the first row with a NaN or infinite value.")


def _on_cpu(x: jax.Array) -> bool:
  return next(iter(x.devices())).platform == "cpu"


def _as_matrix(logits: Array) -> Array:
  """Logits as (rows, k) where that takes no copy."""
  if isinstance(logits, jax.Array) or logits.ndim == 2:
    return logits
  try:
    return np.reshape(logits, (-1, logits.shape[-1]), copy=False)
  except ValueError:
    return logits


def _is_mapped(x: Any) -> bool:
  """Whether the memory of an array is a file's."""
  while x is not None:
    if isinstance(x, np.memmap):
      return True
    x = getattr(x, "base", None)
  return False


@functools.partial(jax.jit, static_argnames="size")
def _slice_rows(logits: jax.Array, start: int, size: int) -> jax.Array:
  return jax.lax.dynamic_slice_in_dim(logits.reshape(-1, logits.shape[-1]), start, size)


@jax.jit
def _prepare(
  z: jax.Array, y: jax.Array, shift: jax.Array | None
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """exp(z - rowmax) (r, k), its true-class column (r,) and whether each row is finite (r,)."""
  finite = jnp.isfinite(z).all(1)
  z = z.astype(jnp.promote_types(z.dtype, jnp.float32))
  if shift is not None:
    z = z - shift[None]
  exps = jnp.exp((z - z.max(1, keepdims=True)).astype(jnp.float32))
  return exps, jnp.take_along_axis(exps, y[:, None], 1)[:, 0], finite


@functools.partial(jax.jit, static_argnames="order")
def _probabilities(
  exps: jax.Array, true_exps: jax.Array, y: jax.Array, w: jax.Array, lp: jax.Array, order: int
) -> jax.Array:
  """True-class probabilities and their tau-derivatives up to `order` (0 or 2): (order + 1, r, g).

  With weights w = exp(-tau * l) of each class and tau, the denominators of all rows and all taus
  are one matrix product, and so are the moments of l that the derivatives need:
  dp_y/dtau = p_y (m1 - l_y) and d2p_y/dtau2 = p_y ((m1 - l_y)^2 - (m2 - m1^2)).
  """
  powers = [w * lp[:, None] ** i for i in range(order + 1)]
  sums = jnp.dot(exps, jnp.concatenate(powers, 1), precision="highest")
  total, *moments = jnp.split(sums, order + 1, 1)
  p = true_exps[:, None] * w[y] / total
  if not moments:
    return p[None]
  mean, square = (m / total for m in moments)
  gap = mean - lp[y][:, None]
  return jnp.stack([p, p * gap, p * (gap**2 - square + mean**2)])


# ---- class means ----


def _class_means(rows: _Rows, prior: np.ndarray, taus: np.ndarray, order: int = 0) -> np.ndarray:
  """Class confidences and their tau-derivatives at each tau: (order + 1, g, k) float64."""
  lp = prior - (prior.min() + prior.max()) / 2
  width = 2 * _SAFE_EXPONENT / float(np.ptp(lp)) if np.ptp(lp) else math.inf
  windows = np.zeros(len(taus)) if math.isinf(width) else np.round(taus / width)
  out = np.empty((order + 1, len(taus), rows.k))
  for window in np.unique(windows):
    here = windows == window
    # Far from zero, exponentials are taken of logits that are shifted already.
    base = 0.0 if window == 0 else window * width
    shift = None if window == 0 else (base * lp).astype(np.float32)
    exponent = -np.outer(lp, taus[here] - base)
    w = np.exp(exponent - exponent.max(0)).astype(np.float32)
    out[:, here] = _means_of_window(rows, shift, w, lp.astype(np.float32), order)
  return out


def _means_of_window(
  rows: _Rows, shift: np.ndarray | None, w: np.ndarray, lp: np.ndarray, order: int
) -> np.ndarray:
  sums = np.zeros((order + 1, rows.k, w.shape[1]))
  pending: collections.deque[tuple[_Chunk, jax.Array]] = collections.deque()
  for chunk in rows.chunks(shift):
    p = _probabilities(chunk.exps, chunk.true_exps, chunk.labels, w, lp, order)
    pending.append((chunk, p))
    if len(pending) > 1:  # the device works on one chunk while the host sums another
      _add(rows, sums, *pending.popleft())
  while pending:
    _add(rows, sums, *pending.popleft())
  with np.errstate(invalid="ignore"):
    return np.swapaxes(sums / rows.counts[:, None], 1, 2)


def _add(rows: _Rows, sums: np.ndarray, chunk: _Chunk, p: jax.Array) -> None:
  """Adds the rows of a chunk to the sums of their classes, in float64."""
  rows.check(chunk)
  y = chunk.labels[chunk.skip :]
  by_class = np.argsort(y, kind="stable")
  classes, starts = np.unique(y[by_class], return_index=True)
  values = np.asarray(p)[:, chunk.skip + by_class]
  sums[:, classes] += np.add.reduceat(values, starts, axis=1, dtype=np.float64)


def _spread(q: np.ndarray) -> np.ndarray:
  """Population standard deviation over classes: (g, k) -> (g,); NaN columns do not count."""
  return np.nanstd(q, axis=-1)


def _variance(q: np.ndarray) -> tuple[Any, Any, Any]:
  """Squared spread with two tau-derivatives, from means (3, g, k); smooth also where it is 0."""
  d, d1, d2 = q - np.nanmean(q, axis=-1, keepdims=True)
  mean = functools.partial(np.nanmean, axis=-1)
  return mean(d**2), 2 * mean(d * d1), 2 * mean(d1**2 + d * d2)


# ---- search ----


def _grid(lo: float, hi: float, step: float) -> np.ndarray:
  return np.linspace(lo, hi, min(math.ceil(round((hi - lo) / step, 6)), 1024) + 1)


def _search(means: Any, lo: float, hi: float, floor: float, step: float) -> AdsaResult:
  """Grid, wider if need be, then Newton's method in the best brackets."""
  taus = _grid(lo, hi, step)
  *q, before = means(np.append(taus, 0.0))[0]
  q = np.stack(q)
  curve = _spread(q)
  flat = np.ptp(curve) < FLAT or 1 - np.nanmin(before) < FLAT
  inside = slice(0, len(taus))
  if not flat:
    taus, q, inside = _widen(means, taus, q, floor, step)
    curve = _spread(q)
  best, status = _choose(taus, q, inside, floor)
  tau, after = _refine(means, taus, curve, best, q[best])
  return _result("flat" if flat else status, tau, before, after, np.stack([taus, curve], 1))


def _widen(
  means: Any, taus: np.ndarray, q: np.ndarray, floor: float, step: float
) -> tuple[np.ndarray, np.ndarray, slice]:
  """Doubles the grid on the side where its minimum is an edge; also says where the first one is."""
  first = (taus[0], taus[-1])
  for _ in range(_MAX_WIDENINGS):
    best, width = int(np.argmin(_spread(q))), taus[-1] - taus[0]
    if best == len(taus) - 1:
      new = _grid(taus[-1], taus[-1] + width, step)[1:]
      taus, q = np.append(taus, new), np.concatenate([q, means(new)[0]])
    elif best == 0 and taus[0] > floor:
      new = _grid(max(floor, taus[0] - width), taus[0], step)[:-1]
      taus, q = np.append(new, taus), np.concatenate([means(new)[0], q])
    else:
      break
  start, stop = np.searchsorted(taus, first)
  return taus, q, slice(int(start), int(stop) + 1)


def _choose(taus: np.ndarray, q: np.ndarray, inside: slice, floor: float) -> tuple[int, str]:
  """The grid point to refine and the status of the answer.

  The lowest point, if it is a minimum, or the bound at zero. Outside the range that was asked
  for, or on an edge, it may be low because all confidences collapsed as one class takes all;
  then the lowest minimum that did not collapse, and failing that the lowest point of the range.
  """
  curve = _spread(q)
  level = np.nanmean(q, axis=-1)
  healthy = level >= COLLAPSED * level.max()
  low = curve <= curve.min() + 1e-9
  best = int(np.flatnonzero(low)[np.argmin(np.abs(taus[low]))])  # of equals, the mildest
  interior = 0 < best < len(taus) - 1
  if interior and (healthy[best] or inside.start <= best < inside.stop):
    return best, "fitted"
  if best == 0 and taus[0] <= floor:
    return best, "bound"
  minima = [i for i in _local_minima(curve) if healthy[i]]
  if minima:
    return min(minima, key=lambda i: curve[i]), "fitted"
  return inside.start + int(np.argmin(curve[inside])), "edge"


def _local_minima(curve: np.ndarray) -> np.ndarray:
  middle = curve[1:-1]
  return 1 + np.flatnonzero((middle <= curve[:-2]) & (middle <= curve[2:]))


def _refine(
  means: Any, taus: np.ndarray, curve: np.ndarray, best: int, q_best: np.ndarray
) -> tuple[float, np.ndarray]:
  """Newton's method on the squared spread, safeguarded by bisection, in all brackets at once.

  Returns:
    tau and the class confidences (k,) there.
  """
  # A narrow minimum beside a grid point may be lower than the best grid point.
  slack = 0.25 * (np.max(np.abs(np.diff(curve, 2)), initial=0.0))
  rivals = [i for i in _local_minima(curve) if i != best and curve[best] <= curve[i]]
  rivals = sorted((i for i in rivals if curve[i] <= curve[best] + slack), key=lambda i: curve[i])
  at = np.array([best, *rivals[: _MAX_BRACKETS - 1]])
  a, b, t = taus[np.maximum(at - 1, 0)], taus[np.minimum(at + 1, len(taus) - 1)], taus[at]
  for _ in range(_MAX_NEWTON):
    q = means(t, order=2)
    value, slope, curvature = _variance(q)
    a, b = np.where(slope > 0, a, t), np.where(slope > 0, t, b)
    with np.errstate(divide="ignore", invalid="ignore"):
      newton = t - slope / curvature
    sound = (curvature > 0) & (newton >= a) & (newton <= b)
    step = np.where(sound, newton, (a + b) / 2) - t
    gain = np.sqrt(value) - np.sqrt(np.maximum(value - np.abs(slope * step), 0))
    if np.all((gain < 1e-10) | (gain < 2e-7) & (np.abs(step) < 1e-4)):
      break
    t = t + step
  winner = int(np.argmin(_spread(q[0])))
  if _spread(q_best) < _spread(q[0, winner]) - 1e-7:
    return float(taus[best]), q_best
  return float(t[winner]), q[0, winner]


def _result(
  status: str, tau: float, before: np.ndarray, after: np.ndarray, curve: np.ndarray
) -> AdsaResult:
  before, after = before.reshape(-1), after.reshape(-1)
  spreads = float(_spread(before)), float(_spread(after))
  flat = status in ("flat", "uniform")
  message = explain(status, tau, *spreads)
  return AdsaResult(tau, *spreads, before, after, curve, flat, message, status)
