"""adsa_probe in a run: what its stages depend on, and when a student is trained."""

import pytest

from configs import digits_lt
from ltdd_jax.artefacts.workdir import Workdir
from ltdd_jax.pipeline import check, graph, run
from ltdd_jax.pipeline.context import Context


@pytest.fixture
def config():
  config = digits_lt.get_config("preset=smoke,calibrators=adsa+probe")
  config.student.update(hard_labels=False, num_seeds=1)
  return config


def test_what_its_stages_depend_on(config):
  def prints(**student):
    config.student.update(student)
    return {s.name: s.fingerprint for s in graph.make_stages(Context(check.check(config)))}

  before, name = prints(), "sre2l/teacher/probe"
  for key, value, changes in (("num_epochs", 99, True), ("num_seeds", 7, False)):
    after = prints(**{key: value})
    assert (after[f"probe/{name}"] != before[f"probe/{name}"]) == changes
    assert (after[f"calibrate/{name}"] != before[f"calibrate/{name}"]) == changes
    assert after["calibrate/sre2l/teacher/adsa"] == before["calibrate/sre2l/teacher/adsa"]
    before = after


def test_only_calibrators_that_need_one_have_a_probe(config):
  stages = {s.name: s for s in graph.make_stages(Context(check.check(config)))}
  probes = {f"probe/{images}/teacher/probe" for images in ("sre2l", "random")}
  assert {name for name in stages if name.startswith("probe/")} == probes
  readers = {name for name, stage in stages.items() if probes & set(stage.inputs)}
  assert readers == {name.replace("probe/", "calibrate/") for name in probes}


def test_a_run(config, tmp_path):
  del config.calibrate.calibrators.adsa
  config.distil.images_per_class = 5
  results = run(config, tmp_path, show_progress=False)
  assert [row["calibrator"] for row in results["rows"]] == ["probe"] * 2
  assert "sre2l probe" in (tmp_path / "report" / "report.md").read_text()
  load = lambda stage: Workdir(tmp_path).load(stage)
  message = {
    source: load(f"calibrate/{source}/teacher/probe").meta["extra"]["report"]["message"]
    for source in ("sre2l", "random")
  }
  assert "has a bias of slope" in message["sre2l"]
  # Five images a class: the student has seen all of the three smallest.
  assert "No bias of a student was taken off" in message["random"]
  assert not (tmp_path / "metrics" / "probe" / "random").exists()  # nor was one trained
  assert len(load("probe/sre2l/teacher/probe").arrays["logits"])
  assert not len(load("probe/random/teacher/probe").arrays["logits"])
