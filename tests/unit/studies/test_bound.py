"""The terms of the bound: closed forms, distributions with a known divergence, and the edges."""

import numpy as np
import pytest
from scipy import special

from ltdd_jax.core.types import LtddError
from ltdd_jax.studies import bound

# ---- the conditional term ----

LOGITS_P = np.log([[0.5, 0.25, 0.25], [0.8, 0.1, 0.1], [0.2, 0.2, 0.6]])
LOGITS_Q = np.log([[0.25, 0.5, 0.25], [0.8, 0.1, 0.1], [0.1, 0.3, 0.6]])
CLASSES = np.array([0, 0, 2])


def test_conditional_kl_by_hand():
  rows = [
    0.5 * np.log(2) + 0.25 * np.log(0.5),
    0.0,
    0.2 * np.log(2) + 0.2 * np.log(2 / 3),
  ]
  got = bound.conditional_kl(LOGITS_P + 7.0, LOGITS_Q - 3.0, CLASSES, 3)  # constants do not matter
  assert got.total == pytest.approx(np.mean(rows))
  np.testing.assert_allclose(got.per_class, [rows[0] / 2, np.nan, rows[2]])
  assert got.standard_error == pytest.approx(np.std(rows, ddof=1) / np.sqrt(3))


def test_the_error_is_over_images_and_not_over_their_views():
  """Views that say the same of an image say nothing more of the mean over images."""
  one = bound.conditional_kl(LOGITS_P, LOGITS_Q, CLASSES, 3)
  many = [np.tile(x, (4, 1)) for x in (LOGITS_P, LOGITS_Q)]
  got = bound.conditional_kl(*many, np.tile(CLASSES, 4), 3, views=4)
  assert got.total == pytest.approx(one.total)
  assert got.standard_error == pytest.approx(one.standard_error)


def test_conditional_kl_is_zero_for_equal_posteriors_only():
  assert bound.conditional_kl(LOGITS_P, LOGITS_P, CLASSES, 3).total == pytest.approx(0, abs=1e-15)
  draw = np.random.default_rng(0)
  p, q = draw.normal(0, 20, (2, 50, 4))
  assert (bound.conditional_kl(p, q, np.arange(50) % 4, 4).per_class > 0).all()
  far = bound.conditional_kl(np.array([[6e4, 0.0]]), np.array([[0.0, 6e4]]), np.array([0]), 2)
  assert far.total == pytest.approx(6e4)  # nothing overflows


def test_log_loss_by_hand():
  got = bound.log_loss(LOGITS_Q, CLASSES, 3)
  np.testing.assert_allclose(
    got.per_class, [-(np.log(0.25) + np.log(0.8)) / 2, np.nan, -np.log(0.6)]
  )


def test_log_loss_is_the_divergence_plus_the_entropy():
  """Labels drawn from a known posterior: 200,000 draws, error of the mean below 0.003."""
  draw = np.random.default_rng(1)
  n, k = 200_000, 4
  p, q = draw.normal(0, 1.5, (2, n, k))
  probs = np.exp(special.log_softmax(p, -1))
  y = (draw.random((n, 1)) > probs.cumsum(1)).sum(1).clip(max=k - 1)
  entropy = -(probs * np.log(probs)).sum(1).mean()
  want = bound.conditional_kl(p, q, y, k).total + entropy
  assert bound.log_loss(q, y, k).total == pytest.approx(want, abs=0.015)
  assert bound.log_loss(p, y, k).total == pytest.approx(entropy, abs=0.015)


@pytest.mark.parametrize(
  ("p", "classes", "message"),
  [
    (LOGITS_P[:2], CLASSES, r"reference_logits has shape \(2, 3\); expected \(3, 3\)"),
    (LOGITS_P * np.nan, CLASSES, "reference_logits has values that are not finite"),
    (LOGITS_P, CLASSES + 1, r"expected integers in \[0, 3\)"),
    (LOGITS_P, CLASSES / 1.0, "expected integers"),
  ],
)
def test_conditional_refuses_what_does_not_fit(p, classes, message):
  with pytest.raises(LtddError, match=message):
    bound.conditional_kl(p, LOGITS_Q, classes, 3)


# ---- the marginal term ----


def gaussians(d, seed=0):
  """Two Gaussians in d dimensions and their divergence, by eigenvalues and not by our formula."""
  draw = np.random.default_rng(seed)
  root_p = np.eye(d) + 0.3 * draw.standard_normal((d, d)) / np.sqrt(d)
  root_q = 1.3 * np.eye(d) + 0.3 * draw.standard_normal((d, d)) / np.sqrt(d)
  shift = draw.standard_normal(d) / np.sqrt(d)
  cov_p, cov_q = root_p @ root_p.T, root_q @ root_q.T
  ratios = np.linalg.eigvals(np.linalg.solve(cov_q, cov_p)).real
  truth = 0.5 * (np.sum(ratios - 1 - np.log(ratios)) + shift @ np.linalg.inv(cov_q) @ shift)

  def sample(n, m, seed):
    draw = np.random.default_rng((seed, 1))
    x, y = draw.standard_normal((n, d)) @ root_p.T, draw.standard_normal((m, d)) @ root_q.T + shift
    return x, y

  return (np.zeros(d), cov_p, shift, cov_q), truth, sample


@pytest.mark.parametrize("d", [1, 2, 5, 20])
def test_gaussian_kl_closed_form(d):
  moments, truth, _ = gaussians(d)
  assert bound.gaussian_kl(*moments) == pytest.approx(truth, rel=1e-10)
  assert bound.gaussian_kl(*moments[:2], *moments[:2]) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("d", [1, 2, 5, 20])
def test_gaussian_marginal_finds_the_truth_and_comes_nearer_with_more_samples(d):
  _, truth, sample = gaussians(d)
  error = lambda n: np.mean(
    [abs(bound.gaussian_marginal(*sample(n, n, s)).value - truth) for s in range(10)]
  )
  assert error(20_000) < 0.02 * (1 + truth)
  assert error(20_000) < 0.5 * error(400)


def test_shrinkage_saves_few_vectors():
  _, truth, sample = gaussians(20)
  x, y = sample(2000, 15, 0)
  moments = [a for v in (x, y) for a in (v.mean(0), np.cov(v.T))]
  with pytest.raises(LtddError, match="singular"):
    bound.gaussian_kl(*moments)
  got = bound.gaussian_marginal(x, y)
  assert 0 < got.shrinkage <= 1
  assert 0.3 * truth < got.value < 3 * truth
  assert bound.gaussian_marginal(y, x).shrinkage < 0.1


@pytest.mark.parametrize(("d", "tolerance"), [(1, 0.05), (2, 0.05), (5, 0.15)])
def test_knn_finds_the_truth_and_comes_nearer_with_more_samples(d, tolerance):
  _, truth, sample = gaussians(d)
  error = lambda n: np.mean(
    [abs(bound.knn_marginal(*sample(n, n, s)).value - truth) for s in range(6)]
  )
  assert error(8000) < tolerance
  assert error(8000) < 0.75 * error(250)


@pytest.mark.parametrize("d", [1, 2, 5])
def test_knn_is_zero_for_equal_distributions(d):
  draw = np.random.default_rng(0)
  values = [
    bound.knn_marginal(draw.standard_normal((2000, d)), draw.standard_normal((1500, d))).value
    for _ in range(10)
  ]
  assert abs(np.mean(values)) < 0.03  # 10 estimates with a standard deviation of 0.04 to 0.06
  assert np.std(values) < 0.1


def test_knn_by_hand():
  x, y = np.array([[0.0], [1.0], [3.0]]), np.array([[0.5], [2.0]])
  ratios = [0.5 / 1.0, 0.5 / 1.0, 1.0 / 2.0]
  want = np.mean(np.log(ratios)) + np.log(2 / 2)
  assert bound.knn_marginal(x, y, neighbours=1).value == pytest.approx(want)


def test_marginals_do_not_change_under_scaling():
  _, _, sample = gaussians(3)
  x, y = sample(300, 200, 0)
  for estimate in (bound.gaussian_marginal, bound.knn_marginal):
    assert estimate(3 * x + 1, 3 * y + 1).value == pytest.approx(estimate(x, y).value)


def test_pca_is_whitened_and_keeps_the_largest_directions():
  draw = np.random.default_rng(0)
  features = draw.standard_normal((500, 4)) * np.array([5.0, 0.1, 2.0, 0.5]) + 3
  project = bound.pca(features, 2)
  z = project(features)
  np.testing.assert_allclose(z.mean(0), 0, atol=1e-12)
  np.testing.assert_allclose(z.T @ z / len(z), np.eye(2), atol=1e-12)
  correlation = np.abs(np.corrcoef(z.T, features.T)[:2, 2:])
  assert correlation[0, 0] > 0.99
  assert correlation[1, 2] > 0.99
  with pytest.raises(LtddError, match="dims is 3; expected 1 to 2"):
    bound.pca(np.outer(np.arange(5.0), [1, 1]) + np.outer([1, 0, 0, 0, 0], [0, 1]), 3)


@pytest.mark.parametrize(
  ("call", "message"),
  [
    (lambda: bound.gaussian_marginal(np.ones((3, 2)), np.ones((3, 1))), "samples have shapes"),
    (lambda: bound.knn_marginal(np.eye(3), np.eye(3) * np.nan), "not finite"),
    (lambda: bound.knn_marginal(np.eye(3), np.eye(3) + 1, neighbours=3), "expected 1 to 2"),
    (lambda: bound.knn_marginal(np.zeros((9, 1)), np.ones((9, 1))), "9 vectors have 5 copies"),
  ],
)
def test_marginals_refuse_what_does_not_fit(call, message):
  with pytest.raises(LtddError, match=message):
    call()
