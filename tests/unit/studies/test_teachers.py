"""The study of teachers: its closed-form student, what it holds out, and what it refuses."""

import types

import numpy as np
import pytest

from configs import teacher_choice
from ltdd_jax import pipeline, studies
from ltdd_jax.artefacts.workdir import Workdir
from ltdd_jax.core.types import LtddError
from ltdd_jax.data import augment
from ltdd_jax.pipeline import check
from ltdd_jax.pipeline.context import Context
from ltdd_jax.studies import closed_form, teachers_study
from tests import small


def config_of(arg=""):
  config = teacher_choice.get_config(f"dataset=digits,preset=smoke{arg}").to_dict()
  return check.check({k: v for k, v in config.items() if k != "study"}), config["study"]


@pytest.mark.parametrize(("n", "f"), [(40, 7), (9, 30)])  # both forms of the solution
def test_closed_form_student_is_ridge_regression(n, f):
  rng = np.random.default_rng(0)
  shown, logits, unseen = (rng.normal(size=s).astype(np.float32) for s in ((n, f), (n, 4), (5, f)))
  shown[:, 2] = 3.0  # a feature that never moves
  got = closed_form.student(shown, logits + 8, unseen, penalty=0.3)
  x, there = (np.delete(a, 2, 1).astype(np.float64) for a in (shown, unseen))
  mean, std = x.mean(0), x.std(0)
  x, there = (x - mean) / std, (there - mean) / std
  y = logits.astype(np.float64)
  y = y - y.mean(1, keepdims=True)
  # Least squares of the images and one row for each weight that pulls it to zero.
  pulled = np.vstack(
    [np.c_[x, np.ones(n)], np.c_[np.sqrt(0.3 * n) * np.eye(f - 1), np.zeros(f - 1)]]
  )
  weights = np.linalg.lstsq(pulled, np.vstack([y, np.zeros((f - 1, 4))]), rcond=None)[0]
  np.testing.assert_allclose(got, np.c_[there, np.ones(5)] @ weights, atol=1e-6)


def test_balanced_accuracy_has_the_same_weight_for_each_class_that_is_there():
  logits = np.eye(4)[[0, 0, 0, 1, 3]]
  assert closed_form.balanced_accuracy(logits, np.array([0, 0, 1, 1, 3])) == pytest.approx(
    100 * (1 + 0.5 + 1) / 3
  )


def test_balanced_log_loss_too():
  logits = np.log(np.array([[0.5, 0.25, 0.25], [0.2, 0.2, 0.6], [0.1, 0.8, 0.1]])) + 7
  want = -(np.log(0.5) + np.log(0.2)) / 2 / 2 - np.log(0.8) / 2
  assert closed_form.balanced_log_loss(logits, np.array([0, 0, 1])) == pytest.approx(want)


def test_a_share_of_every_class_is_held_out():
  config, study = config_of()
  part = teachers_study.without_held_out(config, study["held_out"])
  whole, rest = Context(config), Context(part)
  lost = whole.counts - rest.counts
  assert lost.tolist() == [int(0.1 * n) for n in whole.counts]
  assert set(rest.split().indices) < set(whole.split().indices)
  unseen = teachers_study.held_out_images(whole, rest, [lambda x: x.reshape(len(x), -1)])
  assert np.bincount(unseen.labels, minlength=10).tolist() == lost.tolist()
  assert unseen.images.shape == (lost.sum(), 8, 8, 1)


def test_held_out_images_are_whitened_as_those_of_the_candidates(tmp_path):
  config = small.run_config(tmp_path, {"random": {"name": "random"}}, {"plain": {"name": "none"}})
  config["data"]["whiten"] = 0.1
  config = check.check(config)
  part = teachers_study.without_held_out(config, 0.5)
  pipeline.run(part, tmp_path / "work", stage="data", show_progress=False)
  rest = Context(part, Workdir(tmp_path / "work"))
  unseen = teachers_study.held_out_images(Context(config), rest, [])
  pixels = small.train_data().images[~np.isin(np.arange(11), rest.split().indices)]
  spec = rest.source.spec
  np.testing.assert_allclose(
    unseen.images, augment.normalize(pixels, spec.mean, spec.std), atol=1e-5
  )
  assert np.ptp(unseen.images) > 1


def collected(config, monkeypatch, **losses):
  """What the study finds where candidates have these log-losses, by their images."""
  contexts = {name: Context(teachers_study.without_held_out(config, 0.1)) for name in losses}
  by_context = dict(zip(map(id, contexts.values()), losses.values(), strict=True))
  row = dict.fromkeys(("accuracy", "teacher"), 1.0) | {"student": None, "labels": "teacher"}
  rows = lambda found: [row | {"images": k, "log_loss": v} for k, v in found.items()]
  row["calibrator"] = "adsa"
  monkeypatch.setattr(teachers_study, "scores", lambda ctx, *args: rows(by_context[id(ctx)]))
  references = types.SimpleNamespace(teachers=lambda: ())
  return teachers_study.collect(
    references, contexts, config, teachers_study.Study(10, 1, 0.1, False)
  )


def test_a_class_too_small_to_hold_out_is_the_smallest(monkeypatch):
  config, _ = config_of()
  config["data"]["imbalance_factor"] = 20.0  # the smallest class has 5 images
  found = collected(config, monkeypatch, a={"random": 1.0})
  assert "(0 of the smallest class)" in teachers_study.render(found)


def test_random_images_decide_where_there_are_no_others(monkeypatch):
  config, _ = config_of()
  losses = {"a": {"random": 0.8}, "b": {"random": 0.9}}
  assert collected(config, monkeypatch, **losses)["chosen"] == "a"
  methods = config["distil"]["methods"] | {"sre2l": {"name": "sre2l"}}
  config |= {"distil": config["distil"] | {"methods": methods}}
  losses = {"a": {"sre2l": 1.5, "random": 0.8}, "b": {"sre2l": 1.4, "random": 0.9}}
  assert collected(config, monkeypatch, **losses)["chosen"] == "b"


def test_every_candidate_can_be_made_and_labels_alone():
  names = ("convnet", "three_convnets", "wide_convnet", "short_convnet")
  assert tuple(config_of()[1]["candidates"]) == names[:2]  # to try it, two are enough
  config, study = config_of(f",candidates={'+'.join(names)}")
  for changes in study["candidates"].values():
    part = teachers_study.with_teacher(config, changes)
    ctx = Context(check.check(part))
    check.check_with_data(ctx)
    assert ctx.label_source("teacher").teachers == tuple(sorted(changes["models"]))


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"candidates": {}}, "config.study.candidates is empty"),
    ({"candidates": {"chosen": {}}}, "config.study.candidates has 'chosen', the name of a folder"),
    ({"candidates": {"cache": {}}}, "config.study.candidates has 'cache', the name of a folder"),
    ({"held_out": 1.0}, r"config.study.held_out is 1.0; expected a number in \[0, 1\)"),
    ({"held_out": 0.001}, "holds out an image of 0 of 10 classes"),
    ({"penalty": 0.0}, "config.study.penalty is 0.0; expected a number > 0"),
    ({"num_views": 0}, "config.study.num_views is 0"),
    ({"candidates": {"odd": {"models": {"a": {"name": "nonet"}}}}}, "nonet"),
  ],
)
def test_bad_studies_are_refused_before_any_work(change, message, tmp_path):
  config = teacher_choice.get_config("dataset=digits,preset=smoke").to_dict()
  config["study"] |= change
  with pytest.raises(LtddError, match=message):
    studies.run(config, tmp_path, show_progress=False)
  assert not (tmp_path / "convnet").exists()


def test_a_rule_whose_subsets_are_not_nested_is_refused():
  config, _ = config_of()
  config["data"]["rule"] = "ldam"
  with pytest.raises(LtddError, match=r"config.data.rule is 'ldam', whose smaller subsets"):
    teachers_study.without_held_out(config, 0.1)


def test_another_split_with_images_that_are_held_out_is_refused():
  config, _ = config_of()
  config["data"]["splits"] = {"even": {"rule": "matched"}}
  with pytest.raises(LtddError, match=r"config\.data\.splits\.even has \d+ of the images that are"):
    teachers_study.without_held_out(config, 0.1)


def test_rank_correlation_is_none_where_there_is_no_order():
  row = lambda accuracy, top1: {"accuracy": accuracy, "student": top1 and {"mean": top1}}
  find = lambda *rows: teachers_study.rank_correlation([row(*r) for r in rows], "accuracy")
  assert find((1.0, 50.0), (2.0, 60.0), (3.0, 55.0)) == pytest.approx(0.5)
  assert find((1.0, 50.0), (1.0, 60.0)) is None
  assert find((1.0, 50.0)) is None
  assert find((1.0, None), (2.0, None)) is None
