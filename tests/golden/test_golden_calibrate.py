"""Calibrators against float64 NumPy loops and SciPy.

Tolerances: probabilities and log-losses are float32 means, good to 1e-6. L-BFGS cannot see the
objective fall by less than some 1e-8, which at curvatures of 0.05 leaves gradients (and masses) of
5e-5 and 1e-3 in a bias. EM converges linearly, and stops at steps of 1e-7 here.
"""

import jax.numpy as jnp
import numpy as np
import pytest

from ltdd_jax import adsa, calibrate
from ltdd_jax.adsa import Rows
from ltdd_jax.calibrate import bootstrap, criteria, streaming
from ltdd_jax.core import rng
from tests.golden.test_golden_criteria import in_blocks
from tests.reference import adsa_ref
from tests.reference import calibrate_ref as ref

COUNTS = (300, 80, 25, 9, 2)
K = len(COUNTS)
PRIOR = np.array(adsa_ref.log_prior(COUNTS))


def draw(seed=0, n=40, margin=2.0, bias=0.8, wobble=0.4):
  """Logits of a teacher that has learnt `bias` times the prior and something beside it."""
  random = np.random.default_rng(seed)
  labels = np.concatenate([np.arange(K), random.integers(0, K, n - K)])  # unequal numbers
  logits = random.standard_normal((n, K)) + margin * np.eye(K)[labels]
  extra = wobble * random.standard_normal(K)
  return (logits + bias * PRIOR + extra).astype(np.float32), labels


def fit(name, logits, labels, **kwargs):
  calibrator = calibrate.make_calibrator(name, **kwargs)
  params = calibrator.fit(logits, labels, jnp.asarray(PRIOR, jnp.float32))
  return params, calibrator.report(params)


def scalar(logits, labels, criterion, tau_range=(0, 3)):
  return criteria.fit(Rows(logits, labels), PRIOR, criterion, tau_range).tau


def test_a_summary():
  logits, labels = draw()
  bias = np.linspace(-1, 2, K)
  found = streaming.describe(in_blocks(logits, labels, 7), None, bias)
  np.testing.assert_allclose(found.confidence, ref.confidences(logits, labels, bias), atol=1e-6)
  np.testing.assert_allclose(found.mass, ref.masses(logits, labels, bias), atol=1e-6)
  assert found.log_loss == pytest.approx(ref.log_loss(logits - bias, labels), abs=1e-6)
  scale = np.linspace(0.5, 1.5, K)
  found = streaming.describe(in_blocks(logits, labels, 7), scale, bias)
  moved = ref.scaled(logits.astype(np.float64), scale, bias)
  np.testing.assert_allclose(found.mass, ref.masses(moved, labels, 0 * bias), atol=1e-6)


@pytest.mark.parametrize("criterion", ["confidence", "potential"])
def test_objectives_and_their_gradients(criterion):
  logits, labels = draw(1)
  rows, bias, h = in_blocks(logits, labels, 11), np.linspace(1, -1, K), 1e-5
  if criterion == "confidence":
    fn, oracle = streaming.confidence_variance(rows), ref.variance
  else:  # they differ by a constant
    fn = streaming.log_loss(rows)
    least = ref.log_loss(logits.astype(np.float64), labels) - ref.potential(
      logits, labels, 0 * bias
    )
    oracle = lambda *args: ref.potential(*args) + least
  value, _, gradient = fn(None, bias)
  assert value == pytest.approx(oracle(logits, labels, bias), abs=1e-6)
  for c in range(K):
    step = h * np.eye(K)[c]
    slope = (oracle(logits, labels, bias + step) - oracle(logits, labels, bias - step)) / (2 * h)
    assert gradient[c] == pytest.approx(slope, abs=1e-6)


@pytest.mark.parametrize("criterion", ["confidence", "marginal", "nll"])
@pytest.mark.parametrize("strength", [0.01, 0.3])
def test_adsa_vector(criterion, strength):
  logits, labels = draw(2)
  params, report = fit("adsa_vector", logits, labels, criterion=criterion, strength=strength)
  tau = scalar(logits, labels, criterion)
  expected = ref.adsa_vector(logits, labels, COUNTS, tau, criterion, strength)
  np.testing.assert_allclose(params.bias, expected, atol=2e-3)
  assert report["converged"], report["message"]
  after = ref.confidences(logits, labels, expected)
  np.testing.assert_allclose(report["confidence_after"], after, atol=3e-4)
  np.testing.assert_allclose(report["mass_after"], ref.masses(logits, labels, expected), atol=3e-4)
  assert report["tau"] == pytest.approx(np.polyfit(PRIOR, expected, 1)[0], abs=1e-3)


def test_adsa_probe():
  """ADSA on the labels, then the bias of a student by log-loss, both taken off."""
  labels_of_teacher, student = draw(2), draw(7, n=60, bias=-0.3)
  calibrator = calibrate.make_calibrator("adsa_probe", strength=0.1)
  params = calibrator.fit(*labels_of_teacher, PRIOR)
  params = calibrator.refine(params, *student, PRIOR)
  tau = adsa.fit(*labels_of_teacher, COUNTS).tau
  left = scalar(*student, "nll", (-3, 3))
  bias = ref.adsa_vector(*student, COUNTS, left, "nll", 0.1)
  logits = labels_of_teacher[0].astype(np.float64)
  expected = logits - tau * (PRIOR - PRIOR.mean()) - (bias - bias.mean())
  found = calibrator.apply(params, labels_of_teacher[0], PRIOR)
  np.testing.assert_allclose(found, expected, atol=3e-3)
  assert left < -0.1
  assert calibrator.report(params)["tau"] == pytest.approx(
    tau + np.polyfit(PRIOR, bias, 1)[0], abs=2e-3
  )


@pytest.mark.parametrize("smoothing", [0.0, 0.01])
@pytest.mark.parametrize("seed", [3, 5])
def test_em(seed, smoothing):
  logits, labels = draw(seed, n=60, bias=1.0, wobble=0.0)
  params, report = fit(
    "em", logits, labels, smoothing=smoothing, tolerance=1e-7, max_iterations=3000
  )
  assert report["converged"]
  expected = ref.em(logits, labels, COUNTS, smoothing)
  np.testing.assert_allclose(params.bias, expected, atol=2e-3)
  assert report["tau"] == pytest.approx(1.0, abs=0.2)  # such a teacher is calibrated for pi


def test_em_runs_away_without_smoothing():
  """A teacher that is not calibrated for pi may leave a class no prior at all."""
  logits, labels = draw(4)
  _, bare = fit("em", logits, labels, smoothing=0.0)
  _, smoothed = fit("em", logits, labels, smoothing=0.01)
  assert np.ptp(bare["bias"]) > 20
  assert np.ptp(smoothed["bias"]) < 15


@pytest.mark.parametrize("seed", [3, 4])
def test_prior_matching(seed):
  logits, labels = draw(seed)
  params, report = fit("em", logits, labels, known="uniform")
  expected = ref.prior_matching(logits, labels)
  np.testing.assert_allclose(params.bias, expected, atol=2e-3)
  np.testing.assert_allclose(report["mass_after"], [1 / K] * K, atol=1e-4)
  weak, _ = fit("adsa_vector", logits, labels, criterion="marginal", strength=0.0)
  np.testing.assert_allclose(weak.bias, expected, atol=2e-3)


@pytest.mark.parametrize(("seed", "scale"), [(6, 1.0), (7, 5.0), (8, 0.2)])
def test_temperature(seed, scale):
  logits, labels = draw(seed)
  logits = (scale * logits).astype(np.float32)
  _, report = fit("temperature", logits, labels)
  expected = ref.temperature(logits.astype(np.float64), labels)
  assert report["temperature"] == pytest.approx(expected, rel=1e-3)
  after = ref.log_loss(logits.astype(np.float64) / expected, labels)
  assert report["objective_after"] == pytest.approx(after, abs=1e-6)


@pytest.mark.parametrize("strength", [0.01, 0.5])
def test_vector_scaling(strength):
  logits, labels = draw(9)
  _, report = fit("vector_scaling", logits, labels, strength=strength)
  scale, bias = ref.vector_scaling(logits.astype(np.float64), labels, strength)
  np.testing.assert_allclose(report["scale"], scale, atol=3e-3)
  np.testing.assert_allclose(report["bias"], bias, atol=3e-3)


def test_vector_scaling_is_applied_by_the_formula():
  logits, labels = draw(9)
  calibrator = calibrate.make_calibrator("vector_scaling")
  prior = jnp.asarray(PRIOR, jnp.float32)
  params = calibrator.fit(logits, labels, prior)
  expected = ref.scaled(logits.astype(np.float64), *map(np.asarray, (params.scale, params.bias)))
  expected += logits.mean(1, keepdims=True) - expected.mean(1, keepdims=True)
  np.testing.assert_allclose(calibrator.apply(params, logits, prior), expected, atol=1e-5)


@pytest.mark.parametrize("criterion", ["confidence", "marginal", "nll"])
def test_bootstrap(criterion):
  """Each replicate's tau, on a grid with parabolas, is that of a fit on the images it drew."""
  random = np.random.default_rng(10)
  epochs, n, replicates = 3, 15, 4
  labels = np.arange(n) % K
  logits = random.standard_normal((epochs, n, K)) + 2.5 * np.eye(K)[labels] + 0.8 * PRIOR
  logits = logits.astype(np.float32)
  generator = rng.np_rng(0, "adsa", "bootstrap")
  draws = np.empty((replicates, n))
  for c in range(K):
    members = np.flatnonzero(labels == c)
    draws[:, members] = generator.multinomial(3, [1 / 3] * 3, replicates)
  rows = in_blocks(logits, labels, 7)
  whole = criteria.fit(rows, PRIOR, criterion, (0, 3))
  found = bootstrap.replicate_taus(rows, PRIOR, whole, criterion, replicates)
  expected = ref.bootstrap(logits.astype(np.float64), labels, COUNTS, draws, criterion)
  np.testing.assert_allclose(found, expected, atol=0.03)


@pytest.mark.parametrize("criterion", ["confidence", "marginal", "nll"])
@pytest.mark.parametrize("max_drop", [0.02, 0.1])
def test_a_bound_on_the_head(criterion, max_drop):
  logits, labels = draw(11, n=30)
  params, report = fit("adsa", logits, labels, criterion=criterion, max_head_drop=max_drop)
  expected = ref.best_within(logits.astype(np.float64), labels, COUNTS, [0], max_drop, criterion)
  assert report["tau"] == pytest.approx(expected, abs=0.006)  # the oracle's grid has steps of 0.005
  drop = params.confidence[0, 0] - params.confidence[1, 0]
  assert drop <= max_drop + 1e-5
  assert report["free_tau"] == scalar(logits, labels, criterion) or (
    report["free_tau"] > report["tau"]
  )


def test_the_curve_of_the_head():
  logits, labels = draw(11, n=30)
  _, report = fit("adsa", logits, labels, max_head_drop=0.05)
  for tau, spread, head, tail in report["head_curve"][::20]:
    q = ref.confidences(logits, labels, tau * PRIOR)
    # Between the points of the search the curve is interpolated.
    assert (head, tail) == pytest.approx((q[0], q[4]), abs=3e-3)
    assert spread == pytest.approx(adsa_ref.objective(logits, labels, COUNTS, tau), abs=3e-3)


def test_confidences_and_masses_at_many_tau():
  logits, labels = draw(12)
  rows, taus = in_blocks(logits, labels, 9), np.array([0.0, 0.5, 2.0])
  q = criteria.class_means(rows, PRIOR, taus, "confidence")(taus)
  mass = criteria.predicted_masses(rows, PRIOR, taus, np.ones((1, len(labels))))[0]
  for i, tau in enumerate(taus):
    np.testing.assert_allclose(q[i], ref.confidences(logits, labels, tau * PRIOR), atol=1e-6)
    np.testing.assert_allclose(mass[i], ref.masses(logits, labels, tau * PRIOR), atol=1e-6)


def test_a_target_prior():
  """The shift is tau log pi - log q, both centred; a uniform q is plain ADSA."""
  logits, labels = draw(13)
  q = np.array([0.5, 0.2, 0.1, 0.1, 0.1])
  prior = jnp.asarray(PRIOR, jnp.float32)
  outs = {}
  for name, target in {"plain": None, "uniform": [1 / K] * K, "head": q}.items():
    calibrator = calibrate.make_calibrator("adsa", target_prior=target)
    params = calibrator.fit(logits, labels, prior)
    outs[name] = np.asarray(calibrator.apply(params, logits, prior))
  np.testing.assert_allclose(outs["uniform"], outs["plain"], atol=1e-6)
  shift = np.log(q) - np.log(q).mean()
  np.testing.assert_allclose(outs["head"], outs["plain"] + shift, atol=1e-5)
