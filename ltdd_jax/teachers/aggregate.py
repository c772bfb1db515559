"""Several teachers: how their logits become one label, and choices among them.

config.teacher.models = {"resnet": {...}, "convnet": {...}, "wrn": {...}}
config.distil.teachers = ("resnet", "wrn")      # None, the default: all
config.label.sources.teacher = {"name": "teacher", "aggregate": "norm_equalised"}
"""

from collections.abc import Callable, Iterable

import jax.numpy as jnp
from jaxtyping import Array, Float

from ltdd_jax.core.config import suggest
from ltdd_jax.core.types import LtddError

Logits = Float[Array, "t b k"]


def mean(logits: Logits) -> Float[Array, "b k"]:
  """Averages logits over teachers: G-VBSM and EDC on CIFAR and Tiny-ImageNet."""
  return jnp.mean(logits, axis=0)


def norm_equalised(logits: Logits) -> Float[Array, "b k"]:
  """Averages logits after giving each teacher's (b, k) matrix the same Frobenius norm.

      z = (1/T) sum_t  z_t  m / |z_t|,     m = (1/T) sum_t |z_t|

  G-VBSM's released code on ImageNet. Labels depend on the order of the images and on
  `config.label.batch_size` (1,024 there; that of the student with labels made on line), and a batch
  that is filled up counts with what fills it. A teacher whose logits are all zero adds nothing.
  """
  norms = jnp.sqrt(jnp.sum(jnp.square(logits), axis=(-2, -1), keepdims=True))
  directions = logits / jnp.maximum(norms, jnp.finfo(jnp.float32).tiny)
  return jnp.mean(directions, axis=0) * jnp.mean(norms, axis=0)


AGGREGATES: dict[str, Callable[[Logits], Float[Array, "b k"]]] = {
  "mean": mean,
  "norm_equalised": norm_equalised,
}
BY_BATCH = ("norm_equalised",)  # a label depends on the batch that it was made in


def members(where: str, chosen: Iterable[str] | None, known: Iterable[str]) -> tuple[str, ...]:
  """Checks a choice of teachers, whose order is kept; None is all, sorted.

  Args:
    where: the config key, for messages.
    chosen: keys of `config.teacher.models`, or None.
    known: all of them.

  Raises:
    LtddError: an unknown key, one that is there twice, or none at all.
  """
  known = sorted(known)
  if chosen is None:
    return tuple(known)
  chosen = tuple(chosen)
  expected = (
    f"expected different keys of config.teacher.models ({', '.join(known)}), or None for all"
  )
  if not chosen:
    raise LtddError(f"{where} is empty; {expected}")
  for key in chosen:
    if key not in known:
      hint = suggest(key, known)
      raise LtddError(f"{where} has {key!r}; {expected}.{' ' if hint else ''}{hint}")
    if chosen.count(key) > 1:
      raise LtddError(f"{where} has {key!r} more than once; {expected}")
  return chosen
