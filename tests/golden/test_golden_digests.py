"""Results do not move unless a version of the code does.

Fingerprints know the code by its versions alone (`pipeline.stages.VERSIONS`, `VERSION` of a
method's or calibrator's module): where results change and no version does, a run would take stale
artefacts for its own. Each entry of `digests.json` has the versions that it was made with, of its
own code and of what it reads, and a few numbers. If a test fails:

  * you changed results: raise the version of what you changed, and renew the file by
    `python -m tests.golden.test_golden_digests`;
  * you did not mean to: undo it.
"""

import functools
import json
import pathlib
import sys
import tempfile

import jax
import numpy as np
import pytest

from ltdd_jax import calibrate, distil, pipeline
from ltdd_jax.artefacts.workdir import Workdir
from ltdd_jax.labels import label as label_lib
from ltdd_jax.labels import sources as label_sources
from ltdd_jax.labels import store as label_store
from ltdd_jax.pipeline import check, graph, stages
from ltdd_jax.pipeline.context import Context
from tests import small
from tests.contract.test_methods import KWARGS, run

FILE = pathlib.Path(__file__).with_name("digests.json")
RENEW = "python -m tests.golden.test_golden_digests"
COUNTS = np.array([24, 8, 4])


def summary(tree) -> list[float]:
  """Mean magnitude and deviation of the finite numbers of a tree: of its floats, if it has any."""
  leaves = [np.ravel(x) for x in jax.tree.leaves(tree)]
  floats = [x for x in leaves if jax.numpy.issubdtype(x.dtype, np.floating)]
  flat = np.concatenate([x.astype(np.float64) for x in floats or leaves])
  flat = flat[np.isfinite(flat)]
  return [float(f"{x:.6g}") for x in (np.abs(flat).mean(), flat.std())]


def of_method(name: str) -> list[float]:
  method = distil.make_method(small.env(), name, **KWARGS.get(name, {}))
  return summary(run(method, jax.random.key(0)).images)


def of_calibrator(name: str) -> list[float]:
  rng, labels = np.random.default_rng(0), np.repeat(np.arange(3), COUNTS)
  log_prior = np.log(COUNTS / COUNTS.sum()).astype(np.float32)
  noise = rng.standard_normal((2, len(labels), 3))
  logits = (noise + 1.5 * np.eye(3)[labels] + 0.6 * log_prior).astype(np.float32)
  calibrator = calibrate.make_calibrator(name)
  params = calibrator.fit(logits[0], labels, log_prior)
  if calibrator.refine is not None:
    params = calibrator.refine(params, logits[1], labels, log_prior)
  return summary(calibrator.apply(params, logits[1], log_prior))


@functools.cache
def tiny_run() -> tuple[dict[str, graph.Stage], dict[str, list[float]]]:
  """A run with every kind of stage, and a summary of what each of them left."""
  methods = {
    "images": {"name": "gvbsm", "num_steps": 2},
    "matched": {"name": "tesla"} | KWARGS["tesla"],
  }
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder)
    config = small.run_config(path, methods, {"probe": {"name": "adsa_probe"}}, COUNTS)
    config["label"]["views"] = {"crop_scale": (0.5, 1.0), "mix": "cutmix"}
    config["label"]["sources"] = {"teacher": {"name": "teacher", "images": ("images",)}}
    config["trajectories"] = {"network": small.NET, "num_experts": 2, "num_epochs": 2}
    pipeline.run(config, path / "run", show_progress=False)
    found, work = {}, Workdir(path / "run")
    for stage in graph.make_stages(Context(check.check(config))):
      artefact = work.load(stage.name)
      left = [dict(artefact.arrays), *map(artefact.tree, artefact.meta["trees"])]
      if stage.kind == "label":
        left.append(label_store.open_store(artefact.folder(label_lib.STORE)).logits())
      found[stage.name] = (stage, summary(left))
  return {k: s for k, (s, _) in found.items()}, {k: v for k, (_, v) in found.items()}


STAGES = (
  "data", "teacher", "statistics", "trajectories", "distil/images", "label/images/teacher",
  "probe/images/teacher/probe", "calibrate/images/teacher/probe", "student/images/hard",
  "student/images/teacher/probe", "distil/matched", "student/matched/hard",
)  # fmt: skip


def versions_of(stage: str) -> dict[str, int]:
  """Versions of a stage of the run and of all that it reads."""
  made, _ = tiny_run()
  out = dict(made[stage].config["version"])
  for name in made[stage].inputs:
    out |= versions_of(name)
  return dict(sorted(out.items()))


def entry(key: str) -> dict[str, object]:
  """What `digests.json` has of "method/...", "calibrator/..." or "stage/..."."""
  kind, _, name = key.partition("/")
  if kind == "method":
    return {"versions": {name: distil.version(name)}, "values": of_method(name)}
  if kind == "calibrator":
    return {"versions": {name: calibrate.version(name)}, "values": of_calibrator(name)}
  return {"versions": versions_of(name), "values": tiny_run()[1][name]}


KEYS = (
  *(f"method/{name}" for name in sorted(distil.METHODS)),
  *(f"calibrator/{name}" for name in sorted(calibrate.CALIBRATORS)),
  *(f"stage/{name}" for name in STAGES),
)


def moved(old: dict, new: dict) -> bool:
  return not np.allclose(old["values"], new["values"], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("key", KEYS)
def test_results_move_with_a_version_alone(key):
  known, now = json.loads(FILE.read_text()), entry(key)
  assert key in known, f"{key} is new: {RENEW}"
  assert known[key]["versions"] == now["versions"], f"{key}: versions moved; {RENEW}"
  assert not moved(known[key], now), (
    f"{key} gives {now['values']}, and gave {known[key]['values']} with the same versions "
    f"{now['versions']}: raise the version of the code that changed, then {RENEW}"
  )


def test_every_kind_of_stage_has_a_digest():
  assert {name.split("/")[0] for name in STAGES} == set(stages.VERSIONS)
  made, _ = tiny_run()
  assert set(made) == set(STAGES)
  assert versions_of("label/images/teacher")["source"] == label_sources.VERSION
  assert set(json.loads(FILE.read_text())) <= set(KEYS), f"some are no more: {RENEW}"


def renew() -> None:
  """Writes the file again, and says what moved without a version."""
  old = json.loads(FILE.read_text()) if FILE.exists() else {}
  new = {key: entry(key) for key in KEYS}
  for key in old.keys() & new.keys():
    if moved(old[key], new[key]) and old[key]["versions"] == new[key]["versions"]:
      print(f"{key}: {old[key]['values']} -> {new[key]['values']}, versions as before")
  rows = [f" {json.dumps(key)}: {json.dumps(value)}" for key, value in new.items()]
  FILE.write_text("{\n" + ",\n".join(rows) + "\n}\n")


if __name__ == "__main__":
  sys.exit(renew())
