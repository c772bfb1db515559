"""What teachers are trained for, by name: `config.teacher.objective = {"name": ..., **kwargs}`.

  objective = make_objective(split.counts, name="logit_adjusted", tau=1.0)

To add one, write a factory of `class_counts` (k,) and keyword arguments that returns an objective
(see `training.supervised`), and put it into `OBJECTIVES`; the contract tests run over it. With
`config.teacher.views` above 1 it gets images (v, b, h, w, c).
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from ltdd_jax.core import registry
from ltdd_jax.core.registry import check_share
from ltdd_jax.core.types import LtddError
from ltdd_jax.training import losses
from ltdd_jax.training.supervised import Objective, of_logits

Counts = Sequence[int] | np.ndarray


def cross_entropy(class_counts: Counts, *, label_smoothing: float = 0.0) -> Objective:
  """See `losses.cross_entropy`."""
  del class_counts
  check_share("objective: ", below_one=True, label_smoothing=label_smoothing)
  return of_logits(partial(losses.cross_entropy, label_smoothing=label_smoothing))


def balanced_softmax(class_counts: Counts, *, label_smoothing: float = 0.0) -> Objective:
  """See `losses.logit_adjusted`, at tau = 1."""
  return logit_adjusted(class_counts, label_smoothing=label_smoothing)


def logit_adjusted(
  class_counts: Counts, *, label_smoothing: float = 0.0, tau: float = 1.0
) -> Objective:
  """See `losses.logit_adjusted`."""
  check_share("objective: ", below_one=True, label_smoothing=label_smoothing)
  counts = _check_counts(class_counts)
  log_prior = np.log(counts / counts.sum()).astype(np.float32)
  return of_logits(
    partial(losses.logit_adjusted, log_prior=log_prior, tau=tau, label_smoothing=label_smoothing)
  )


def class_balanced(
  class_counts: Counts, *, label_smoothing: float = 0.0, beta: float = 0.999
) -> Objective:
  """See `losses.class_balanced`."""
  check_share("objective: ", below_one=True, label_smoothing=label_smoothing, beta=beta)
  counts = _check_counts(class_counts)
  return of_logits(
    partial(losses.class_balanced, counts=counts, beta=beta, label_smoothing=label_smoothing)
  )


OBJECTIVES: dict[str, Callable[..., Objective]] = {
  "cross_entropy": cross_entropy,
  "balanced_softmax": balanced_softmax,
  "logit_adjusted": logit_adjusted,
  "class_balanced": class_balanced,
}


def make_objective(class_counts: Counts, *, name: str, **kwargs: Any) -> Objective:
  """Makes an objective by its name, for (k,) training images of each class.

  Raises:
    LtddError: an unknown name or argument, one out of range, or a class without images.
  """
  return registry.make("objective", OBJECTIVES, name, kwargs, class_counts)


def _check_counts(class_counts: Counts) -> np.ndarray:
  counts = np.asarray(class_counts)
  if np.any(counts <= 0):
    raise LtddError(
      f"objective: class {int(np.argmin(counts))} has {counts.min()} training images; it needs at "
      "least one of each class. Use 'cross_entropy', or leave that class out."
    )
  return counts.astype(np.float64)
