"""A finished run as files, with made-up numbers and class names that try to break pages."""

import json

import numpy as np

from ltdd_jax.artefacts.workdir import Workdir
from ltdd_jax.data import longtail
from ltdd_jax.report import tables

NAMES = [
  "<script>alert(1)</script>",
  "a|b",
  "new\nline",
  "$x^2$",
  "été",
  "&amp;",
  "naïve\t",
  "x" * 60,
]


def results_of(k=8, dataset="small", seeds=2):
  """Results of one image source with hard, plain and calibrated labels."""
  counts = np.maximum(1, (100 * 0.5 ** np.arange(k)).astype(int)) if k < 20 else np.arange(k, 0, -1)
  groups, total = longtail.groups(counts), np.full(k, 10)
  rng, rows = np.random.RandomState(0), []
  for labels, calibrator, kind in (
    ("hard", None, None), ("teacher", "plain", "none"), ("teacher", "adsa", "adsa")
  ):  # fmt: skip
    row = {
      "images": "edc", "labels": labels, "calibrator": calibrator, "calibrator_name": kind,
      "tau": None if kind is None else 0.5 * (kind == "adsa"), "teacher": None, "seeds": seeds,
      "images_per_class": [2] * k, "image_bytes": 100, "label_bytes": 50 * (labels != "hard"),
      "seconds": 1.5, "hardware": "none", "commit": "abc",
    }  # fmt: skip
    if kind == "adsa":
      row["calibration"] = {
        "tau": 0.5, "message": "tau = 0.5", "tau_interval": [0.4, 0.6],
        "curve": [[0.0, 0.3], [0.5, 0.1], [1.0, 0.2]],
        "confidence_before": [0.5] * k, "confidence_after": [0.6] * k,
      }  # fmt: skip
    rows.append(row | tables.scores(rng.randint(0, 11, (seeds, 1, k)), total, groups))
  split = {
    "rule": "ltdd", "imbalance_factor": 100.0, "counts": counts.tolist(), "sha256": "0" * 64,
    "provenance": "",
  }  # fmt: skip
  return {
    "schema": tables.SCHEMA, "dataset": dataset, "split": split, "test_counts": total.tolist(),
    "class_names": (NAMES + [f"class {c}" for c in range(k)])[:k], "group_rule": "thirds",
    "recipe": None, "student": {"name": "convnet"}, "teachers": [], "rows": rows,
    "notes": ["a <b>note</b>"], "stages": {}, "versions": {},
  }  # fmt: skip


def write(workdir, k=8, per_class=2, side=8, **options):
  """Writes a finished run of `results_of`; returns its results."""
  results = results_of(k, **options)
  images = np.random.RandomState(1).randint(0, 256, (k * per_class, side, side, 3)).astype(np.uint8)
  labels = np.repeat(np.arange(k), per_class).astype(np.int32)
  with Workdir(workdir) as work:
    work.write_run_info({"seed": 3, "data": {"name": "<i>small</i>"}})
    work.commit(
      "distil/edc", config={}, inputs={}, arrays={"images": images, "labels": labels},
      class_names=results["class_names"],
    )  # fmt: skip
  report, b = workdir / "report", min(k, 100)
  report.mkdir(exist_ok=True)
  (report / "results.json").write_text(json.dumps(results))
  matrix = np.full((b, b), 1 / b, np.float32)
  names = ("confusion|edc|hard|", "labels|edc|teacher|plain", "labels|edc|teacher|adsa")
  np.savez(report / "matrices.npz", **dict.fromkeys(names, matrix))
  folder = workdir / "metrics" / "student" / "edc" / "hard" / "seed0"
  folder.mkdir(parents=True)
  lines = [json.dumps({"step": t, "loss": 1 / t}) for t in (1, 2, 3)]
  (folder / "metrics.jsonl").write_text("\n".join([*lines, '{"step": 4, "loss": "nan"}']) + "\n")
  return results
