"""Exports of runs: which images and labels they take, and what they say about them."""

import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

from ltdd_jax import pipeline
from ltdd_jax.artefacts.workdir import Workdir
from ltdd_jax.core.types import LtddError
from ltdd_jax.data import views as views_lib
from ltdd_jax.interop import distilled_sets
from ltdd_jax.labels import label as label_lib
from ltdd_jax.pipeline import check, export, stages
from ltdd_jax.pipeline.context import Context, Row
from tests import small

METHODS = {"easy": {"name": "herding", "teachers": ("a",)}, "random": {"name": "random"}}
ROOT = pathlib.Path(__file__).parents[3]
ROW = Row("easy", "teacher", "adsa")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  """A run of whitened images up to calibration, and its context."""
  folder = tmp_path_factory.mktemp("run")
  config = small.run_config(folder, METHODS, {"adsa": {"name": "adsa"}})
  config["label"]["views"] = {"mix_prob": 0.5}
  config["data"]["whiten"] = 0.1
  pipeline.run(config, folder / "work", stage="calibrate", show_progress=False)
  return Context(check.check(config), Workdir(folder / "work"))


def assert_same_softmax(logits, others):
  """Rounding of float32; calibrators may keep the level of logits."""
  np.testing.assert_allclose(jax.nn.softmax(logits), jax.nn.softmax(others), atol=1e-6)


def test_images_are_those_of_the_only_method(run):
  """They are pixels, although the run whitens; what whitens them comes along."""
  found = export.distilled_set(run.workdir.path)
  stored = run.distilled("easy")
  np.testing.assert_array_equal(found.images, stored["images"])
  np.testing.assert_array_equal(found.labels, stored["labels"])
  assert found.images.dtype == np.uint8
  train = small.train_data().images  # herding chooses some
  assert all(any((image == other).all() for other in train) for image in found.images)
  assert (found.mean, found.std) == (small.SPEC.mean, small.SPEC.std)
  np.testing.assert_array_equal(found.whitening[1], run.source.spec.std.arrays().matrix)
  assert (found.soft_labels, found.student_lr, found.views, found.parts) == (None, None, None, 1)
  assert found.meta["method"] == "herding"
  assert found.meta["images_per_class"] == 2
  assert found.meta["class_counts"] == [7, 3, 1]
  assert found.meta["imbalance_factor"] == 7
  assert found.meta["split_sha256"] == run.split().sha256


def test_soft_labels_are_logits_of_plain_images_after_the_calibrator(run):
  plain = export.distilled_set(run.workdir.path, labels="teacher")
  clean = run.workdir.load("label/easy/teacher").arrays["clean_logits"]
  np.testing.assert_array_equal(plain.soft_labels, clean)
  found = export.distilled_set(run.workdir.path, labels="teacher", calibrator="adsa")
  calibrator, params = stages.load_params(run, ROW)
  want = calibrator.apply(params, clean, run.log_prior(ROW))
  np.testing.assert_array_equal(found.soft_labels, want)
  assert found.meta["tau"] == calibrator.report(params)["tau"]
  assert_same_softmax(found.soft_labels, clean - found.meta["tau"] * run.log_prior(ROW))
  assert (found.meta["labels"], found.meta["calibrator"]) == ("teacher", "adsa")


def test_labels_of_views_come_with_what_made_the_views(run):
  views = export.distilled_set(run.workdir.path, labels="teacher").views
  store = run.store(ROW)
  assert (views.num_epochs, views.mix) == (2, "cutmix")
  got, numbers = views.read(1), np.arange(6, dtype=np.int32)
  assert got["logits"].dtype == np.float16  # as stored
  np.testing.assert_array_equal(got["logits"], store.logits(1, 2)[0])
  views_of = jax.jit(views_lib.view_fn(run.source.spec, **run.views("easy")))
  key = label_lib.view_key(run.config["seed"], "easy")
  stored = run.distilled("easy")
  made = views_of(key, stored["images"], stored["labels"], numbers, np.full(6, 1, np.int32))
  np.testing.assert_array_equal(got["mix_index"], made.partners)
  np.testing.assert_array_equal(got["mix_lam"], made.weight)
  aligned = export.distilled_set(run.workdir.path, labels="teacher", calibrator="adsa")
  want = store.logits(1, 2)[0] - aligned.meta["tau"] * run.log_prior(ROW)
  assert_same_softmax(aligned.views.read(1)["logits"], want)


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"images": "esay"}, "--images is 'esay'; expected one of .*Did you mean 'easy'"),
    ({"labels": "nobody"}, "--labels is 'nobody'; expected one of 'teacher'"),
    ({"labels": "teacher", "calibrator": "em"}, "--calibrator is 'em'; expected one of 'adsa'"),
    ({"calibrator": "adsa"}, "--calibrator is 'adsa' without --labels"),
  ],
)
def test_what_a_run_does_not_have(options, message, run):
  with pytest.raises(LtddError, match=message):
    export.distilled_set(run.workdir.path, **options)


def test_several_methods_are_listed(run, tmp_path):
  with pytest.raises(LtddError, match="has no distilled images"):
    export.distilled_set(tmp_path)
  for name in ("data", "distil/easy", "distil/random", "distil/other"):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).symlink_to(run.workdir.path / name.replace("other", "easy"))
  with pytest.raises(LtddError, match=r"expected --images with one of \['easy', 'other'\]"):
    export.distilled_set(tmp_path)
  assert export.distilled_set(tmp_path, images="random").meta["method"] == "random"


def test_the_command(run, tmp_path):
  def call(*args):
    command = [sys.executable, "-m", "launch.export", *map(str, args)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)

  args = ("--to=npz", f"--out={tmp_path / 'a.npz'}", "--labels=teacher")
  done = call(run.workdir.path, *args)
  assert (done.returncode, done.stderr) == (0, "")
  assert "npz, 6 images 8x8x1 uint8 of 3 classes, soft labels (logits)," in done.stdout
  mine = distilled_sets.read("mine", str(tmp_path / "a.npz"), run.source.spec, ("0", "1", "2"))
  np.testing.assert_array_equal(mine.images, run.distilled("easy")["images"])
  assert len(mine.notes) == 1
  done = call(run.workdir.path, *args)
  assert done.returncode == 2
  assert done.stderr.startswith("error: --out is")
  done = call(*args)
  assert done.returncode == 2
  assert "expected the work directory of one run" in done.stderr


def test_a_set_of_another_split_says_the_numbers_of_that(tmp_path):
  entry = {"name": "herding", "split": "even", "teachers": ("a",)}
  config = small.run_config(tmp_path, {"easy": entry}, {"plain": {"name": "none"}})
  config["data"]["splits"] = {"even": {"rule": "counts", "counts": (1, 1, 1)}}
  pipeline.run(config, tmp_path / "work", stage="distil", show_progress=False)
  meta = export.distilled_set(tmp_path / "work").meta
  assert (meta["class_counts"], meta["imbalance_factor"]) == ([1, 1, 1], 1)
  assert meta["split_sha256"] == Context(check.check(config)).split("even").sha256


def test_class_frequencies_of_runs_with_other_splits_come_from_the_config(run, monkeypatch):
  own = export._log_prior(run.workdir, ROW)
  np.testing.assert_array_equal(own, run.log_prior(ROW))
  config = run.workdir.load("data").meta["config"]["data"]
  monkeypatch.setitem(config, "splits", {"other": {"rule": "as_is"}})
  np.testing.assert_array_equal(export._log_prior(run.workdir, ROW), own)
