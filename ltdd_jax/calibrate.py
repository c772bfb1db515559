"""Calibrators: what is done to a teacher's logits before a student learns from them.

    calibrator = calibrate.make_calibrator("adsa", tau_range=(0.0, 3.0))
    params = calibrator.fit(logits, labels, log_prior)  # once, on the label store
    logits = calibrator.apply(params, logits, log_prior)  # in the student's step, on each batch
    calibrator.report(params)  # plain numbers for a report

A calibrator is a NamedTuple of pure functions. To add one, write a factory like those below and put
it in `CALIBRATORS`; `tests/contract/test_calibrators.py` says what it must satisfy.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ltdd_jax import adsa as adsa_lib
from ltdd_jax import registry
from ltdd_jax.types import Leaf, LtddError


class Calibrator(NamedTuple):
  """Pure functions; params are a pytree of arrays, the same structure in `init` and `fit`."""

  init: Callable[..., Any]  # (log_prior (k,)) -> params of a calibrator that changes nothing
  fit: Callable[..., Any]  # (logits (..., n, k), labels (n,), log_prior (k,)) -> params
  apply: Callable[..., jax.Array]  # (params, logits (..., k), log_prior (k,)) -> float32 (..., k)
  report: Callable[..., dict[str, Any]]  # (params) -> floats, strings, lists, None for NaN


class AdsaParams(NamedTuple):
  """An `adsa.AdsaResult` as arrays of fixed shapes."""

  tau: Leaf  # [] float32
  objective: Leaf  # (2,) float32, before and after
  confidence: Leaf  # (2, k) float32, before and after, NaN for classes without an image
  curve: Leaf  # (CURVE, 2) float32, (tau, objective)
  status: Leaf  # [] int32, number in adsa.STATUSES
  flat: Leaf  # [] bool


CURVE = 128  # points of a stored curve; finer searches are interpolated


def none() -> Calibrator:
  """Plain soft labels: changes nothing."""
  return Calibrator(
    init=lambda log_prior: (),
    fit=lambda logits, labels, log_prior: (),
    apply=lambda params, logits, log_prior: logits.astype(jnp.float32),
    report=lambda params: {"tau": 0.0},
  )


def fixed(*, tau: float = 1.0) -> Calibrator:
  """Logit adjustment with a given tau (Menon et al., ICLR 2021): nothing is fitted."""
  if not math.isfinite(tau):
    raise LtddError(f"fixed: tau is {tau}; expected a finite number.")

  def fit(logits: Any, labels: Any, log_prior: Any) -> jax.Array:
    check_prior(log_prior)
    return jnp.float32(tau)

  return Calibrator(
    init=lambda log_prior: jnp.float32(tau),
    fit=fit,
    apply=shift,
    report=lambda params: {"tau": float(params)},
  )


def adsa(
  *,
  tau_range: tuple[float, float] = (0.0, 3.0),
  allow_negative: bool = False,
  chunk_size: int | None = None,
) -> Calibrator:
  """Adaptive soft-label alignment; arguments as of `ltdd_jax.adsa.fit`.

  Raises:
    LtddError: from `fit`, whatever `ltdd_jax.adsa.fit` refuses.
  """

  def fit(logits: Any, labels: Any, log_prior: Any) -> AdsaParams:
    check_prior(log_prior)
    try:
      result = adsa_lib.fit(
        logits,
        labels,
        np.exp(np.asarray(log_prior, np.float64)),
        tau_range=tuple(tau_range),
        allow_negative=allow_negative,
        chunk_size=chunk_size,
      )
    except ValueError as error:
      raise LtddError(f"adsa: {error}") from error
    return _to_params(result)

  return Calibrator(
    init=_adsa_init,
    fit=fit,
    apply=lambda params, logits, log_prior: shift(params.tau, logits, log_prior),
    report=_adsa_report,
  )


def check_prior(log_prior: Any) -> None:
  """Raises LtddError if a class has no training image."""
  empty = np.flatnonzero(~np.isfinite(np.asarray(log_prior)))
  if empty.size:
    raise LtddError(
      f"class {empty[0]} has no training image, so its log frequency is minus infinity and soft "
      "labels cannot be aligned. Leave the class out of the data."
    )


def shift(tau: jax.Array, logits: jax.Array, log_prior: jax.Array) -> jax.Array:
  """Returns `logits - tau * (log_prior - mean log_prior)` in float32.

  A softmax cannot see that the prior is centred; students' losses on raw logits (MSE) can.
  """
  centered = log_prior.astype(jnp.float32) - log_prior.mean(dtype=jnp.float32)
  return logits.astype(jnp.float32) - jnp.expand_dims(tau * centered, tuple(range(logits.ndim - 1)))


def _adsa_init(log_prior: jax.Array) -> AdsaParams:
  k = log_prior.shape[0]
  return AdsaParams(
    tau=jnp.float32(0),
    objective=jnp.full(2, jnp.nan, jnp.float32),
    confidence=jnp.full((2, k), jnp.nan, jnp.float32),
    curve=jnp.full((CURVE, 2), jnp.nan, jnp.float32),
    status=jnp.int32(0),
    flat=jnp.bool_(False),
  )


def _to_params(result: adsa_lib.AdsaResult) -> AdsaParams:
  taus = np.linspace(result.curve[0, 0], result.curve[-1, 0], CURVE)
  curve = np.stack([taus, np.interp(taus, *result.curve.T)], 1)
  return AdsaParams(
    tau=jnp.float32(result.tau),
    objective=jnp.array([result.objective_before, result.objective_after], jnp.float32),
    confidence=jnp.array([result.confidence_before, result.confidence_after], jnp.float32),
    curve=jnp.asarray(curve, jnp.float32),
    status=jnp.int32(adsa_lib.STATUSES.index(result.status)),
    flat=jnp.bool_(result.flat),
  )


def _adsa_report(params: AdsaParams) -> dict[str, Any]:
  tau, (before, after) = float(params.tau), map(float, params.objective)
  status = adsa_lib.STATUSES[int(params.status)]
  plain = lambda row: [None if math.isnan(x) else x for x in np.asarray(row).tolist()]
  return {
    "tau": tau,
    "objective_before": before,
    "objective_after": after,
    "confidence_before": plain(params.confidence[0]),
    "confidence_after": plain(params.confidence[1]),
    "curve": np.asarray(params.curve).tolist(),
    "flat": bool(params.flat),
    "message": adsa_lib.explain(status, tau, before, after),
  }


CALIBRATORS: Mapping[str, Callable[..., Calibrator]] = {"none": none, "fixed": fixed, "adsa": adsa}


def make_calibrator(name: str, **kwargs: Any) -> Calibrator:
  """A calibrator by its name in `CALIBRATORS`.

  Raises:
    LtddError: an unknown name or argument, with what may have been meant.
  """
  return registry.make("calibrator", CALIBRATORS, name, kwargs)
