"""GSAM: gradients that lead to flat minima, in place of `jax.value_and_grad`.

loss, direction = value_and_grad(loss_fn, rho=0.01, alpha=0.3)(params)
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

EPS = 1e-12


def value_and_grad(
  fn: Callable[[Any], Any], has_aux: bool = False, *, rho: float = 0.01, alpha: float = 0.3
) -> Callable[[Any], tuple[Any, Any]]:
  """Makes `params -> value, direction`, at the price of two gradients.

      e = rho w^2 g / || |w| g ||,   g = grad fn(w),   g' = grad fn(w + e)
      direction = g' - alpha (g - cos(g, g') ||g|| g' / ||g'||)

  with products element by element and norms over all parameters: the adaptive perturbation of ASAM
  (Kwon et al., ICML 2021) in GSAM (Zhuang et al., ICLR 2022, algorithm 1), as FTD's experts have it
  (Du et al., CVPR 2023). Descent along the direction goes down at w + e, and narrows the gap
  fn(w + e) - fn(w). The same draws have to be behind both calls of `fn`.

  Args:
    fn: params, a pytree -> scalar; with `has_aux`, a pair of it and of what else it gives.
    has_aux: as of `jax.value_and_grad`. Value and the rest are those at w, so that running
      statistics know nothing of w + e.
    rho: radius of the perturbation; 0 leaves the gradient.
    alpha: weight of the part of g that is perpendicular to g'.
  """
  plain = jax.value_and_grad(fn, has_aux=has_aux)

  def both(params: Any) -> tuple[Any, Any]:
    out, grads = plain(params)
    norm = optax.tree.norm(jax.tree.map(jnp.multiply, params, grads))
    moved = jax.tree.map(lambda w, g: w + rho * jnp.square(w) * g / (norm + EPS), params, grads)
    _, sharp = plain(moved)
    lengths = optax.tree.norm(grads), optax.tree.norm(sharp)
    inner = optax.tree.vdot(grads, sharp)  # in full precision
    share = inner / (lengths[0] * lengths[1] + EPS) * lengths[0] / (lengths[1] + EPS)
    direction = jax.tree.map(lambda g, s: s - alpha * (g - share * s), grads, sharp)
    return out, direction

  return both
