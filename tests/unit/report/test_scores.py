"""DD-Ranking's scores, on numbers of its own code and on those that it gets wrong."""

import numpy as np
import pytest

from ltdd_jax.core.types import LtddError
from ltdd_jax.report import scores, scores_report


def lrs(real, hard, own, random, weight=0.5):
  recovery = scores.hard_label_recovery(real, hard)
  return scores.label_robust_score(
    scores.improvement_over_random(own, random), recovery, weight=weight
  )


@pytest.mark.parametrize(
  ("accuracies", "weight", "want"),
  [
    ((0.85, 0.55, 0.65, 0.55), 0.5, 0.228454),
    ((0.85, 0.50, 0.60, 0.50), 0.3, 0.186633),
    ((0.565, 0.20, 0.46, 0.42), 0.5, 0.205129),
  ],
)
def test_label_robust_score_is_that_of_the_released_formulas(accuracies, weight, want):
  assert lrs(*accuracies, weight=weight) == pytest.approx(want, abs=1e-6)


@pytest.mark.parametrize(
  ("augmented", "plain", "weight", "want"),
  [
    ((0.65, 0.55), (0.40, 0.35), 0.5, 0.302078),
    ((0.65, 0.55), (0.40, 0.45), 0.3, 0.266819),
  ],
)
def test_augmentation_robust_score_likewise(augmented, plain, weight, want):
  better = [scores.improvement_over_random(*pair) for pair in (augmented, plain)]
  found = scores.augmentation_robust_score(*better, weight=weight)
  assert found == pytest.approx(want, abs=1e-6)


def test_neutral_and_extreme_values():
  assert scores.label_robust_score(0, 0) == pytest.approx(0.2689, abs=5e-5)
  assert scores.label_robust_score(0.1, 0.3) == pytest.approx(0.2285, abs=5e-5)
  assert scores.augmentation_robust_score(1, 1) == 1
  assert scores.label_robust_score(-1, 1) == 0


def test_a_score_for_each_run_and_not_of_the_mean_accuracies():
  found = lrs(np.full(2, 0.9), np.full(2, 0.5), np.array([0.9, 0.1]), np.full(2, 0.5))
  assert found.shape == (2,)
  assert found.mean() != pytest.approx(float(lrs(0.9, 0.5, 0.5, 0.5)))


def test_percentages_are_refused_that_leave_the_range_in_the_released_code():
  """The released code has -0.1565 for a recovery of 30 and an improvement of 10, and 63 for 5."""
  with pytest.raises(LtddError, match=r"real has 85; expected .* from 0 to 1. Divide percentages"):
    scores.hard_label_recovery(85, 55)
  with pytest.raises(LtddError, match="own has 65; expected accuracies as fractions"):
    scores.improvement_over_random([0.5, 65], [0.5, 0.5])
  with pytest.raises(LtddError, match="improvement has 10; expected differences"):
    scores.label_robust_score(10, 30)
  with pytest.raises(LtddError, match="augmented has 5; expected differences"):
    scores.augmentation_robust_score(5, 5)
  with pytest.raises(LtddError, match="real has nan"):
    scores.hard_label_recovery(np.nan, 0.5)
  with pytest.raises(LtddError, match=r"weight is 2; expected a number in \[0, 1\]"):
    scores.label_robust_score(0, 0, weight=2)


def results(preset=None, std=0.25):
  value = {"mean": 0.5, "std": std}
  names = ("real", "hard", "own, recipe", "random, recipe")
  row = {
    "labels": "learned/adsa", "random_labels": "adsa",
    "scores": dict.fromkeys(("hlr", "ior", "lrs", "ars"), value),
    "accuracies": dict.fromkeys(names, value),
  }  # fmt: skip
  leakage = {
    "distance": 1.5, "test_distance": 1.25, "membership": 0.125, "auc": 0.75,
    "nearer_to_train": 0.625, "nearer_expected": 0.5,
  }  # fmt: skip
  return {
    "dataset": "small", "images": "datm", "imbalance_factor": 7.0, "counts": [1, 2], "runs": 3,
    "recipe": "rd3", "preset": preset, "rows": [row | {"classes": c} for c in ("all", "tail")],
    "leakage": {"datm": leakage, "random": leakage},
  }  # fmt: skip


def test_report_says_what_the_results_say():
  text = scores_report.render(results())
  assert "1 to 2 images a class" in text
  assert "of the last step" in text
  assert "Students by recipe rd3." in text
  assert text.count("| learned/adsa |") == 3
  assert text.count("0.500 ± 0.250") == 2 * 4 + 4
  cells = ["1.500", "1.250", "0.125", "0.750", "0.625"]
  assert " ".join(text.replace("|", " ").split()).count(" ".join(cells)) == 2
  assert "best on test" in scores_report.render(results("ddr", None))
