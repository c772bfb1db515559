"""What teachers are trained for, by name: `config.teacher.objective = {"name": ..., **kwargs}`.

  objective = make_objective(split.counts, name="logit_adjusted", tau=1.0)

To add one, write a factory of `class_counts` (k,) and keyword arguments that returns a loss (see
`training.supervised.Objective`), and put it into `OBJECTIVES`; the contract tests run over it. With
`config.teacher.views` above 1 it gets images (v, b, h, w, c). One that needs more, such as heads of
its own, returns a `TeacherObjective`.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import numpy as np

from ltdd_jax.core import registry
from ltdd_jax.core.registry import check_share
from ltdd_jax.core.types import LtddError
from ltdd_jax.teachers import debiased
from ltdd_jax.training import losses
from ltdd_jax.training.supervised import Objective, of_logits

Counts = Sequence[int] | np.ndarray


class TeacherObjective(NamedTuple):
  """A loss, and what it asks of the training.

  Attributes:
    loss: see `training.supervised.Objective`.
    network: network -> the one that is trained, whose parameters the network's are a part of.
    own: names at the top of its parameters that a teacher does not keep.
    views: how many of each image it looks at; None for any number.
    partners: (k,) weights of images of each class as partners to mix with. With them a batch is
      images (2 v, b, h, w, c), the last v being those of partners, and (labels, their labels).
  """

  loss: Objective
  network: Callable[[nn.Module], nn.Module] = lambda network: network
  own: tuple[str, ...] = ()
  views: int | None = None
  partners: np.ndarray | None = None


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


def rldd(class_counts: Counts, *, q: float = 0.8, gamma: float = 1.0) -> TeacherObjective:
  """RLDD's debiased teacher (AAAI 2026): from plain to class-weighted cross-entropy.

      loss = (1 - t^2) L + t^2 L_w - gamma (cos(z1, sg p2) + cos(z2, sg p1)),   t the progress
      L_w has class weights n_c^-q / sum_j n_j^-q;   L and L_w are sums over two views

  View 1 is a mixup of a crop and a partner, view 2 a CutMix of another crop and another view of the
  partner, both with one share, uniform, of the image itself. Partners of class c are drawn in
  proportion to n_c^0.8. z is a linear projection of the penultimate features to 128 numbers, p a
  linear prediction of it, `sg` a stopped gradient; both heads are left behind. Needs
  `config.teacher.views` = 2.

  The views, the partners and the heads are those of the public copy, which the paper leaves open.
  In what we differ: t moves at every step, not once an epoch.

  Args:
    class_counts: (k,) n_c.
    q: how far weights favour the tail, 0 to 1.
    gamma: weight of the agreement; 0 or more.
  """
  return _rldd(class_counts, q, gamma, released=False)


def rldd_released(class_counts: Counts, *, q: float = 0.8, gamma: float = 1.0) -> TeacherObjective:
  """RLDD's teacher as a public copy of its code computes it; the arguments are those of `rldd`.

  * L is that of a second linear classifier, which is left behind; L_w is the network's own.
  * The weights sum to k.
  * The gradient is stopped at z, not at p: cos(p1, sg z2) + cos(p2, sg z1).
  """
  return _rldd(class_counts, q, gamma, released=True)


def _rldd(class_counts: Counts, q: float, gamma: float, released: bool) -> TeacherObjective:
  debiased.check(q, gamma)
  counts = _check_counts(class_counts)
  second = len(counts) if released else None
  return TeacherObjective(
    debiased.make_loss(counts, q, gamma, released),
    lambda network: debiased.WithHeads(network, second),
    (debiased.HEADS,),
    views=2,
    partners=counts**-debiased.PARTNER_POWER,
  )


OBJECTIVES: dict[str, Callable[..., Objective | TeacherObjective]] = {
  "cross_entropy": cross_entropy,
  "balanced_softmax": balanced_softmax,
  "logit_adjusted": logit_adjusted,
  "class_balanced": class_balanced,
  "rldd": rldd,
  "rldd_released": rldd_released,
}


def make_objective(
  class_counts: Counts, *, name: str, views: int | None = None, **kwargs: Any
) -> TeacherObjective:
  """Makes an objective by its name, for (k,) training images of each class.

  Raises:
    LtddError: an unknown name or argument, one out of range, a class without images, or another
      number of `views` than the objective looks at.
  """
  found = registry.make("objective", OBJECTIVES, name, kwargs, class_counts)
  made = found if isinstance(found, TeacherObjective) else TeacherObjective(found)
  if made.views is not None and views is not None and views != made.views:
    raise LtddError(
      f"config.teacher.views is {views}; objective {name!r} looks at {made.views} views of each "
      f"image. Set config.teacher.views={made.views}"
    )
  return made


def _check_counts(class_counts: Counts) -> np.ndarray:
  counts = np.asarray(class_counts)
  if np.any(counts <= 0):
    raise LtddError(
      f"objective: class {int(np.argmin(counts))} has {counts.min()} training images; it needs at "
      "least one of each class. Use 'cross_entropy', or leave that class out."
    )
  return counts.astype(np.float64)
