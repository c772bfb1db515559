"""DD-Ranking's scores of a distilled set (Li et al. 2025), on accuracies as fractions.

  hlr = hard_label_recovery(real, hard)                # (s,) each, of s runs
  ior = improvement_over_random(own, random)
  label_robust_score(ior, hlr)                         # a score for each run: then take the mean

`real` students have the training set itself, `hard` ones the distilled images with hard labels,
`own` ones the distilled images with the method's labels, `random` ones as many real images.
In what we differ: DD-Ranking 0.2.0 feeds percentages to these formulas, which leave [0, 1] for
them; here they are an error. Deviations over runs have n - 1 here and n there.
"""

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike

from ltdd_jax.core.registry import check_share
from ltdd_jax.core.types import LtddError

Runs = Float[np.ndarray, "*s"] | float  # of one run: np.float64


def hard_label_recovery(real: ArrayLike, hard: ArrayLike) -> Runs:
  """Computes HLR = acc(real set, hard) - acc(distilled, hard): smaller is better."""
  return _accuracy("real", real) - _accuracy("hard", hard)


def improvement_over_random(own: ArrayLike, random: ArrayLike) -> Runs:
  """Computes IOR = acc(distilled, its labels) - acc(random real images): larger is better."""
  return _accuracy("own", own) - _accuracy("random", random)


def label_robust_score(
  improvement: ArrayLike, recovery: ArrayLike, weight: float | int = 0.5
) -> Runs:
  """Computes LRS, `squashed(weight IOR - (1 - weight) HLR)`; 0.2689 is neutral."""
  check_share("label_robust_score: ", weight=weight)
  ior, hlr = _difference("improvement", improvement), _difference("recovery", recovery)
  return squashed(weight * ior - (1 - weight) * hlr)


def augmentation_robust_score(
  augmented: ArrayLike, plain: ArrayLike, weight: float | int = 0.5
) -> Runs:
  """Computes ARS, `squashed(weight augmented + (1 - weight) plain)`.

  Args:
    augmented: the improvement over random of students that see augmented images.
    plain: that of students that see the images as they are.
    weight: of the first.
  """
  check_share("augmentation_robust_score: ", weight=weight)
  both = _difference("augmented", augmented), _difference("plain", plain)
  return squashed(weight * both[0] + (1 - weight) * both[1])


def squashed(x: Runs) -> Runs:
  """Maps [-1, 1] to [0, 1]: (e^x - e^-1) / (e - e^-1)."""
  return (np.exp(x) - np.exp(-1)) / (np.exp(1) - np.exp(-1))


def _accuracy(name: str, values: ArrayLike) -> Runs:
  return _within(name, values, 0, "accuracies as fractions from 0 to 1")


def _difference(name: str, values: ArrayLike) -> Runs:
  return _within(name, values, -1, "differences of accuracies as fractions, from -1 to 1")


def _within(name: str, values: ArrayLike, low: int, what: str) -> Runs:
  found = np.asarray(values, np.float64)
  bad = found[~((found >= low) & (found <= 1))]  # NaN too
  if bad.size:
    raise LtddError(f"{name} has {bad[0]:g}; expected {what}. Divide percentages by 100")
  return found
