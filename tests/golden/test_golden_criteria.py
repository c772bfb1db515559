"""The criteria "marginal" and "nll" against float64 NumPy loops, tolerances of test_golden_adsa."""

import numpy as np
import pytest

from ltdd_jax import adsa
from tests.golden.test_golden_adsa import COUNTS, K, draw
from tests.reference import adsa_ref as ref

OTHERS = ("marginal", "nll")
unequal = np.flatnonzero(np.arange(60) % K != 3)  # no image of class 3
some = np.concatenate([np.arange(60), np.arange(0, 60, 5), np.arange(0, 60, 5)])  # class 0 thrice


@pytest.mark.parametrize("criterion", OTHERS)
@pytest.mark.parametrize(
  ("seed", "margin", "bias", "noise"),
  [(0, 2, 1, 1), (1, 4, 0.5, 2), (2, 1, 1.5, 0.3), (5, 3, 4, 1)],
)
def test_fit(criterion, seed, margin, bias, noise):
  logits, labels = draw(seed, 60, margin, bias, noise)
  logits, labels = logits[some], labels[some]
  tau, value = ref.minimise(logits, labels, COUNTS, 0, 6 if bias > 3 else 3, criterion=criterion)
  result = adsa.fit(logits, labels, COUNTS, criterion=criterion)
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
  result = adsa.fit(logits, labels, COUNTS, criterion=criterion)
  assert (result.tau, result.objective_after) == pytest.approx((tau, value), abs=1e-3)
  assert np.isnan(result.confidence_after[3])


@pytest.mark.parametrize("criterion", OTHERS)
@pytest.mark.parametrize("tau", [0.8, -30.0, 60.0])
def test_class_means_and_their_derivatives(criterion, tau):
  logits, labels = draw(4, 35)
  rows, prior = adsa.Rows(logits, labels, 8), np.array(ref.log_prior(COUNTS))
  means = adsa.class_means(rows, prior, np.array([tau]), 2, criterion)[:, 0]
  score = ref.CRITERIA[criterion](logits, labels, COUNTS, tau)
  goal = adsa._Goal(None, criterion)
  assert goal.score(means[0]) == pytest.approx(score, rel=2e-5, abs=2e-6)
  h = 1e-3
  before, here, after = (
    goal.power(ref.CRITERIA[criterion](logits, labels, COUNTS, tau + d)) for d in (-h, 0, h)
  )
  expected = [here, (after - before) / (2 * h), (before - 2 * here + after) / h**2]
  np.testing.assert_allclose(goal.taylor(means[:, None])[:, 0], expected, rtol=1e-3, atol=2e-4)


def test_nll_of_balanced_classes_is_a_condition_on_masses():
  """Its derivative is sum_c (1 / K - m_c) log pi_c, whatever image has which label (docs)."""
  logits, labels = draw(6, 50)
  result = adsa.fit(logits, labels, COUNTS, criterion="nll")
  masses = ref.masses(logits, labels, COUNTS, result.tau) / K
  assert np.dot(masses - 1 / K, ref.log_prior(COUNTS)) == pytest.approx(0, abs=1e-4)
  shuffled = np.random.default_rng(0).permutation(labels)
  assert adsa.fit(logits, shuffled, COUNTS, criterion="nll").tau == pytest.approx(
    result.tau, abs=1e-3
  )


@pytest.mark.parametrize("criterion", OTHERS)
def test_chunks_and_duplicates_change_nothing(criterion):
  logits, labels = draw(7, 40)
  whole = adsa.fit(logits, labels, COUNTS, criterion=criterion)
  parts = adsa.fit(logits, labels, COUNTS, criterion=criterion, chunk_size=7)
  twice = adsa.fit(np.stack([logits, logits]), labels, COUNTS, criterion=criterion)
  assert parts.tau == pytest.approx(whole.tau, abs=1e-3)
  assert twice.tau == pytest.approx(whole.tau, abs=1e-3)


@pytest.mark.parametrize("criterion", OTHERS)
def test_certain_labels_are_flat_and_a_uniform_prior_is_said_so(criterion):
  _, labels = draw(8, 40)
  certain = 40 * np.eye(K, dtype=np.float32)[labels]
  result = adsa.fit(certain, labels, COUNTS, criterion=criterion)
  assert result.flat
  assert result.status == "flat"
  uniform = adsa.fit(draw(8, 40)[0], labels, np.full(K, 9), criterion=criterion)
  assert (uniform.tau, uniform.status) == (0.0, "uniform")


def test_messages_and_errors():
  logits, labels = draw(9, 40)
  message = adsa.fit(logits, labels, COUNTS, criterion="nll").message
  assert "log-loss" in message
  with pytest.raises(ValueError, match="criterion is 'mass'; expected one of confidence, marginal"):
    adsa.fit(logits, labels, COUNTS, criterion="mass")
  logits[11, 2] = np.nan
  with pytest.raises(ValueError, match=r"logits\[11\] is the first row with a NaN"):
    adsa.fit(logits, labels, COUNTS, criterion="marginal")
