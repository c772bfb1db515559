"""ADSA against float64 NumPy loops.

Tolerances: float32 logits carry 6e-8 relative, so confidences agree to 1e-6 and objectives to
1e-6. The objective is flat at its minimum, which leaves 1e-3 in tau where it has any curvature.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ltdd_jax import adsa
from tests.reference import adsa_ref as ref

COUNTS = (200, 70, 25, 9, 2)
K = len(COUNTS)


def draw(seed=0, n=40, margin=2.0, bias=1.0, noise=1.0, counts=COUNTS):
  """Logits of a teacher that knows the class by `margin` and has learnt `bias` times the prior."""
  random = np.random.default_rng(seed)
  k = len(counts)
  labels = np.arange(n) % k
  logits = noise * random.standard_normal((n, k)) + margin * np.eye(k)[labels]
  return (logits + bias * np.array(ref.log_prior(counts))).astype(np.float32), labels


@pytest.mark.parametrize("tau", [0.0, 0.7, 3.0, -1.5, 40.0, -200.0])
def test_confidence_and_objective(tau):
  logits, labels = draw()
  expected = ref.confidence(logits, labels, COUNTS, tau)
  # Far out, tau * log pi is some hundreds, of which float32 keeps 1e-5.
  atol = 1e-6 if abs(tau) <= 3 else 5e-5
  np.testing.assert_allclose(adsa.confidence(logits, labels, COUNTS, tau), expected, atol=atol)
  expected = ref.objective(logits, labels, COUNTS, tau)
  spread = np.nanstd(adsa.confidence(logits, labels, COUNTS, tau))
  assert spread == pytest.approx(expected, abs=atol)


def test_align():
  logits, _ = draw()
  np.testing.assert_allclose(
    adsa.align(logits, COUNTS, 1.3), ref.align(logits, COUNTS, 1.3), atol=1e-6
  )


@pytest.mark.parametrize(
  ("seed", "margin", "bias", "noise"),
  [(0, 2, 1, 1), (1, 4, 0.5, 2), (2, 1, 1.5, 0.3), (3, 6, 2.2, 1), (4, 0.5, 0.8, 3), (5, 3, 4, 1)],
)
def test_fit(seed, margin, bias, noise):
  logits, labels = draw(seed, 60, margin, bias, noise)
  tau, value = ref.minimise(logits, labels, COUNTS, 0, 6 if bias > 3 else 3)
  result = adsa.fit(logits, labels, COUNTS, tau_range=(0, 6 if bias > 3 else 3))
  assert result.status == "fitted"
  assert result.tau == pytest.approx(tau, abs=1e-3)
  assert result.objective_after == pytest.approx(value, abs=1e-6)
  at_zero = ref.confidence(logits, labels, COUNTS, 0.0)
  np.testing.assert_allclose(result.confidence_before, at_zero, atol=1e-6)
  at_tau = ref.confidence(logits, labels, COUNTS, result.tau)
  np.testing.assert_allclose(result.confidence_after, at_tau, atol=1e-6)
  for point, spread in result.curve[::7]:
    assert spread == pytest.approx(ref.objective(logits, labels, COUNTS, point), abs=1e-6)


def test_extreme_prior():
  counts = (10**9, 10**5, 10**3, 1)
  logits, labels = draw(6, 40, margin=3, counts=counts)
  tau, value = ref.minimise(logits, labels, counts, 0, 3, points=301)
  result = adsa.fit(logits, labels, counts, tau_range=(0, 5))
  assert result.tau == pytest.approx(tau, abs=1e-3)
  assert result.objective_after == pytest.approx(value, abs=1e-6)
  assert np.isfinite(result.curve).all()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_dtypes(dtype):
  logits, labels = draw()
  logits = logits.astype(jnp.bfloat16 if dtype == "bfloat16" else dtype)
  expected = ref.minimise(logits.astype(np.float64), labels, COUNTS, 0, 3)
  result = adsa.fit(logits, labels, COUNTS)
  assert (result.tau, result.objective_after) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("chunk_size", [1, 7, 39, 40, 1000])
def test_chunks_change_nothing(chunk_size, monkeypatch):
  logits, labels = draw()
  a = adsa.fit(logits, labels, COUNTS)
  monkeypatch.setattr(adsa, "CHUNK", chunk_size * 256)
  b = adsa.fit(logits, labels, COUNTS)
  assert (a.tau, a.objective_after) == pytest.approx((b.tau, b.objective_after), abs=1e-6)
  np.testing.assert_allclose(a.curve, b.curve, atol=1e-6)


def test_label_epochs_are_rows(monkeypatch):
  monkeypatch.setattr(adsa, "CHUNK", 7 * 256)
  logits, labels = draw(n=60)
  flat = adsa.fit(logits, labels, COUNTS)
  epochs = logits.reshape(3, 20, K)
  for z, y in [
    (epochs, labels.reshape(3, 20)),
    (jnp.asarray(epochs), jnp.asarray(labels.reshape(3, 20))),
    (np.swapaxes(epochs, 0, 1), labels.reshape(3, 20).T),
  ]:
    result = adsa.fit(z, y, COUNTS)
    assert result.tau == pytest.approx(flat.tau, abs=1e-5)
  shared = adsa.fit(epochs, labels[:20], COUNTS)
  again = adsa.fit(logits, np.tile(labels[:20], 3), COUNTS)
  assert shared.tau == pytest.approx(again.tau, abs=1e-6)


def test_memory_map(tmp_path):
  logits, labels = draw()
  np.save(tmp_path / "logits.npy", logits)
  mapped = np.load(tmp_path / "logits.npy", mmap_mode="r")
  assert adsa.fit(mapped, labels, COUNTS).tau == adsa.fit(logits, labels, COUNTS).tau


def test_jax_arrays():
  logits, labels = draw()
  result = adsa.fit(jnp.asarray(logits), jnp.asarray(labels), jnp.asarray(COUNTS))
  assert result.tau == adsa.fit(logits, labels, COUNTS).tau
  assert isinstance(result.tau, float)
  assert isinstance(result.confidence_before, np.ndarray)


def test_align_under_jit_and_vmap():
  logits, _ = draw()
  expected = adsa.align(logits, COUNTS, 0.9)
  counts = jnp.asarray(COUNTS)
  jitted = jax.jit(adsa.align)(logits, counts, 0.9)
  np.testing.assert_allclose(jitted, expected, atol=1e-6)
  rows = jax.vmap(adsa.align, (0, None, None))(logits, counts, 0.9)
  np.testing.assert_allclose(rows, expected, atol=1e-6)
  slope = jax.grad(lambda tau: adsa.align(logits, counts, tau).sum())(0.9)
  assert slope == pytest.approx(-len(logits) * sum(ref.log_prior(COUNTS)), rel=1e-5)
