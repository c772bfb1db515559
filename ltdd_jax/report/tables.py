"""The results of a run: `results.json`, `report.md` and the table on the terminal.

All accuracies are percentages of the balanced test set. The last step is the result; the best over
the evaluations is shown beside it and called so. Standard deviations are over seeds, with n - 1.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from ltdd_jax.core import files
from ltdd_jax.data import longtail
from ltdd_jax.pipeline import stages as stages_lib
from ltdd_jax.pipeline import supervision as label_sources
from ltdd_jax.report import images, plots
from ltdd_jax.students.recipes import changes

SCHEMA = 1
GROUPS = ("head", "mid", "tail")
SIZES = ("image bytes", "label bytes")


def write_report(
  ctx: stages_lib.Context, stages: Sequence[stages_lib.Stage], skipped: Mapping[str, bool]
) -> dict[str, Any]:
  """Reads all artefacts of a run, writes `workdir/report/` and prints the table.

  Of a pod, the first process writes and prints.

  Args:
    ctx: the run.
    stages: its stages.
    skipped: whether each stage of this run was skipped.

  Returns:
    The contents of `results.json`.
  """
  results = collect(ctx, stages, skipped)
  if jax.process_index() != 0:
    return results
  folder = ctx.workdir.path / "report"
  text = render(results)
  for source in stages_lib.image_sources(ctx.config):
    pictures, labels = ctx.images(source)
    images.write_grid(folder / f"images-{source}.png", pictures, labels)
  plots.write_plots(results, folder)
  files.write_text(folder / "results.json", json.dumps(results, indent=1, allow_nan=False))
  files.write_text(folder / "report.md", text)
  print(text)
  return results


def collect(
  ctx: stages_lib.Context, stages: Sequence[stages_lib.Stage], skipped: Mapping[str, bool]
) -> dict[str, Any]:
  """Gathers the results of a run into plain numbers, lists and strings."""
  data = ctx.workdir.load("data").meta
  rule = ctx.config["report"]["groups"]
  groups = longtail.groups(ctx.counts, rule)
  metas = {s.name: ctx.workdir.load(s.name).meta for s in stages}
  return {
    "schema": SCHEMA,
    "dataset": data["extra"]["dataset"],
    "class_names": list(data["class_names"]),
    "test_counts": data["extra"]["test_counts"],
    "split": {
      "rule": data["extra"]["rule"],
      "imbalance_factor": data["extra"]["imbalance_factor"],
      "counts": data["extra"]["counts"],
      "sha256": data["split_sha256"],
    },
    "group_rule": rule,
    "recipe": changes.sentence_of(ctx.config, len(ctx.slots().labels), len(ctx.counts)),
    "teachers": teacher_rows(ctx, groups),
    "rows": [
      student_row(ctx, source, regime, groups)
      for source in stages_lib.image_sources(ctx.config)
      for regime in stages_lib.regimes(ctx.config)
    ],
    "notes": [
      f"{name}: {note}" for name, meta in metas.items() for note in meta["extra"].get("notes", ())
    ],
    "stages": {
      name: {
        "seconds": meta["seconds"],
        "peak_bytes": meta["peak_bytes"],
        "skipped": bool(skipped.get(name, True)),
      }
      for name, meta in metas.items()
    },
    "versions": metas["data"]["versions"],
  }


def mean_std(values: np.ndarray) -> dict[str, float | None]:
  """Mean and standard deviation over seeds (s,); None for the std of one seed, or for no number."""
  values = np.asarray(values, np.float64)
  std = float(values.std(ddof=1)) if len(values) > 1 else None
  return {"mean": float(values.mean()), "std": std}


def scores(
  correct: np.ndarray, total: np.ndarray, groups: Mapping[str, Sequence[int]]
) -> dict[str, Any]:
  """Turns counts of correct predictions into percentages.

  Args:
    correct: (s, m, k) at each of m evaluations of s seeds; the last is the result.
    total: (k,) test images of each class.
    groups: classes of each group.
  """
  tested = total > 0  # a class without test images counts nowhere
  per_class = 100.0 * correct[:, -1] / np.where(tested, total, 1)  # (s, k)
  top1 = 100.0 * correct.sum(-1) / total.sum()  # (s, m)
  mean = np.where(tested, per_class.mean(0), np.inf)
  worst = int(np.argmin(mean))
  groups = {name: [int(c) for c in members if tested[c]] for name, members in groups.items()}
  return {
    "top1": mean_std(top1[:, -1]),
    "best_top1": mean_std(top1.max(1)),
    "groups": {
      name: mean_std(per_class[:, members].mean(1)) | {"classes": members}
      for name, members in groups.items()
      if len(members)
    },
    "per_class": [float(x) if ok else None for x, ok in zip(mean, tested, strict=True)],
    "worst_class": {"class": worst} | mean_std(per_class[:, worst]),
  }


def teacher_rows(
  ctx: stages_lib.Context, groups: Mapping[str, Sequence[int]]
) -> list[dict[str, Any]]:
  """Scores of the teachers on the test set, for orientation; nothing is selected by them."""
  artefact = ctx.workdir.load("teacher")
  correct, total = artefact.arrays["test_correct"], artefact.arrays["test_total"]
  return [
    {"name": name} | scores(row[None, None], total, groups)
    for name, row in zip(artefact.meta["extra"]["teachers"], correct, strict=True)
  ]


def student_row(
  ctx: stages_lib.Context, source: str, regime: str, groups: Mapping[str, Sequence[int]]
) -> dict[str, Any]:
  """One row of the table: an image source with one kind of label."""
  arrays = ctx.workdir.load(f"student/{source}/{regime}").arrays
  row: dict[str, Any] = {"images": source, "labels": regime, "calibrator": None, "tau": None}
  if regime != stages_lib.HARD:
    fitted = ctx.workdir.load(f"calibrate/{source}/{regime}").meta["extra"]["report"]
    row["calibrator"] = ctx.config["calibrate"]["calibrators"][regime]["name"]
    row["tau"] = fitted.get("tau")
    row["calibration"] = fitted
  row["seeds"] = len(arrays["correct"])
  pictures, targets = ctx.images(source)
  row["images_per_class"] = np.bincount(targets, minlength=ctx.source.spec.num_classes).tolist()
  row["image_bytes"] = pictures.nbytes
  row["label_bytes"] = label_sources.label_bytes(ctx, source, regime)
  return row | scores(arrays["correct"], arrays["total"], groups)


# ---- Markdown ----


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
  """A Markdown table whose columns line up in a terminal too; numbers are right-aligned."""
  widths = [max(len(r[i]) for r in (header, *rows)) for i in range(len(header))]
  line = lambda cells: (
    "| " + " | ".join(c.rjust(w) for c, w in zip(cells, widths, strict=True)) + " |"
  )
  rule = "|" + "|".join("-" * (w + 1) + ":" for w in widths) + "|"
  return "\n".join([line(header), rule, *map(line, rows)])


def plus_minus(value: Mapping[str, float]) -> str:
  """Mean and standard deviation, one decimal."""
  if value["std"] is None:
    return f"{value['mean']:.1f}"
  return f"{value['mean']:.1f} ± {value['std']:.1f}"


def render(results: Mapping[str, Any]) -> str:
  """The report as Markdown."""
  split = results["split"]
  counts = split["counts"]
  parts = [
    f"# {results['dataset']}, long-tailed",
    f"Split: rule `{split['rule']}`, imbalance factor {split['imbalance_factor']:g}, "
    f"{sum(counts):,} training images ({max(counts):,} to {min(counts):,} a class), "
    f"SHA-256 `{split['sha256'][:12]}`. Test: {_test_sentence(results['test_counts'])}. "
    "Accuracies in percent, of the last step unless called best; ± is the standard deviation over "
    "seeds.",
    *([f"Students by recipe {results['recipe']}."] if results.get("recipe") else []),
    _group_sentence(results),
    students_table(results),
    "Teachers, trained on the long-tailed set (nothing is selected by these numbers):",
    teachers_table(results),
    *_calibrations(results),
    "## Accuracy of each class",
    per_class_table(results),
    "## Stages",
    stages_table(results),
  ]
  if results["notes"]:
    parts += ["## Notes", "\n".join(f"* {note}" for note in results["notes"])]
  return "\n\n".join(parts) + "\n"


def _test_sentence(counts: Sequence[int]) -> str:
  if min(counts) == max(counts):
    return f"{sum(counts):,} images, balanced"
  return f"{sum(counts):,} images, {max(counts):,} to {min(counts):,} a class, not balanced"


def _group_sentence(results: Mapping[str, Any]) -> str:
  counts = results["split"]["counts"]
  present = [g for g in GROUPS if g in results["rows"][0]["groups"]]
  sizes = []
  for g in present:
    n = [counts[c] for c in results["rows"][0]["groups"][g]["classes"]]
    sizes.append(f"{g} {len(n)} classes of {max(n):,} to {min(n):,} images")
  return f"Groups by rule `{results['group_rule']}`: {'; '.join(sizes)}."


def group_cells(row: Mapping[str, Any]) -> list[str]:
  """Accuracies of head, mid and tail, with dashes for groups without a class."""
  return [plus_minus(row["groups"][g]) if g in row["groups"] else "-" for g in GROUPS]


def students_table(results: Mapping[str, Any]) -> str:
  """The main table."""
  header = ["images", "labels", "tau", "top-1", "best top-1", *GROUPS, "worst class", "seeds"]
  header += SIZES
  rows = [
    [
      r["images"],
      r["labels"],
      "-" if r["tau"] is None else f"{r['tau']:.3f}",
      plus_minus(r["top1"]),
      plus_minus(r["best_top1"]),
      *group_cells(r),
      f"{r['worst_class']['mean']:.1f} ({results['class_names'][r['worst_class']['class']]})",
      str(r["seeds"]),
      *size_cells(r),
    ]
    for r in results["rows"]
  ]
  return table(header, rows)


def size_cells(row: Mapping[str, Any]) -> list[str]:
  """What images (as uint8) and labels (on disk) of a row take, under `SIZES`."""
  labels = row["label_bytes"]
  return [files.size(row["image_bytes"]), "on line" if labels is None else files.size(labels)]


def teachers_table(results: Mapping[str, Any]) -> str:
  """One line for each teacher."""
  cells = lambda r: [f"{r['groups'][g]['mean']:.1f}" if g in r["groups"] else "-" for g in GROUPS]
  rows = [[r["name"], f"{r['top1']['mean']:.1f}", *cells(r)] for r in results["teachers"]]
  return table(["teacher", "top-1", *GROUPS], rows)


def per_class_table(results: Mapping[str, Any]) -> str:
  """Accuracy of each class, with its number of training images."""
  header = ["class", "images", *(f"{r['images']} {r['labels']}" for r in results["rows"])]
  rows = [
    [name, f"{count:,}", *(or_dash(r["per_class"][c], ".1f") for r in results["rows"])]
    for c, (name, count) in enumerate(
      zip(results["class_names"], results["split"]["counts"], strict=True)
    )
  ]
  return table(header, rows)


def stages_table(results: Mapping[str, Any]) -> str:
  """Time and memory of each stage."""
  rows = [
    [
      name,
      f"{s['seconds']:.1f}",
      f"{s['peak_bytes'] / 1e6:,.0f}",
      "skipped" if s["skipped"] else "",
    ]
    for name, s in results["stages"].items()
  ]
  return table(["stage", "seconds", "peak MB", "this time"], rows)


def _calibrations(results: Mapping[str, Any]) -> list[str]:
  """Class confidences before and after each calibration that was fitted."""
  fitted = [r for r in results["rows"] if "confidence_before" in r.get("calibration", {})]
  if not fitted:
    return []
  header, columns = ["class"], []
  for i, r in enumerate(fitted):
    if r["images"] not in [other["images"] for other in fitted[:i]]:  # the same for its calibrators
      header.append(f"{r['images']} before")
      columns.append(r["calibration"]["confidence_before"])
    header.append(f"{r['images']} {r['labels']}")
    columns.append(r["calibration"]["confidence_after"])
  rows = [
    [name, *(or_dash(column[c], ".3f") for column in columns)]
    for c, name in enumerate(results["class_names"])
  ]
  messages = [f"* {r['images']} / {r['labels']}: {r['calibration']['message']}" for r in fitted]
  title = "## Class confidences (mean probability of the assigned class on the fitted views)"
  return [title, "\n".join(messages), table(header, rows)]


def or_dash(value: float | None, form: str) -> str:
  """A formatted number, or a dash where there is none."""
  return "-" if value is None else format(value, form)


def read_results(workdir: files.Pathlike) -> dict[str, Any]:
  """Reads `report/results.json` of a work directory."""
  return json.loads((files.path(workdir) / "report" / "results.json").read_text())
