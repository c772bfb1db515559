"""Joining `calibrate.CALIBRATORS` means passing these."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ltdd_jax import adsa, calibrate
from ltdd_jax.core.types import LtddError

KWARGS = {"fixed": {"tau": 0.7}}
# Options that change what is computed keep the same promises: "name, what the option is".
OPTIONS = {
  "adsa, marginal": {"criterion": "marginal"},
  "adsa, nll": {"criterion": "nll"},
  "adsa, head": {"max_head_drop": 0.02},
  "adsa_vector, marginal": {"criterion": "marginal"},
  "adsa_vector, nll": {"criterion": "nll"},
  "em, known": {"known": "uniform"},
}
# Calibration by log-loss does not know of a prior, so there is none whose removal does nothing.
NO_PRIOR = {"temperature", "vector_scaling"}
# Where L-BFGS stops depends on the rounding of a float32 objective, some 1e-8: with a curvature h
# that leaves sqrt(2e-8 / h) in a parameter, and h is least for the scales of vector scaling.
TOLERANCE = dict.fromkeys(("adsa_vector", "adsa_probe", "temperature"), 3e-4)
TOLERANCE["vector_scaling"] = 1.5e-3
TOLERANCE["em, known"] = 3e-4  # L-BFGS too
FITTED = sorted(set(calibrate.CALIBRATORS) - {"none", "fixed"})
COUNTS = np.array([300, 80, 20, 5, 1])
E, N, K = 3, 20, len(COUNTS)
UNIFORM = jnp.full(K, -np.log(K), jnp.float32)


@pytest.fixture(params=sorted(calibrate.CALIBRATORS))
def name(request):
  return request.param


@pytest.fixture
def calibrator(name):
  return calibrate.make_calibrator(name, **KWARGS.get(name, {}))


@pytest.fixture(params=[*sorted(calibrate.CALIBRATORS), *OPTIONS])
def variant(request):
  return request.param


def make(variant, **kwargs):
  """A calibrator with its own options, from "name" or "name, what the option is"."""
  name, _, option = variant.partition(",")
  own = OPTIONS[variant] if option else KWARGS.get(name, {})
  return calibrate.make_calibrator(name, **own | kwargs)


def tolerance(variant):
  return TOLERANCE.get(variant, TOLERANCE.get(variant.partition(",")[0], 1e-4))


def log_prior(counts=COUNTS):
  return jnp.asarray(np.log(counts / counts.sum()), jnp.float32)


def store(seed=0):
  """What the label stage hands over: float16 logits (e, n, k) and classes (n,)."""
  random = np.random.default_rng(seed)
  labels = np.arange(N) % K
  logits = random.standard_normal((E, N, K)) + 3 * np.eye(K)[labels] + np.asarray(log_prior())
  return logits.astype(np.float16), labels.astype(np.int32)


def fitted(calibrator, logits, labels, prior):
  """Params; those that look at a student are shown one who says what the labels say."""
  params = calibrator.fit(logits, labels, prior)
  if calibrator.refine is None:
    return params
  student = np.asarray(logits, np.float32).reshape(-1, logits.shape[-1])
  return calibrator.refine(params, student, np.tile(labels, len(logits)), prior)


def probabilities(calibrator, logits, labels, prior):
  params = fitted(calibrator, logits, labels, prior)
  return np.asarray(jax.nn.softmax(calibrator.apply(params, jnp.asarray(logits), prior)))


def close(a, b, atol=1e-4):
  np.testing.assert_allclose(a, b, atol=atol)


def test_abstract_init_is_what_fit_returns(calibrator):
  shapes = jax.eval_shape(calibrator.init, jax.ShapeDtypeStruct((K,), jnp.float32))
  params = fitted(calibrator, *store(), log_prior())
  assert jax.tree.structure(params) == jax.tree.structure(shapes)
  for leaf, shape in zip(jax.tree.leaves(params), jax.tree.leaves(shapes), strict=True):
    assert (np.shape(leaf), leaf.dtype) == (shape.shape, shape.dtype)
  row = jax.ShapeDtypeStruct((2, N, K), jnp.float16)
  out = jax.eval_shape(calibrator.apply, shapes, row, log_prior())
  assert (out.shape, out.dtype) == (row.shape, jnp.float32)


def test_apply_is_pure_and_compiled_once(calibrator):
  logits, labels = store()
  traces = []

  def apply(params, logits, prior):
    traces.append(1)
    return calibrator.apply(params, logits, prior)

  jitted = jax.jit(apply)
  for seed in range(3):
    params = calibrator.fit(store(seed)[0], labels, log_prior())
    batch = jnp.asarray(logits[seed])
    with jax.check_tracer_leaks():
      out = jitted(params, batch, log_prior())
    close(out, calibrator.apply(params, batch, log_prior()), atol=1e-5)
  assert len(traces) == 1


def test_deterministic(calibrator):
  first, second = (fitted(calibrator, *store(), log_prior()) for _ in range(2))
  jax.tree.map(np.testing.assert_array_equal, first, second)


def test_before_a_fit_nothing_changes(name):
  """`init` is the identity, and so is tau = 0."""
  calibrator = calibrate.make_calibrator(name, **{"fixed": {"tau": 0.0}}.get(name, {}))
  logits, labels = store()
  params = [calibrator.init(log_prior())]
  if name == "fixed":
    params.append(calibrator.fit(logits, labels, log_prior()))
  for p in params:
    close(calibrator.apply(p, logits, log_prior()), logits.astype(np.float32), 1e-5)


@pytest.mark.parametrize("variant", [*sorted(set(calibrate.CALIBRATORS) - NO_PRIOR), *OPTIONS])
def test_uniform_prior_is_the_identity(variant):
  calibrator = make(variant)
  logits, labels = store()
  close(probabilities(calibrator, logits, labels, UNIFORM), jax.nn.softmax(logits, axis=-1), 1e-3)


def test_rows_sum_to_one(variant):
  calibrator = make(variant)
  p = probabilities(calibrator, *store(), log_prior())
  assert np.all(p >= 0)
  close(p.sum(-1), 1, 1e-5)


def test_options_are_at_work():
  """Else the contract would check the default twice."""
  for variant in OPTIONS:
    both = [
      probabilities(c, *store(), log_prior())
      for c in (make(variant), make(variant.partition(",")[0]))
    ]
    assert np.abs(both[0] - both[1]).max() > 1e-3, variant


def test_a_constant_added_to_a_row_changes_nothing(variant):
  calibrator = make(variant)
  logits, labels = store()
  logits = logits.astype(np.float32)
  moved = logits + np.arange(N, dtype=np.float32)[:, None]
  close(
    probabilities(calibrator, moved, labels, log_prior()),
    probabilities(calibrator, logits, labels, log_prior()),
    tolerance(variant),
  )


def test_the_mean_of_a_row_stays(variant):
  """A student that is trained on raw logits (MSE) sees no common offset of the prior."""
  calibrator = make(variant)
  logits, labels = store()
  out = calibrator.apply(fitted(calibrator, logits, labels, log_prior()), logits, log_prior())
  close(out.mean(-1), logits.astype(np.float32).mean(-1), 1e-5)


def test_relabelling_classes_permutes_the_answer(variant):
  calibrator = make(variant)
  logits, labels = store()
  order = np.array([3, 0, 4, 1, 2])
  close(
    probabilities(calibrator, logits[..., order], np.argsort(order)[labels], log_prior()[order]),
    probabilities(calibrator, logits, labels, log_prior())[..., order],
    tolerance(variant),
  )


def test_duplicates_change_nothing(variant):
  calibrator = make(variant)
  logits, labels = store()
  twice = np.concatenate([logits, logits])
  close(
    probabilities(calibrator, twice, labels, log_prior())[:E],
    probabilities(calibrator, logits, labels, log_prior()),
    tolerance(variant),
  )


@pytest.mark.parametrize("variant", [*FITTED, *OPTIONS])
def test_more_copies_of_one_class_change_nothing(variant):
  """Classes weigh the same however many images they have."""
  calibrator = make(variant)
  logits, labels = store()
  more = np.concatenate([np.arange(N), np.flatnonzero(labels == 1)])
  params = [fitted(calibrator, logits[:, i], labels[i], log_prior()) for i in (slice(None), more)]
  outs = [jax.nn.softmax(calibrator.apply(p, logits, log_prior())) for p in params]
  close(*outs, tolerance(variant))


@pytest.mark.parametrize("variant", [*FITTED, *OPTIONS])
def test_chunks_memory_maps_and_row_sources(variant, tmp_path, monkeypatch):
  logits, labels = store()
  np.save(tmp_path / "logits.npy", logits)
  mapped = np.load(tmp_path / "logits.npy", mmap_mode="r")
  asked = []

  class Source:
    shape, dtype = logits.shape, logits.dtype

    def rows(self, start, stop):
      asked.append(stop - start)
      return logits.reshape(-1, K)[start:stop]

  whole = make(variant).fit(logits, labels, log_prior())
  monkeypatch.setattr(adsa, "CHUNK", 7 * 256)
  small = make(variant)
  for z in (mapped, Source(), jnp.asarray(logits)):
    params = small.fit(z, labels, log_prior())
    outs = [jax.nn.softmax(small.apply(p, logits, log_prior())) for p in (params, whole)]
    close(*outs, tolerance(variant))
  assert set(asked) == {7, logits.size // K % 7}  # the rest in the last block


@pytest.mark.parametrize("name", FITTED)
@pytest.mark.parametrize(
  ("change", "message"),
  [
    (lambda z, y: (np.where(np.arange(N)[:, None] == 4, np.nan, z), y), r"logits\[0, 4\]"),
    (lambda z, y: (np.where(np.arange(N)[:, None] == 4, np.inf, z), y), r"logits\[0, 4\]"),
    (lambda z, y: (z, y.astype(float)), "labels have dtype float64"),
    (lambda z, y: (z, y + 1), r"outside \[0, 5\)"),
    (lambda z, y: (z, y[1:]), r"labels have shape \(19,\)"),
    (lambda z, y: (z, 0 * y), "fewer than two classes"),
    (lambda z, y: (z.astype(int), y), "expected floats"),
    (lambda z, y: (0 * z, y), "teacher is dead"),
    (lambda z, y: (z[..., :4], y % 4), r"log_prior has shape \(5,\)|class_counts has shape"),
  ],
)
def test_bad_input_is_refused_by_name(name, change, message):
  with pytest.raises(LtddError, match=f"^{name}: .*({message})"):
    calibrate.make_calibrator(name).fit(*change(*store()), log_prior())


@pytest.mark.parametrize("name", FITTED)
@pytest.mark.parametrize(("margin", "noise"), [(40, 0), (20, 0.3)])
def test_logits_that_are_certain(name, margin, noise):
  """As on distilled images without augmentation: the answer is finite, and said to be chance."""
  _, labels = store()
  logits = (margin * np.eye(K)[labels])[None].astype(np.float32)
  logits += noise * np.random.default_rng(0).standard_normal(logits.shape)
  logits += noise * np.asarray(log_prior())
  calibrator = calibrate.make_calibrator(name)
  params = fitted(calibrator, logits, labels, log_prior())
  assert np.isfinite(np.asarray(calibrator.apply(params, logits, log_prior()))).all()
  report = calibrator.report(params)
  json.dumps(report, allow_nan=False)
  if name == "em":  # assumes that the teacher is calibrated, which takes all of log pi out
    assert (report["flat"], report["converged"]) == (False, True)
    np.testing.assert_allclose(report["tau"], 1, atol=1e-3)
    return
  assert report["flat"]
  assert "these logits do not determine" in report["message"]
  assert not report.get("converged")


def test_one_image_or_none_of_a_class(calibrator):
  logits, labels = store()
  for keep in (labels != 4, (labels != 4) | (np.arange(N) == 4)):
    p = probabilities(calibrator, logits[:, keep], labels[keep], log_prior())
    assert np.isfinite(p).all()


def test_a_class_without_training_images_is_refused_or_ignored(name, calibrator):
  prior = log_prior().at[2].set(-jnp.inf)
  assert ("prior" not in calibrator.needs) == (name in NO_PRIOR | {"none"})
  assert (calibrator.refine is not None) == ("probe" in calibrator.needs)
  assert calibrate.version(name) >= 1
  if "prior" not in calibrator.needs:
    assert np.isfinite(probabilities(calibrator, *store(), prior)).all()
  else:
    with pytest.raises(LtddError, match="class 2 has no training image"):
      calibrator.fit(*store(), prior)


def test_report_is_plain(name, calibrator):
  logits, labels = store()
  keep = labels != 4
  report = calibrator.report(calibrator.fit(logits[:, keep], labels[keep], log_prior()))
  calibrator.report(calibrator.init(log_prior()))
  assert json.loads(json.dumps(report, allow_nan=False)) == report
  assert isinstance(report["tau"], float)
  assert isinstance(report["message"], str)
  if name in FITTED:
    assert report["confidence_before"][4] is None
    assert not report["flat"]
    assert report["objective_after"] <= report["objective_before"] + 1e-6


def test_inputs_stay_as_they_were(calibrator):
  logits, labels = store()
  before = logits.copy(), labels.copy()
  calibrator.fit(logits, labels, log_prior())
  np.testing.assert_array_equal(logits, before[0])
  np.testing.assert_array_equal(labels, before[1])
