"""Terms of distillation objectives. Each is a pure function of arrays."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from ltdd_jax.models.taps import Moment


def safe_norm(x: jax.Array) -> jax.Array:
  """Euclidean norm of a vector (c,), with gradient 0 at 0, as PyTorch has it."""
  square = jnp.sum(jnp.square(x))
  positive = square > 0
  return jnp.where(positive, jnp.sqrt(jnp.where(positive, square, 1.0)), 0.0)


def bn_statistics(moments: Sequence[Moment], first_multiplier: float = 10.0) -> jax.Array:
  """Distance of a batch's statistics from those that the batch norms learned.

      R = kappa * R_1 + sum_{l >= 2} R_l,   R_l = ||rv_l - var_l||_2 + ||rm_l - mean_l||_2

  Norms are neither squared nor averaged; nothing is divided by channels or layers. `kappa` weighs
  the stem, the first batch norm of the network. Source: SRe2L (Yin et al., NeurIPS 2023), equation
  for the BN consistency term, with the constants of its released code.

  Args:
    moments: of every batch norm in the order of calls; see `models.taps`.
    first_multiplier: kappa.

  Returns:
    A scalar.
  """
  terms = [safe_norm(m.running_var - m.var) + safe_norm(m.running_mean - m.mean) for m in moments]
  return first_multiplier * terms[0] + sum(terms[1:], start=jnp.zeros(()))
