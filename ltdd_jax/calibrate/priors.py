"""Rivals that estimate priors from predicted masses: `em`, prior matching, `ltkd`."""

import functools
from typing import Any

import numpy as np

from ltdd_jax import adsa as adsa_lib
from ltdd_jax.calibrate import base, class_bias, streaming
from ltdd_jax.calibrate.base import Calibrator
from ltdd_jax.calibrate.class_bias import BiasParams


def em(
  *,
  known: str | None = None,
  smoothing: float = 1e-3,
  tolerance: float = 1e-5,
  max_iterations: int = 200,
  chunk_size: int | None = None,
) -> Calibrator:
  """Prior shift: corrects a teacher that was trained with prior pi to the set's own prior.

  With `known=None` it is the EM algorithm of Saerens, Latinne and Decaestecker (Neural Computation,
  2002): the prior w of the distilled set is estimated under the teacher's posterior,

      p_nc = softmax(f_n + log w - log pi)_c         w_c <- mean over n of p_nc       from w = pi

  and the shift is b = log pi - log w. It assumes that the teacher is calibrated for pi, takes the
  whole of log pi away, and then moves labels *towards* the estimated w: close to tau = 1 where
  images are sure and balanced.

  With `known="uniform"` (prior matching) the distilled set is known to be balanced, and the prior r
  that the teacher behaves as if trained with is unknown: b = log r such that

      mean over n of softmax(f_n - b)_c = 1 / K       by log b_c <- log b_c + log(K m_c)

  whose solution minimises a convex potential (`stream.log_loss`), which L-BFGS does here in fewer
  passes. This is `adsa_vector` with criterion "marginal" and strength 0.

  Means over n give every class of y_n the same weight; labels enter in no other way. Classes
  without an image are left out and get the bias of the regression line on log pi. A uniform pi is
  the identity.

  Args:
    known: None or "uniform".
    smoothing: images' worth of a uniform prior that is mixed into w, as a part of the whole set, so
      that no w is zero. Not in the paper; for EM only.
    tolerance: EM ends when no w moves more.
    max_iterations: passes over the logits, about.
    chunk_size: rows in one step.

  Raises:
    LtddError: bad options; from `fit`, whatever `adsa.Rows` refuses.
  """
  base.check_choice("em", "known", known, (None, "uniform"))
  base.check_number("em", "smoothing", smoothing)
  base.check_number("em", "tolerance", tolerance, above=True)
  base.check_number("em", "max_iterations", max_iterations, least=1)
  base.check_chunk("em", chunk_size)

  def fit(logits: Any, labels: Any, log_prior: Any) -> BiasParams:
    base.check_prior(log_prior)
    lp = np.asarray(log_prior, np.float64)
    with base.named("em"):
      rows = base.open_rows(logits, labels, lp, chunk_size)
      streaming.describe(rows, None, 0.0)  # refuses rows that are not finite
    if base.is_uniform(lp):
      return class_bias.to_params(rows, lp, np.zeros(rows.k), "uniform", 0, "marginal")
    if known is None:
      bias, reason, iterations = _expectation(rows, lp, smoothing, tolerance, max_iterations)
    else:
      bias, (_, reason, iterations) = class_bias.fit_bias(
        streaming.log_loss(rows), np.zeros(rows.k), np.arange(rows.k), streaming.present(rows), 0.0,
        max_iterations,
      )  # fmt: skip
    bias = base.on_the_line(bias, streaming.present(rows), lp)
    return class_bias.to_params(
      rows, lp, bias, reason, iterations, "marginal", certain_is_flat=known is not None
    )  # EM takes pi out of certain labels too, on its assumption

  def report(params: BiasParams) -> dict[str, Any]:
    what = "EM prior of the set" if known is None else "prior matching"
    text = f"{what}, slope {float(params.tau):.3f} on log pi"
    return class_bias.bias_report(params, text, "the spread of predicted masses") | {"known": known}

  init = class_bias.init_of("em")
  return Calibrator(init, fit, class_bias.apply, report)


def _expectation(
  rows: adsa_lib.Rows, log_prior: np.ndarray, smoothing: float, tolerance: float, limit: int
) -> tuple[np.ndarray, str, int]:
  """EM for the prior of the classes with an image: bias (k,), reason and iterations."""
  keep = streaming.present(rows)
  prior = np.where(keep, np.exp(log_prior), 0.0)
  w, log_prior = prior / prior.sum(), np.where(keep, log_prior, 0.0)
  bias = np.zeros(rows.k)
  for i in range(1, limit + 1):
    mass = streaming.describe(rows, None, bias, keep).mass
    new = np.where(keep, (mass + smoothing / keep.sum()) / (1 + smoothing), 0.0)
    moved, w = float(np.abs(new - w).max()), new
    bias = np.where(keep, log_prior - np.log(np.where(keep, np.maximum(w, 1e-30), 1.0)), 0.0)
    if moved <= tolerance:
      return bias, "gradient", i
  return bias, "limit", limit


def ltkd(
  *,
  groups: base.Groups = "thirds",
  mass: str = "groups",
  chunk_size: int | None = None,
  max_iterations: int = 200,
) -> Calibrator:
  """Rebalances the mean mass that a teacher gives to head, mid and tail classes to uniform.

      b_c = offset of the group of c, such that the mean over n of softmax(f_n - b), summed over a
      group, is the same for every group

  After "Biased Teacher, Balanced Student" (arXiv 2506.18496; the second version is "Distilling
  Balanced Knowledge from a Biased Teacher"), which splits distillation into a divergence between
  groups and divergences within groups, and rebalances the teacher's part of the first. What was
  read of it: both abstracts and a summary, not the equations and no code. Ours are: one offset for
  all images instead of a correction inside the loss, its fit (convex, L-BFGS), and equal weight of
  every class in means over n. The other half, equal weights within groups, is the loss `ltkd` of
  `ltdd_jax.training.losses`.

  Groups without an image keep the mean offset. A uniform prior is the identity.

  Args:
    groups: "thirds" (`longtail.groups`, by the prior) or lists of classes.
    mass: "groups" gives every group the same mass; "classes" a mass proportional to its number of
      classes with an image, which on a balanced set is what an unbiased teacher would give.
    chunk_size: rows in one step.
    max_iterations: of L-BFGS.

  Raises:
    LtddError: bad options; from `fit`, whatever `adsa.Rows` refuses.
  """
  base.check_groups("ltkd", groups)
  base.check_choice("ltkd", "mass", mass, ("groups", "classes"))
  base.check_number("ltkd", "max_iterations", max_iterations, least=1)
  base.check_chunk("ltkd", chunk_size)

  def fit(logits: Any, labels: Any, log_prior: Any) -> BiasParams:
    base.check_prior(log_prior)
    lp = np.asarray(log_prior, np.float64)
    index = base.group_index("ltkd", groups, lp)
    with base.named("ltkd"):
      rows = base.open_rows(logits, labels, lp, chunk_size)
      streaming.describe(rows, None, 0.0)  # refuses rows that are not finite
    keep = streaming.present(rows)
    target = _target(index, keep, mass)
    spread = functools.partial(_group_spread, index=index, target=target)
    if base.is_uniform(lp):
      return class_bias.to_params(rows, lp, np.zeros(rows.k), "uniform", 0, spread)
    objective = _with_target(streaming.log_loss(rows), target, keep)
    bias, found = class_bias.fit_bias(objective, np.zeros(rows.k), index, keep, 0.0, max_iterations)
    some = np.isin(index, index[keep])  # classes of a group that has an image
    bias = np.where(some, bias, bias[keep].mean())
    return class_bias.to_params(rows, lp, bias, found.reason, found.iterations, spread)

  def report(params: BiasParams) -> dict[str, Any]:
    what = f"group masses rebalanced, slope {float(params.tau):.3f} on log pi"
    return class_bias.bias_report(params, what, "the spread of group masses over their target") | {
      "mass": mass
    }

  init = class_bias.init_of("ltkd", groups)
  return Calibrator(init, fit, class_bias.apply, report)


def _target(index: np.ndarray, keep: np.ndarray, mass: str) -> np.ndarray:
  """The mass that each class with an image should get if classes of a group share it alike."""
  if mass == "classes":
    return keep / keep.sum()
  members = np.bincount(index, keep)
  share = 1 / np.count_nonzero(members)
  return np.where(keep, share / np.maximum(members, 1)[index], 0.0)


def _group_spread(summary: streaming.Summary, *, index: np.ndarray, target: np.ndarray) -> float:
  """Standard deviation over groups of their mass over its target, classes without image apart."""
  mass = np.bincount(index, np.where(target > 0, summary.mass, 0.0))
  wanted = np.bincount(index, target)
  some = wanted > 0
  return float(np.std(mass[some] / mass.sum() / wanted[some]))


def _with_target(
  log_loss: streaming.Objective, target: np.ndarray, keep: np.ndarray
) -> streaming.Objective:
  """The potential whose minimum has mean mass `target` (k,) instead of a uniform one."""
  excess = target - keep / keep.sum()

  def objective(scale: Any, bias: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
    value, by_scale, by_bias = log_loss(scale, bias)
    return value + float(excess @ bias), by_scale, by_bias + excess

  return objective
