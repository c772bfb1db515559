"""Losses of teachers and students: float32 scalars, means over the batch.

loss_fn = make_supervised_loss("balanced_softmax", class_counts=split.counts)
loss_fn(logits, labels)                       # labels are class numbers
loss_fn = make_soft_loss("kl", temperature=20.0)
loss_fn(logits, target_logits, labels)        # targets are logits, labels the images' classes
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Shaped

from ltdd_jax.core import registry
from ltdd_jax.core.types import LtddError

Logits = Float[Array, "b k"]
Labels = Int[Array, "b"]
PerClass = Float[Array | np.ndarray, "k"]
ClassCounts = Shaped[Array | np.ndarray, "k"] | Sequence[int]
Scalar = Float[Array, ""]
SupervisedLoss = Callable[[Logits, Labels], Scalar]
SoftLoss = Callable[[Logits, Logits, Labels], Scalar]


def cross_entropy_rows(
  logits: Logits, labels: Labels, *, label_smoothing: float = 0.0
) -> Float[Array, "b"]:
  """Computes -log p(label) of each row, or of the smoothed label (1 - e) onehot + e/k.

  Args:
    logits: (b, k).
    labels: (b,) class numbers.
    label_smoothing: e.

  Returns:
    (b,) float32.
  """
  log_p = jax.nn.log_softmax(logits.astype(jnp.float32))
  own = -jnp.take_along_axis(log_p, labels[:, None], axis=1)[:, 0]
  if not label_smoothing:
    return own
  return (1 - label_smoothing) * own - label_smoothing * log_p.mean(1)


def cross_entropy(logits: Logits, labels: Labels, *, label_smoothing: float = 0.0) -> Scalar:
  """Computes the mean cross-entropy with class numbers; see `cross_entropy_rows`."""
  return cross_entropy_rows(logits, labels, label_smoothing=label_smoothing).mean()


def soft_cross_entropy(logits: Logits, probs: Logits) -> Scalar:
  """Computes -(1/b) sum_bk probs log softmax(logits); both arguments (b, k)."""
  return -(probs * jax.nn.log_softmax(logits.astype(jnp.float32))).sum(1).mean()


def balanced_softmax(
  logits: Logits, labels: Labels, log_prior: PerClass, *, label_smoothing: float = 0.0
) -> Scalar:
  """Computes the cross-entropy of logits + log prior (Ren et al., NeurIPS 2020, eq. 4).

  Args:
    logits: (b, k).
    labels: (b,) class numbers.
    log_prior: (k,) log of the class frequencies.
    label_smoothing: as for `cross_entropy`.
  """
  return logit_adjusted(logits, labels, log_prior, label_smoothing=label_smoothing)


def logit_adjusted(
  logits: Logits,
  labels: Labels,
  log_prior: PerClass,
  tau: float = 1.0,
  *,
  label_smoothing: float = 0.0,
) -> Scalar:
  """Computes the cross-entropy of logits + tau log prior (Menon et al., ICLR 2021, eq. 10).

  At tau = 1 this is the balanced softmax. Arguments as for `balanced_softmax`.
  """
  return cross_entropy(logits + tau * log_prior[None], labels, label_smoothing=label_smoothing)


def class_weights(class_counts: ClassCounts, beta: float = 0.999) -> Float[Array, "k"]:
  """Computes weights proportional to (1 - beta) / (1 - beta^n_c), which sum to k.

  Source: the effective number of samples of Cui et al., CVPR 2019, eq. 2 and section 4.

  Args:
    class_counts: (k,) n_c, each at least 1.
    beta: in [0, 1); 0 weighs all classes alike, close to 1 by inverse frequency.
  """
  counts = jnp.asarray(class_counts, jnp.float32)
  if beta == 0:
    return jnp.ones_like(counts)
  weights = -1 / jnp.expm1(counts * float(np.log(beta)))
  return weights * counts.size / weights.sum()


def class_balanced(
  logits: Logits,
  labels: Labels,
  class_counts: ClassCounts,
  beta: float = 0.999,
  *,
  label_smoothing: float = 0.0,
) -> Scalar:
  """Computes the mean over the batch of w_y * cross-entropy, with `class_weights` w."""
  rows = cross_entropy_rows(logits, labels, label_smoothing=label_smoothing)
  return (class_weights(class_counts, beta)[labels] * rows).mean()


def kl(
  student_logits: Logits,
  teacher_logits: Logits,
  temperature: float = 1.0,
  squared: bool = False,
) -> Scalar:
  """Computes (1/b) sum_bk q (log q - log p), p and q the student's and teacher's softmax(. / T).

  Args:
    student_logits: (b, k).
    teacher_logits: (b, k).
    temperature: T.
    squared: whether to multiply by T^2, as Hinton et al. do and only the Tiny-ImageNet code of
      SRe2L does; SRe2L and RDED elsewhere do not.
  """
  log_p = jax.nn.log_softmax(student_logits.astype(jnp.float32) / temperature)
  log_q = jax.nn.log_softmax(teacher_logits.astype(jnp.float32) / temperature)
  value = (jnp.exp(log_q) * (log_q - log_p)).sum(1).mean()
  return value * temperature**2 if squared else value


def mse_ce(
  student_logits: Logits, teacher_logits: Logits, labels: Labels, ce_weight: float = 0.1
) -> Scalar:
  """Computes the mean over b and k of (student - teacher)^2, plus ce_weight * cross-entropy.

  The loss "MSE-GT" of G-VBSM and EDC, on raw logits: no temperature.

  Args:
    student_logits: (b, k).
    teacher_logits: (b, k).
    labels: (b,) the images' own classes, mixed or not.
    ce_weight: 0.1 to 0.15 in G-VBSM, 0.025 in EDC.
  """
  student = student_logits.astype(jnp.float32)
  mse = jnp.square(student - teacher_logits.astype(jnp.float32)).mean()
  return mse + ce_weight * cross_entropy(student, labels)


def ltkd(
  student_logits: Logits,
  teacher_logits: Logits,
  index: Int[Array | np.ndarray, "k"],
  temperature: float = 1.0,
  alpha: float = 1.0,
  beta: float = 1.0,
  rebalance: bool = True,
) -> Scalar:
  """Computes alpha * (divergence between groups) + beta * (mean of those within groups).

  With P_G the probability of a group of classes, q and p the teacher's and the student's softmax at
  temperature T, the divergence of `kl` is, by the chain rule,

      KL(q || p) = KL(Q_G || P_G) + sum over G of Q_G KL(q | G || p | G)

  Here Q_G is divided by its mean over the batch and normalised to sum to one in each row, and the
  terms within groups get the weight 1 / (number of groups) instead of the teacher's Q_G, which
  favours head classes. After arXiv 2506.18496 ("Biased Teacher, Balanced Student"; its second
  version is "Distilling Balanced Knowledge from a Biased Teacher"). What was read of it: both
  abstracts and a summary, not the equations and no code. So the scheme (rebalanced between groups,
  equal within) is theirs, and the mean over the batch, the single division and the factor
  1 / (number of groups) are ours.

  Args:
    student_logits: (b, k).
    teacher_logits: (b, k).
    index: (k,) the group of each class, numbers 0, 1, ...
    temperature: T.
    alpha: weight of the first term.
    beta: weight of the second.
    rebalance: whether to divide by the batch's mean; not needed behind the calibrator `ltkd`.
  """
  one_hot = np.eye(int(index.max()) + 1, dtype=bool)[index]  # (k, g)
  log_p, log_q = (
    jax.nn.log_softmax(x.astype(jnp.float32) / temperature)
    for x in (student_logits, teacher_logits)
  )
  group = lambda x: jax.nn.logsumexp(jnp.where(one_hot[None], x[:, :, None], -jnp.inf), axis=1)
  log_ps, log_qs = group(log_p), group(log_q)  # (b, g)
  inner_p, inner_q = log_p - log_ps[:, index], log_q - log_qs[:, index]
  within = (jnp.exp(inner_q) * (inner_q - inner_p)).sum(1).mean() / one_hot.shape[1]
  if rebalance:
    mean = jax.nn.logsumexp(log_qs, axis=0, keepdims=True)
    log_qs = jax.nn.log_softmax(log_qs - mean)
  between = (jnp.exp(log_qs) * (log_qs - log_ps)).sum(1).mean()
  return alpha * between + beta * within


def _check_smoothing(label_smoothing: float) -> None:
  if not 0 <= label_smoothing < 1:
    raise LtddError(f"loss: label_smoothing={label_smoothing}; expected a number in [0, 1).")


def _check_counts(name: str, class_counts: ClassCounts) -> np.ndarray:
  counts = np.asarray(class_counts)
  if np.any(counts <= 0):
    raise LtddError(
      f"loss {name!r}: class {int(np.argmin(counts))} has {counts.min()} training images; it needs "
      "at least one of each class. Use 'cross_entropy', or leave that class out."
    )
  return counts.astype(np.float64)


def _log_prior(name: str, class_counts: ClassCounts) -> np.ndarray:
  counts = _check_counts(name, class_counts)
  return np.log(counts / counts.sum()).astype(np.float32)


def _make_cross_entropy(*, class_counts, label_smoothing: float = 0.0) -> SupervisedLoss:
  del class_counts
  return partial(cross_entropy, label_smoothing=label_smoothing)


def _make_balanced_softmax(*, class_counts, label_smoothing: float = 0.0) -> SupervisedLoss:
  log_prior = _log_prior("balanced_softmax", class_counts)
  return partial(balanced_softmax, log_prior=log_prior, label_smoothing=label_smoothing)


def _make_logit_adjusted(
  *, class_counts, label_smoothing: float = 0.0, tau: float = 1.0
) -> SupervisedLoss:
  log_prior = _log_prior("logit_adjusted", class_counts)
  return partial(logit_adjusted, log_prior=log_prior, tau=tau, label_smoothing=label_smoothing)


def _make_class_balanced(
  *, class_counts, label_smoothing: float = 0.0, beta: float = 0.999
) -> SupervisedLoss:
  if not 0 <= beta < 1:
    raise LtddError(f"loss 'class_balanced': beta={beta}; expected a number in [0, 1).")
  counts = _check_counts("class_balanced", class_counts)
  return partial(class_balanced, class_counts=counts, beta=beta, label_smoothing=label_smoothing)


def _make_kl(*, temperature: float = 1.0, squared: bool = False) -> SoftLoss:
  if temperature <= 0:
    raise LtddError(f"loss 'kl': temperature={temperature}; expected a positive number.")
  return lambda logits, targets, labels: kl(logits, targets, temperature, squared)


def _make_mse_ce(*, ce_weight: float = 0.1) -> SoftLoss:
  if ce_weight < 0:
    raise LtddError(f"loss 'mse_ce': ce_weight={ce_weight}; expected 0 or more.")
  return partial(mse_ce, ce_weight=ce_weight)


def _make_ltkd(
  *,
  groups: Sequence[Sequence[int]],
  temperature: float = 1.0,
  alpha: float = 1.0,
  beta: float = 1.0,
  rebalance: bool = True,
) -> SoftLoss:
  if temperature <= 0:
    raise LtddError(f"loss 'ltkd': temperature={temperature}; expected a positive number.")
  if min(alpha, beta) < 0:
    raise LtddError(f"loss 'ltkd': alpha={alpha}, beta={beta}; expected weights of 0 or more.")
  classes = sorted(c for members in groups for c in members)
  if classes != list(range(len(classes))) or not classes or not all(len(g) for g in groups):
    raise LtddError(
      f"loss 'ltkd': groups={groups}; expected lists of classes that hold each class 0, 1, ... "
      "exactly once, such as ((0, 1, 2), (3, 4, 5, 6), (7, 8, 9))."
    )
  index = np.empty(len(classes), np.int32)
  for i, members in enumerate(groups):
    index[list(members)] = i

  def loss(logits: Logits, targets: Logits, labels: Labels) -> Scalar:
    del labels
    if logits.shape[1] != len(index):
      raise LtddError(
        f"loss 'ltkd': groups hold {len(index)} classes, but logits have {logits.shape[1]}."
      )
    return ltkd(logits, targets, index, temperature, alpha, beta, rebalance)

  return loss


LOSSES: dict[str, Callable[..., SupervisedLoss]] = {
  "cross_entropy": _make_cross_entropy,
  "balanced_softmax": _make_balanced_softmax,
  "logit_adjusted": _make_logit_adjusted,
  "class_balanced": _make_class_balanced,
}

SOFT_LOSSES: dict[str, Callable[..., SoftLoss]] = {
  "kl": _make_kl,
  "mse_ce": _make_mse_ce,
  "ltkd": _make_ltkd,
}


def make_supervised_loss(
  name: str, *, class_counts: ClassCounts, label_smoothing: float = 0.0, **kwargs: Any
) -> SupervisedLoss:
  """Makes a loss on class numbers.

  Args:
    name: "cross_entropy", "balanced_softmax", "logit_adjusted" (tau) or "class_balanced" (beta).
    class_counts: (k,) training images of each class.
    label_smoothing: in [0, 1).
    **kwargs: of that loss.

  Returns:
    `fn(logits (b,k), labels (b,)) -> scalar`.

  Raises:
    LtddError: an unknown name or argument, one out of range, or a class without images.
  """
  _check_smoothing(label_smoothing)
  kwargs = {"class_counts": class_counts, "label_smoothing": label_smoothing, **kwargs}
  return registry.make("loss", LOSSES, name, kwargs)


def make_soft_loss(name: str, **kwargs: Any) -> SoftLoss:
  """Makes a loss on target logits.

  Args:
    name: "kl" (temperature, squared), "mse_ce" (ce_weight) or "ltkd" (groups, temperature, alpha,
      beta, rebalance).
    **kwargs: of that loss.

  Returns:
    `fn(logits (b,k), target_logits (b,k), labels (b,)) -> scalar`.

  Raises:
    LtddError: an unknown name or argument, or one out of range.
  """
  return registry.make("loss", SOFT_LOSSES, name, kwargs)
