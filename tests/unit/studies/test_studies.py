"""Studies: the configs of their runs, what they refuse, and their reports from plain results."""

import json
import re
import types

import numpy as np
import pytest

from configs import bound as bound_config
from configs import networks as networks_config
from configs import perturbation as perturbation_config
from ltdd_jax import studies
from ltdd_jax.core.types import LtddError
from ltdd_jax.data import sources, specs
from ltdd_jax.pipeline import check, graph
from ltdd_jax.pipeline.context import Context, Row
from ltdd_jax.studies import (
  bound_report,
  bound_study,
  networks_study,
  perturbation_report,
  perturbation_study,
  runs,
)

SIDES = perturbation_study.SIDES


def plain_config(arg="preset=smoke", module=perturbation_config):
  config = module.get_config(arg).to_dict()
  study = config.pop("study")
  return check.check(config), study


@pytest.fixture
def real_size_source(monkeypatch):
  """A source with the size of the real set and no images."""

  def make(name, **_):
    spec = specs.SPECS[name]
    k = spec.num_classes
    train = np.repeat(np.arange(k, dtype=np.int32), spec.num_train // k)
    read = lambda split, indices: np.zeros((len(indices), *spec.image_shape), np.uint8)
    names = tuple(map(str, range(k)))
    return sources.DataSource(spec, train, np.tile(np.arange(k, dtype=np.int32), 20), read, names)

  monkeypatch.setattr(sources, "open_source", make)


@pytest.mark.parametrize("preset", ["smoke", "cpu", "full"])
@pytest.mark.parametrize("dataset", ["digits", "cifar10"])
def test_the_run_of_the_perturbation_study_can_be_made(dataset, preset, real_size_source):
  config, _ = plain_config(f"dataset={dataset},preset={preset}")
  check.check_with_data(Context(config))


@pytest.mark.parametrize("dataset", ["digits", "cifar10"])
def test_every_run_of_the_bound_can_be_made(dataset, real_size_source):
  config, study = plain_config(f"dataset={dataset},preset=cpu", bound_config)
  for factor in study["imbalance_factors"]:
    ctx = Context(bound_study.at_factor(runs.with_plain(config), factor))
    check.check_with_data(ctx)
    assert ctx.counts[0] // ctx.counts[-1] == pytest.approx(factor, rel=0.6)  # whole images


def test_matched_sets_have_equal_numbers():
  config, _ = plain_config()
  ctx = Context(config)
  assert ctx.counts.sum() == 314
  assert list(ctx.split("balanced").counts) == [31] * 10
  config, _ = plain_config("preset=smoke,matched=False")
  assert list(Context(config).split("balanced").counts) == [114] * 10


def test_images_of_both_splits_are_crossed_with_teachers_of_both():
  config, _ = plain_config()
  ctx = Context(config)
  teachers = {"balanced": ("teacher_balanced",), "imbalanced": ("teacher",)}
  splits = {"balanced": "balanced", "imbalanced": None}
  for side in SIDES:
    assert config["distil"]["methods"][side]["name"] == "sre2l"
    assert ctx.split_name(side) == splits[side]
    assert ctx.teacher_names(side) == teachers[side]
    assert ctx.label_source(side).teachers == teachers[side]
    for images in SIDES:
      assert ctx.label_split(Row(images, side, "plain")) == splits[side]
  assert {name: ctx.teacher_split(name) for name in ctx.networks} == {
    "teacher": None, "teacher_balanced": "balanced"
  }  # fmt: skip
  own = lambda labels: [r.calibrator for r in graph.rows(config, "balanced") if r.labels == labels]
  assert own("hard") == [None]
  assert own("balanced") == ["plain"]  # a uniform prior
  assert own("imbalanced")[:3] == ["plain", "tau1", "adsa"]


def test_the_study_is_one_run_that_makes_each_thing_once():
  config, _ = plain_config("preset=smoke,calibrators=plain+adsa")
  stages = {s.name: s for s in graph.make_stages(Context(config))}
  cells = [f"{images}/{labels}" for images in SIDES for labels in SIDES]
  assert [n for n in stages if n.split("/")[0] in ("teacher", "distil", "label")] == [
    "teacher", *(f"distil/{side}" for side in SIDES), *(f"label/{cell}" for cell in cells)
  ]  # fmt: skip


def test_plain_labels_are_added_and_keep_their_name():
  config, _ = plain_config()
  config["calibrate"]["calibrators"] = {"adsa": {"name": "adsa"}}
  assert list(runs.with_plain(config)["calibrate"]["calibrators"]) == ["plain", "adsa"]
  config["calibrate"]["calibrators"] = {"adsa": {"name": "adsa"}, "none": {"name": "none"}}
  assert runs.plain_name(config) == "none"
  assert set(runs.with_plain(config)["calibrate"]["calibrators"]) == {"none", "adsa"}


def test_balanced_teachers_have_the_calibrators_that_look_at_no_prior():
  arg = "preset=smoke,calibrators=adsa+temperature+vector_scaling"
  config, _ = plain_config(arg)  # plain labels are added, and keep their name
  assert set(config["calibrate"]["calibrators"]) == {
    "plain", "adsa", "temperature", "vector_scaling"
  }  # fmt: skip
  own = {k: v["calibrators"] for k, v in config["label"]["sources"].items()}
  assert set(own["imbalanced"]) == set(config["calibrate"]["calibrators"])
  assert set(own["balanced"]) == {"plain", "temperature", "vector_scaling"}


@pytest.mark.parametrize("arg", ["", "dataset=digits,preset=smoke"])
def test_every_run_of_the_networks_can_be_made(arg, real_size_source):
  config, study = plain_config(arg, networks_config)
  for model in study["networks"].values():
    part = networks_study.with_network(config, model)
    check.check_with_data(Context(check.check(part)))
    assert part["student"]["model"] == model


def test_networks_get_what_the_recipe_gives_them_and_keep_changes(real_size_source):
  config, study = plain_config("recipe=rded_kl", networks_config)
  student = lambda model: networks_study.with_network(config, model)["student"]
  lrs = lambda: [student(m)["optimizer"]["lr"] for m in study["networks"].values()]
  assert lrs() == [1e-4, 1e-3, 2.5e-3, 1e-3, 5e-4]  # in alphabetical order
  config["student"]["optimizer"]["lr"] = 3e-3
  assert lrs() == [3e-3] * 5
  with pytest.raises(LtddError, match=r"networks is 'vgg16'; .* Did you mean 'vgg11'"):
    networks_config.get_config("networks=vgg16")


def test_overrides_reach_every_run():
  config, _ = plain_config(module=bound_config)
  config["student"]["num_epochs"] = 7
  assert bound_study.at_factor(config, 10.0)["student"]["num_epochs"] == 7


def test_what_studies_refuse(tmp_path):
  config = perturbation_config.get_config("preset=smoke")
  with pytest.raises(LtddError, match="--stage=distil is for runs"):
    studies.run(config, tmp_path, stage="distil")
  config.study.name = "bond"
  with pytest.raises(LtddError, match=r"study\.name is 'bond'. Did you mean 'bound'"):
    studies.run(config, tmp_path)
  config = perturbation_config.get_config("preset=smoke")
  with config.unlocked():
    config.study.num_bootstraps = 9
  with pytest.raises(LtddError, match=r"config\.study: unexpected key .*Did you mean 'num_bootst"):
    studies.run(config, tmp_path)
  some, _ = plain_config("preset=smoke,calibrators=adsa+probe", bound_config)
  assert [*runs.without_probes(some)["calibrate"]["calibrators"]] == ["adsa"]
  bound = bound_config.get_config("preset=smoke")
  bound.label.sources.teacher.batch_norm = "train"
  with pytest.raises(LtddError, match="what such teachers say of an image depends on the batch"):
    studies.run(bound, tmp_path)
  bound = bound_config.get_config("preset=smoke")
  bound.label.sources.teacher.aggregate = "norm_equalised"
  with pytest.raises(LtddError, match="aggregate='norm_equalised': what such teachers say"):
    studies.run(bound, tmp_path)
  bound = bound_config.get_config("preset=smoke")
  bound.label.sources = {"mine": {"name": "learned"}}
  with pytest.raises(LtddError, match="has mine; the bound study needs one label source, of the"):
    studies.run(bound, tmp_path)
  bound = bound_config.get_config("preset=smoke")
  bound.data.whiten = 0.1
  with pytest.raises(LtddError, match=r"config\.data\.whiten is 0\.1: each run has a whitening"):
    studies.run(bound, tmp_path)
  entry = {"name": "teacher", "images": ("random",), "calibrators": None}
  bound_study._check_labels({"label": {"sources": {"mine": entry}}})  # keys of all sources pass
  config = perturbation_config.get_config("preset=smoke")
  config.distil.methods = {"sre2l": {"name": "sre2l"}, "random": {"name": "random"}}
  with pytest.raises(LtddError, match="has random, sre2l; the perturbation study crosses"):
    studies.run(config, tmp_path)
  config = perturbation_config.get_config("preset=smoke")
  config.label.sources = {"teacher": {"name": "teacher"}}
  with pytest.raises(LtddError, match=r"label\.sources has teacher; the perturbation study"):
    studies.run(config, tmp_path)
  config = perturbation_config.get_config("preset=smoke")
  config.label.sources.imbalanced.calibrators = ("adsa",)
  with pytest.raises(LtddError, match="imbalanced gives balanced images no labels 'plain', which"):
    studies.run(config, tmp_path)
  plain, _ = plain_config()
  plain["data"]["rule"] = "as_is"
  with pytest.raises(LtddError, match=r"rule is 'as_is'; .* needs 'ltdd' or"):
    bound_study.at_factor(plain, 10.0)
  for module in (perturbation_config, bound_config):
    with pytest.raises(LtddError, match="dataset is 'mnist'; expected one of 'digits', 'cifar10'"):
      module.get_config("dataset=mnist")


@pytest.mark.parametrize(
  ("module", "key", "value", "message"),
  [
    (perturbation_config, "num_bootstrap", 0, "num_bootstrap is 0; expected 1 or more"),
    (perturbation_config, "num_bootstrap", -1, "num_bootstrap is -1; expected 1 or more"),
    (bound_config, "dims", 0, r"dims is 0; expected 1 to \d+, for \d+ features and \d+ test"),
    (bound_config, "dims", 1000, r"dims is 1000; expected 1 to \d+, for"),
    (bound_config, "neighbours", 0, r"neighbours is 0; expected 1 to \d+, for"),
    (bound_config, "neighbours", 1000, "neighbours is 1000; expected 1 to"),
    (bound_config, "view_epochs", 0, "view_epochs is 0; expected 1 or more"),
    (bound_config, "imbalance_factors", (), "imbalance_factors is empty"),
    (bound_config, "imbalance_factors", (1.0, 0.5), r"imbalance_factor=0\.5: expected"),
  ],
)
def test_numbers_of_studies_are_refused_before_anything_is_trained(
  module, key, value, message, tmp_path, monkeypatch
):
  def started(*args, **kwargs):
    raise AssertionError("a run was started")

  monkeypatch.setattr(runs.Runner, "__call__", started)
  config = module.get_config("preset=smoke")
  config.study[key] = value
  with pytest.raises(LtddError, match=message):
    studies.run(config, tmp_path)
  with pytest.raises(AssertionError, match="a run was started"):
    studies.run(module.get_config("preset=smoke"), tmp_path)


def test_a_network_has_no_folder_of_the_study(tmp_path):
  config = networks_config.get_config("dataset=digits,preset=smoke")
  config.study.networks = {"report": {"name": "convnet"}}
  with pytest.raises(LtddError, match="has 'report', the name of a folder of the study"):
    studies.run(config, tmp_path)


def test_views_of_the_bound_are_those_that_students_see():
  """Students of more epochs than there are label epochs go round again, and see no other views."""
  config, _ = plain_config(module=bound_config)
  config["label"]["num_epochs"] = 2
  images, targets = np.zeros((3, 8, 8, 1), np.uint8), np.arange(3, dtype=np.int32)
  source = types.SimpleNamespace(spec=specs.SPECS["digits"])
  distilled = lambda _: {"images": images, "labels": targets}
  ctx = types.SimpleNamespace(config=config, source=source, distilled=distilled)
  ctx.views = lambda _: config["label"]["views"]
  assert [len(runs.make_views(ctx, "sre2l", e)) for e in (1, 2, 20)] == [1, 2, 2]


def test_a_dry_run_of_a_study_plans_its_runs_and_writes_nothing(tmp_path, capsys):
  config = perturbation_config.get_config("preset=smoke")
  assert studies.run(config, tmp_path / "w", dry_run=True) is None
  out = capsys.readouterr().out
  assert out.index("distil/balanced") < out.index("label/balanced/imbalanced")
  assert "distil/imbalanced" in out
  assert "314 of 1,140" in out
  assert "other splits: balanced" in out
  assert not (tmp_path / "w").exists()


def test_jsonable():
  value = {"a": np.array([1.0, np.nan]), "b": (np.float32(2), np.int64(3)), "c": float("inf")}
  assert runs.jsonable(value) == {"a": [1.0, None], "b": [2.0, 3], "c": None}


# ---- reports ----


def estimate(shape):
  return {"value": np.full(shape, 0.2), "low": np.full(shape, 0.1), "high": np.full(shape, 0.3)}


def perturbation_results(k=3, p_value=0.25):
  cells, terms = ("bb", "bi", "ib", "ii"), ("teacher", "image", "interaction")
  found = {
    "matrices": {c: np.full((k, k), 1 / k) for c in cells},
    "confidence": {c: estimate(k) for c in cells},
    **{t: estimate((k, k)) for t in terms},
    "mass": {t: estimate(k) for t in terms},
    "sizes": {t: {"norm": 0.5, "noise": 0.125} for t in terms},
    "additivity": {"statistic": 0.5, "p_value": p_value, "classes": list(range(k))},
    "tau": {"balanced": 0.5, "imbalanced": 0.75},
  }
  return runs.jsonable(
    {
      "dataset": "small", "class_names": [f"c{i}" for i in range(k)], "plain": "plain",
      "counts": {"balanced": [4] * k, "imbalanced": list(range(k, 0, -1))},
      "method": {"name": "sre2l"}, "images": {"balanced": 9, "imbalanced": 9}, "label_epochs": 30,
      "study": {"num_bootstrap": 2000}, "seconds": 3.0,
      "labels": {
        name: found | {"calibrator_name": "adsa" if i else "none"}
        for i, name in enumerate(("plain", "adsa", "a1", "a2", "a3", "a4", "a5"))
      },
    }
  )  # fmt: skip


def test_perturbation_report_says_what_the_results_say(tmp_path):
  results = perturbation_results()
  text = perturbation_report.render(results)
  assert "| 0.500 / 0.750 | 0.500 (0.125) | 0.500 (0.125) | 0.500 (0.125) | 0.2500 |" in text
  assert "+0.200 [0.100, 0.300]" in text
  assert "+20.0 [10.0, 30.0]" in text
  plain = json.loads(json.dumps(results))
  written = runs.write_plots(plain, tmp_path, perturbation_report.FIGURES)
  assert [p.name.removeprefix("perturbation-") for p in written] == [
    "labels.png", "confidences.png"
  ]  # fmt: skip
  assert all(p.stat().st_size > 1000 for p in written)


def test_perturbation_report_of_one_image_a_class_and_of_many_classes(tmp_path):
  results = perturbation_results(k=30, p_value=np.nan)
  for found in results["labels"].values():
    for term in ("teacher", "image", "interaction"):
      found["sizes"][term] = {"norm": None, "noise": None}
      found["mass"][term] = {e: [None] * 30 for e in ("value", "low", "high")}
      found[term] |= {e: [[None] * 30] * 30 for e in ("low", "high")}
  assert "| - | - | - | - |" in perturbation_report.render(results).replace(" " * 12, "")
  assert len(runs.write_plots(results, tmp_path, perturbation_report.FIGURES)) == 2


def bound_results(k=3):
  term = {"total": 0.5, "per_class": [0.25, None, 0.75][:k], "standard_error": 0.125}
  marginal = lambda value, share: {"value": value, "shrinkage": share}
  return {
    "dataset": "small", "class_names": ["a", "b", "c"], "plain": "plain", "reference_top1": 97.5,
    "baseline": {n: {"mean": 0.5, "std": 0.25} for n in ("gaussian_images", "knn_images")},
    "study": {"view_epochs": 20, "dims": 8, "neighbours": 5}, "seconds": 9.0,
    "conditional": [
      {
        "imbalance": factor, "images": images, "labels": labels, "tau": 0.5, "kl_test": term,
        "log_loss": term, "kl_views": term, "top1": {"mean": 60.0, "std": 2.0},
        "image_bytes": 2_000, "label_bytes": 1_000,
      }
      for factor in (1.0, 100.0) for images in ("sre2l", "random") for labels in ("plain", "adsa")
    ],
    "marginal": [
      {
        "imbalance": factor, "images": images, "gaussian_images": marginal(9.0, 0.25),
        "gaussian_views": marginal(3.0, 0.03), "knn_images": marginal(4.0, 0.0),
        "knn_views": marginal(-0.125, 0.0),
      }
      for factor in (1.0, 100.0) for images in ("sre2l", "random")
    ],
  }  # fmt: skip


def test_bound_report_says_what_the_results_say(tmp_path):
  results = bound_results()
  text = bound_report.render(results)
  assert "0.500 ± 0.125" in text
  assert len(re.findall(r"2 kB \| +1 kB \|", text)) == 8
  assert "9.00 (0.25)" in text
  assert "-0.12 |" in text
  assert "|   - |   real |      0.50 ± 0.25 |               - | 0.50 ± 0.25 |" in text
  assert text.count("| 0.25 | - | 0.75 |") == 6  # plain once a factor, adsa by image source
  paths = runs.write_plots(results, tmp_path, bound_report.FIGURES)
  assert [p.name for p in paths] == ["bound.png", "bound_calibrators.png"]
  assert min(p.stat().st_size for p in paths) > 1000
  axes = bound_report.figure(results).axes
  assert [len(a.lines) for a in axes] == [4, 4, 4, 4]
  for row in results["conditional"]:
    row["top1"] = None
  assert not bound_report.figure(results).axes[3].get_visible()
  assert "60.0" not in bound_report.render(results)


def test_calibrators_at_the_largest_factor_are_sorted():
  results = bound_results()
  for row in results["conditional"]:
    worse = row["labels"] == "plain"
    row["kl_views"] = row["kl_views"] | {"total": (2.0 if worse else 1.0) * row["imbalance"]}
  (axis,) = bound_report.calibrators_figure(results).axes
  assert [label.get_text() for label in axis.get_yticklabels()] == ["plain", "adsa"]  # upwards
  assert "100" in axis.get_xlabel()
  drawn = {c.get_label(): c.lines[0].get_xdata().tolist() for c in axis.containers}
  assert drawn["KL views, sre2l"] == [200.0, 100.0]
  assert drawn["KL test, random"] == [0.5, 0.5]
  of_random = [row for row in results["conditional"] if row["images"] == "random"]
  (axis,) = bound_report.calibrators_figure(results | {"conditional": of_random}).axes
  assert [c.get_label() for c in axis.containers] == ["KL test, random", "KL views, random"]
