"""Losses of teachers and students: float32 scalars, means over the batch.

cross_entropy(logits, labels)                 # labels are class numbers
loss_fn = make_soft_loss("kl", temperature=20.0)
loss_fn(logits, target_logits, labels)        # targets are logits, labels the images' classes
"""

from collections.abc import Callable, Sequence
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
SoftLoss = Callable[[Logits, Logits, Labels], Scalar]


def cross_entropy_rows(
  logits: Logits, labels: Labels, *, label_smoothing: float = 0.0
) -> Float[Array, "b"]:
  """Computes -log p(label) of each row, or of the smoothed label (1 - e) onehot + e/k."""
  log_p = jax.nn.log_softmax(logits.astype(jnp.float32))
  own = -jnp.take_along_axis(log_p, labels[:, None], axis=1)[:, 0]
  if not label_smoothing:
    return own
  return (1 - label_smoothing) * own - label_smoothing * log_p.mean(1)


def cross_entropy(logits: Logits, labels: Labels, *, label_smoothing: float = 0.0) -> Scalar:
  """Computes the mean of `cross_entropy_rows`."""
  return cross_entropy_rows(logits, labels, label_smoothing=label_smoothing).mean()


def logit_adjusted(
  logits: Logits, labels: Labels, log_prior: PerClass, tau: float, label_smoothing: float = 0.0
) -> Scalar:
  """Computes the cross-entropy of logits + tau log prior (Menon et al., ICLR 2021, eq. 10).

  At tau = 1 this is the balanced softmax (Ren et al., NeurIPS 2020, eq. 4).
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
  logits: Logits, labels: Labels, counts: ClassCounts, beta: float, label_smoothing: float = 0.0
) -> Scalar:
  """Computes the mean over the batch of w_y * cross-entropy, with `class_weights` w."""
  rows = cross_entropy_rows(logits, labels, label_smoothing=label_smoothing)
  return (class_weights(counts, beta)[labels] * rows).mean()


def kl(*, temperature: float = 1.0, squared: bool = False) -> SoftLoss:
  """Makes (1/b) sum_bk q (log q - log p), p and q the student's and teacher's softmax(. / T).

  Args:
    temperature: T.
    squared: whether to multiply by T^2, as Hinton et al. do and only the Tiny-ImageNet code of
      SRe2L does; SRe2L and RDED elsewhere do not.
  """
  if temperature <= 0:
    raise LtddError(f"loss 'kl': temperature={temperature}; expected a positive number.")

  def loss(student_logits: Logits, teacher_logits: Logits, labels: Labels) -> Scalar:
    del labels
    log_p = jax.nn.log_softmax(student_logits.astype(jnp.float32) / temperature)
    log_q = jax.nn.log_softmax(teacher_logits.astype(jnp.float32) / temperature)
    value = (jnp.exp(log_q) * (log_q - log_p)).sum(1).mean()
    return value * temperature**2 if squared else value

  return loss


def mse_ce(*, ce_weight: float = 0.1) -> SoftLoss:
  """Makes the mean over b and k of (student - teacher)^2, plus ce_weight * cross-entropy.

  The loss "MSE-GT" of G-VBSM (`ce_weight` 0.1 to 0.15) and EDC (0.025), on raw logits; the classes
  are the images' own, mixed or not.
  """
  if ce_weight < 0:
    raise LtddError(f"loss 'mse_ce': ce_weight={ce_weight}; expected 0 or more.")

  def loss(student_logits: Logits, teacher_logits: Logits, labels: Labels) -> Scalar:
    student = student_logits.astype(jnp.float32)
    mse = jnp.square(student - teacher_logits.astype(jnp.float32)).mean()
    return mse + ce_weight * cross_entropy(student, labels)

  return loss


SOFT_LOSSES: dict[str, Callable[..., SoftLoss]] = {"kl": kl, "mse_ce": mse_ce}


def make_soft_loss(name: str, **kwargs: Any) -> SoftLoss:
  """Makes `fn(logits (b,k), target_logits (b,k), labels (b,)) -> scalar`, one of `SOFT_LOSSES`.

  Raises:
    LtddError: an unknown name or argument, or one out of range.
  """
  return registry.make("loss", SOFT_LOSSES, name, kwargs)
