"""The interval of tau against exact refits: float64, on the images that each replicate draws."""

import numpy as np
import pytest

from ltdd_jax import calibrate
from ltdd_jax.adsa import Rows
from ltdd_jax.calibrate import bootstrap, criteria
from ltdd_jax.core import rng

REPLICATES = 60
# classes, images a class, epochs, part of log pi in the logits, noise
PROBLEMS = {
  "two classes, many images, small tau": (2, 10_000, 1, 0.029, 1.0),
  "two classes, few images": (2, 6, 2, 0.5, 1.0),
  "two classes, beside the lower bound": (2, 50, 1, 0.0, 1.0),
  "small tau": (5, 400, 1, 0.03, 1.0),
  "the lower bound": (5, 200, 1, -0.02, 1.0),
  "below the lower bound": (5, 40, 1, -1.0, 1.0),
  "the upper bound": (5, 40, 1, 2.97, 1.0),
  "ten classes": (10, 10, 3, 0.8, 1.5),
}


def draw(k, images, epochs, bias, noise):
  """Logits (e, n, k), labels (n,) and log prior (k,)."""
  random = np.random.default_rng(k * images)
  prior = np.log(100.0) * np.linspace(0, -1, k)
  prior -= np.log(np.exp(prior).sum())
  labels = np.arange(k * images) % k
  logits = noise * random.standard_normal((epochs, len(labels), k)) + 2 * np.eye(k)[labels]
  return (logits + bias * prior).astype(np.float32), labels, prior


def drawn(labels, replicates):
  """The weights (b, n) of images that the bootstrap draws."""
  draws = rng.np_rng(0, "adsa", "bootstrap")
  weights = np.empty((replicates, len(labels)))
  for c in np.unique(labels):
    members = np.flatnonzero(labels == c)
    weights[:, members] = bootstrap._draws(draws, len(members), replicates) / len(members)
  return weights


def resampled(labels, replicates):
  """Weights (b, n) of images that are drawn from each class with replacement, and no more."""
  random = np.random.default_rng(1)
  weights = np.zeros((replicates, len(labels)))
  for c in np.unique(labels):
    members = np.flatnonzero(labels == c)
    for row in weights:
      again = random.choice(members, len(members))
      row += np.bincount(again, minlength=len(labels)) / len(members)
  return weights


def exact_taus(logits, labels, prior, criterion, weights):
  """The tau of each replicate on a grid of steps of 1e-4, all in float64."""

  def class_means(tau):  # (b, k)
    z = logits.astype(np.float64) - tau * prior
    p = np.exp(z - z.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    if criterion == "marginal":
      return weights @ p.mean(0)
    own = p[:, np.arange(len(labels)), labels]
    own = (-np.log(own) if criterion == "nll" else own).mean(0)
    return np.stack([weights[:, labels == c] @ own[labels == c] for c in np.unique(labels)], 1)

  lo, hi = 0.0, 3.0
  for step in (0.02, 0.001, 1e-4):
    taus = np.linspace(lo, hi, round((hi - lo) / step) + 1)
    values = np.stack([criteria.objective(class_means(t), criterion) for t in taus])
    found = taus[np.argmin(values, 0)]
    if np.ptp(found) > 100 * step:
      break  # so wide that it need not be finer
    lo, hi = max(found.min() - step, 0), min(found.max() + step, 3)
  return found


@pytest.mark.parametrize("criterion", criteria.CRITERIA)
@pytest.mark.parametrize("problem", PROBLEMS)
def test_replicates_are_exact_refits(problem, criterion):
  logits, labels, prior = draw(*PROBLEMS[problem])
  rows = Rows(logits, labels)
  fit = criteria.fit(rows, prior, criterion, (0, 3))
  found = bootstrap.replicate_taus(rows, prior, fit, criterion, REPLICATES)
  expected = exact_taus(logits, labels, prior, criterion, drawn(labels, REPLICATES))
  np.testing.assert_allclose(found, expected, atol=1.2e-3)


def test_a_mean_log_loss_may_be_below_zero():
  """Weights of few images may be negative, and so may be what is least."""
  random = np.random.default_rng(1)
  labels = np.repeat(np.arange(4), 2)
  prior = np.log([0.8, 0.16, 0.032, 0.008])
  logits = 8 * random.standard_normal((1, 8, 4)) + 8 * np.eye(4)[labels] + prior
  logits = logits.astype(np.float32)
  rows = Rows(logits, labels)
  fit = criteria.fit(rows, prior, "nll", (0, 3))
  found = bootstrap.replicate_taus(rows, prior, fit, "nll", REPLICATES)
  expected = exact_taus(logits, labels, prior, "nll", drawn(labels, REPLICATES))
  np.testing.assert_array_equal(found == 0, expected == 0)
  assert (expected == 0).any()


@pytest.mark.parametrize("criterion", criteria.CRITERIA)
@pytest.mark.parametrize(
  "problem",
  ["two classes, many images, small tau", "two classes, beside the lower bound", "small tau",
   "the upper bound"],
)  # fmt: skip
def test_the_interval_is_that_of_refits_on_resampled_images(problem, criterion):
  """Of other draws: the ends of an interval of 300 replicates vary by a thirtieth of its width."""
  logits, labels, prior = draw(*PROBLEMS[problem])
  calibrator = calibrate.make_calibrator("adsa", criterion=criterion, bootstrap=300)
  report = calibrator.report(calibrator.fit(logits, labels, prior))
  low, high = report["tau_interval"]
  taus = exact_taus(logits, labels, prior, criterion, resampled(labels, 300))
  expected = np.percentile(taus, (2.5, 97.5))
  np.testing.assert_allclose((low, high), expected, atol=0.15 * np.ptp(expected))
  assert low <= report["tau"] <= high
