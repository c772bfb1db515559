"""The perturbation study: against loops, on simulated data with a known answer, at its edges."""

import numpy as np
import pytest

from ltdd_jax.core.types import LtddError
from ltdd_jax.labels import by_class
from ltdd_jax.labels.by_class import class_means
from ltdd_jax.studies import perturbation
from tests.reference import perturbation_ref as ref

K = 3
LABELS_B = np.array([0, 0, 1, 1, 2, 2, 2])
LABELS_I = np.array([2, 1, 0, 2, 1, 0])


def simulate(seed, n=6, k=K, teacher=0.1, image=0.1, interaction=0.0, spread=0.1):
  """Cells with known biases: uniform mean, and noise that images share and do not share."""
  draw = np.random.default_rng(seed)
  labels = np.repeat(np.arange(k), n)
  # One pattern each: what a class gains, the next one loses.
  pattern = lambda size: size * (np.eye(k) - np.roll(np.eye(k), 1, 0))
  t, i, x = (pattern(size)[labels] for size in (teacher, image, interaction))
  noise = lambda scale: scale * draw.standard_normal((len(labels), k))
  base_b, base_i = 1 / k + noise(spread), 1 / k + noise(2 * spread) + i
  return perturbation.Cells(
    bb=base_b,
    bi=base_b + t + noise(spread),
    ib=base_i,
    ii=base_i + t + x + noise(spread / 2),  # unequal distributions are no interaction
    labels_b=labels,
    labels_i=labels,
  )


def random_cells(seed=0):
  draw = np.random.default_rng(seed)
  b = draw.dirichlet(np.ones(K), (2, len(LABELS_B)))
  i = draw.dirichlet(np.ones(K), (2, len(LABELS_I)))
  return perturbation.Cells(b[0], b[1], i[0], i[1], LABELS_B, LABELS_I)


def test_mean_soft_labels_equals_loops_and_does_not_depend_on_chunks():
  logits = np.random.default_rng(0).normal(0, 5, (4, 5, K))
  want = ref.softmax_mean(logits)
  np.testing.assert_allclose(by_class.mean_soft_labels([logits]), want, rtol=1e-12)
  parts = by_class.mean_soft_labels([logits[:1], logits[1:]])
  np.testing.assert_allclose(parts, want, rtol=1e-12)
  large = by_class.mean_soft_labels([np.array([[[6e4, 0.0]]], np.float16)])
  np.testing.assert_array_equal(large, [[1.0, 0.0]])
  with pytest.raises(LtddError, match="no label epoch"):
    by_class.mean_soft_labels([])


def test_matrices_and_biases_equal_loops():
  cells = random_cells()
  got = perturbation.decompose(cells, K, num_bootstrap=10)
  q = {
    cell: ref.matrix(getattr(cells, cell), LABELS_B if cell[0] == "b" else LABELS_I, K)
    for cell in ("bb", "bi", "ib", "ii")
  }
  for cell, want in q.items():
    np.testing.assert_allclose(got.matrices[cell], want, atol=1e-14)
    np.testing.assert_allclose(got.confidence[cell].value, np.diag(want), atol=1e-14)
  np.testing.assert_allclose(got.teacher.value, q["bi"] - q["bb"], atol=1e-14)
  np.testing.assert_allclose(got.image.value, q["ib"] - q["bb"], atol=1e-14)
  whole = got.teacher.value + got.image.value + got.interaction.value
  np.testing.assert_allclose(whole, q["ii"] - q["bb"], atol=1e-14)
  np.testing.assert_allclose(got.mass["teacher"].value, (q["bi"] - q["bb"]).mean(0), atol=1e-14)
  for rows in got.teacher.value, got.image.value, got.interaction.value:
    np.testing.assert_allclose(rows.sum(1), 0, atol=1e-14)  # probability is only moved


def test_intervals_and_the_test_equal_loops_on_the_same_draws():
  cells, count = random_cells(), 50
  got = perturbation.decompose(cells, K, num_bootstrap=count, level=0.9, seed=3)
  null = np.zeros(count)
  for c in range(K):
    n_b, n_i = (int((labels == c).sum()) for labels in (LABELS_B, LABELS_I))
    weights_b = perturbation.resampling_weights(3, "b", c, n_b, count)
    weights_i = perturbation.resampling_weights(3, "i", c, n_i, count)
    bb, bi = (ref.resampled(x, LABELS_B, c, weights_b) for x in (cells.bb, cells.bi))
    ib, ii = (ref.resampled(x, LABELS_I, c, weights_i) for x in (cells.ib, cells.ii))
    for estimate, draws in (
      (got.teacher, bi - bb),
      (got.image, ib - bb),
      (got.interaction, ii - bi - ib + bb),
    ):
      np.testing.assert_allclose(estimate.low[c], np.quantile(draws, 0.05, axis=0), atol=1e-12)
      np.testing.assert_allclose(estimate.high[c], np.quantile(draws, 0.95, axis=0), atol=1e-12)
    null += ((ii - bi - ib + bb - got.interaction.value[c]) ** 2).sum(1)
    np.testing.assert_allclose(got.confidence["ib"].low[c], np.quantile(ib[:, c], 0.05), atol=1e-12)
  statistic = np.sqrt((got.interaction.value**2).sum())
  assert got.additivity.statistic == pytest.approx(statistic)
  assert got.additivity.p_value == (1 + (np.sqrt(null) >= statistic).sum()) / (count + 1)
  assert got.sizes["interaction"].noise == pytest.approx(np.sqrt(null.mean()))


def rejections(count, **kwargs):
  """Share of simulated studies whose additivity is rejected at 5 percent."""
  p = [
    perturbation.decompose(simulate(s, **kwargs), K, num_bootstrap=199).additivity.p_value
    for s in range(count)
  ]
  return np.mean(np.array(p) <= 0.05)


@pytest.mark.parametrize("n", [5, 20])
def test_additivity_is_rejected_as_rarely_as_it_should_be(n):
  # 400 studies: a true level of 5 percent gives 2.1 to 7.9 in 99 of 100 cases (1.1 points each).
  assert 0.01 <= rejections(400, n=n) <= 0.085


def test_additivity_is_rejected_when_it_does_not_hold():
  assert rejections(100, n=20, interaction=0.15) > 0.95
  assert rejections(100, n=20, interaction=0.05) > rejections(100, n=20)


def test_intervals_hold_the_truth_about_as_often_as_they_say():
  held, truth = [], 0.1 * (np.eye(K) - np.roll(np.eye(K), 1, 0))
  for s in range(200):
    got = perturbation.decompose(simulate(s, n=20), K, num_bootstrap=200)
    for estimate in (got.teacher, got.image):
      held.append((estimate.low <= truth) & (truth <= estimate.high))
  assert 0.92 <= np.mean(held) <= 0.97  # 3600 intervals; 20 images cost about a point of 95


def test_the_same_images_under_two_teachers_are_paired():
  """Noise that both teachers share widens the image bias and not the teacher bias."""
  draw = np.random.default_rng(0)
  shared = draw.standard_normal((3 * 10, K))
  labels = np.repeat(np.arange(K), 10)
  cells = perturbation.Cells(shared, shared + 0.1, shared + 0.2, shared + 0.3, labels, labels)
  got = perturbation.decompose(cells, K, num_bootstrap=50)
  np.testing.assert_allclose(got.teacher.high - got.teacher.low, 0, atol=1e-12)
  assert (got.image.high - got.image.low > 0.1).all()
  assert got.sizes["interaction"].norm == pytest.approx(0, abs=1e-12)


def test_relabelling_classes_permutes_the_answer():
  cells, order = random_cells(), np.array([2, 0, 1])
  moved = perturbation.Cells(
    *(x[:, order] for x in cells[:4]), *(np.argsort(order)[y] for y in cells[4:])
  )
  one, two = (perturbation.decompose(c, K, num_bootstrap=10) for c in (cells, moved))
  for name in perturbation.TERMS:
    want = getattr(one, name).value[np.ix_(order, order)]
    np.testing.assert_allclose(getattr(two, name).value, want, atol=1e-14)


def test_classes_with_too_few_images():
  cells = random_cells()
  few = cells._replace(ib=cells.ib[1:], ii=cells.ii[1:], labels_i=LABELS_I[1:])  # one 2 is gone
  got = perturbation.decompose(few, K, num_bootstrap=10)
  assert got.additivity.classes == (0, 1)
  assert np.isfinite(got.interaction.value).all()
  assert np.isnan(got.interaction.low[2]).all()
  assert np.isfinite(got.confidence["bb"].low[2])
  one_each = perturbation.Cells(*(np.full((K, K), 1 / K) for _ in range(4)), *2 * [np.arange(K)])
  got = perturbation.decompose(one_each, K, num_bootstrap=10)
  assert np.isnan(got.additivity.p_value)
  assert np.isnan(got.sizes["teacher"].noise)


@pytest.mark.parametrize("count", [0, -1])
def test_no_bootstrap_sample_is_refused(count):
  with pytest.raises(LtddError, match=f"num_bootstrap is {count}; expected 1 or more"):
    perturbation.decompose(simulate(0), K, num_bootstrap=count)


def test_a_class_without_an_image_is_nan():
  values = class_means(np.ones((2, K)), np.array([0, 2]), K)
  np.testing.assert_array_equal(values, [[1] * K, [np.nan] * K, [1] * K])


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"bi": np.zeros((2, K))}, r"cell bi has shape \(2, 3\); expected \(7, 3\)"),
    ({"ii": np.full((6, K), np.nan)}, "cell ii has values that are not finite"),
    ({"labels_b": LABELS_B + 1}, r"labels_b: expected integers in \[0, 3\)"),
    ({"labels_i": LABELS_I.astype(float)}, "labels_i: expected integers"),
  ],
)
def test_what_does_not_fit_is_refused(change, message):
  with pytest.raises(LtddError, match=message):
    perturbation.decompose(random_cells()._replace(**change), K)
