import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ltdd_jax import adsa

# One shape, so that nothing compiles twice.
N, K = 12, 4
LABELS = np.arange(N) % K
logits_of = hnp.arrays(
  np.float32, (N, K), elements=st.floats(-20, 20, width=32, allow_subnormal=False)
).filter(lambda z: np.ptp(z, axis=1).max() > 1e-3)  # else the teacher is dead
labels_of = hnp.arrays(np.int32, N, elements=st.integers(0, K - 1)).filter(lambda y: np.ptp(y) > 0)
counts_of = hnp.arrays(np.int64, K, elements=st.integers(1, 5000))
tau_of = st.floats(-20, 20)
softmax = lambda z: np.asarray(jax.nn.softmax(z))


def same(a, b, atol=1e-5):
  np.testing.assert_allclose(a, b, atol=atol)


def searched(result):
  """The curve on the range that was asked for."""
  return result.curve[(result.curve[:, 0] >= 0) & (result.curve[:, 0] <= 3)]


@settings(max_examples=50, deadline=None)
@given(logits_of, counts_of, tau_of)
def test_align_gives_probabilities(logits, counts, tau):
  p = softmax(adsa.align(logits, counts, tau))
  assert np.all(p >= 0)
  same(p.sum(1), 1)
  same(softmax(adsa.align(logits, counts, tau, centered=True)), p)
  same(softmax(adsa.align(logits, counts, 0.0)), softmax(logits))
  same(softmax(adsa.align(logits, np.full(K, 7), tau)), softmax(logits))


@settings(max_examples=50, deadline=None)
@given(logits_of, labels_of, counts_of, tau_of)
def test_confidence_is_a_mean_of_probabilities(logits, labels, counts, tau):
  p = softmax(adsa.align(logits.astype(np.float64), counts, tau))
  q = adsa.confidence(logits, labels, counts, tau)
  for c in range(K):
    rows = labels == c
    assert np.isnan(q[c]) == (not rows.any())
    if rows.any():
      assert q[c] == pytest.approx(p[rows, c].mean(), abs=1e-4)


@settings(max_examples=50, deadline=None)
@given(logits_of, labels_of, counts_of, st.booleans())
def test_fit_is_no_worse_than_its_curve(logits, labels, counts, negative):
  result = adsa.fit(logits, labels, counts, tau_range=(-3 if negative else 0, 3))
  if result.status in ("fitted", "bound"):
    assert result.tau >= 0 or negative
  if result.status == "fitted" and 0 < result.tau < 3:
    assert result.objective_after <= result.objective_before + 1e-6
  assert np.isfinite(result.curve).all()
  if result.status == "fitted":  # no higher than the points of the grid on both sides of it
    taus, curve = result.curve.T
    beside = np.searchsorted(taus, result.tau) + np.array([-1, 0])
    assert result.objective_after <= curve[beside.clip(0, len(taus) - 1)].min() + 1e-6
  assert result.objective_after == pytest.approx(np.nanstd(result.confidence_after), abs=1e-9)
  direct = np.nanstd(adsa.confidence(logits, labels, counts, result.tau))
  assert result.objective_after == pytest.approx(direct, abs=1e-6)
  assert len(searched(result)) >= 31


@pytest.mark.parametrize("tau_range", [(0, 3), (-3, 3)])
def test_fit_stays_where_no_spread_is_left(tau_range):
  """Both classes have confidence 1/4 at tau = 0, where a parabola through three points errs."""
  logits, labels = np.zeros((5, K), np.float32), np.array([2, 3, 3, 3, 3])
  logits[np.arange(1, 5), [0, 0, 1, 3]] = 7
  result = adsa.fit(logits, labels, [1, 1, 107, 1], tau_range=tau_range)
  assert result.objective_after <= result.objective_before + 1e-9


@pytest.mark.parametrize(("counts", "lo"), [([1, 35, 35, 35], -3), ([1, 14, 14, 14], 0)])
def test_fit_stays_where_hardly_any_spread_is_left(counts, lo):
  logits, labels = np.full((12, K), 7, np.float32), np.zeros(12, int)
  logits[5, :2], logits[11, 0], labels[0], labels[[5, 11]] = 0, 14, 1, 2
  result = adsa.fit(logits, labels, counts, tau_range=(lo, 3))
  assert result.objective_after <= result.objective_before + 1e-9


# Rounding may decide whether a range is widened, so these draw the same examples each time.
@settings(max_examples=25, deadline=None, derandomize=True)
@given(logits_of, counts_of, st.integers(0, 2**32 - 1))
def test_relabelling_classes_permutes_the_answer(logits, counts, seed):
  order = np.random.default_rng(seed).permutation(K)
  inverse = np.argsort(order)
  a = adsa.fit(logits, LABELS, counts)
  b = adsa.fit(logits[:, order], inverse[LABELS], counts[order])
  assert a.objective_after == pytest.approx(b.objective_after, abs=1e-6)
  same(a.confidence_before[order], b.confidence_before)
  same(searched(a), searched(b))


@settings(max_examples=25, deadline=None, derandomize=True)
@given(logits_of, labels_of, counts_of)
def test_duplicates_and_row_constants_change_nothing(logits, labels, counts):
  a = adsa.fit(logits, labels, counts)
  for b in (
    adsa.fit(np.stack([logits, logits]), labels, counts),
    adsa.fit(logits + np.arange(N, dtype=np.float32)[:, None], labels, counts),
    adsa.fit(logits, labels, counts * 3),
  ):
    assert a.objective_after == pytest.approx(b.objective_after, abs=2e-6)
    same(a.confidence_before, b.confidence_before)
    same(searched(a), searched(b))
