"""The whole pipeline on digits: results, skipping, differences, kill -9 and resume."""

import concurrent.futures
import json
import os
import pathlib
import random
import re
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from configs import digits_lt
from ltdd_jax import pipeline
from ltdd_jax.artefacts import manifest, provenance
from ltdd_jax.core import files
from ltdd_jax.core.types import LtddError
from ltdd_jax.labels import store as label_store
from ltdd_jax.report import page, published, run_folder, tables
from ltdd_jax.students import recipes

ROOT = pathlib.Path(__file__).parents[2]
CALIBRATORS = ("plain", "tau1", "adsa", "vector", "probe")
LABELS = [("hard", None), *(("teacher", name) for name in CALIBRATORS)]


def smoke(arg=""):
  """The smoke config, with networks that compile sooner."""
  config = digits_lt.get_config(f"preset=smoke{arg}")
  for model in (*config.teacher.models.values(), config.student.model):
    model.update(depth=1, width=4)
  return config


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
  """A finished run of the smoke config, and its results."""
  workdir = tmp_path_factory.mktemp("digits")
  return workdir, pipeline.run(smoke(), workdir, show_progress=False)


def test_results_have_the_documented_shape(finished):
  workdir, results = finished
  assert results == json.loads((workdir / "report" / "results.json").read_text())
  assert results == tables.read_results(workdir)
  assert set(results) >= {"schema", "dataset", "split", "rows", "stages", "versions"}
  assert set(results["split"]) == {"rule", "imbalance_factor", "counts", "sha256", "provenance"}
  rows = [(r["images"], r["labels"], r["calibrator"]) for r in results["rows"]]
  assert rows == [(images, *labels) for images in ("sre2l", "random") for labels in LABELS]
  names = {r["calibrator"]: r["calibrator_name"] for r in results["rows"]}
  assert names == dict(
    zip(
      (None, *CALIBRATORS),
      (None, "none", "fixed", "adsa", "adsa_vector", "adsa_probe"),
      strict=True,
    )
  )
  for row in results["rows"]:
    assert set(row) >= {
      "images", "labels", "calibrator", "calibrator_name", "tau", "seeds", "top1", "best_top1",
      "groups", "per_class", "seconds", "hardware", "commit",
    }  # fmt: skip
    assert set(row["groups"]) == {"head", "mid", "tail"}
    assert set(row["groups"]["tail"]) == {"mean", "std", "classes"}
    assert len(row["per_class"]) == 10
    np.testing.assert_allclose(np.mean(row["per_class"]), row["top1"]["mean"], atol=1e-6)
    assert row["best_top1"]["mean"] >= row["top1"]["mean"]
  for stage in results["stages"].values():
    assert set(stage) == {"seconds", "peak_bytes", "skipped"}
    assert stage["peak_bytes"] > 0
    assert not stage["skipped"]


def test_results_can_be_added_to_a_table(finished, tmp_path):
  workdir, results = finished
  published.add([workdir], tmp_path / "ours.csv")
  rows = published.read_rows(tmp_path / "ours.csv", published.HEADER)
  assert len(rows) == len(results["rows"])
  (row,) = (r for r in rows if (r["method"], r["calibrator"]) == ("sre2l", "adsa"))
  assert row["hardware"] == provenance.hardware()
  assert (row["ipc"], row["split"]) == ("2", "rule ltdd")
  used = ("data", "teacher", "distil/sre2l", "label/sre2l/teacher", "calibrate/sre2l/teacher/adsa")
  seconds = [results["stages"][s]["seconds"] for s in (*used, "student/sre2l/teacher/adsa")]
  assert row["seconds"] == f"{sum(seconds):.0f}"


def test_the_page_of_a_run_has_all_that_it_can_show(finished):
  workdir, results = finished
  text = page.write([workdir]).read_text()
  sections = re.findall(r'<section id="(\w+)"', text)
  assert sections == [
    "results", "repeat", "split", "classes", "labels", "images", "confusion", "training", "cost",
    "config", "machine",
  ]  # fmt: skip
  assert text.count("The nearest training images of") == 10 * len(
    {r["images"] for r in results["rows"]}
  )
  trained = {name.partition("/")[0] for name in run_folder.read(workdir).curves}
  assert "student" in trained
  assert text.count("<figure") == 4 + 2 * len({r["images"] for r in results["rows"]}) + len(trained)
  for row in results["rows"]:
    assert f"<td>{tables.plus_minus(row['top1'])}</td>" in text.replace(
      ' class="best"', ""
    ).replace(' class="second"', "")


def test_matrices_of_a_run_are_shares(finished):
  workdir, results = finished
  with np.load(workdir / "report" / "matrices.npz") as stored:
    found = {name: stored[name] for name in stored.files}
  rows = [(r["images"], r["labels"], r["calibrator"] or "") for r in results["rows"]]
  assert {n for n in found if n.startswith("confusion")} == {
    "|".join(("confusion", *r)) for r in rows
  }
  for matrix in found.values():
    assert matrix.shape == (10, 10)
    np.testing.assert_allclose(matrix.sum(1), 1, atol=1e-5)
  for row in results["rows"]:  # classes lie from head to tail, as they are numbered in digits
    matrix = found["|".join(("confusion", row["images"], row["labels"], row["calibrator"] or ""))]
    np.testing.assert_allclose(100 * np.diag(matrix), row["per_class"], atol=1e-3)


def test_report_shows_every_row_and_the_confidences(finished):
  workdir, _ = finished
  text = (workdir / "report" / "report.md").read_text()
  for word in ("hard", "plain", "tau1", "adsa", "head", "tail", "peak MB", "Class confidences"):
    assert word in text
  assert (workdir / "report" / "images-sre2l.png").stat().st_size > 0


def test_bytes_stand_beside_accuracies(finished):
  workdir, results = finished
  for row in results["rows"]:
    assert row["image_bytes"] == 20 * 8 * 8
    shape = (3, 20, 10)  # label epochs, images, classes
    soft = label_store.disk_bytes(shape, label_store.Encoding("float16"))
    assert row["label_bytes"] == (0 if row["labels"] == "hard" else soft)
  text = (workdir / "report" / "report.md").read_text()
  assert "label bytes" in text
  assert "1.28 kB" in text


def test_labels_in_few_bytes(tmp_path, capsys):
  """Levels of three classes: calibrated, learned from with a share of hard labels, damaged."""
  config = smoke(",method=random")
  recipes.apply(config, "rd3")
  config.label.update(num_epochs=2, dtype="uint8", top_k=3)
  config.student.update(num_epochs=3, num_seeds=1, hard_weight=0.25, hard_labels=False)
  config.distil.methods.unused = {"name": "herding"}  # no row is of it, so it is not made
  config.label.sources.teacher.images = ("random",)
  config.calibrate.max_epochs = 1
  config.calibrate.calibrators = {"plain": {"name": "none"}, "adsa": {"name": "adsa"}}
  pipeline.run(config, tmp_path, dry_run=True)
  out = capsys.readouterr().out
  recipe = "rd3, changed: hard_weight 0.0 -> 0.25, label_epochs 400 -> 2, num_epochs 400 -> 3"
  assert "as uint8 top-3, 12 bytes a label, 504 bytes" in out
  assert recipe in out
  results = pipeline.run(config, tmp_path, show_progress=False)
  assert results["recipe"] == recipe
  assert f"recipe {recipe}" in (tmp_path / "report" / "report.md").read_text()
  rows = results["rows"]
  assert [(r["calibrator"], r["label_bytes"]) for r in rows] == [("plain", 504), ("adsa", 504)]
  assert rows[1]["tau"] > 0
  path = tmp_path / "label" / "random" / "teacher" / "labels.zarr" / "values" / "c.1.0.0"
  path.write_bytes(path.read_bytes()[::-1])
  with pytest.raises(LtddError, match=r"values/c\.1\.0\.0 is damaged"):
    pipeline.run(config, tmp_path, stage="only:report", show_progress=False)


def test_second_run_skips_everything_and_says_the_same(finished):
  workdir, first = finished
  again = pipeline.run(smoke(), workdir, show_progress=False)
  assert all(stage["skipped"] for stage in again["stages"].values())
  assert again["rows"] == first["rows"]


def test_another_config_stops_with_the_difference(finished):
  workdir, _ = finished
  config = smoke()
  config.teacher.optimizer.lr = 0.125
  with pytest.raises(LtddError, match=r"teacher\.optimizer\.lr.*0\.05.*0\.125"):
    pipeline.run(config, workdir, show_progress=False)


def test_dry_run_prints_the_plan_and_writes_nothing(tmp_path, capsys):
  workdir = tmp_path / "new"
  assert pipeline.run(smoke(), workdir, dry_run=True) is None
  out = capsys.readouterr().out
  for name in (
    "data",
    "teacher",
    "distil/sre2l",
    "calibrate/random/teacher/adsa",
    "student/sre2l/hard",
  ):
    assert name in out
  assert "parameters" in out
  assert "; 1 batch of 20, 3 steps each" in out
  assert not workdir.exists()


def test_dry_run_says_what_would_be_skipped(finished, capsys):
  workdir, _ = finished
  pipeline.run(smoke(), workdir, dry_run=True)
  assert capsys.readouterr().out.count(" ready ") == 30


def test_stage_runs_up_to_it_and_only_it(tmp_path):
  config = smoke(",method=random")
  assert pipeline.run(config, tmp_path, stage="teacher", show_progress=False) is None
  assert (tmp_path / "teacher").exists()
  assert not (tmp_path / "distil").exists()
  with pytest.raises(
    LtddError, match=r"label/random/teacher reads distil/random, which is missing"
  ):
    pipeline.run(config, tmp_path, stage="only:label", show_progress=False)
  pipeline.run(config, tmp_path, stage="only:distil", show_progress=False)
  assert (tmp_path / "distil" / "random").exists()
  with pytest.raises(LtddError, match="--stage is 'recover'"):
    pipeline.run(config, tmp_path, stage="recover")


def test_only_refuses_artefacts_of_another_config(finished):
  workdir, _ = finished
  config = smoke()
  config.teacher.optimizer.lr = 0.125
  for stage in ("only:label", "only:report"):
    with pytest.raises(LtddError, match=r"teacher\.optimizer\.lr"):
      pipeline.run(config, workdir, stage=stage, show_progress=False)


def test_cache_is_shared_between_work_directories(tmp_path):
  config = smoke(",method=random")
  for name in ("one", "two"):
    pipeline.run(
      config, tmp_path / name, cache=tmp_path / "cache", stage="teacher", show_progress=False
    )
  one, two = (
    json.loads((tmp_path / n / "teacher" / "meta.json").read_text()) for n in ("one", "two")
  )
  assert one["seconds"] == two["seconds"]  # the second was not trained


# ---- kill -9 ----

STEPS = (
  "--config.teacher.num_epochs=8",
  "--config.teacher.models.teacher.depth=1",
  "--config.teacher.models.teacher.width=4",
  "--config.student.model.depth=1",
  "--config.student.model.width=4",
  "--config.distil.methods={'sre2l':{'name':'sre2l','num_steps':300,'lr':0.1}}",
  "--config.label.num_epochs=300",
  "--config.label.batch_size=10",
  "--config.student.num_epochs=60",
  "--config.student.num_seeds=2",
)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
  """Compiled programs of all runs."""
  return tmp_path_factory.mktemp("xla")


def command(workdir, cache):
  return [
    sys.executable, "-m", "launch.main",
    "--config", "configs/digits_lt.py:preset=smoke,calibrators=plain+adsa+probe",
    "--workdir", str(workdir), "--checkpoint_seconds", "0", "--compile_cache", str(cache), *STEPS,
  ]  # fmt: skip


def finish(workdir, cache):
  done = subprocess.run(
    command(workdir, cache), cwd=ROOT, capture_output=True, text=True, check=False
  )
  assert done.returncode == 0, done.stdout + done.stderr


def stop_during(workdir, cache, stage, how, rng):
  """Starts the run, and stops it at a random moment after a stage's first checkpoint."""
  process = subprocess.Popen(
    command(workdir, cache), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
  )
  deadline = time.monotonic() + 120
  while process.poll() is None and time.monotonic() < deadline:
    metrics = workdir / "metrics" / stage
    if any(f.stat().st_size for f in metrics.rglob("metrics.jsonl")):
      time.sleep(rng.uniform(0, 0.3))
      break
    time.sleep(0.01)
  process.send_signal(how)
  _, err = process.communicate()
  return process.returncode, err


def contents(workdir):
  """All arrays and all leaves of trees, and the rows of the results."""
  rows = tables.read_results(workdir)["rows"]
  found = {"rows": [{k: v for k, v in row.items() if k != "seconds"} for row in rows]}
  for path in sorted(workdir.rglob("meta.json")):
    artefact = manifest.open_artefact(path.parent)
    found |= {(str(path.parent.name), str(path.parent), k): v for k, v in artefact.arrays.items()}
    for name in artefact.meta["folders"]:
      for file in sorted(files.below(artefact.folder(name))):
        found[name, str(file)] = np.frombuffer(file.read_bytes(), np.uint8)
    for name in artefact.meta["trees"]:
      for where, leaf in jax.tree.leaves_with_path(artefact.tree(name)):
        found[name, jax.tree_util.keystr(where), str(path.parent)] = leaf
  assert len(found) > 60
  relative = lambda k: tuple(part.replace(str(workdir), "") for part in k)
  return {k if k == "rows" else relative(k): v for k, v in found.items()}


def test_killed_at_random_moments_it_ends_bit_for_bit_the_same(tmp_path, cache):
  rng = random.Random(int.from_bytes(os.urandom(4), "little"))
  straight, killed = tmp_path / "straight", tmp_path / "killed"
  stages = ("teacher", "distil/sre2l", "label/sre2l", "probe/sre2l", "student/sre2l")
  with concurrent.futures.ThreadPoolExecutor(1) as beside:
    whole = beside.submit(finish, straight, cache)
    for stage in sorted(rng.sample(stages, 2), key=stages.index):  # others another time
      code, err = stop_during(killed, cache, stage, signal.SIGKILL, rng)
      assert code in (-signal.SIGKILL, 0), err  # 0: it was faster than the kill
    finish(killed, cache)
    whole.result()
  want, got = contents(straight), contents(killed)
  assert want.keys() == got.keys()
  for name in want:
    np.testing.assert_array_equal(want[name], got[name], err_msg=str(name))


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_says_how_to_go_on(tmp_path, cache, how):
  code, err = stop_during(tmp_path / "run", cache, "label/sre2l", how, random.Random(0))
  assert code == 130, err
  assert "give the same command again" in err
  assert "stopped after" in err
