import ast
import math
import pathlib
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ltdd_jax import adsa, calibrate
from ltdd_jax.core.types import LtddError

COUNTS = (100, 10, 1)
LABELS = np.array([0, 1, 2, 0])
LOGITS = np.array([[2, 1, 0], [1, 2, 0], [1, 0, 2], [3, 0, 0]], np.float32)


def biased(counts, bias, *, margin=3.0, noise=1.0, n=60, seed=0):
  """Logits of a teacher that has learnt `bias` times the prior."""
  random = np.random.default_rng(seed)
  labels = np.arange(n) % len(counts)
  logits = noise * random.standard_normal((n, len(counts))) + margin * np.eye(len(counts))[labels]
  return (logits + bias * np.log(np.array(counts) / sum(counts))).astype(np.float32), labels


def spread_at(*args):
  return float(np.nanstd(adsa.confidence(*args)))


# ---- by hand ----


def test_two_images_by_hand():
  """Margins 2 and -0.5 with log ratio L = log 10: q_0 = q_1 where 2 - tau L = -(0.5 - tau L)."""
  logits = np.array([[2.0, 0.0], [0.5, 0.0]], np.float32)
  result = adsa.fit(logits, np.array([0, 1]), [100, 10])
  assert result.tau == pytest.approx(1.25 / math.log(10), abs=1e-5)
  assert result.objective_after < 1e-6
  sigmoid = lambda x: 1 / (1 + math.exp(-x))
  np.testing.assert_allclose(result.confidence_before, [sigmoid(2), sigmoid(-0.5)], atol=1e-6)
  np.testing.assert_allclose(result.confidence_after, [sigmoid(0.75)] * 2, atol=1e-5)
  assert result.objective_before == pytest.approx((sigmoid(2) - sigmoid(-0.5)) / 2, abs=1e-6)


def test_align_by_hand():
  prior = np.log([100 / 111, 10 / 111, 1 / 111])
  expected = LOGITS - 2 * prior
  np.testing.assert_allclose(adsa.align(LOGITS, COUNTS, 2.0), expected, atol=1e-5)
  centered = adsa.align(LOGITS, COUNTS, 2.0, centered=True)
  np.testing.assert_allclose(centered.mean(1), LOGITS.mean(1), atol=1e-6)
  np.testing.assert_allclose(jax.nn.softmax(centered), jax.nn.softmax(expected), atol=1e-6)


@pytest.mark.parametrize("dtype", [np.float16, jnp.bfloat16, np.float32])
def test_align_gives_float32(dtype):
  assert adsa.align(LOGITS.astype(dtype), COUNTS, 1.0).dtype == jnp.float32


@pytest.mark.parametrize(
  "counts", [np.full(3, 2**30, np.int32), np.array([60000, 6000, 600], np.float16)]
)
def test_align_takes_large_counts_under_jit(counts):
  z = jnp.asarray(LOGITS, jnp.float32)
  np.testing.assert_allclose(
    jax.jit(adsa.align)(z, counts, 1.0), adsa.align(z, counts, 1.0), atol=1e-6
  )


def test_classes_without_an_image_do_not_count():
  rows = LABELS < 2
  result = adsa.fit(LOGITS[rows], LABELS[rows], COUNTS)
  assert np.isnan(result.confidence_before[2])
  assert np.isnan(result.confidence_after[2])
  assert result.objective_after == pytest.approx(np.std(result.confidence_after[:2]), abs=1e-9)


# ---- which tau ----


def test_uniform_prior():
  result = adsa.fit(LOGITS, LABELS, (7, 7, 7))
  assert (result.tau, result.flat, result.status) == (0.0, True, "uniform")
  assert "equally many" in result.message
  assert result.objective_before == result.objective_after
  np.testing.assert_allclose(result.curve[:, 1], result.objective_before)


@pytest.mark.parametrize("scale", [100.0, 12.0])
def test_a_labeler_certain_of_every_image_is_flat(scale):
  """As on un-augmented SRe2L images; at scale 12 a large tau would still move the confidences."""
  result = adsa.fit(scale * np.eye(3, dtype=np.float32)[LABELS], LABELS, COUNTS)
  assert result.flat
  assert result.status == "flat"
  assert "views" in result.message


def test_an_informative_objective_is_not_flat():
  result = adsa.fit(*biased(COUNTS, 1.0), COUNTS)
  assert not result.flat
  assert result.tau == pytest.approx(1.0, abs=0.2)
  assert result.objective_after < result.objective_before / 2
  assert f"{result.tau:.3f}" in result.message


@pytest.mark.parametrize("bias", [4.0, 9.0])
def test_a_minimum_beyond_the_range_is_named_an_edge(bias):
  logits, labels = biased(COUNTS, bias)
  if bias == 4.0:
    result = adsa.fit(logits, labels, COUNTS)
    assert (result.tau, result.status) == (3.0, "edge")
    assert "widen tau_range" in result.message
  result = adsa.fit(logits, labels, COUNTS, tau_range=(0, 10))
  assert result.tau == pytest.approx(bias, abs=0.3)
  assert result.status == "fitted"
  assert np.all(np.diff(result.curve[:, 0]) > 0)


def test_a_range_that_starts_too_high_says_so():
  result = adsa.fit(*biased(COUNTS, 0.6), COUNTS, tau_range=(2.0, 3.0))
  assert (result.tau, result.status) == (2.0, "edge")


def test_negative_tau_only_by_its_range():
  logits, labels = biased(COUNTS, -1.0)
  result = adsa.fit(logits, labels, COUNTS)
  assert (result.tau, result.status) == (0.0, "bound")
  assert (
    "Check the order of class_counts; if it is right, a tau_range from -1 searches"
    in result.message
  )
  result = adsa.fit(logits, labels, COUNTS, tau_range=(-3, 3))
  assert result.tau == pytest.approx(-1.0, abs=0.2)
  assert result.status == "fitted"


def test_a_collapse_is_not_a_minimum():
  """Without images of the rarest class every confidence, and the spread, goes to 0 far out."""
  counts = (100, 60, 1)
  logits, labels = biased(counts, 1.0, margin=2.0)
  rows = labels < 2
  result = adsa.fit(logits[rows], labels[rows], counts)
  assert spread_at(logits[rows], labels[rows], counts, 50.0) < result.objective_after
  assert np.nanmean(result.confidence_after) > np.nanmean(result.confidence_before) / 2


def test_no_minimum_says_so():
  logits = np.array([[2.0, 0.0, 0.0], [0.0, 0.5, 0.0]], np.float32)
  result = adsa.fit(logits, np.array([0, 1]), (100, 100, 1))
  assert result.status == "edge"
  assert "edge" in result.message
  assert np.nanmean(result.confidence_after) >= np.nanmean(result.confidence_before) / 2
  assert result.objective_after < result.objective_before


def test_the_lowest_of_several_minima():
  """Few images of a sure but unreliable teacher: no point of a dense grid is lower."""
  random = np.random.default_rng(3)
  counts = (1000, 100, 10, 1)
  labels = np.arange(8) % 4
  taus = np.linspace(-5, 5, 401)
  statuses = set()
  for _ in range(20):
    logits = 6 * random.standard_normal((8, 4)).astype(np.float32)
    result = adsa.fit(logits, labels, counts, tau_range=(-5, 5))
    statuses.add(result.status)
    if result.status == "fitted":
      q = np.array([adsa.confidence(logits, labels, counts, tau) for tau in taus])
      healthy = q.mean(1) >= np.mean(result.confidence_before) / 2
      assert result.objective_after <= q[healthy].std(1).min() + 1e-6
  assert "fitted" in statuses


# ---- bad input ----


def bad_logits(value, where=(2, 1)):
  logits = LOGITS.copy()
  logits[where] = value
  return logits


@pytest.mark.parametrize(
  ("logits", "labels", "counts", "message"),
  [
    (bad_logits(np.nan), LABELS, COUNTS, r"logits\[2\] is the first row with a NaN"),
    (bad_logits(np.inf), LABELS, COUNTS, r"logits\[2\]"),
    (bad_logits(-np.inf), LABELS, COUNTS, r"logits\[2\]"),
    (bad_logits(-np.inf).astype(np.float64), LABELS, COUNTS, r"logits\[2\]"),
    (bad_logits(np.nan, slice(1, 4)), LABELS, COUNTS, r"logits\[1\]"),
    (bad_logits(np.nan)[None].repeat(2, 0), LABELS, COUNTS, r"logits\[0, 2\]"),
    (LOGITS, np.array([0, 1, 3, -1]), COUNTS, r"label 3 \(number 2\) is outside \[0, 3\)"),
    (LOGITS, np.array([0, 1, -2, 0]), COUNTS, "label -2"),
    (LOGITS, LABELS.astype(np.float32), COUNTS, "float32; expected integers"),
    (LOGITS, LABELS > 0, COUNTS, "bool; expected integers"),
    (LOGITS, LABELS[:3], COUNTS, r"labels have shape \(3,\).* need \(4,\)"),
    (LOGITS[None], LABELS[:3], COUNTS, r"need \(4,\) or \(1, 4\)"),
    (LOGITS, LABELS * 0, COUNTS, "fewer than two classes"),
    (LOGITS, LABELS, COUNTS[:2], r"class_counts has shape \(2,\)"),
    (LOGITS, LABELS, (5, 0, 1), "class 1 has no training image.*Add one to every count"),
    (LOGITS, LABELS, (5, -1, 1), "expected numbers of training images"),
    (LOGITS, LABELS, (5, np.nan, 1), "expected numbers of training images"),
    (LOGITS[0], LABELS, COUNTS, r"shape \(3,\); expected floats"),
    (LOGITS.astype(int), LABELS, COUNTS, "int64.*expected floats"),
    (LOGITS[:0], LABELS[:0], COUNTS, r"shape \(0, 3\)"),
    (jax.nn.softmax(LOGITS), LABELS, COUNTS, r"rows are probabilities\. Expected logits; if lost"),
    (jax.nn.softmax(LOGITS).astype(jnp.bfloat16), LABELS, COUNTS, "rows are probabilities"),
  ],
)
def test_bad_input(logits, labels, counts, message):
  with pytest.raises(ValueError, match=message):
    adsa.fit(logits, labels, counts)


def test_bad_row_in_a_later_chunk(monkeypatch):
  monkeypatch.setattr(adsa, "CHUNK", 8 * 256)
  logits, labels = biased(COUNTS, 1.0)
  logits[41, 0] = np.nan
  with pytest.raises(ValueError, match=r"logits\[41\]"):
    adsa.fit(logits, labels, COUNTS)


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"tau_range": (3, 0)}, "lower first"),
    ({"tau_range": (2,)}, "two numbers within 10 of zero"),
    ({"tau_range": (0, 1e4)}, r"\(0, 10000.0\); expected two numbers within 10 of zero"),
    ({"tau_range": (0, math.inf)}, "two numbers within 10"),
    ({"tau_range": (0, 0.5)}, "at least 1 apart"),
  ],
)
def test_bad_options(options, message):
  with pytest.raises(ValueError, match=message):
    adsa.fit(LOGITS, LABELS, COUNTS, **options)


@pytest.mark.parametrize(
  "tau_range", [(0, 1.5), (0.3, 2), (0, 10), (-10, 10), (0.2, 1.2), (0.4, 1.4)]
)
def test_any_range_finds_the_same_tau(tau_range):
  logits, labels = biased(COUNTS, 1.0)
  usual = adsa.fit(logits, labels, COUNTS)
  found = adsa.fit(logits, labels, COUNTS, tau_range=tau_range)
  assert found.status == usual.status == "fitted"
  assert found.tau == pytest.approx(usual.tau, abs=1e-3)


def test_a_range_that_float32_cannot_span_is_refused():
  with pytest.raises(ValueError, match=r"tau_range is \(0, 10\); .* it may be 6\.5 wide"):
    adsa.fit(LOGITS, LABELS, (10**8, 10, 1), tau_range=(0, 10))


@pytest.mark.parametrize("rows_in_a_block", [3, 1000])
@pytest.mark.parametrize("value", [0.0, 3.5])
def test_a_dead_teacher_is_named(value, rows_in_a_block, monkeypatch):
  """Logits without a word are no lower bound of tau; one row that says something is enough."""
  monkeypatch.setattr(adsa, "CHUNK", rows_in_a_block * 256)
  logits = np.full((2, 4, 3), value, np.float32) + np.arange(4, dtype=np.float32)[:, None]
  with pytest.raises(ValueError, match="same for all classes in every row: the teacher is dead"):
    adsa.fit(logits, LABELS, COUNTS)
  logits[1, 3, 0] += 1
  assert adsa.fit(logits, LABELS, COUNTS).status in adsa.STATUSES


def test_images_that_are_all_the_same_do_not_make_a_dead_teacher():
  """A method whose images are alike gets labels that are alike, from a teacher that is well."""
  logits = np.tile(np.array([2, 1, -1], np.float32), (2, 4, 1))
  assert adsa.fit(logits, LABELS, COUNTS).status in adsa.STATUSES


@pytest.mark.parametrize("tau", [math.nan, jnp.inf, "0.7", None, np.ones(3), (0.7,)])
def test_no_tau(tau):
  with pytest.raises(ValueError, match=r"tau is .*; expected a finite number"):
    adsa.confidence(LOGITS, LABELS, COUNTS, tau)
  with pytest.raises(ValueError, match=r"tau is .*; expected a finite number"):
    adsa.align(LOGITS, COUNTS, tau)


def test_a_result_is_no_tau():
  with pytest.raises(ValueError, match=r"tau is AdsaResult\(tau=.*; expected .*`fit\(...\)\.tau`"):
    adsa.align(LOGITS, COUNTS, adsa.fit(LOGITS, LABELS, COUNTS))
  with pytest.raises(ValueError, match=r"tau is .*\[3\]"):
    jax.jit(adsa.align, static_argnums=1)(LOGITS, COUNTS, np.ones(3))


def test_align_refuses_empty_classes():
  with pytest.raises(ValueError, match="class 2 has no training image"):
    adsa.align(LOGITS, (5, 1, 0), 1.0)


@pytest.mark.parametrize("width", [0.1, 3.0, 13.0])
@pytest.mark.parametrize("k", [2, 7])
def test_the_polynomial_is_the_function(width, k):
  """Softmax of float64 logits at any tau, however sharp, from the points of one call."""
  log_prior, calls = np.linspace(0, -width, k), []

  def means(taus):
    calls.append(len(taus))
    z = np.array([[9.0, 0, 1, 2, 3, 4, 5], [0, 0.1] * 3 + [7]])[:, None, :k] - np.outer(
      taus, log_prior
    )
    p = np.exp(z - z.max(-1, keepdims=True))
    return (p / p.sum(-1, keepdims=True)).mean(0)

  taus = np.linspace(-1, 3, 57)
  at = adsa.polynomial(means, log_prior, [-1, 3])
  np.testing.assert_allclose(at(taus), means(taus), atol=2e-6)
  assert len(calls) == 2


# ---- alone, and as a calibrator ----


def test_the_file_imports_numpy_jax_and_the_standard_library():
  found = set()
  for node in ast.walk(ast.parse(pathlib.Path(adsa.__file__).read_text())):
    if isinstance(node, ast.Import):
      found |= {name.name for name in node.names}
    elif isinstance(node, ast.ImportFrom):
      found.add(node.module)
  assert {name.split(".")[0] for name in found} - sys.stdlib_module_names == {"jax", "numpy"}


def test_the_file_works_alone(tmp_path):
  shutil.copy(pathlib.Path(adsa.__file__), tmp_path / "adsa.py")
  code = (
    "import sys, numpy as np, adsa; "
    "adsa.fit(2 * np.eye(2, dtype=np.float32), np.arange(2), [9, 1]); "
    "assert not {'flax', 'ltdd_jax', 'scipy'} & set(sys.modules)"
  )
  subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)


def test_calibrator_equals_the_library():
  logits, labels = biased(COUNTS, 1.0)
  prior = jnp.log(jnp.array(COUNTS) / sum(COUNTS))
  calibrator = calibrate.make_calibrator("adsa")
  params = calibrator.fit(logits, labels, prior)
  result = adsa.fit(logits, labels, COUNTS)
  assert float(params.tau) == pytest.approx(result.tau, abs=1e-5)
  np.testing.assert_allclose(
    calibrator.apply(params, logits, prior),
    adsa.align(logits, COUNTS, result.tau, centered=True),
    atol=1e-4,
  )
  report = calibrator.report(params)
  assert report["message"] == result.message
  np.testing.assert_allclose(report["confidence_after"], result.confidence_after, atol=1e-6)


def test_errors_of_calibrators():
  with pytest.raises(LtddError, match="Did you mean 'adsa'"):
    calibrate.make_calibrator("asda")
  with pytest.raises(LtddError, match="tau"):
    calibrate.make_calibrator("fixed", tua=1.0)
  with pytest.raises(LtddError, match=r"fixed: tau is .*within 10 of zero"):
    calibrate.make_calibrator("fixed", tau=math.nan)
  prior = jnp.log(jnp.array(COUNTS) / sum(COUNTS))
  with pytest.raises(LtddError, match=r"adsa: logits\[2\]"):
    calibrate.make_calibrator("adsa").fit(bad_logits(np.nan), LABELS, prior)
