"""Stages: their names, what changes a fingerprint, and data that is not what it was."""

import copy
import types

import numpy as np
import pytest

from configs import digits_lt
from ltdd_jax import calibrate
from ltdd_jax.artefacts.workdir import Workdir
from ltdd_jax.core.types import LtddError
from ltdd_jax.data import sources
from ltdd_jax.pipeline import check, stages
from ltdd_jax.pipeline.run import fingerprints, run_stage
from tests import small


@pytest.fixture
def config():
  return check.check(digits_lt.get_config("preset=smoke"))


def changed(config, path, value):
  """Names of the stages whose fingerprint a change of one value changes."""
  other = copy.deepcopy(config)
  *groups, key = path.split(".")
  inner = other
  for group in groups:
    inner = inner[group]
  assert inner[key] != value
  inner[key] = value
  before, after = (fingerprints(stages.make_stages(c)) for c in (config, other))
  return {name for name in before if before[name] != after[name]}


def test_order_puts_simple_labels_and_the_control_where_tables_want_them(config):
  assert stages.regimes(config) == ("hard", "plain", "tau1", "adsa", "vector", "probe")
  assert stages.image_sources(config) == ("sre2l", "random")


def test_every_stage_reads_what_runs_before_it(config):
  seen = set()
  for stage in stages.make_stages(config):
    assert set(stage.inputs) <= seen
    seen.add(stage.name)


def test_a_change_reaches_what_depends_on_it_and_no_more(config):
  del config["calibrate"]["calibrators"]["probe"]  # see test_probe.py
  assert changed(config, "calibrate.calibrators.tau1.tau", 2.0) == {
    "calibrate/sre2l/tau1", "calibrate/random/tau1", "student/sre2l/tau1", "student/random/tau1"
  }  # fmt: skip
  students = changed(config, "student.num_epochs", 99)
  assert {name.split("/")[0] for name in students} == {"student"}
  assert "distil/random" not in changed(config, "distil.methods.sre2l.lr", 0.5)
  for key, value in (("loss", {"name": "kl"}), ("hard_weight", 0.5)):
    soft = changed(config, f"student.{key}", value)
    assert "student/sre2l/plain" in soft
    assert "student/sre2l/hard" not in soft
  for key, value in (("ema", 0.99),):
    assert "student/sre2l/hard" in changed(config, f"student.{key}", value)
  assert changed(config, "distil.teachers", ("teacher",)) >= {"distil/sre2l", "label/sre2l"}
  for key, value in (("teachers", ("teacher",)), ("aggregate", "norm_equalised")):
    assert "student/sre2l/plain" in changed(config, f"label.{key}", value)
    assert "distil/sre2l" not in changed(config, f"label.{key}", value)
  labels = {name.split("/")[0] for name in changed(config, "label.top_k", 5)}
  assert labels == {"label", "calibrate", "student"}
  assert len(changed(config, "seed", 7)) == len(stages.make_stages(config)) - 1  # all but data


def test_the_control_is_the_same_beside_every_method(config):
  """Its images, and what students learn from their hard labels."""
  for path, value in (("batch_size", 7), ("order", "class_major"), ("teachers", ("teacher",))):
    reached = changed(config, f"distil.{path}", value)
    assert "distil/sre2l" in reached
    assert not [name for name in reached if "/random" in name]
  teachers = changed(config, "teacher.num_epochs", 99)
  assert not {"distil/random", "student/random/hard"} & teachers
  assert {"distil/sre2l", "label/random", "student/random/plain"} <= teachers
  slots = stages.Context(config).slots
  assert list(slots("random").labels) == list(slots("sre2l").labels)
  config["distil"]["order"] = "class_major"
  assert list(slots("random").labels) != list(slots("sre2l").labels)


def test_what_another_version_of_a_calibrator_fitted_is_not_used(config, monkeypatch, tmp_path):
  prints = lambda: fingerprints(stages.make_stages(config))
  before = prints()
  monkeypatch.setattr(calibrate, "VERSIONS", {**calibrate.VERSIONS, "fixed": 2})
  after = prints()
  assert {name for name in before if before[name] != after[name]} == {
    f"{stage}/{source}/tau1" for stage in ("calibrate", "student") for source in ("sre2l", "random")
  }
  found = types.SimpleNamespace(path="calibrate/x/tau1", arrays={"param0": np.zeros(3)})
  ctx = types.SimpleNamespace(
    config=config, counts=np.array([5, 2]), workdir=types.SimpleNamespace(load=lambda name: found)
  )
  with pytest.raises(LtddError, match=r"x/tau1 was fitted by another version .* Delete the folder"):
    stages.load_params(ctx, "x", "tau1")


def test_later_arguments_leave_fingerprints_alone(config):
  for group, later in stages.LATER.items():
    parts = [s.config[group] for s in stages.make_stages(config) if group in s.config]
    assert parts
    assert not [key for part in parts for key in later if key in part]


@pytest.mark.parametrize(
  ("path", "value", "message"),
  [
    ("distil.images_per_class", 0, r"distil\.images_per_class is 0"),
    ("teacher.num_epochs", 0, r"teacher\.num_epochs is 0"),
    ("calibrate.fit_on", "test", "fit_on is 'test'"),
    ("calibrate.calibrators.hard", {"name": "none"}, "'hard'"),
    ("label.teacher_bn", "no", r"label\.teacher_bn is 'no'"),
    ("label.dtype", "int8", r"label\.dtype is 'int8'"),
    ("label.top_k", 0, r"label\.top_k is 0"),
    ("label.teachers", ("techer",), r"label\.teachers has 'techer'.*Did you mean 'teacher'"),
    ("label.aggregate", "max", r"label\.aggregate is 'max'; expected one of 'mean', 'norm_e"),
    ("distil.teachers", (), r"distil\.teachers is empty; expected .*teacher\.models"),
    ("student.hard_weight", 1.5, r"student\.hard_weight is 1\.5"),
    ("student.parallel", "pmap", r"student\.parallel is 'pmap'"),
    ("teacher.parallel", "pmap", r"teacher\.parallel is 'pmap'"),
    ("teacher.augment", ({"name": "cutmix"},), "mixes images"),
    ("seed", -1, "seed is -1"),
    ("student.widht", 3, "widht"),
    ("studnet", {"a": 1}, "studnet"),
  ],
)
def test_configs_that_are_wrong_by_themselves(path, value, message):
  plain = digits_lt.get_config("preset=smoke").to_dict()
  *groups, key = path.split(".")
  inner = plain
  for group in groups:
    inner = inner[group]
  inner[key] = value
  with pytest.raises(LtddError, match=message):
    check.check(plain)


@pytest.mark.parametrize(
  ("path", "value", "message"),
  [
    ("teacher.models.teacher.name", "resnet19", "Did you mean 'resnet18'"),
    ("student.model.depth", 9, "depth"),
    ("student.optimizer.name", "adamq", "adamw"),
    ("label.views.mix", "cutmx", "mix is 'cutmx'"),
    ("label.top_k", 11, "top_k is 11; expected 1 to 10"),
    ("distil.methods.sre2l.r_bm", 1.0, "Did you mean 'r_bn'"),
    ("distil.slots_per_class", [1, 2], "slots_per_class has 2 entries for 10 classes"),
    ("data.imbalance_factor", 0.5, "imbalance_factor"),
    ("data.num_test", 3, "num_test is 3"),
    ("teacher.models.teacher.norm", "instance", "'teacher' has no batch norm"),
    ("data.counts", [9, 9, 9, 9, 9, 9, 9, 9, 9, 0], r"classes \[9\]"),
    ("report.groups", "halves", "halves"),
    ("calibrate.calibrators.adsa.tau_rang", [0, 1], "Did you mean 'tau_range'"),
    ("calibrate.calibrators.adsa.target_prior", [0.5, 0.5], "adsa: .* 2 entries; there are 10"),
    ("student.loss", {"name": "ltkd", "groups": [[0], [1, 2]]}, "hold 3 classes, but .* have 10"),
  ],
)
def test_parts_that_cannot_be_made(config, path, value, message):
  *groups, key = path.split(".")
  inner = config
  for group in groups:
    inner = inner[group]
  inner[key] = value
  if path == "data.counts":
    config["data"] |= {"rule": "counts", "imbalance_factor": 1.0}
  with pytest.raises(LtddError, match=message):
    check.check_with_data(stages.Context(config))


def source(names=("a", "b", "c"), seed=0, pixels=0):
  data = small.train_data()
  if pixels:
    data = data._replace(images=small.images(len(data.labels), pixels))
  labels = np.random.RandomState(seed).permutation(data.labels)
  return sources.open_source(
    "arrays",
    arrays={
      "x_train": data.images,
      "y_train": labels,
      "x_test": small.images(3),
      "y_test": np.arange(3),
      "classes": np.array(names),
    },
  )


def test_artefacts_of_another_class_map_or_other_data_are_refused(config, tmp_path, monkeypatch):
  config["data"] |= {"rule": "as_is", "imbalance_factor": 1.0, "num_test": None}
  here = source()
  others = (
    (source(("c", "b", "a")), r'identity\.classes: \["a", "b", "c"\] -> \["c", "b", "a"\]'),
    (source(seed=1), r"identity\.split"),
    (source(pixels=1), r"identity\.train_pixels"),
  )
  monkeypatch.setattr(sources, "open_source", lambda **kw: here)
  ctx = stages.Context(config)
  (data, *_) = stages.make_stages(config, ctx.identity)
  with Workdir(tmp_path) as work:
    ctx.workdir = work
    prints = fingerprints([data])
    run_stage(data, ctx, prints, checkpoint_seconds=30.0, show_progress=False)
    for other, message in others:
      monkeypatch.setattr(sources, "open_source", lambda other=other, **kw: other)
      moved = stages.Context(config)
      (data, *_) = stages.make_stages(config, moved.identity)
      with pytest.raises(LtddError, match=message):
        work.status("data", data.config, {})


def test_test_images_are_the_first_of_each_class():
  rows = sources.test_indices(source(), 3)
  assert rows.tolist() == [0, 1, 2]
