"""The results of a run: `report/results.json`, `report/report.md`, pictures, and the table."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath

from ltdd_jax import models
from ltdd_jax.core import config as config_lib
from ltdd_jax.core import files
from ltdd_jax.data import longtail
from ltdd_jax.pipeline import graph, matrices, neighbours
from ltdd_jax.pipeline import stages as stages_lib
from ltdd_jax.pipeline.context import HARD, Context, Row
from ltdd_jax.report import html, images, page, plots, published, tables


def write_report(
  ctx: Context, stages: Sequence[graph.Stage], skipped: Mapping[str, bool]
) -> dict[str, Any]:
  """Reads all artefacts of a run, writes `workdir/report/` and prints the table.

  Of a pod, the first process writes and prints. Returns the contents of `results.json`.
  """
  results = collect(ctx, stages, skipped)
  if jax.process_index() != 0:
    return results
  folder = ctx.workdir.path / "report"
  text = tables.render(results)
  for source in graph.used_sources(ctx.config):
    distilled = ctx.distilled(source)
    images.write_grid(folder / f"images-{source}.png", distilled["images"], distilled["labels"])
    neighbours.write(ctx, source, folder)
  plots.write_plots(results, folder)
  matrices.write(ctx, folder)
  files.write_text(folder / "results.json", json.dumps(results, indent=1, allow_nan=False))
  files.write_text(folder / "report.md", text)
  write_page(ctx.workdir.path)
  print(text)
  return results


def write_page(workdir: epath.Path) -> None:
  """Writes the HTML report if the packages for it are installed."""
  if html.available():
    page.write([workdir])


def collect(
  ctx: Context, stages: Sequence[graph.Stage], skipped: Mapping[str, bool]
) -> dict[str, Any]:
  """Gathers the results of a run into plain numbers, lists and strings."""
  data = ctx.workdir.load("data").meta
  rule = ctx.config["report"]["groups"]
  groups = longtail.groups(ctx.counts, rule)
  metas = {s.name: ctx.workdir.load(s.name).meta for s in stages}
  return {
    "schema": tables.SCHEMA,
    "dataset": data["extra"]["dataset"],
    "class_names": list(data["class_names"]),
    "test_counts": data["extra"]["test_counts"],
    "split": _split(ctx),
    "group_rule": rule,
    "recipe": ctx.recipe,
    "student": _whole(ctx.config["student"]["model"]),
    "teachers": teacher_rows(ctx, groups),
    "rows": [
      student_row(ctx, row, groups) | made_by(metas, row.stage("student"))
      for row in graph.rows(ctx.config)
    ],
    "notes": [
      f"{name}: {note}" for name, meta in metas.items() for note in meta["extra"].get("notes", ())
    ],
    "stages": {
      name: {k: meta[k] for k in ("seconds", "peak_bytes")} | {"skipped": skipped.get(name, True)}
      for name, meta in metas.items()
    },
    "versions": metas["data"]["versions"],
  }


def _split(ctx: Context, name: str | None = None) -> dict[str, Any]:
  """The training set: the run's own, or one of `config.data.splits`."""
  split = ctx.split(name)
  return {
    "rule": split.rule,
    "imbalance_factor": split.imbalance_factor,
    "counts": list(split.counts),
    "sha256": split.sha256,
    "provenance": longtail.provenance(ctx.source.spec.name, split),
  }


def teacher_rows(ctx: Context, groups: Mapping[str, Sequence[int]]) -> list[dict[str, Any]]:
  """Scores of the teachers on the test set, for orientation; nothing is selected by them."""
  if not ctx.workdir.exists("teacher"):
    return []
  artefact = ctx.workdir.load("teacher")
  correct, total = artefact.arrays["test_correct"], artefact.arrays["test_total"]
  return [
    {"name": name} | tables.scores(row[None, None], total, groups)
    for name, row in zip(artefact.meta["extra"]["teachers"], correct, strict=True)
  ]


def student_row(ctx: Context, row: Row, groups: Mapping[str, Sequence[int]]) -> dict[str, Any]:
  """One row of the table."""
  arrays = ctx.workdir.load(row.stage("student")).arrays
  out: dict[str, Any] = row._asdict() | {"calibrator_name": None, "tau": None}
  if row.calibrator is not None:
    out["calibrator_name"] = ctx.config["calibrate"]["calibrators"][row.calibrator]["name"]
    fitted = ctx.workdir.load(row.stage("calibrate")).meta["extra"]["report"]
    out["tau"] = fitted.get("tau")
    out["calibration"] = fitted
  out["teacher"] = _teacher(ctx, row)
  if (name := ctx.split_name(row.images)) is not None:
    out["split"] = _split(ctx, name)
  distilled = ctx.distilled(row.images)
  counts = np.bincount(distilled["labels"], minlength=ctx.source.spec.num_classes)
  out["seeds"] = len(arrays["correct"])
  out["images_per_class"] = counts.tolist()
  out["image_bytes"] = distilled["images"].nbytes
  out["label_bytes"] = stages_lib.label_bytes(ctx, row)
  return out | tables.scores(arrays["correct"], arrays["total"], groups)


def _teacher(ctx: Context, row: Row) -> str | None:
  """Who labelled, as "ConvNet-3 (norm=batch, width=64), cross_entropy, 30 epochs"."""
  if row.labels == HARD or ctx.label_source(row.labels).kind != "teacher":
    return None
  config = ctx.config["teacher"]
  chosen = ctx.label_source(row.labels).teachers or ()
  names = [published.network(_whole(config["models"][name])) for name in chosen]
  length = f"{config['num_epochs']} epochs"
  if config["num_steps"] is not None:
    length = f"{config['num_steps']} steps"
  return ", ".join([" + ".join(names), config["objective"]["name"], length])


def _whole(model: Mapping[str, Any]) -> dict[str, Any]:
  """A network's config with all its arguments."""
  return config_lib.with_defaults(models.MODELS[model["name"]], model)


def made_by(metas: Mapping[str, Mapping[str, Any]], stage: str) -> dict[str, Any]:
  """What made a row: seconds of all stages that it needs, their hardware and commits.

  Args:
    metas: {stage: manifest} of a run.
    stage: the row's last one. Stages that rows share count in each of them.

  Returns:
    `seconds`; `hardware` and `commit`, both with ", " between those of several stages. A commit
    ends in `-dirty` if the source tree had changes; what was not recorded is "unknown".
  """
  needed = [stage]
  for name in needed:  # grows
    needed += [other for other in metas[name]["inputs"] if other not in needed]
  own = [meta for name, meta in metas.items() if name in needed]
  return {
    "seconds": sum(meta["seconds"] for meta in own),
    "hardware": ", ".join(dict.fromkeys(meta.get("hardware", "unknown") for meta in own)),
    "commit": ", ".join(dict.fromkeys(_commit(meta["code"]) for meta in own)),
  }


def _commit(code: Mapping[str, Any] | None) -> str:
  if code is None:
    return "unknown"
  return code["revision"][:12] + ("-dirty" if code["dirty"] else "")
