"""adsa_probe: the bias of a student, read on training images that it has not seen."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from ltdd_jax import calibrate
from ltdd_jax.core.types import LtddError
from ltdd_jax.interop import calibrate_logits

COUNTS = np.array([300, 80, 25, 9, 4])
K = len(COUNTS)
PRIOR = jnp.asarray(np.log(COUNTS / COUNTS.sum()), jnp.float32)


def gaussian_logits(bias, labels, seed=0):
  """Exact log-likelihoods of classes that lie on a line, and a bias."""
  x = 2.0 * labels + np.random.default_rng(seed).standard_normal(len(labels))
  return (-((x[:, None] - 2.0 * np.arange(K)) ** 2) / 2 + bias).astype(np.float32)


def test_both_biases_are_taken_off():
  centred = np.asarray(PRIOR) - np.asarray(PRIOR).mean()
  own = np.array([0.5, -0.5, 0.3, 0.0, -0.3])
  many = np.repeat(np.arange(K), 2000)
  calibrator = calibrate.make_calibrator("adsa_probe", strength=1e-4)
  params = calibrator.fit(gaussian_logits(0.8 * centred, many), many, PRIOR)
  before = calibrator.report(params)
  assert "No bias of a student was taken off" in before["message"]
  student = gaussian_logits(-0.3 * centred + own, many, seed=1)  # it overshoots
  params = calibrator.refine(params, student, many, PRIOR)
  found = np.asarray(params.student.bias)
  np.testing.assert_allclose(found, -0.3 * centred + own, atol=0.1)  # sampling
  report = calibrator.report(params)
  assert report["tau"] == pytest.approx(before["tau"] + report["student_tau"])
  assert report["student_tau"] < -0.1
  assert report["confidence_after"] == [None] * K
  assert "A student of such labels has a bias of slope" in report["message"]
  assert json.loads(json.dumps(report, allow_nan=False)) == report
  row = np.zeros((1, K), np.float32)
  out = np.asarray(calibrator.apply(params, row, PRIOR))[0]
  np.testing.assert_allclose(out, -before["tau"] * centred - found, atol=1e-5)


def test_classes_without_unseen_images_get_the_line_if_the_others_reach_far_enough():
  centred = np.asarray(PRIOR) - np.asarray(PRIOR).mean()
  many = np.repeat(np.arange(K), 2000)
  calibrator = calibrate.make_calibrator("adsa_probe", strength=1e-4)
  params = calibrator.fit(gaussian_logits(centred, many), many, PRIOR)
  most = many[many != 4]  # from 300 to 9 images: 0.81 of the range of log pi
  found = calibrator.refine(params, gaussian_logits(0.7 * centred, most), most, PRIOR).student
  np.testing.assert_allclose(found.bias, 0.7 * centred, atol=0.1)  # sampling
  assert float(found.tau) == pytest.approx(0.7, abs=0.03)
  report = calibrator.report(params._replace(student=found))
  assert "1 classes without such images follow the line" in report["message"]
  np.testing.assert_array_equal(np.isnan(found.confidence), np.isnan(found.mass))
  np.testing.assert_array_equal(np.isnan(found.mass[0]), [False] * 4 + [True])
  for few in (many[many < 3], many[many % 4 == 0]):  # 0.58 of the range; the ends alone
    assert calibrator.refine(params, gaussian_logits(0, few), few, PRIOR) is params


def test_bad_logits_of_a_student_are_named():
  many = np.repeat(np.arange(K), 20)
  calibrator = calibrate.make_calibrator("adsa_probe")
  params = calibrator.fit(gaussian_logits(np.asarray(PRIOR), many), many, PRIOR)
  bad = gaussian_logits(0, many)
  bad[7, 1] = np.nan
  with pytest.raises(LtddError, match=r"^adsa_probe, student's logits: logits\[7\] is the first"):
    calibrator.refine(params, bad, many, PRIOR)
  good = gaussian_logits(0, many)
  for z, y in ((good, many - 1), (good, many + 1), (good, many * 1.0), (good[:, :4], many)):
    with pytest.raises(LtddError, match=r"^adsa_probe, student's logits: "):
      calibrator.refine(params, z, y, PRIOR)
  with pytest.raises(LtddError, match=r"^adsa_probe: criterion is 'mass'"):
    calibrate.make_calibrator("adsa_probe", criterion="mass")
  with pytest.raises(LtddError, match="'adsa_probe' looks at a student, which files of labels"):
    calibrate_logits(bad, many, COUNTS, calibrator="adsa_probe")
