"""The criteria "marginal" and "nll" against float64 NumPy loops, tolerances of test_golden_adsa."""

import numpy as np
import pytest

from ltdd_jax import calibrate
from ltdd_jax.adsa import Rows
from ltdd_jax.calibrate import criteria
from ltdd_jax.core.types import LtddError
from tests.golden.test_golden_adsa import COUNTS, K, draw
from tests.reference import adsa_ref as ref

OTHERS = ("marginal", "nll")
unequal = np.flatnonzero(np.arange(60) % K != 3)  # no image of class 3
PRIOR = np.array(ref.log_prior(COUNTS))
some = np.concatenate([np.arange(60), np.arange(0, 60, 5), np.arange(0, 60, 5)])  # class 0 thrice


def in_blocks(logits, labels, size):
  """Rows that are read `size` at a time."""
  rows = Rows(logits, labels)
  rows.size = size
  return rows


def fit(logits, labels, prior=PRIOR, *, criterion, size=1000, tau_range=(0, 3)):
  return criteria.fit(in_blocks(logits, labels, size), prior, criterion, tau_range)


@pytest.mark.parametrize("criterion", OTHERS)
@pytest.mark.parametrize(
  ("seed", "margin", "bias", "noise"),
  [(0, 2, 1, 1), (1, 4, 0.5, 2), (2, 1, 1.5, 0.3), (5, 3, 4, 1)],
)
def test_fit(criterion, seed, margin, bias, noise):
  logits, labels = draw(seed, 60, margin, bias, noise)
  logits, labels = logits[some], labels[some]
  tau, value = ref.minimise(logits, labels, COUNTS, 0, 6 if bias > 3 else 3, criterion=criterion)
  reach = 6 if bias > 3 else 3
  result = fit(logits, labels, criterion=criterion, tau_range=(0, reach))
  assert result.status == "fitted"
  assert result.tau == pytest.approx(tau, abs=1e-3)
  assert result.objective_after == pytest.approx(value, abs=2e-6)
  at_zero = ref.CRITERIA[criterion](logits, labels, COUNTS, 0)
  assert result.objective_before == pytest.approx(at_zero, abs=2e-6)
  at_tau = ref.confidence(logits, labels, COUNTS, result.tau)
  np.testing.assert_allclose(result.confidence_after, at_tau, atol=1e-6)
  for point, score in result.curve[::9]:
    assert score == pytest.approx(ref.CRITERIA[criterion](logits, labels, COUNTS, point), abs=2e-6)


@pytest.mark.parametrize("criterion", OTHERS)
def test_a_class_without_an_image(criterion):
  logits, labels = (x[unequal] for x in draw(3, 60))
  tau, value = ref.minimise(logits, labels, COUNTS, 0, 3, criterion=criterion)
  result = fit(logits, labels, criterion=criterion)
  assert (result.tau, result.objective_after) == pytest.approx((tau, value), abs=1e-3)
  assert np.isnan(result.confidence_after[3])


@pytest.mark.parametrize("criterion", OTHERS)
@pytest.mark.parametrize("tau", [0.8, -30.0, 60.0])
def test_class_means(criterion, tau):
  logits, labels = draw(4, 35)
  rows = in_blocks(logits, labels, 8)
  [means] = criteria.class_means(rows, PRIOR, [tau, tau + 0.1], criterion)([tau])
  score = ref.CRITERIA[criterion](logits, labels, COUNTS, tau)
  assert criteria.objective(means, criterion) == pytest.approx(score, rel=2e-5, abs=2e-6)


def test_nll_of_balanced_classes_is_a_condition_on_masses():
  """Its derivative is sum_c (1 / K - m_c) log pi_c, whatever image has which label (docs)."""
  logits, labels = draw(6, 50)
  result = fit(logits, labels, criterion="nll")
  masses = ref.masses(logits, labels, COUNTS, result.tau) / K
  assert np.dot(masses - 1 / K, ref.log_prior(COUNTS)) == pytest.approx(0, abs=1e-4)
  shuffled = np.random.default_rng(0).permutation(labels)
  assert fit(logits, shuffled, criterion="nll").tau == pytest.approx(result.tau, abs=1e-3)


@pytest.mark.parametrize("criterion", OTHERS)
def test_chunks_and_duplicates_change_nothing(criterion):
  logits, labels = draw(7, 40)
  whole = fit(logits, labels, criterion=criterion)
  parts = fit(logits, labels, criterion=criterion, size=7)
  twice = fit(np.stack([logits, logits]), labels, criterion=criterion)
  assert parts.tau == pytest.approx(whole.tau, abs=1e-3)
  assert twice.tau == pytest.approx(whole.tau, abs=1e-3)


@pytest.mark.parametrize("criterion", OTHERS)
def test_certain_labels_are_flat_and_a_uniform_prior_is_said_so(criterion):
  _, labels = draw(8, 40)
  certain = 40 * np.eye(K, dtype=np.float32)[labels]
  result = fit(certain, labels, criterion=criterion)
  assert result.flat
  assert result.status == "flat"
  uniform = fit(draw(8, 40)[0], labels, np.full(K, -np.log(K)), criterion=criterion)
  assert (uniform.tau, uniform.status) == (0.0, "uniform")


def test_messages_and_errors():
  logits, labels = draw(9, 40)
  message = fit(logits, labels, criterion="nll").message
  assert "log-loss" in message
  with pytest.raises(LtddError, match="criterion is 'mass'; expected one of 'confidence', 'marg"):
    calibrate.make_calibrator("adsa", criterion="mass")
  logits[11, 2] = np.nan
  with pytest.raises(ValueError, match=r"logits\[11\] is the first row with a NaN"):
    fit(logits, labels, criterion="marginal")
