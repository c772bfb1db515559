"""Labels of views go out and come in again: views, logits and students have the same bits."""

import shutil

import jax
import numpy as np
import pytest

from ltdd_jax import pipeline
from ltdd_jax.artefacts.workdir import Workdir
from ltdd_jax.core.types import LtddError
from ltdd_jax.interop.exports import fkd
from ltdd_jax.pipeline import check, export, graph
from ltdd_jax.pipeline.context import Context, Row
from ltdd_jax.studies import runs
from tests import small

ROW = Row("easy", "teacher", "adsa")
VIEWS = {"mix_prob": 0.7, "crop_scale": (0.3, 1.0)}


def config_of(folder, methods, sources):
  """Three student epochs and two label epochs: students go round again."""
  config = small.run_config(folder, methods, {"adsa": {"name": "adsa"}})
  config["label"] |= {"sources": sources, "views": VIEWS}
  config["student"] |= {"num_epochs": 3, "hard_labels": False}
  return config


def run(config, workdir):
  pipeline.run(config, workdir, show_progress=False)
  return Context(check.check(config), Workdir(workdir))


def imported(folder, path):
  """A config with the images and the labels of an export; its own views are others."""
  entry = {"name": "imported", "path": str(path)}
  config = config_of(folder, {"easy": entry}, {"teacher": dict(entry)})
  config["label"] |= {"num_epochs": 1, "views": {"mix": "mixup"}}
  return config


@pytest.fixture(scope="module")
def both(tmp_path_factory):
  """A run, and one of what it exports: by the same names, so that students start alike."""
  folder = tmp_path_factory.mktemp("both")
  methods = {"easy": {"name": "herding", "teachers": ("a",)}}
  first = run(config_of(folder, methods, {"teacher": {"name": "teacher"}}), folder / "first")
  export.write(folder / "first", "fkd", folder / "set", labels="teacher")
  second = run(imported(folder, folder / "set"), folder / "second")
  return first, second, folder


def test_float_images_have_the_bits_of_the_file(tmp_path):
  pixels = np.random.default_rng(0).uniform(-0.01, 1, (6, *small.SPEC.image_shape))
  pixels = pixels.astype(np.float32)
  np.savez(tmp_path / "set.npz", images=pixels, labels=[0, 0, 1, 1, 2, 2])
  entry = {"name": "imported", "path": str(tmp_path / "set.npz")}
  config = config_of(tmp_path, {"easy": entry}, {"teacher": {"name": "teacher"}})
  pipeline.run(config, tmp_path / "run", stage="distil", show_progress=False)
  stored = Workdir(tmp_path / "run").load("distil/easy").arrays["images"]
  assert (stored.dtype, stored.tobytes()) == (pixels.dtype, pixels.tobytes())


def test_students_of_imported_labels_are_those_of_the_run(both):
  first, second, _ = both
  assert not second.workdir.exists("teacher")
  stores = [ctx.store(ROW) for ctx in (first, second)]
  assert stores[1].encoding.dtype == "float16"
  np.testing.assert_array_equal(*(store.logits() for store in stores))
  calibrated = [ctx.workdir.load(ROW.stage("calibrate")) for ctx in (first, second)]
  np.testing.assert_array_equal(*(artefact.arrays["param0"] for artefact in calibrated))
  trained = [ctx.workdir.load(ROW.stage("student")) for ctx in (first, second)]
  np.testing.assert_array_equal(*(artefact.arrays["confusion"] for artefact in trained))
  jax.tree.map(np.testing.assert_array_equal, *(artefact.tree("students") for artefact in trained))


def test_what_was_imported_goes_out_the_same(both, tmp_path):
  _, _, folder = both
  export.write(folder / "second", "fkd", tmp_path / "again", labels="teacher")
  for epoch in range(2):
    got, want = (fkd.read_epoch(path, epoch) for path in (tmp_path / "again", folder / "set"))
    for key in fkd.ARRAYS:
      assert (got[key].dtype, got[key].tobytes()) == (want[key].dtype, want[key].tobytes())
  clean = [ctx.workdir.load(ROW.stage("label")).arrays["clean_logits"] for ctx in both[:2]]
  np.testing.assert_array_equal(*clean)


def test_fingerprints_depend_on_the_content_alone(both, tmp_path):
  folder = both[2]

  def fingerprints(path, **label):
    config = imported(folder, path)
    config["label"] |= label
    return {s.name: s.fingerprint for s in graph.make_stages(Context(check.check(config)))}

  moved = tmp_path / "moved"
  shutil.copytree(folder / "set", moved)
  want = fingerprints(folder / "set")
  assert fingerprints(moved, num_epochs=7, views={}) == want  # keys that are of other sources
  arrays = fkd.read_epoch(moved, 1)
  arrays["logits"][0, 0] += 1
  np.savez(moved / "labels" / "epoch_00001.npz", **arrays)
  got = fingerprints(moved)
  assert {name for name in want if got[name] != want[name]} == {
    f"{kind}/easy/teacher{end}"
    for kind, end in (("label", ""), ("calibrate", "/adsa"), ("student", "/adsa"))
  }


def test_a_dry_run_says_what_is_imported(both, capsys):
  config = imported(both[2], both[2] / "set")
  pipeline.run(config, both[2] / "dry", dry_run=True, show_progress=False)
  assert "imported logits (2, 6, 3) of views as float16, SHA-256 " in capsys.readouterr().out


def test_labels_without_those_of_the_images(both, tmp_path):
  """As those of other programs, which write no `set.npz`."""
  folder, config = tmp_path / "set", imported(tmp_path, both[2] / "set")
  shutil.copytree(both[2] / "set", folder)
  (folder / "set.npz").unlink()
  config["label"]["sources"]["teacher"]["path"] = str(folder)
  config["calibrate"]["fit_on"] = "clean"
  with pytest.raises(LtddError, match=r"fit_on is 'clean', and .*; expected 'views'"):
    pipeline.run(config, tmp_path / "run", dry_run=True)
  config["calibrate"]["fit_on"] = "views"
  pipeline.run(config, tmp_path / "run", stage="label", show_progress=False)
  found = export.distilled_set(tmp_path / "run", labels="teacher")
  assert found.soft_labels is None
  assert found.views.num_epochs == 2
  with pytest.raises(LtddError, match=r"--labels is 'teacher', whose .*; expected --to fkd"):
    export.write(tmp_path / "run", "npz", tmp_path / "set.npz", labels="teacher")


def test_studies_that_ask_the_source_refuse_it(both):
  with pytest.raises(
    LtddError, match=r"teacher is 'imported'; .* expects a label source 'teacher'"
  ):
    runs.teacher_logits(both[1], "teacher")
