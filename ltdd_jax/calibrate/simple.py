"""Calibrators that fit nothing."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ltdd_jax import adsa
from ltdd_jax.calibrate import base
from ltdd_jax.calibrate.base import Calibrator
from ltdd_jax.core.types import LtddError

VERSION = 1


def none() -> Calibrator:
  """Plain soft labels: changes nothing."""
  return Calibrator(
    init=lambda log_prior: (),
    fit=lambda logits, labels, log_prior: (),
    apply=lambda params, logits, log_prior: logits.astype(jnp.float32),
    report=lambda params: {"tau": 0.0, "message": "labels as the teacher gives them."},
    needs=(),
  )


def fixed(*, tau: float = 1.0, target_prior: Sequence[float] | None = None) -> Calibrator:
  """Logit adjustment with a given tau (Menon et al., ICLR 2021): nothing is fitted.

  Args:
    tau: the shift is `tau * log pi`.
    target_prior: as for `adsa`.

  Raises:
    LtddError: a tau that is not within `adsa.FAR` of zero; a bad target prior.
  """
  if not abs(tau) <= adsa.FAR:
    raise LtddError(f"fixed: tau is {tau}; expected a number within {adsa.FAR:g} of zero.")

  def init(log_prior: Any) -> jax.Array:
    del log_prior
    return jnp.float32(tau)

  def fit(logits: Any, labels: Any, log_prior: Any) -> jax.Array:
    base.check_prior(log_prior)
    return init(log_prior)

  def report(params: jax.Array) -> dict[str, Any]:
    return {"tau": float(params), "message": f"tau = {float(params):g}, given."}

  return base.with_target("fixed", Calibrator(init, fit, base.shift, report), target_prior)
