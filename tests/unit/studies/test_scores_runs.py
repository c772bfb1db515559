"""The scores study before anything is trained: which runs it has, and what it refuses."""

import types

import numpy as np
import pytest

from ltdd_jax import pipeline, studies
from ltdd_jax.artefacts import workdir
from ltdd_jax.core.types import LtddError
from ltdd_jax.pipeline import check, graph, stages
from ltdd_jax.pipeline.context import Context, Row
from ltdd_jax.studies import Runner, scores_runs, scores_study
from tests import small

CALIBRATORS = {"plain": {"name": "none"}, "adsa": {"name": "adsa"}}


def config(tmp_path, **methods):
  methods = methods or {"k_center": {"name": "k_center"}}
  found = small.run_config(tmp_path, methods, CALIBRATORS)
  return check.check(found)


def parts(found, images, labels=None, preset=None, real=None):
  pairs = scores_runs.chosen(found, images, labels)
  return scores_runs.parts(found, pairs, images, preset, real or {})


def imported(tmp_path, labels, **more):
  file = tmp_path / "set.npz"
  np.savez(file, images=small.images(len(labels)), labels=np.array(labels), **more)
  return {"name": "imported", "path": str(file)}


def rows_of(part):
  ctx = Context(check.check(part))
  return [tuple(row) for row in graph.rows(ctx.config)]


def test_the_runs_and_their_rows(tmp_path):
  found = parts(config(tmp_path), "k_center", ["plain"])
  assert [*found] == [
    "real", *(f"{side}-{kind}" for side in ("set", "random") for kind in ("recipe", "dsa", "none"))
  ]  # fmt: skip
  hard, soft = ("k_center", "hard", None), ("k_center", "teacher", "plain")
  assert rows_of(found["set-recipe"]) == [hard, soft]
  assert rows_of(found["set-dsa"]) == [soft]
  assert rows_of(found["random-none"]) == [("random", "teacher", "plain")]
  assert rows_of(found["real"]) == [("real", "hard", None)]
  assert found["random-none"]["label"]["num_epochs"] == 1  # the same in all


def test_real_students_see_each_training_image_once_an_epoch(tmp_path):
  found = config(tmp_path) | {"distil": config(tmp_path)["distil"] | {"jpeg_quality": 75}}
  part = parts(found, "k_center", real={"num_epochs": 7})["real"]
  ctx = Context(check.check(part))
  np.testing.assert_array_equal(scores_runs.slots_of(ctx, "real"), small.COUNTS)
  student = part["student"]
  assert (student["num_epochs"], student["batch_size"], part["label"]["num_epochs"]) == (7, 4, 7)
  assert part["distil"]["jpeg_quality"] is None
  assert part["label"]["views"] == {"crop_scale": None, "flip": False, "mix": None}


def test_real_students_are_trained_as_teachers_are(tmp_path):
  found = config(tmp_path)
  found["teacher"] |= {"num_steps": 11, "batch_size": 3, "optimizer": {"name": "adam", "lr": 0.5}}
  student = parts(found, "k_center")["real"]["student"]
  assert student["num_epochs"] == 3  # 33 of 11 images
  assert student["optimizer"]["lr"] == 0.5


def test_views_of_dsa_flip_where_those_of_the_config_do(tmp_path):
  found = config(tmp_path)
  dsa = lambda: scores_runs.view_kinds(Context(found), "k_center")["dsa"]["views"]["dsa"]
  assert dsa() == "color_crop_cutout_scale_rotate"
  found["label"]["views"] = {"flip": True}
  assert dsa() == "color_crop_cutout_flip_scale_rotate"
  found["label"]["views"] = {"flip": False, "dsa": "color_flip"}
  assert dsa() == "color_flip"


def test_the_preset_ddr_searches_rates_and_tests_every_ten_epochs(tmp_path):
  found = config(tmp_path)
  found["student"] |= {"num_epochs": 25}
  runs = parts(found, "k_center", ["hard"], preset="ddr")
  assert len(runs) == 1 + 2 * 3 * 5
  assert runs["random-dsa-lr0.005"]["student"]["optimizer"]["lr"] == 0.005
  assert runs["set-recipe-lr0.1"]["student"]["evaluations"] == 3
  assert runs["real"]["student"]["optimizer"] == {
    "name": "sgd", "lr": 0.01, "momentum": 0.9, "weight_decay": 5e-4, "decay": "all"
  }  # fmt: skip
  assert runs["real"]["student"]["evaluations"] == 1  # of two epochs
  found["student"]["optimizer"]["lr"] = None  # learned: searched for the control alone
  names = [*parts(found, "k_center", ["hard"], preset="ddr")]
  assert sum(name.startswith("set-") for name in names) == 3
  assert len(names) == 1 + 3 + 15


def test_the_control_has_as_many_images_of_each_class_as_a_file(tmp_path):
  found = config(tmp_path, mine=imported(tmp_path, [0, 1, 1, 2]))
  runs = parts(found, "mine", ["hard"])
  assert runs["random-recipe"]["distil"]["slots_per_class"] == (1, 2, 1)
  even = config(tmp_path, mine=imported(tmp_path, [0, 1, 2, 0, 1, 2]))
  assert parts(even, "mine")["random-recipe"]["distil"] | {"methods": None} == even["distil"] | {
    "methods": None
  }


def test_learned_labels_of_a_file_are_beside_a_teachers_of_random_images(tmp_path):
  entry = imported(tmp_path, [0, 1, 2], soft_labels=2 * np.eye(3, dtype=np.float32))
  found = scores_runs.with_learned(config(tmp_path, mine=entry), "mine")
  (pair,) = scores_runs.chosen(found, "mine", ["learned/adsa"])
  assert pair.own == Row("mine", "learned", "adsa")
  assert pair.random == Row("random", "teacher", "adsa")
  assert rows_of(parts(found, "mine", ["learned/adsa"])["set-none"]) == [tuple(pair.own)]
  sources = found["label"]["sources"]
  sources["teacher"] = sources["teacher"] | {"calibrators": ("plain",)}
  with pytest.raises(LtddError, match="labels 'learned/adsa' are of the images alone"):
    scores_runs.chosen(found, "mine", ["learned/adsa"])


def test_random_images_are_of_the_split_of_the_images(tmp_path):
  entry = {"name": "k_center", "split": "even", "teachers": ("a",)}
  found = small.run_config(tmp_path, {"even": entry}, CALIBRATORS)
  found["data"]["splits"] = {"even": {"rule": "counts", "counts": (1, 1, 1)}}
  runs = parts(check.check(found), "even", ["hard"])
  assert runs["random-dsa"]["distil"]["methods"] == {"random": entry | {"name": "random"}}
  assert runs["real"]["distil"]["slots_per_class"] == (1, 1, 1)
  for part in runs.values():  # no teacher is trained on the split
    check.check_with_data(Context(check.check(part)))


def test_images_that_are_taken_as_they_are_stay_of_their_split(tmp_path, monkeypatch):
  entry = {"name": "k_center", "split": "even", "teachers": ("a",)}
  found = small.run_config(tmp_path, {"even": entry}, CALIBRATORS)
  found["data"]["splits"] = {"even": {"rule": "counts", "counts": (1, 1, 1)}}
  pipeline.run(found, tmp_path / "run", stage="distil", show_progress=False)
  monkeypatch.setitem(stages.VERSIONS, "distil", 99)  # the code has changed since
  runner = Runner(tmp_path / "scores", {})
  got = scores_runs.with_artefacts(check.check(found), runner, str(tmp_path / "run"), "even")
  folder = str(tmp_path / "run" / "distil" / "even")
  assert got["distil"]["methods"]["even"] == entry | {"name": "imported", "path": folder}
  assert Context(got).split_name("even") == "even"


@pytest.mark.parametrize(
  ("study", "message"),
  [
    ({"images": "k_centre"}, r"images is 'k_centre'; expected one of 'k_center'. Did you mean 'k_"),
    ({"images": "random"}, r"images is 'random'; expected one of 'k_center'"),
    ({"labels": ["adsb"]}, r"labels is 'adsb'; expected one of 'hard', .* Did you mean 'adsa'"),
    ({"labels": []}, r"labels is empty; expected some of hard, plain, adsa, or None"),
    ({"preset": "drr"}, r"preset is 'drr'; expected one of None, 'ddr'"),
    ({"real": {"num_seeds": 2}}, r"real has num_seeds=2 and config\.student 1, .*leave it out"),
    ({"real": {"num_epoch": 2}}, r"unexpected key 'num_epoch'. Did you mean 'num_epochs'"),
    ({"of": "nowhere"}, r"nowhere has no images 'k_center' yet; run it to the end of stage distil"),
  ],
)
def test_what_the_study_refuses(study, message, tmp_path):
  found = config(tmp_path) | {"study": {"name": "scores", "images": "k_center"} | study}
  with pytest.raises(LtddError, match=message):
    studies.run(found, tmp_path / "w")
  assert not (tmp_path / "w" / "real").exists()


def test_a_set_without_images_of_a_class_is_refused(tmp_path):
  found = config(tmp_path, mine=imported(tmp_path, [0, 2]))
  with pytest.raises(LtddError, match=r"'mine' has no image of classes \[1\], and scores compare"):
    studies.run(found | {"study": {"name": "scores", "images": "mine"}}, tmp_path / "w")


def leave(folder, rate, correct, stage="student/mine/hard"):
  with workdir.Workdir(folder / scores_runs.run_name("set", "recipe", rate)) as work:
    arrays = {"correct": np.array(correct), "total": np.array([4, 4, 0])}
    work.commit(stage, config={"rate": rate}, inputs={}, arrays=arrays)


def test_accuracies_are_of_the_last_step_or_best_on_test(tmp_path):
  found = config(tmp_path)
  runner = Runner(tmp_path, {})
  correct = lambda preset, classes: scores_study.Correct(runner, found, preset)(
    "set", "recipe", Row("mine"), classes
  )
  leave(tmp_path, None, [[[4, 0, 0], [1, 2, 0]], [[0, 0, 0], [4, 4, 0]]])  # (s, m, k)
  assert correct(None, None).tolist() == [3 / 8, 1]
  assert correct(None, [0, 2]).tolist() == [1 / 4, 1]  # no test image of class 2
  for i, rate in enumerate(scores_runs.RATES):
    leave(tmp_path, rate, [[[i, 0, 0], [0, 0, 0]], [[0, 4 - i, 0], [1, 0, 0]]])
  assert correct("ddr", None).tolist() == [4 / 8, 4 / 8]  # rates for each run: the last, the first
  assert correct("ddr", [1]).tolist() == [0, 1]


def test_a_group_without_test_images_has_no_row(tmp_path, monkeypatch):
  found = config(tmp_path)
  with np.load(tmp_path / "small.npz") as stored:
    arrays = {k: v[stored["y_test"] < 2] if "test" in k else v for k, v in stored.items()}
  np.savez(tmp_path / "small.npz", **arrays)
  monkeypatch.setattr(scores_study, "row_scores", lambda *args: {})
  monkeypatch.setattr(scores_study, "_sets", lambda *args: [])
  pairs = scores_runs.chosen(found, "k_center", ["hard"])
  got = scores_study.collect(Context(found), Runner(tmp_path, {}), pairs, "k_center", None)
  assert [r["classes"] for r in got["rows"]] == ["all", "head", "mid"]


@pytest.mark.parametrize("parts", [1, 2])
def test_the_self_test_sees_images_as_views_show_them(parts):
  """Of images that hold four small ones each part; classes without test images are left out."""
  train, test = small.train_data(), small.held_out()
  test = type(test)(test.images[test.labels != 2], test.labels[test.labels != 2])
  rows = np.array([0, 7, 10])  # one of each class
  distilled = {"images": train.images[rows], "labels": train.labels[rows]}
  ctx = types.SimpleNamespace(
    train_data=lambda split: train, test_data=test, distilled=lambda images: distilled
  )
  ctx.split_name, ctx.parts = (lambda images: None), (lambda images: parts)
  found = scores_study.leakage_of(ctx, "mine")
  assert found["images"] == 2 * parts**2
  assert (found["distance"] == 0) == (parts == 1)


def test_the_config_of_a_study_is_a_copy(tmp_path):
  found = config(tmp_path)
  study = scores_study.study_config(found, None, images=None, file="a.npz", labels=["hard"])
  assert study["distil"]["methods"]["set"] == {"name": "imported", "path": "a.npz"}
  assert study["study"] == {
    "name": "scores", "images": "set", "labels": ["hard"], "preset": None, "of": None
  }  # fmt: skip
  assert [*found["distil"]["methods"]] == ["k_center"]
