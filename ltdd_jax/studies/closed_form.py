"""The closed-form student: what a linear student of given features learns from soft labels.

  found = student(shown, logits, unseen, penalty=0.01)   # logits of the unseen images
  score = balanced_log_loss(found, labels)

It stands for a student before one is trained, to compare labels (`teachers_study`).
"""

import numpy as np
from jaxtyping import Float, Int
from scipy import special

from ltdd_jax.core.types import LtddError
from ltdd_jax.labels import by_class


def student(
  shown: Float[np.ndarray, "n f"],
  logits: Float[np.ndarray, "n k"],
  unseen: Float[np.ndarray, "m f"],
  *,
  penalty: float,
) -> Float[np.ndarray, "m k"]:
  """Fits ridge regression from features to logits, and returns its logits of other images.

      W = argmin  1/n || logits - Z W - 1 b^T ||^2 + penalty || W ||^2

  Z are the features with mean 0 and variance 1 over the shown images; b is not penalised. In
  float64, in the smaller of the two forms: f equations, or n.

  Args:
    shown: features of the views that the labels are of.
    logits: their labels; only differences between classes matter.
    unseen: features of the images to predict.
    penalty: of the squared weights, > 0.

  Raises:
    LtddError: `penalty` is not positive.
  """
  check_penalty(penalty)
  mean, scale = shown.mean(0, dtype=np.float64), shown.std(0, dtype=np.float64)
  scale = np.where(scale > 0, scale, 1)  # a feature that never moves says nothing
  z, there = (shown - mean) / scale, (unseen - mean) / scale
  targets = logits.astype(np.float64)
  targets = targets - targets.mean(1, keepdims=True)
  bias = targets.mean(0)
  n, f = z.shape
  if f <= n:
    weights = np.linalg.solve(z.T @ z + penalty * n * np.eye(f), z.T @ (targets - bias))
  else:
    weights = z.T @ np.linalg.solve(z @ z.T + penalty * n * np.eye(n), targets - bias)
  return there @ weights + bias


def check_penalty(penalty: float) -> None:
  """Raises LtddError for a penalty with which there may be no solution."""
  if not penalty > 0:
    raise LtddError(f"config.study.penalty is {penalty}; expected a number > 0")


def balanced_accuracy(logits: Float[np.ndarray, "m k"], labels: Int[np.ndarray, " m"]) -> float:
  """The mean over the classes that are present of their top-1 accuracy, in percent."""
  return 100.0 * _balanced(logits.argmax(1) == labels, labels)


def balanced_log_loss(logits: Float[np.ndarray, "m k"], labels: Int[np.ndarray, " m"]) -> float:
  """The mean over the classes that are present of their mean log-loss, in nats."""
  own = np.take_along_axis(logits, labels[:, None], 1)[:, 0]
  return _balanced(special.logsumexp(logits, axis=1) - own, labels)


def _balanced(values: np.ndarray, labels: np.ndarray) -> float:
  return float(np.nanmean(by_class.class_means(values, labels, labels.max() + 1)))
