"""The interface of calibrators, and the checks and small formulas that they share."""

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ltdd_jax import adsa as adsa_lib
from ltdd_jax.adsa import Rows
from ltdd_jax.core.types import LtddError


class Calibrator(NamedTuple):
  """Pure functions; params are a pytree of arrays, the same structure in `init` and `fit`."""

  init: Callable[..., Any]  # (log_prior (k,)) -> params before a fit; raises what k rules out
  fit: Callable[..., Any]  # (logits (..., n, k), labels (n,), log_prior (k,)) -> params
  apply: Callable[..., jax.Array]  # (params, logits (..., k), log_prior (k,)) -> float32 (..., k)
  report: Callable[..., dict[str, Any]]  # (params) -> floats, strings, lists, None for NaN
  # (params, a student's logits (m, k) of training images that it has not seen, labels (m,),
  # log_prior) -> params, for calibrators that look at a student of the labels that `fit` makes
  refine: Callable[..., Any] | None = None
  # "prior": the log frequency of every class, so that each has a training image; "probe": a student
  needs: tuple[str, ...] = ("prior",)


# ---- checks ----


@contextlib.contextmanager
def named(name: str, part: str | None = None) -> Iterator[None]:
  """Turns a ValueError inside into an LtddError of a calibrator.

  An LtddError stays what it is, unless it is of a `part`, another calibrator, whose name gives way.
  """
  try:
    yield
  except ValueError as error:
    if part is None and isinstance(error, LtddError):
      raise
    raise LtddError(f"{name}: {str(error).removeprefix(f'{part}: ')}") from error


def check_prior(log_prior: Any) -> None:
  """Raises LtddError if a class has no training image."""
  empty = np.flatnonzero(~np.isfinite(np.asarray(log_prior)))
  if empty.size:
    raise LtddError(
      f"class {empty[0]} has no training image, so its log frequency is minus infinity and soft "
      "labels cannot be aligned. Leave the class out of the data."
    )


def check_number(
  name: str, key: str, value: float, *, least: float = 0.0, above: bool = False
) -> None:
  """Raises LtddError unless the value is finite and at least (or above) `least`."""
  if not math.isfinite(value) or value < least or (above and value == least):
    bound = f"above {least:g}" if above else f"of {least:g} or more"
    raise LtddError(f"{name}: {key} is {value}; expected a finite number {bound}.")


def check_range(name: str, tau_range: Any) -> None:
  """Raises LtddError for a range of tau that `adsa.fit` refuses."""
  with named(name):
    adsa_lib.grid(tau_range, np.zeros(1))


def check_classes(calibrator: Calibrator, k: int) -> None:
  """Raises LtddError for options that do not go with k classes: a target prior."""
  jax.eval_shape(calibrator.init, jax.ShapeDtypeStruct((k,), jnp.float32))


def open_rows(logits: Any, labels: Any, log_prior: Any) -> Rows:
  """Checked rows of logits with as many classes as the prior; raises ValueError."""
  rows = Rows(logits, labels).alive()
  if np.shape(log_prior) != (rows.k,):
    raise ValueError(
      f"log_prior has shape {np.shape(log_prior)}; logits of {rows.k} classes need ({rows.k},)."
    )
  return rows


def with_target(
  name: str, calibrator: Calibrator, target_prior: Sequence[float] | None
) -> Calibrator:
  """A calibrator whose labels move on, by Bayes' rule, from equal classes to a target prior q.

  Raises:
    LtddError: frequencies that are not positive or do not sum to one within 1e-6; from `init` and
      `fit`, those of another number of classes.
  """
  if target_prior is None:
    return calibrator
  q = np.asarray(target_prior, np.float64)
  if q.ndim != 1 or not q.size or not np.all((q > 0) & (q < np.inf)):
    raise LtddError(
      f"{name}: target_prior is {target_prior}; expected the frequency of each class in the test "
      "set, each above 0. For a class that never occurs there, give a small number."
    )
  if abs(q.sum() - 1) > 1e-6:
    raise LtddError(
      f"{name}: target_prior sums to {q.sum():.6g}; expected 1. Divide it by its sum."
    )

  def init(log_prior: Any) -> Any:
    k = log_prior.shape[0]
    if len(q) != k:
      raise LtddError(f"{name}: target_prior has {len(q)} entries; there are {k} classes.")
    return calibrator.init(log_prior)

  def fit(logits: Any, labels: Any, log_prior: Any) -> Any:
    init(log_prior)
    return calibrator.fit(logits, labels, log_prior)

  def apply(params: Any, logits: jax.Array, log_prior: jax.Array) -> jax.Array:
    aligned = calibrator.apply(params, logits, log_prior)
    return subtract(-jnp.asarray(centered(np.log(q)), jnp.float32), aligned)

  def report(params: Any) -> dict[str, Any]:
    found = calibrator.report(params)
    found["message"] += " The step to target_prior comes after that, and is not in these numbers."
    return found | {"target_prior": plain(q)}

  return calibrator._replace(init=init, fit=fit, apply=apply, report=report)


# ---- formulas ----


def is_uniform(log_prior: Any) -> bool:
  """Whether all classes have equally many training images: then there is no bias to remove."""
  return float(np.ptp(np.asarray(log_prior, np.float64))) < adsa_lib.UNIFORM


def is_certain(confidence: np.ndarray) -> bool:
  """Whether labels leave nothing to fit: they are sure and right in every class that has images."""
  return bool(np.nanmin(confidence) > 1 - adsa_lib.FLAT)


def centered(values: Any) -> np.ndarray:
  """Values (k,) as float64 less their mean."""
  values = np.asarray(values, np.float64)
  return values - values.mean()


def slope(bias: np.ndarray, log_prior: np.ndarray) -> float:
  """Slope of the regression of a bias (k,) on the log prior: the tau that it resembles most."""
  known = np.isfinite(log_prior)
  x, y = centered(np.asarray(log_prior)[known]), centered(np.asarray(bias)[known])
  return float(x @ y / (x @ x)) if np.ptp(x) >= adsa_lib.UNIFORM else 0.0


def on_the_line(bias: np.ndarray, present: np.ndarray, log_prior: np.ndarray) -> np.ndarray:
  """Gives classes without an image the bias of the regression line at their log prior."""
  x, y = log_prior[present], bias[present]
  line = y.mean() + slope(y, x) * (log_prior - x.mean())
  return np.where(present, bias, line)


def shift(tau: jax.Array, logits: jax.Array, log_prior: jax.Array) -> jax.Array:
  """Returns `logits - tau * (log_prior - mean log_prior)` in float32.

  A softmax cannot see that the prior is centred; students' losses on raw logits (MSE) can.
  """
  centre = log_prior.astype(jnp.float32) - log_prior.mean(dtype=jnp.float32)
  return subtract(tau * centre, logits)


def subtract(bias: jax.Array, logits: jax.Array) -> jax.Array:
  """Returns `logits - bias` in float32 for logits (..., k) and a bias (k,) of mean zero."""
  return logits.astype(jnp.float32) - jnp.expand_dims(bias, tuple(range(logits.ndim - 1)))


# ---- params and reports ----


def single(values: Any) -> jax.Array:
  """Numbers as a float32 array."""
  return jnp.asarray(np.asarray(values), jnp.float32)


def fit_report(params: Any) -> dict[str, Any]:
  """What the reports of all fits have: tau, objective and confidence, before and after."""
  return {
    "tau": float(params.tau),
    "objective_before": plain(params.objective[0]),
    "objective_after": plain(params.objective[1]),
    "confidence_before": plain(params.confidence[0]),
    "confidence_after": plain(params.confidence[1]),
  }


def plain(values: Any) -> Any:
  """An array as lists of floats, with None for NaN."""
  if np.ndim(values):
    return [plain(v) for v in np.asarray(values)]
  return None if math.isnan(values) else float(values)
