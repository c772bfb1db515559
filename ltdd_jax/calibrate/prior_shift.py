"""Prior shift: estimates a prior from predicted masses by EM, or by prior matching."""

from typing import Any

import numpy as np

from ltdd_jax.adsa import Rows
from ltdd_jax.calibrate import base, class_bias, streaming
from ltdd_jax.calibrate.base import Calibrator
from ltdd_jax.calibrate.class_bias import BiasParams
from ltdd_jax.core.registry import check_choice

VERSION = 1


def em(
  *,
  known: str | None = None,
  smoothing: float = 1e-3,
  tolerance: float = 1e-5,
  max_iterations: int = 200,
) -> Calibrator:
  """Prior shift: corrects a teacher that was trained with prior pi to the set's own prior.

  With `known=None` it is the EM algorithm of Saerens, Latinne and Decaestecker (Neural Computation,
  2002): the prior w of the distilled set is estimated under the teacher's posterior,

      p_nc = softmax(f_n + log w - log pi)_c         w_c <- mean over n of p_nc       from w = pi

  and the shift is b = log pi - log w. It assumes that the teacher is calibrated for pi, and is
  close to tau = 1 where images are sure and balanced.

  With `known="uniform"` (prior matching) the distilled set is known to be balanced, and the prior r
  that the teacher behaves as if trained with is unknown: b = log r such that

      mean over n of softmax(f_n - b)_c = 1 / K       by log b_c <- log b_c + log(K m_c)

  whose solution minimises a convex potential (`streaming.log_loss`). This is `adsa_vector` with
  criterion "marginal" and strength 0.

  Means over n give every class of y_n the same weight. Classes without an image are left out and
  get the bias of the regression line on log pi. A uniform pi is the identity.

  Args:
    known: None or "uniform".
    smoothing: images' worth of a uniform prior that is mixed into w, as a part of the whole set, so
      that no w is zero. Not in the paper; for EM only.
    tolerance: EM ends when no w moves more.
    max_iterations: passes over the logits, about.

  Raises:
    LtddError: bad options; from `fit`, whatever `adsa.Rows` refuses.
  """
  check_choice("em: known", known, (None, "uniform"))
  base.check_number("em", "smoothing", smoothing)
  base.check_number("em", "tolerance", tolerance, above=True)
  base.check_number("em", "max_iterations", max_iterations, least=1)

  def fit(logits: Any, labels: Any, log_prior: Any) -> BiasParams:
    base.check_prior(log_prior)
    lp = np.asarray(log_prior, np.float64)
    with base.named("em"):
      rows = base.open_rows(logits, labels, lp)
      streaming.describe(rows, None, 0.0)  # refuses rows that are not finite
    if base.is_uniform(lp):
      return class_bias.to_params(rows, lp, np.zeros(rows.k), "uniform", 0, "marginal")
    if known is None:
      bias, reason, iterations = _expectation(rows, lp, smoothing, tolerance, max_iterations)
    else:
      bias, (_, reason, iterations) = class_bias.fit_bias(
        streaming.log_loss(rows), np.zeros(rows.k), streaming.present(rows), 0.0, max_iterations
      )  # fmt: skip
    bias = base.on_the_line(bias, streaming.present(rows), lp)
    return class_bias.to_params(
      rows, lp, bias, reason, iterations, "marginal", certain_is_flat=known is not None
    )  # EM takes pi out of certain labels too, on its assumption

  def report(params: BiasParams) -> dict[str, Any]:
    what = "EM prior of the set" if known is None else "prior matching"
    text = f"{what}, slope {float(params.tau):.3f} on log pi"
    return class_bias.bias_report(params, text, "the spread of predicted masses") | {"known": known}

  return Calibrator(class_bias.init, fit, class_bias.apply, report)


def _expectation(
  rows: Rows, log_prior: np.ndarray, smoothing: float, tolerance: float, limit: int
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
