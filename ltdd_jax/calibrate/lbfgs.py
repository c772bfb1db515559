"""L-BFGS on streamed objectives, and how it ended."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from ltdd_jax.calibrate import base

_TEXT = {  # how a fit ended; the first two are convergence
  "gradient": "converged",
  "rounding": "converged to the rounding error of the objective",
  "limit": "NOT converged: the limit of iterations was reached",
  "stuck": "NOT converged: no step lowers the objective, though its gradient is not zero",
  "uniform": "all classes have equally many training images: no prior to remove",
  "bound": "NOT converged: a parameter is at its bound, these logits do not determine it",
  "flat": "labels are certain, or the objective is flat: these logits do not determine the fit. "
  "Fit on augmented views of the images",
  "edge": "scalar tau is an edge of tau_range, and further out there is no minimum but where a few "
  "classes take everything. Check labels and class_counts",
}
REASONS = tuple(_TEXT)
_SMALL = 3e-3  # a gradient that rounding may leave, times the number of parameters


class Outcome(NamedTuple):
  """The end of a fit."""

  x: np.ndarray  # (p,) float64
  reason: str  # one of REASONS
  iterations: int


def converged(reason: str) -> bool:
  """Whether a reason is convergence, or there was nothing to fit."""
  return reason in ("gradient", "rounding", "uniform")


def report(params: Any, what: str, objective: str) -> dict[str, Any]:
  """The report of a fit, whose params have `base.fit_report`'s, the number of a reason, iterations.

  `what` begins its message, and `objective` is a name.
  """
  reason, iterations = REASONS[int(params.reason)], int(params.iterations)
  before, after = (float(x) for x in params.objective)
  end = _TEXT[reason]
  if reason not in ("uniform", "flat", "edge"):
    end += f" ({iterations} iterations)"
  return base.fit_report(params) | {
    "flat": reason == "flat",
    "converged": converged(reason),
    "reason": reason,
    "iterations": iterations,
    "message": f"{what}: {objective} goes from {before:.4f} to {after:.4f}; {end}.",
  }


def minimise(
  fn: Callable[[np.ndarray], tuple[float, np.ndarray]],
  start: Any,
  *,
  max_iterations: int,
  bound: float | None = None,
) -> Outcome:
  """L-BFGS-B from `start` (p,), which is deterministic.

  Args:
    fn: value and gradient (p,), both float64. They are multiplied by p, so that a tolerance means
      the same for ten classes and a thousand.
    start: first guess.
    max_iterations: steps, each of which takes one value and gradient or a few.
    bound: on the absolute value of each parameter.
  """
  from scipy.optimize import minimize  # half a second to import, and only fits need it

  start = np.asarray(start, np.float64)
  bounds = None if bound is None else [(-bound, bound)] * len(start)
  size = len(start)

  def scaled(x: np.ndarray) -> tuple[float, np.ndarray]:
    value, gradient = fn(x)
    return size * value, size * gradient

  found = minimize(
    scaled, start, jac=True, method="L-BFGS-B", bounds=bounds,
    options={"maxiter": max_iterations, "maxfun": 20 * max_iterations, "gtol": 1e-5, "ftol": 1e-13},
  )  # fmt: skip
  small = float(np.max(np.abs(found.jac), initial=0.0)) < _SMALL
  if bound is not None and np.any(np.abs(found.x) >= bound):
    reason = "bound"
  elif found.status == 0:
    reason = "gradient"
  elif found.status == 1:
    reason = "limit"
  else:
    reason = "rounding" if small else "stuck"
  return Outcome(np.asarray(found.x), reason, int(found.nit))
