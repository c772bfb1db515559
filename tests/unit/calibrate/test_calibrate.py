import json
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ltdd_jax import adsa, calibrate, interop
from ltdd_jax.calibrate import base, bootstrap, lbfgs
from ltdd_jax.calibrate.criteria import CRITERIA
from ltdd_jax.core.types import LtddError

COUNTS = np.array([300, 80, 20, 5, 2, 1])
K = len(COUNTS)
PRIOR = np.log(COUNTS / COUNTS.sum()).astype(np.float32)


def draw(n=36, epochs=2, bias=0.8, seed=0, margin=2.5):
  random = np.random.default_rng(seed)
  labels = np.arange(n) % K
  logits = random.standard_normal((epochs, n, K)) + margin * np.eye(K)[labels] + bias * PRIOR
  return logits.astype(np.float32), labels


def fitted(name, data=None, **kwargs):
  calibrator = calibrate.make_calibrator(name, **kwargs)
  params = calibrator.fit(*(data or draw()), PRIOR)
  return params, calibrator.report(params)


def test_the_table_of_files_is_complete():
  files = {path.name for path in pathlib.Path(calibrate.__file__).parent.glob("*.py")}
  assert set(re.findall(r"\w+\.py", calibrate.__doc__)) - {"test_calibrators.py"} == (
    files - {"__init__.py"}
  )


# ---- options that are wrong ----


@pytest.mark.parametrize(
  ("name", "kwargs", "message"),
  [
    ("adsa", {"criterion": "confidenc"}, "criterion is 'confidenc'; expected one of 'confidence'"),
    ("adsa", {"target_prior": [0.5, 0.4]}, r"target_prior sums to 0\.9; expected 1"),
    ("adsa", {"target_prior": [0.5, 0.5 + 2e-6]}, "target_prior sums to"),
    ("adsa", {"target_prior": [1.5, -0.5]}, "each above 0"),
    ("adsa", {"target_prior": [1.0, 0.0]}, "each above 0"),
    ("adsa", {"target_prior": [np.nan, 1.0]}, "each above 0"),
    ("adsa", {"target_prior": []}, "target_prior is"),
    ("fixed", {"target_prior": [0.5, 0.4]}, r"fixed: target_prior sums to 0\.9"),
    ("adsa", {"bootstrap": -1}, "bootstrap is -1; expected 20 replicates or more"),
    ("adsa", {"bootstrap": 2.5}, "bootstrap is 2.5"),
    ("adsa", {"bootstrap": float("inf")}, "bootstrap is inf"),
    ("adsa", {"max_head_drop": -0.1}, r"max_head_drop is -0\.1"),
    ("adsa", {"tau_range": (0, 11)}, "adsa: tau_range is .*; expected two numbers within 10 "),
    ("adsa", {"head": [0]}, "head is .* without max_head_drop"),
    ("adsa", {"tau_range": (3.0, 0.0)}, r"adsa: tau_range is \(3\.0, 0\.0\); .* the lower first"),
    ("adsa", {"tau_range": (2,)}, r"'adsa': tau_range is .*; expected tuple\[float, float\]"),
    ("adsa", {"tau_range": (0, None)}, r"'adsa': tau_range is .*; expected tuple\[float, float\]"),
    ("adsa_probe", {"tau_range": (3.0, 0.0)}, "adsa_probe: tau_range is .* the lower first"),
    ("adsa_probe", {"tau_range": (-1.0, 3.0)}, r"adsa_probe: .* expected numbers from 0 up"),
    ("adsa_vector", {"tau_range": (0.0, float("inf"))}, "adsa_vector: tau_range is"),
    ("adsa_vector", {"criterion": "mass"}, "adsa_vector: criterion is 'mass'"),
    ("adsa_vector", {"strength": -1.0}, "adsa_vector: strength is -1"),
    ("adsa_vector", {"strength": float("inf")}, "strength is inf"),
    ("adsa_vector", {"max_iterations": 0}, "max_iterations is 0"),
    ("em", {"known": "unifrom"}, "known is 'unifrom'"),
    ("em", {"smoothing": -1.0}, "smoothing is -1"),
    ("em", {"tolerance": 0.0}, "tolerance is 0.0; expected a finite number above 0"),
    ("vector_scaling", {"strength": float("nan")}, "strength is nan"),
    ("temperature", {"max_iterations": 0}, "temperature: max_iterations"),
  ],
)
def test_options_are_checked_when_made(name, kwargs, message):
  with pytest.raises(LtddError, match=message):
    calibrate.make_calibrator(name, **kwargs)


@pytest.mark.parametrize(
  ("name", "kwargs", "message"),
  [
    ("adsa", {"target_prior": [0.5, 0.5]}, "target_prior has 2 entries; there are 6 classes"),
    ("fixed", {"target_prior": [0.5, 0.5]}, "fixed: target_prior has 2 entries"),
    ("adsa", {"max_head_drop": 0.1, "head": [6]}, "head is .6,.; expected some, not all"),
    ("adsa", {"max_head_drop": 0.1, "head": [*range(K)]}, "some, not all"),
  ],
)
def test_options_are_checked_against_the_number_of_classes(name, kwargs, message):
  """`init` under `eval_shape` is what a config check calls before work starts."""
  calibrator = calibrate.make_calibrator(name, **kwargs)
  with pytest.raises(LtddError, match=message):
    jax.eval_shape(calibrator.init, jax.ShapeDtypeStruct((K,), jnp.float32))
  with pytest.raises(LtddError, match=message):
    calibrator.fit(*draw(), PRIOR)


def test_a_head_that_cannot_be_bounded():
  logits, labels = draw()
  with pytest.raises(LtddError, match=r"no head class \[3\] has an image"):
    fitted("adsa", (logits[:, labels != 3], labels[labels != 3]), max_head_drop=0.1, head=(3,))
  two = calibrate.make_calibrator("adsa", max_head_drop=0.1)
  with pytest.raises(LtddError, match=r"2 classes has no head third; .*head=\(0,\)"):
    two.fit(logits[..., :2], labels % 2, np.log([0.9, 0.1]))


# ---- adsa's options ----


def test_the_bootstrap_is_deterministic_and_reported():
  (_, first), (_, second) = (fitted("adsa", bootstrap=50) for _ in range(2))
  assert first == second
  low, high = first["tau_interval"]
  assert 0 <= low < high
  assert low - 0.1 < first["tau"] < high + 0.1
  assert f"{low:.3f} to {high:.3f}" in first["message"]
  assert "50 draws of images" in first["message"]
  assert "tau_interval" not in fitted("adsa")[1]
  json.dumps(first, allow_nan=False)


def test_more_images_make_a_narrower_interval():
  widths = [
    np.ptp(fitted("adsa", draw(n=n, seed=1), bootstrap=100)[1]["tau_interval"]) for n in (24, 240)
  ]
  assert widths[1] < widths[0] / 1.5


def test_the_interval_holds_the_tau_of_many_images():
  """Of 60 intervals of 10 images a class, about as many as the docs say."""
  draws = [draw(n=60, seed=seed) for seed in range(60)]
  truth = fitted("adsa", draw(n=6000, seed=60))[1]["tau"]
  intervals = np.array([fitted("adsa", d, bootstrap=100)[1]["tau_interval"] for d in draws])
  held = np.mean((intervals[:, 0] <= truth) & (truth <= intervals[:, 1]))
  assert held >= 0.83  # 0.93 less three standard errors


def test_epochs_are_not_images():
  """Copies of the label epochs say nothing new: the interval stays."""
  logits, labels = draw()
  once = fitted("adsa", (logits, labels), bootstrap=50)[1]["tau_interval"]
  again = fitted("adsa", (np.concatenate([logits] * 3), labels), bootstrap=50)[1]["tau_interval"]
  np.testing.assert_allclose(once, again, atol=1e-3)


def test_few_images_do_not_make_the_bootstrap_sure():
  """With two images a class the weights have the variance of a mean of two, and not half of it."""
  weights = bootstrap._draws(np.random.default_rng(0), 2, 20_000)
  np.testing.assert_allclose(weights.sum(1), 2)
  assert np.var(weights[:, 0]) == pytest.approx(1.0, rel=0.05)  # (n / (n - 1)) n (1/n) (1 - 1/n)
  logits, labels = draw()
  once = np.unique(labels, return_index=True)[1]
  params, report = fitted("adsa", (logits[:, once], labels[once]), bootstrap=20)
  assert report["tau_interval"] is None
  assert "No interval of tau: a class has one image only." in report["message"]
  assert np.isnan(params.interval).all()
  fresh = calibrate.make_calibrator("adsa", bootstrap=20)
  assert "No interval" not in fresh.report(fresh.init(PRIOR))["message"]


def test_the_bootstrap_does_not_fill_the_memory(monkeypatch):
  monkeypatch.setattr(bootstrap, "_MOST", 1000)
  with pytest.raises(LtddError, match=r"adsa: bootstrap holds 31 numbers for each of .* images, "):
    fitted("adsa", bootstrap=20)
  # 20 replicates x (31 taus x 6 classes + 3 arrays of the draws of 6 images), and 31 x 36 images
  monkeypatch.setattr(bootstrap, "_MOST", 6000)
  fitted("adsa", bootstrap=20)
  with pytest.raises(LtddError, match=r", and 204 for each of 50 replicates, "):
    fitted("adsa", bootstrap=50)
  monkeypatch.setattr(bootstrap, "_MOST", 1000)
  with pytest.raises(LtddError, match="adsa: logits are float"):
    fitted("adsa", (draw()[0][0, 0], np.arange(K)), bootstrap=20)
  with pytest.raises(LtddError, match=r"holds 50 numbers .* give the logits as \(epochs, images"):
    fitted("adsa", bootstrap=50, criterion="marginal")


def test_an_image_of_several_classes_is_no_image():
  logits, labels = draw()
  both = np.stack([labels, np.roll(labels, 1)])
  fitted("adsa", (logits, both))
  with pytest.raises(LtddError, match="adsa: bootstrap needs one class for each image"):
    fitted("adsa", (logits, both), bootstrap=20)


def test_a_uniform_prior_has_no_interval():
  calibrator = calibrate.make_calibrator("adsa", bootstrap=20, max_head_drop=0.1)
  params = calibrator.fit(*draw(), np.full(K, -np.log(K)))
  report = calibrator.report(params)
  assert (report["tau"], report["tau_interval"]) == (0.0, [0.0, 0.0])


@pytest.mark.parametrize("criterion", CRITERIA)
def test_the_bound_on_the_head(criterion):
  _, free = fitted("adsa", criterion=criterion)
  _, wide = fitted("adsa", criterion=criterion, max_head_drop=1.0)
  assert wide["tau"] == free["tau"]
  assert wide["message"] == free["message"]
  taus = []
  for drop in (0.0, 0.02, 0.05):
    params, report = fitted("adsa", criterion=criterion, max_head_drop=drop)
    head = np.asarray(params.confidence)[:, :2].mean(1)
    assert head[0] - head[1] <= drop + 1e-5
    assert report["free_tau"] == free["tau"]
    assert "bounded by max_head_drop" in report["message"]
    assert report["objective_after"] >= free["objective_after"] - 1e-6
    taus.append(report["tau"])
  assert 0 <= taus[0] < taus[1] < taus[2] < free["tau"]
  assert np.shape(report["head_curve"]) == (128, 4)


def test_the_interval_beside_a_bound_on_the_head_is_that_of_the_tau_without_it():
  _, free = fitted("adsa", bootstrap=50)
  _, wide = fitted("adsa", bootstrap=50, max_head_drop=1.0)
  assert wide["tau_interval"] == wide["free_tau_interval"] == free["tau_interval"]
  assert wide["message"] == free["message"]
  _, bound = fitted("adsa", bootstrap=50, max_head_drop=0.02)
  low, high = bound["free_tau_interval"]
  assert bound["tau"] < low < bound["free_tau"] < high
  assert [low, high] == free["tau_interval"]
  assert bound["tau_interval"] is None
  text = f"95 % interval of tau without the bound, over 50 draws of images: {low:.3f} to {high:.3f}"
  assert text in bound["message"]


def test_a_bound_on_the_head_does_not_hide_what_is_wrong():
  calibrator = calibrate.make_calibrator("adsa", max_head_drop=0.02)
  params = calibrator.fit(*draw(), PRIOR)
  ends = {"fitted": ".", "flat": "do not determine tau.", "edge": "Check labels and class_counts."}
  for status, end in ends.items():
    report = calibrator.report(params._replace(status=adsa.STATUSES.index(status)))
    assert "bounded by max_head_drop" in report["message"]
    assert report["message"].endswith(end)
    assert ("Check labels" in report["message"]) == (status == "edge")


def test_a_bias_says_when_its_scalar_tau_is_a_bound_or_an_edge():
  _, report = fitted("adsa_vector", draw(bias=-0.8))
  assert report["anchor"] == 0
  assert (
    "scalar tau 0.000, its lower bound (check the order of class counts; see" in report["message"]
  )
  assert "lower bound" not in fitted("adsa_vector")[1]["message"]
  logits = np.array([[2.0, 0.0, 0.0], [0.0, 0.5, 0.0]], np.float32)
  labels, log_prior = np.array([0, 1]), np.log(np.array([100, 100, 1]) / 201)
  assert adsa.fit(logits, labels, np.exp(log_prior)).status == "edge"
  calibrator = calibrate.make_calibrator("adsa_vector")
  report = calibrator.report(calibrator.fit(logits, labels, log_prior))
  assert (report["reason"], report["converged"]) == ("edge", False)
  assert "scalar tau is an edge of tau_range" in report["message"]


def test_the_head_may_be_named():
  params, _ = fitted("adsa", max_head_drop=0.01, head=(1,))
  drop = params.confidence[0, 1] - params.confidence[1, 1]
  assert drop == pytest.approx(0.01, abs=1e-3)


def test_the_target_prior_of_fixed():
  q = np.arange(1, K + 1) / np.arange(1, K + 1).sum()
  calibrator = calibrate.make_calibrator("fixed", tau=0.5, target_prior=q)
  logits, labels = draw()
  out = calibrator.apply(calibrator.fit(logits, labels, PRIOR), logits, jnp.asarray(PRIOR))
  expected = logits - 0.5 * PRIOR + np.log(q)
  np.testing.assert_allclose(jax.nn.softmax(out), jax.nn.softmax(expected), atol=1e-5)


def test_a_target_prior_keeps_what_else_a_calibrator_has():
  probe = calibrate.make_calibrator("adsa_probe")
  moved = base.with_target("probe", probe, np.full(K, 1 / K))
  assert (moved.needs, moved.refine) == (probe.needs, probe.refine)
  assert moved.apply is not probe.apply


# ---- biases ----


@pytest.mark.parametrize("criterion", CRITERIA)
def test_a_strong_regulariser_gives_scalar_adsa(criterion):
  params, report = fitted("adsa_vector", criterion=criterion, strength=1e4)
  tau = fitted("adsa", criterion=criterion)[1]["tau"]
  np.testing.assert_allclose(params.bias, tau * base.centered(PRIOR), atol=1e-3)
  assert report["tau"] == pytest.approx(tau, abs=1e-3)
  assert report["anchor"] == pytest.approx(tau, abs=1e-6)
  assert report["converged"]


def test_a_weak_regulariser_makes_confidences_equal():
  _, report = fitted("adsa_vector", strength=1e-5)
  assert np.ptp(report["confidence_after"]) < 0.02 < np.ptp(report["confidence_before"])
  _, report = fitted("adsa_vector", criterion="marginal", strength=0.0)
  np.testing.assert_allclose(report["mass_after"], 1 / K, atol=1e-4)


def test_a_class_without_an_image():
  logits, labels = draw()
  data = logits[:, labels != 2], labels[labels != 2]
  params, report = fitted("adsa_vector", data)
  expected = report["anchor"] * (PRIOR - PRIOR.mean())
  others = np.arange(K) != 2
  moved = np.asarray(params.bias) - expected
  assert moved[2] == pytest.approx(moved[others].mean(), abs=0.05)  # at tau log pi, as a whole
  assert report["confidence_after"][2] is None
  params, report = fitted("em", data)
  assert np.isfinite(np.asarray(params.bias)).all()


def test_what_does_not_converge_says_so():
  _, report = fitted("em", max_iterations=1)
  assert (report["converged"], report["reason"]) == (False, "limit")
  assert "NOT converged: the limit of iterations" in report["message"]
  _, report = fitted("vector_scaling", max_iterations=1)
  assert not report["converged"]


def test_a_temperature_at_its_bound():
  """A teacher that is sure and right has no best temperature."""
  labels = np.arange(12) % K
  logits = np.eye(K, dtype=np.float32)[labels] - 0.5
  _, report = fitted("temperature", (logits, labels))
  assert report["temperature"] < 0.1
  json.dumps(report, allow_nan=False)


# ---- pieces ----


def test_lowest_ignores_what_is_not_allowed():
  taus, values = np.arange(5.0), np.array([3, 1, 2, 3, 0.0])
  assert adsa.lowest(taus, values) == (4.0, "edge")
  tau, status = adsa.lowest(taus, values, np.array([True, True, True, True, False]))
  assert status == "fitted"
  assert 0.5 < tau < 1.5


def test_lowest_is_exact_on_parabolas():
  taus = np.linspace(0, 3, 7)
  for least in (1.23, 0.02, 2.98):
    assert adsa.lowest(taus, (taus - least) ** 2)[0] == pytest.approx(least)
  assert adsa.lowest(taus, (taus + 0.01) ** 2) == (0.0, "bound")
  assert adsa.lowest(taus, (taus - 3.01) ** 2) == (3.0, "edge")


def test_the_interval_is_of_percentiles(monkeypatch):
  monkeypatch.setattr(bootstrap, "replicate_taus", lambda *args: np.linspace(0, 1, 1001))
  _, report = fitted("adsa", bootstrap=20)
  np.testing.assert_allclose(report["tau_interval"], [0.025, 0.975], atol=1e-7)


def test_on_the_line():
  prior = np.array([0.0, -1.0, -2.0, -3.0])
  bias = np.array([1.0, 0.0, 99.0, -2.0])
  filled = base.on_the_line(bias, np.array([True, True, False, True]), prior)
  np.testing.assert_allclose(filled, [1, 0, -1, -2])


def test_minimise_says_how_it_ended():
  square = lambda x: (float(x @ x), 2 * x)
  found = lbfgs.minimise(square, [3.0, -1.0], max_iterations=50)
  np.testing.assert_allclose(found.x, 0, atol=1e-6)
  assert found.reason == "gradient"
  slope = lambda x: (float(x.sum()), np.ones(2))
  assert lbfgs.minimise(slope, [0.0, 0.0], max_iterations=50, bound=2.0).reason == "bound"
  valley = lambda x: (float(x[0] ** 4 + (x @ x)), np.array([4 * x[0] ** 3 + 2 * x[0], 2 * x[1]]))
  assert lbfgs.minimise(valley, [3.0, -1.0], max_iterations=1).reason == "limit"
  assert lbfgs.converged("rounding")
  assert not any(map(lbfgs.converged, ("limit", "stuck", "bound")))


def test_the_bias_that_was_put_into_logits_is_found():
  """Evidence for the true class, plus 0.7 times the log class frequencies."""
  rng = np.random.default_rng(0)
  class_counts, labels = np.geomspace(500, 5, 10).astype(int), np.repeat(np.arange(10), 20)
  evidence = rng.normal(size=(200, 10))
  evidence[np.arange(200), labels] += 2.0
  logits = (evidence + 0.7 * np.log(class_counts)).astype(np.float32)
  done = interop.calibrate_logits(logits, labels, class_counts, calibrator_args={"bootstrap": 200})
  assert done.tau == pytest.approx(0.7, abs=0.1)
  assert not done.report["flat"]
  low, high = done.report["tau_interval"]
  assert low < 0.7 < high
