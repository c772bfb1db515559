"""The studies on digits, as small as they go, and one again from what is there."""

import numpy as np
import pytest

from configs import bound as bound_config
from configs import networks as networks_config
from configs import perturbation as perturbation_config
from configs import teacher_choice
from ltdd_jax import pipeline, studies
from ltdd_jax.artefacts import manifest
from ltdd_jax.data import longtail
from ltdd_jax.labels import by_class
from ltdd_jax.labels import label as labels_lib
from ltdd_jax.labels import store as label_store
from ltdd_jax.labels.by_class import class_means
from ltdd_jax.report import tables
from ltdd_jax.studies import scores_study
from tests import small as tests_small

NONE = {"name": "none"}
ADSA = {"name": "adsa", "tau_range": (0.0, 1.0)}


def small(config, calibrators=None):
  """One student a cell, plain labels and ADSA, and little to compile."""
  config.teacher.models.teacher.update(depth=1, width=4)
  config.student.model.update(depth=1, width=4)
  config.label.views = {"crop_scale": None, "padding": 1, "flip": False, "mix": None}
  config.student.update(num_seeds=1, evaluations=1, num_epochs=2, hard_labels=False)
  config.calibrate.calibrators = calibrators or {"adsa": ADSA}
  return config


def test_perturbation(tmp_path, capsys):
  config = perturbation_config.get_config("preset=smoke,method=random,ipc=2,calibrators=plain+adsa")
  for teacher in config.teacher.models.values():
    teacher.update(depth=1, width=4)
  small(config, calibrators={"plain": {"name": "none"}, "adsa": ADSA})
  config.study.num_bootstrap = 100
  results = studies.run(config, tmp_path, show_progress=False)
  load = lambda stage: manifest.open_artefact(tmp_path / stage).arrays
  for source in ("balanced", "imbalanced"):  # both teachers label the same images
    labels = [load(f"label/{source}/{side}")["labels"] for side in ("balanced", "imbalanced")]
    np.testing.assert_array_equal(*labels)
    np.testing.assert_array_equal(labels[0], load(f"distil/{source}")["labels"])
  assert results["counts"]["balanced"] == [31] * 10
  np.testing.assert_array_equal(
    np.bincount(load("data")["labels"]), results["counts"]["imbalanced"]
  )
  # A cell of the analysis, by hand: imbalanced images, imbalanced teacher, calibrated.
  labels, counts = load("distil/imbalanced")["labels"], load("data")["counts"]
  tau = results["labels"]["adsa"]["tau"]["imbalanced"]
  artefact = manifest.open_artefact(tmp_path / "label" / "imbalanced" / "imbalanced")
  chunks = [label_store.open_store(artefact.folder(labels_lib.STORE)).logits()]
  shifted = [x - tau * longtail.log_prior(counts) for x in chunks]
  want = class_means(by_class.mean_soft_labels(shifted), labels, 10)
  np.testing.assert_allclose(
    results["labels"]["adsa"]["matrices"]["ii"], want, atol=1e-5
  )  # float32
  run = tables.read_results(tmp_path)
  students = run["rows"]
  cells = [(r["images"], r["labels"], r["calibrator"]) for r in students]
  assert cells == [
    (images, *rest)
    for images in ("balanced", "imbalanced")
    for rest in (("balanced", "plain"), ("imbalanced", "plain"), ("imbalanced", "adsa"))
  ]
  assert run["split"]["counts"] == results["counts"]["imbalanced"]
  for row in students:  # balanced images are of another split
    split = row.get("split", run["split"])
    assert (split["counts"], "split" in row) == (
      results["counts"][row["images"]],
      row["images"] == "balanced",
    )
  found = {p.name for p in (tmp_path / "report").iterdir()}
  assert {"perturbation.json", "perturbation.md", "report.md", "perturbation-labels.png"} <= found
  capsys.readouterr()
  again = studies.run(config, tmp_path, show_progress=False)
  assert again == results  # and it took no training: times are those of the artefacts


def test_bound(tmp_path):
  config = small(bound_config.get_config("preset=smoke,method=random,ipc=2"))
  config.study.update(imbalance_factors=(1.0, 20.0), students=False, view_epochs=3)
  results = studies.run(config, tmp_path, show_progress=False)
  assert not (tmp_path / "if1" / "student").exists()
  rows = {(r["imbalance"], r["labels"]): r for r in results["conditional"]}
  assert set(rows) == {(f, r) for f in (1.0, 20.0) for r in ("plain", "adsa")}
  assert rows[1.0, "plain"]["kl_test"] == rows[1.0, "adsa"]["kl_test"]  # a uniform prior
  assert all(r["kl_test"]["total"] > 0 for r in rows.values())
  assert [r["images"] for r in results["marginal"]] == ["random", "random"]
  assert all(np.isfinite(r["knn_views"]["value"]) for r in results["marginal"])
  assert (tmp_path / "report" / "bound.png").exists()


def test_networks(tmp_path):
  """Hard labels alone, on the same images; the table has a column for each network."""
  config = small(
    networks_config.get_config("dataset=digits,preset=smoke,method=random,recipe=hard")
  )
  config.calibrate.calibrators, config.student.hard_labels = {}, True
  net = {"name": "convnet", "depth": 1, "width": 4}
  config.study.networks = {"plain": net | {"norm": "none"}, "normed": net | {"norm": "instance"}}
  results = studies.run(config, tmp_path, show_progress=False)
  (row,) = results["rows"]
  assert (row["images"], row["labels"], [*row["networks"]]) == (
    "random",
    "hard",
    ["normed", "plain"],
  )
  assert (
    results["networks"]["normed"]["parameters"] == 8 + results["networks"]["plain"]["parameters"]
  )
  assert results["networks"]["plain"]["recipe"].startswith("hard, changed: num_epochs 400 -> 2")
  for name in ("plain", "normed"):
    assert not (tmp_path / name / "label").exists()
  images = [manifest.open_artefact(tmp_path / n / "distil" / "random") for n in ("plain", "normed")]
  np.testing.assert_array_equal(*(a.arrays["images"] for a in images))
  text = (tmp_path / "report" / "networks.md").read_text()
  assert "| images | labels | normed | plain |" in text


def test_teachers(tmp_path):
  """Two candidates, of which one is chosen, trained again on all images, and labels students."""
  config = small(
    teacher_choice.get_config("dataset=digits,preset=smoke,imbalance=10,candidates=convnet")
  )
  net = {"name": "convnet", "depth": 1, "width": 4}
  config.study.candidates = {
    "one": {"models": {"a": net}}, "two": {"models": {"b": net, "c": net | {"width": 8}}}
  }  # fmt: skip
  config.study.update(num_views=40, num_references=1, students=True)
  results = studies.run(config, tmp_path, show_progress=False)
  assert [r["candidate"] for r in results["rows"]] == ["one", "two"]
  best = min(results["rows"], key=lambda r: r["log_loss"])["candidate"]
  assert results["chosen"] == best
  assert {*results["rank_correlation"]} == {"log_loss", "accuracy", "teacher"}
  split = lambda name: manifest.open_artefact(tmp_path / name / "data").arrays["counts"].sum()
  assert split("one") == split("chosen") - results["held_out"]
  (row,) = tables.read_results(tmp_path / "chosen")["rows"]
  assert row["teacher"].count("+") == (best == "two")
  text = (tmp_path / "report" / "teachers.md").read_text()
  assert f"Taken: {best}, trained on all images" in text


def test_scores(tmp_path, capsys):
  """Of a finished run, from whose artefacts it goes on; accuracies are those of its students."""
  config = tests_small.run_config(
    tmp_path, {"mine": {"name": "random"}, "random": {"name": "random"}}, {"plain": NONE}
  )
  config["student"] |= {"num_seeds": 2, "hard_labels": False}
  run = pipeline.run(config, tmp_path / "run", show_progress=False)
  study = scores_study.study_config(None, tmp_path / "run", images="mine")
  study["study"]["real"] = {"num_epochs": 1}
  results = studies.run(study, tmp_path / "scores", show_progress=False)
  row = results["rows"][0]
  assert [(r["labels"], r["classes"]) for r in results["rows"]] == [
    ("plain", name) for name in ("all", "head", "mid", "tail")
  ]
  top1 = {r["images"]: r["top1"]["mean"] for r in run["rows"]}
  for images, name in (("mine", "own, recipe"), ("random", "random, recipe")):
    assert 100 * row["accuracies"][name]["mean"] == pytest.approx(top1[images])
  acc = {k: np.array(v["runs"]) for k, v in row["accuracies"].items()}
  alpha = (acc["own, recipe"] - acc["random, recipe"] - acc["real"] + acc["hard"]) / 2
  want = (np.exp(alpha) - np.exp(-1)) / (np.exp(1) - np.exp(-1))
  assert row["scores"]["lrs"]["mean"] == pytest.approx(want.mean())
  assert row["scores"]["lrs"]["std"] == pytest.approx(want.std(ddof=1))
  for copies in results["leakage"].values():  # real images
    assert (copies["distance"], copies["membership"], copies["nearer_to_train"]) == (0, 1, 1)
  for stage in ("teacher", "label/mine/teacher", "student/mine/teacher/plain"):  # not made again
    made, taken = (tmp_path / f for f in ("run", "scores/set-recipe"))
    assert (made / stage / "meta.json").read_text() == (taken / stage / "meta.json").read_text()
  near = np.load(tmp_path / "run" / "report" / "neighbours-mine.npz")["images"]
  distilled = manifest.open_artefact(tmp_path / "run" / "distil" / "mine").arrays
  np.testing.assert_array_equal(near, distilled["images"])
  text = (tmp_path / "scores" / "report" / "scores.md").read_text()
  assert "of the last step" in text
  capsys.readouterr()
  again = studies.run(study, tmp_path / "scores", show_progress=False)
  assert again == results
  assert text in capsys.readouterr().out
