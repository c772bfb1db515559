"""Calibration without a prior: temperature and vector scaling (Guo et al., ICML 2017).

They make labels as sure as they are right on the distilled images, and know nothing of the long
tail, so a uniform prior is no identity for them. Their labels are the classes that images were
distilled for: on views that mix two images these are true in part only, and the fit makes labels
too soft.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ltdd_jax.adsa import Rows
from ltdd_jax.calibrate import base, lbfgs, streaming
from ltdd_jax.calibrate.base import Calibrator
from ltdd_jax.core.types import Leaf

VERSION = 1

_SPAN = float(np.log(100.0))  # temperatures between 1/100 and 100


class ScalingParams(NamedTuple):
  """`scale * (z - mean z) - bias`."""

  scale: Leaf  # (k,) float32
  bias: Leaf  # (k,) float32
  tau: Leaf  # [] float32, slope of the regression of the bias on log pi
  objective: Leaf  # (2,) float32, mean log-loss before and after
  confidence: Leaf  # (2, k) float32, before and after, NaN for classes without an image
  reason: Leaf  # [] int32, number in `lbfgs.REASONS`
  iterations: Leaf  # [] int32


def temperature(*, max_iterations: int = 100) -> Calibrator:
  """Divides logits by one T: the one with the least mean true-class log-loss.

      T = argmin  mean over n of -log softmax(f_n / T)_{y_n},   every class of y_n weighted equally

  searched between 1/100 and 100. The mean of a row is left out of the division and stays.

  Raises:
    LtddError: bad options; from `fit`, whatever `adsa.Rows` refuses.
  """
  base.check_number("temperature", "max_iterations", max_iterations, least=1)

  def search(rows: Rows) -> tuple[np.ndarray, np.ndarray, lbfgs.Outcome]:
    objective, zeros = streaming.log_loss(rows), np.zeros(rows.k)

    def fn(x: np.ndarray) -> tuple[float, np.ndarray]:
      beta = float(np.exp(x[0]))  # 1 / T
      value, by_scale, _ = objective(np.full(rows.k, beta), zeros)
      return value, beta * by_scale.sum(keepdims=True)

    found = lbfgs.minimise(fn, [0.0], max_iterations=max_iterations, bound=_SPAN)
    return np.full(rows.k, np.exp(found.x[0])), zeros, found

  def report(params: ScalingParams) -> dict[str, Any]:
    t = 1 / float(params.scale[0])
    return lbfgs.report(params, f"T = {t:.3f}", "mean log-loss") | {"temperature": t}

  fit = _make_fit("temperature", search)
  return Calibrator(_init, fit, _apply, report, needs=())


def vector_scaling(*, strength: float = 0.03, max_iterations: int = 200) -> Calibrator:
  """Gives each class a scale a and a bias b by the mean true-class log-loss.

      x_n = a * (f_n - mean f_n) - b
      a, b = argmin  mean of -log softmax(x_n)_{y_n} + strength * (mean (a - 1)^2 + mean b^2)

  with every class of y_n weighted equally. In what we differ from Guo et al.: the mean of a row is
  taken off first and put back, and there is an L2 term towards the identity. Classes without an
  image are left out of the softmax and stay as they are.

  Args:
    strength: of the L2 term.
    max_iterations: of L-BFGS.

  Raises:
    LtddError: bad options; from `fit`, whatever `adsa.Rows` refuses.
  """
  base.check_number("vector_scaling", "strength", strength)
  base.check_number("vector_scaling", "max_iterations", max_iterations, least=1)

  def search(rows: Rows) -> tuple[np.ndarray, np.ndarray, lbfgs.Outcome]:
    objective, k = streaming.log_loss(rows), rows.k

    def fn(x: np.ndarray) -> tuple[float, np.ndarray]:
      value, by_scale, by_bias = objective(1 + x[:k], x[k:])
      gradient = np.concatenate([by_scale, by_bias])
      return value + strength * float(x @ x) / k, gradient + 2 * strength * x / k

    found = lbfgs.minimise(fn, np.zeros(2 * k), max_iterations=max_iterations)
    return 1 + found.x[:k], found.x[k:], found

  def report(params: ScalingParams) -> dict[str, Any]:
    low, high = float(params.scale.min()), float(params.scale.max())
    text = f"scales {low:.3f} to {high:.3f}, bias of slope {float(params.tau):.3f} on log pi"
    extra = {"scale": base.plain(params.scale), "bias": base.plain(params.bias)}
    return lbfgs.report(params, text, "mean log-loss") | extra

  fit = _make_fit("vector_scaling", search)
  return Calibrator(_init, fit, _apply, report, needs=())


def _init(log_prior: Any) -> ScalingParams:
  k = log_prior.shape[0]
  nan = lambda *shape: jnp.full(shape, jnp.nan, jnp.float32)
  zero, no = jnp.float32(0), jnp.int32(0)
  return ScalingParams(jnp.ones(k), jnp.zeros(k), zero, nan(2), nan(2, k), no, no)


def _make_fit(
  name: str,
  search: Callable[[Rows], tuple[np.ndarray, np.ndarray, lbfgs.Outcome]],
) -> Callable[..., ScalingParams]:
  def fit(logits: Any, labels: Any, log_prior: Any) -> ScalingParams:
    with base.named(name):
      rows = base.open_rows(logits, labels, log_prior)
      before = streaming.describe(rows, None, 0.0)  # refuses rows that are not finite
    scale, bias, found = search(rows)
    reason = "flat" if base.is_certain(before.confidence) else found.reason
    after = streaming.describe(rows, scale, bias)
    single = base.single
    return ScalingParams(
      scale=single(scale),
      bias=single(bias),
      tau=single(base.slope(bias, np.asarray(log_prior, np.float64))),
      objective=single([before.log_loss, after.log_loss]),
      confidence=single([before.confidence, after.confidence]),
      reason=jnp.int32(lbfgs.REASONS.index(reason)),
      iterations=jnp.int32(found.iterations),
    )

  return fit


def _apply(params: ScalingParams, logits: jax.Array, log_prior: jax.Array) -> jax.Array:
  """Scales and shifts what a row has besides its mean, which stays."""
  del log_prior
  z = logits.astype(jnp.float32)
  mean = z.mean(-1, keepdims=True)
  lead = tuple(range(z.ndim - 1))
  x = jnp.expand_dims(params.scale, lead) * (z - mean) - jnp.expand_dims(params.bias, lead)
  return x - x.mean(-1, keepdims=True) + mean
