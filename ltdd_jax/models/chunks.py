"""Loops over a few images at a time, whose intermediate arrays stay in a core's cache.

On CPU only the matrix products in a loop use several threads; the rest of it runs on one. A batch
that is split over devices stays split: each device loops over its part.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax


def chunk_map(step: Callable[[jax.Array], jax.Array], x: jax.Array, size: int) -> jax.Array:
  """Applies a function of some images (p, n, ...) -> (p, n, ...) to a batch (b, ...).

  Args:
    step: works on each image by itself; p are parts on different devices.
    x: (b, ...).
    size: n at most.

  Returns:
    (b, ...).
  """
  _, y = lax.scan(lambda _, part: (None, step(part)), None, _chunks(x, size))
  y = jnp.moveaxis(y, 0, 1)
  y = y.reshape(y.shape[0], -1, *y.shape[3:])  # (p, rows with those added, ...)
  return y[:, : len(x) // len(y)].reshape(len(x), *y.shape[2:])


def chunk_sum(
  step: Callable[[jax.Array, jax.Array], jax.Array], x: jax.Array, y: jax.Array, size: int
) -> jax.Array:
  """Sums a function of some images and something of theirs, (p, n, ...) both -> (p, ...).

  The function is zero where both are.
  """
  pairs = _chunks(x, size), _chunks(y, size)
  shape = jax.eval_shape(step, *(pair[0] for pair in pairs))
  add = lambda total, pair: (total + step(*pair), None)
  return lax.scan(add, jnp.zeros(shape.shape, shape.dtype), pairs)[0].sum(0)


def _chunks(x: jax.Array, size: int) -> jax.Array:
  """(b, ...) as (steps, p, n, ...), with zeros added where they do not divide."""
  parts = jax.device_count() if len(x) % jax.device_count() == 0 else 1
  x = x.reshape(parts, -1, *x.shape[1:])
  steps = -(-x.shape[1] // size)
  n = -(-x.shape[1] // steps)
  x = jnp.pad(x, [(0, 0), (0, steps * n - x.shape[1])] + [(0, 0)] * (x.ndim - 2))
  return jnp.moveaxis(x.reshape(parts, steps, n, *x.shape[2:]), 1, 0)
