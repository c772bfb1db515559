"""ADSA that spares the head: the best tau that costs head classes no more than a given confidence.

    h(tau) = mean of q_c(tau) over head classes
    tau    = argmin of the criterion subject to h(0) - h(tau) <= max_head_drop

tau = 0 satisfies it always. Where h falls below its bound between two taus of the fit's grid, which
are 0.01 apart, it is a straight line but for some 1e-5.
"""

import functools

import numpy as np

from ltdd_jax.adsa import AdsaResult, Rows
from ltdd_jax.calibrate import criteria, streaming
from ltdd_jax.core.types import LtddError
from ltdd_jax.data import longtail


def head_and_tail(head: tuple[int, ...] | None, log_prior: np.ndarray) -> tuple[np.ndarray, ...]:
  """Classes of the head and of the tail: by thirds, or the given head and all others.

  Raises:
    LtddError: a head of no class, of every class, or of classes that there are not.
  """
  k = len(log_prior)
  if head is None:
    if k < 3:
      raise LtddError(
        f"adsa: max_head_drop with {k} classes has no head third; name its classes: head=(0,)."
      )
    thirds = [members for members in longtail.groups(log_prior, "thirds").values() if members]
    return np.sort(thirds[0]), np.sort(thirds[-1])
  chosen = np.isin(np.arange(k), head)
  if chosen.sum() != len(head) or not 0 < len(head) < k:
    raise LtddError(f"adsa: head is {head}; expected some, not all, of the classes 0 to {k - 1}.")
  return np.flatnonzero(chosen), np.flatnonzero(~chosen)


def bounded(
  rows: Rows,
  log_prior: np.ndarray,
  result: AdsaResult,
  criterion: str,
  max_drop: float,
  head: tuple[int, ...] | None,
) -> tuple[float, np.ndarray]:
  """Keeps the tau of a fit if it costs the head no more than `max_drop`, else finds the best.

  Args:
    rows: logits.
    log_prior: (k,).
    result: of the fit, whose curve is the grid.
    criterion: that it was fitted with.
    max_drop: how much h may fall.
    head: its classes, or None for the first third.

  Returns:
    tau, and what it was chosen from: tau, objective, confidence of head and tail (m, 4) float64.

  Raises:
    LtddError: from `head_and_tail`; no image of a head class.
  """
  first, last = head_and_tail(head, log_prior)
  if not streaming.present(rows)[first].any():
    raise LtddError(f"adsa: max_head_drop, but no head class {first.tolist()} has an image.")
  mean = lambda q, members: np.nanmean(q[:, members], 1)
  taus, objective = result.curve.T
  means = functools.partial(criteria.class_means, rows, log_prior, [*taus, 0.0])
  q = means("confidence")(np.concatenate([taus, [0.0, result.tau]]))
  h = mean(q, first)
  tail = mean(q, last) if streaming.present(rows)[last].any() else np.full(len(q), np.nan)
  least = h[-2] - max_drop
  curve = np.stack([taus, objective, h[:-2], tail[:-2]], 1)
  if h[-1] >= least:
    return result.tau, curve
  inside, ends = h[:-2] >= least, np.append(_crossings(taus, h[:-2] - least), 0.0)
  at_ends = criteria.objective(means(criterion)(ends), criterion)
  options = np.concatenate([ends, taus[inside]])
  values = np.concatenate([at_ends, objective[inside]])
  return float(options[np.argmin(values)]), curve


def _crossings(taus: np.ndarray, gaps: np.ndarray) -> np.ndarray:
  """Where gaps on the fine grid of a fit, straight lines between its points, change their sign."""
  i = np.flatnonzero((gaps[1:] >= 0) != (gaps[:-1] >= 0))
  return taus[i] + (taus[i + 1] - taus[i]) * gaps[i] / (gaps[i] - gaps[i + 1])
