"""Stages: their names, what changes a fingerprint, and data that is not what it was."""

import copy
import re
import sys

import numpy as np
import pytest

from configs import digits_lt
from ltdd_jax import distil
from ltdd_jax.artefacts.workdir import Workdir
from ltdd_jax.core.types import LtddError
from ltdd_jax.data import sources
from ltdd_jax.labels import sources as label_sources
from ltdd_jax.pipeline import check, graph, plan, stages
from ltdd_jax.pipeline.context import Context, Row
from ltdd_jax.pipeline.run import run_stage
from tests import small


@pytest.fixture
def config():
  return check.check(digits_lt.get_config("preset=smoke"))


def prints(config):
  """{stage: fingerprint} of a run."""
  return {s.name: s.fingerprint for s in graph.make_stages(Context(config))}


def differing(before, after):
  """Names of stages that two runs have with different fingerprints."""
  return {name for name in before if before[name] != after[name]}


def with_value(config, path, value):
  """A copy of a config with one other value."""
  other = copy.deepcopy(config)
  *groups, key = path.split(".")
  inner = other
  for group in groups:
    inner = inner[group]
  assert key not in inner or inner[key] != value
  inner[key] = value
  return other


def changed(config, path, value):
  """Names of the stages whose fingerprint a change of one value changes."""
  return differing(prints(config), prints(with_value(config, path, value)))


def two_teachers(config):
  return with_value(config, "teacher.models.other", dict(config["teacher"]["models"]["teacher"]))


def test_order_puts_simple_labels_and_the_control_where_tables_want_them(config):
  rows = graph.rows(config)
  soft = [Row("sre2l", "teacher", c) for c in ("plain", "tau1", "adsa", "vector", "probe")]
  assert rows[:6] == (Row("sre2l"), *soft)
  assert [row.images for row in rows] == ["sre2l"] * 6 + ["random"] * 6
  assert graph.image_sources(config) == ("sre2l", "random")
  assert graph.rows(config, "random") == rows[6:]


def test_a_label_source_has_its_calibrators(config):
  config["label"]["sources"]["mine"] = {"name": "learned", "calibrators": ("plain", "tau1")}
  assert [row for row in graph.rows(config, "sre2l") if row.labels == "mine"] == [
    Row("sre2l", "mine", "plain"), Row("sre2l", "mine", "tau1")
  ]  # fmt: skip


def test_a_label_source_has_its_images(config):
  config["label"]["sources"]["mine"] = {"name": "learned", "images": ("random",)}
  assert {row.images for row in graph.rows(config) if row.labels == "mine"} == {"random"}
  assert {row.images for row in graph.rows(config) if row.labels == "teacher"} == {
    "sre2l", "random"
  }  # fmt: skip


def test_folders_of_rows():
  row = Row("sre2l", "teacher", "adsa")
  assert {kind: row.stage(kind) for kind in ("distil", "label", "probe", "calibrate")} == {
    "distil": "distil/sre2l",
    "label": "label/sre2l/teacher",
    "probe": "probe/sre2l/teacher/adsa",
    "calibrate": "calibrate/sre2l/teacher/adsa",
  }
  assert row.stage("student") == "student/sre2l/teacher/adsa"
  assert Row("sre2l").stage("student") == "student/sre2l/hard"


def test_every_stage_reads_what_runs_before_it(config):
  seen = {}
  for stage in graph.make_stages(Context(config)):
    assert {name: seen[name] for name in stage.inputs} == stage.inputs
    seen[stage.name] = stage.fingerprint


def test_a_run_has_the_stages_that_something_in_it_needs(config):
  config["distil"]["methods"] = {"random": {"name": "random"}}
  kinds = lambda: [s.kind for s in graph.make_stages(Context(config))]
  soft = ["calibrate"] * 5 + ["student"] * 6
  assert kinds() == ["data", "teacher", "distil", "label", "probe", *soft]
  config["calibrate"]["calibrators"] = {}  # hard labels alone: nothing asks a teacher
  assert kinds() == ["data", "distil", "student"]
  config["label"]["sources"] = {"mine": {"name": "learned"}}
  config["calibrate"]["calibrators"] = {"plain": {"name": "none"}}
  assert kinds() == ["data", "distil", "label", "calibrate", "student", "student"]


def test_a_change_reaches_what_depends_on_it_and_no_more(config):
  del config["calibrate"]["calibrators"]["probe"]  # see test_probe.py
  assert changed(config, "calibrate.calibrators.tau1.tau", 2.0) == {
    f"{stage}/{source}/teacher/tau1"
    for stage in ("calibrate", "student") for source in ("sre2l", "random")
  }  # fmt: skip
  students = changed(config, "student.num_epochs", 99)
  assert {name.split("/")[0] for name in students} == {"student"}
  assert config["label"]["num_epochs"] == config["student"]["num_epochs"]
  assert "student/sre2l/hard" not in changed(config, "label.num_epochs", 99)  # no more are seen
  assert "student/sre2l/hard" in changed(config, "label.num_epochs", 1)
  assert "distil/random" not in changed(config, "distil.methods.sre2l.lr", 0.5)
  for key, value in (("loss", {"name": "kl"}), ("hard_weight", 0.5)):
    soft = changed(config, f"student.{key}", value)
    assert "student/sre2l/teacher/plain" in soft
    assert "student/sre2l/hard" not in soft
  assert "student/sre2l/hard" in changed(config, "student.ema", 0.99)
  both = two_teachers(config)
  assert changed(both, "distil.teachers", ("teacher",)) >= {"distil/sre2l", "label/sre2l/teacher"}
  for key, value in (("teachers", ("teacher",)), ("aggregate", "norm_equalised")):
    reached = changed(both, f"label.sources.teacher.{key}", value)
    assert "student/sre2l/teacher/plain" in reached
    assert "distil/sre2l" not in reached
  labels = {name.split("/")[0] for name in changed(config, "label.top_k", 5)}
  assert labels == {"label", "calibrate", "student"}
  assert len(changed(config, "seed", 7)) == len(prints(config)) - 1  # all but data
  online = changed(config, "label.sources.teacher.online", True)  # stored labels stay as they are
  assert {name.split("/")[0] for name in online} == {"student"}
  assert not changed(config, "distil.teachers", ("teacher",))  # by name what None stands for


def test_the_control_is_the_same_beside_every_method(config):
  """Its images, and what students learn from their hard labels."""
  config = two_teachers(config)
  for path, value in (("batch_size", 7), ("order", "class_major"), ("teachers", ("teacher",))):
    reached = changed(config, f"distil.{path}", value)
    assert "distil/sre2l" in reached
    assert not [name for name in reached if "/random" in name]
  teachers = changed(config, "teacher.num_epochs", 99)
  assert not {"distil/random", "student/random/hard"} & teachers
  assert {"distil/sre2l", "label/random/teacher", "student/random/teacher/plain"} <= teachers
  slots = Context(config).slots
  assert list(slots("random").labels) == list(slots("sre2l").labels)
  config["distil"]["order"] = "class_major"
  assert list(slots("random").labels) != list(slots("sre2l").labels)


# ---- versions of the code ----


def readers(config, names):
  """These stages, and those that read them, directly or through others."""
  found = set(names)
  for stage in graph.make_stages(Context(config)):
    if found & set(stage.inputs):
      found.add(stage.name)
  return found


@pytest.mark.parametrize("kind", stages.VERSIONS)
def test_another_version_of_a_stage_reaches_it_and_what_reads_it(config, kind, monkeypatch):
  config["distil"]["methods"]["gvbsm"] = {"name": "gvbsm"}  # which needs statistics
  config["distil"]["methods"]["mtt"] = {"name": "mtt"}  # which needs trajectories
  before = prints(config)
  own = {name for name in before if name.split("/")[0] == kind}
  assert own
  monkeypatch.setitem(stages.VERSIONS, kind, stages.VERSIONS[kind] + 1)
  assert differing(before, prints(config)) == readers(config, own)


def test_another_version_of_a_method_reaches_its_images_and_what_reads_them(config, monkeypatch):
  before = prints(config)
  for name in ("sre2l", "random"):
    with monkeypatch.context() as patch:
      module = sys.modules[distil.METHODS[name].__module__]
      patch.setattr(module, "VERSION", distil.version(name) + 1)
      assert differing(before, prints(config)) == readers(config, {f"distil/{name}"})


def test_another_version_of_label_sources_reaches_labels_and_what_reads_them(config, monkeypatch):
  before = prints(config)
  monkeypatch.setattr(label_sources, "VERSION", label_sources.VERSION + 1)
  own = {name for name in before if name.startswith("label/")}
  assert differing(before, prints(config)) == readers(config, own)


def test_what_another_version_of_a_calibrator_fitted_is_not_used(config, monkeypatch, tmp_path):
  before = prints(config)
  (old,) = (s for s in graph.make_stages(Context(config)) if s.name.endswith("sre2l/teacher/vector")
            and s.kind == "calibrate")  # fmt: skip
  monkeypatch.setattr("ltdd_jax.calibrate.class_bias.VERSION", 2)
  assert differing(before, prints(config)) == {
    f"{stage}/{source}/teacher/vector"
    for stage in ("calibrate", "student") for source in ("sre2l", "random")
  }  # fmt: skip
  (new,) = (s for s in graph.make_stages(Context(config)) if s.name == old.name)
  with Workdir(tmp_path) as work:
    work.scratch(old.name, old.config, old.inputs)
    work.commit(
      old.name, config=old.config, inputs=old.inputs, arrays={"param0": np.zeros(3)}, trees={},
      folders={}, extra={}, class_names=[], split_sha256="", seconds=0.0, peak_bytes=0,
    )  # fmt: skip
    with pytest.raises(LtddError, match=r"version\.adsa_vector: 1 -> 2"):
      work.status(new.name, new.config, new.inputs)


@pytest.mark.parametrize(
  ("path", "value", "message"),
  [
    ("data.rule", "matched", r"data\.rule is 'matched', a rule for config\.data\.splits alone"),
    ("distil.images_per_class", 0, r"distil\.images_per_class is 0"),
    ("teacher.num_epochs", 0, r"teacher\.num_epochs is 0"),
    ("calibrate.fit_on", "test", "fit_on is 'test'"),
    ("label.sources.hard", {"name": "learned"}, "has a key 'hard'"),
    (
      "label.sources.teacher.calibrators",
      ("asda",),
      r"is 'asda'; expected one of 'adsa'",
    ),
    ("label.sources.teacher.images", ("sre2",), "images is 'sre2'; expected one of"),
    (
      "label.sources.mine",  # else the file would label the images of both
      {"name": "imported", "path": "z.npy"},
      r"mine is 'imported'.*one image source; this run has sre2l, random\. Name it",
    ),
    ("label.sources.teacher", {"name": "techer"}, "'techer'.*Did you mean 'teacher'"),
    ("label.dtype", "int8", r"label\.dtype is 'int8'"),
    ("label.top_k", 0, r"label\.top_k is 0"),
    ("student.hard_weight", 1.0, r"hard_weight is 1\.0; expected 0 or more and below 1"),
    ("student.ema", 1.0, r"student\.ema is 1\.0; expected a decay in \[0, 1\)"),
    ("student.num_seeds", 0, r"student\.num_seeds is 0"),
    ("student.num_epochs", 0, r"student\.num_epochs is 0"),
    ("student.batch_size", 0, r"config\.student\.batch_size is 0; expected 1 or more"),
    ("student.parallel", "pmap", r"student\.parallel is 'pmap'"),
    ("teacher.parallel", "pmap", r"teacher\.parallel is 'pmap'"),
    ("teacher.augment", ({"name": "cutmix"},), "unknown name 'cutmix'. Known: alternating_flip"),
    (
      "teacher.augment",
      ({"name": "random_crop", "padding": -4},),
      "padding is -4; expected a whole",
    ),
    ("statistics.augment", ({"name": "random_crop", "padding": -1},), "padding is -1; expected"),
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
    ("distil.slots_per_class", [1, 2], r"slots_per_class is \[1, 2\]; expected 10 counts"),
    ("data.imbalance_factor", 0.5, "imbalance_factor"),
    ("data.num_test", 3, "num_test is 3"),
    ("teacher.models.teacher.norm", "instance", "'teacher' has no batch norm"),
    ("data.counts", [9, 9, 9, 9, 9, 9, 9, 9, 9, 0], r"'digits': .*classes \[9\].*imbalance"),
    ("report.groups", "halves", "halves"),
    ("calibrate.calibrators.adsa.tau_rang", [0, 1], "Did you mean 'tau_range'"),
    ("calibrate.calibrators.adsa.target_prior", [0.5, 0.5], "adsa: .* 2 entries; there are 10"),
    ("label.sources.teacher.batch_norm", "no", "batch_norm is 'no'"),
    ("label.sources.teacher.teachers", ("techer",), r"teachers has 'techer'.*Did you mean 'teache"),
    ("label.sources.teacher.aggregate", "max", "aggregate is 'max'; expected one of 'mean', 'nor"),
    (
      "teacher.splits",
      {"teacher": "b"},
      "distil.teachers is None.* none is trained on those of th",
    ),
    ("distil.teachers", (), r"distil\.teachers is empty; expected .*teacher\.models"),
    ("distil.methods.sre2l.teachers", (), r"distil\.methods\.sre2l\.teachers is empty; expected"),
    ("student.optimizer.lr", None, "optimizer.lr is None.*'sre2l'.* learns no rate"),
    ("label.sources.mine", {"name": "learned"}, "'mine' is 'learned', .*'sre2l'.* no learned"),
  ],
)
def test_parts_that_cannot_be_made(config, path, value, message):
  *groups, key = path.split(".")
  inner = config
  for group in groups:
    inner = inner[group]
  inner[key] = value
  if path == "teacher.splits":
    config["data"]["splits"] = {"b": {"rule": "as_is"}}
  if path == "data.counts":
    config["data"] |= {"rule": "counts", "imbalance_factor": 1.0}
  with pytest.raises(LtddError, match=message):
    check.check_with_data(Context(config))


def test_an_error_of_a_split_names_it(config):
  config["data"]["splits"] = {"few": {"rule": "counts", "counts": [2]}}
  with pytest.raises(LtddError, match=r"^config\.data\.splits\.few: "):
    Context(config).split("few")


def test_steps_are_counted_on_the_split_of_each_teacher(config):
  few = {"rule": "counts", "imbalance_factor": 1.0, "counts": [2] * 10}
  config["data"]["splits"] = {"few": few}
  model = config["teacher"]["models"]["teacher"]
  config["teacher"] |= {"models": {"teacher": model, "other": model}, "splits": {"other": "few"}}
  config["teacher"] |= {"num_epochs": 1, "batch_size": 5}
  ctx = Context(config)
  said = plan.teacher(ctx)
  assert re.fullmatch(r"teacher .*: 63 steps of 5 images; other .*: 4 steps of 5 images", said)


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


def test_artefacts_of_another_class_map_or_other_data_are_refused(
  config, tmp_path, monkeypatch, caplog
):
  config["data"] |= {"rule": "as_is", "imbalance_factor": 1.0, "num_test": None}
  here = source()._replace(notes=("test: skipped 1",))
  others = (
    (source(("c", "b", "a")), r'identity\.classes: \["a", "b", "c"\] -> \["c", "b", "a"\]'),
    (source(seed=1), r"identity\.split"),
    (source(pixels=1), r"identity\.train_pixels"),
  )
  monkeypatch.setattr(sources, "open_source", lambda *_, **kw: here)
  ctx = Context(config)
  data, *_ = graph.make_stages(ctx)
  with Workdir(tmp_path) as work:
    ctx.workdir = work
    with caplog.at_level("INFO", logger="absl"):
      run_stage(data, ctx, checkpoint_seconds=30.0, show_progress=False)
    assert "data: test: skipped 1" in caplog.text
    for other, message in others:
      monkeypatch.setattr(sources, "open_source", lambda *_, other=other, **kw: other)
      data, *_ = graph.make_stages(Context(config))
      with pytest.raises(LtddError, match=message):
        work.status("data", data.config, {})


def test_test_images_are_the_first_of_each_class():
  rows = sources.test_indices(source(), 3)
  assert rows.tolist() == [0, 1, 2]


@pytest.mark.parametrize(("group", "key"), [("teacher", "models"), ("data", "splits")])
@pytest.mark.parametrize("name", ["my net", "../out"])
def test_names_that_become_files_are_checked_before_work(tmp_path, group, key, name):
  config = small.run_config(tmp_path, {"random": {"name": "random"}})
  config[group][key] = {name: {"models": small.NET, "splits": {"rule": "matched"}}[key]}
  with pytest.raises(LtddError, match=f"config.{group}.{key}: name '{name}': expected letters"):
    check.check(config)
