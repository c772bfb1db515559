"""The results of a run: `results.json`, `report.md` and the table on the terminal.

All accuracies are percentages of the balanced test set. The last step is the result; the best over
the evaluations is shown beside it and called so. Standard deviations are over seeds, with n - 1.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from ltdd_jax.core import files

GROUPS = ("head", "mid", "tail")
SIZES = ("image bytes", "label bytes")
SCHEMA = 3  # of results.json: says the student network, and what made each row


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


# ---- Markdown ----


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
  """A Markdown table whose columns line up in a terminal too; numbers are right-aligned."""
  header, *rows = [[_in_one_line(cell) for cell in r] for r in (header, *rows)]
  widths = [max(len(r[i]) for r in (header, *rows)) for i in range(len(header))]
  line = lambda cells: (
    "| " + " | ".join(c.rjust(w) for c, w in zip(cells, widths, strict=True)) + " |"
  )
  rule = "|" + "|".join("-" * (w + 1) + ":" for w in widths) + "|"
  return "\n".join([line(header), rule, *map(line, rows)])


def printable(text: str) -> str:
  """A text in one line: escapes line breaks and control characters."""
  return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def _in_one_line(cell: str) -> str:
  """Escapes what ends a cell, a line or a page."""
  return printable(cell).replace("|", "\\|")


def plus_minus(value: Mapping[str, Any]) -> str:
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
    f"SHA-256 `{split['sha256'][:12]}`. Test: {test_sentence(results['test_counts'])}. "
    "Accuracies in percent, of the last step unless called best; ± is the standard deviation over "
    "seeds.",
    *([f"Students by recipe {results['recipe']}."] if results.get("recipe") else []),
    _group_sentence(results),
    students_table(results),
  ]
  if results["teachers"]:
    title = "Teachers, trained on the long-tailed set (nothing is selected by these numbers):"
    parts += [title, teachers_table(results)]
  parts += _calibrations(results)
  parts += ["## Accuracy of each class", per_class_table(results)]
  parts += ["## Stages", stages_table(results)]
  if results["notes"]:
    parts += ["## Notes", "\n".join(f"* {note}" for note in results["notes"])]
  return "\n\n".join(parts) + "\n"


def test_sentence(counts: Sequence[int]) -> str:
  """What the test set is, as "10,000 images, balanced"."""
  if min(counts) == max(counts):
    return f"{sum(counts):,} images, balanced"
  return f"{sum(counts):,} images, {max(counts):,} to {min(counts):,} a class, not balanced"


def _group_sentence(results: Mapping[str, Any]) -> str:
  counts = results["split"]["counts"]
  present = present_groups(results["rows"])
  sizes = []
  for g in present:
    n = [counts[c] for c in results["rows"][0]["groups"][g]["classes"]]
    sizes.append(f"{g} {len(n)} classes of {max(n):,} to {min(n):,} images")
  return f"Groups by rule `{results['group_rule']}`: {'; '.join(sizes)}."


def _top1(rows: Sequence[Mapping[str, Any]]) -> str:
  """The name of the column, which says so if classes have no test image."""
  tested = [x is not None for x in rows[0]["per_class"]]
  return "top-1" if all(tested) else f"top-1 of {sum(tested)} of {len(tested)} classes"


def present_groups(rows: Sequence[Mapping[str, Any]]) -> list[str]:
  """Those of head, mid and tail that have a class; two classes, for one, have no mid."""
  return [g for g in GROUPS if any(g in r["groups"] for r in rows)]


def group_cells(row: Mapping[str, Any], groups: Sequence[str]) -> list[str]:
  """Accuracies of groups of classes."""
  return [plus_minus(row["groups"][g]) for g in groups]


def students_table(results: Mapping[str, Any]) -> str:
  """The main table."""
  groups = present_groups(results["rows"])
  header = ["images", "labels", "calibrator", "tau", _top1(results["rows"]), "best top-1", *groups]
  header += ["worst class", "seeds", *SIZES]
  rows = [
    [
      r["images"],
      r["labels"],
      r["calibrator"] or "-",
      or_dash(r["tau"], ".3f"),
      plus_minus(r["top1"]),
      plus_minus(r["best_top1"]),
      *group_cells(r, groups),
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
  return table(*teachers_cells(results))


def teachers_cells(results: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
  """The header and the rows of `teachers_table`."""
  groups = present_groups(results["teachers"])
  rows = [[r["name"], plus_minus(r["top1"]), *group_cells(r, groups)] for r in results["teachers"]]
  return ["teacher", _top1(results["teachers"]), *groups], rows


def short(row: Mapping[str, Any]) -> str:
  """What labels a row has, in one word or two: the label source only where it says something."""
  if row["calibrator"] is None:
    return row["labels"]
  return row["calibrator"] if row["labels"] == "teacher" else f"{row['labels']} {row['calibrator']}"


def per_class_table(results: Mapping[str, Any]) -> str:
  """Accuracy of each class, with its number of training images."""
  return table(*per_class_cells(results, range(len(results["class_names"]))))


def per_class_cells(
  results: Mapping[str, Any], classes: Iterable[int]
) -> tuple[list[str], list[list[str]]]:
  """The header and the rows of `per_class_table`, for these classes in their order."""
  header = ["class", "images", *(f"{r['images']} {short(r)}" for r in results["rows"])]
  names, counts = results["class_names"], results["split"]["counts"]
  rows = [
    [
      printable(names[c]),
      f"{counts[c]:,}",
      *(or_dash(r["per_class"][c], ".1f") for r in results["rows"]),
    ]
    for c in classes
  ]
  return header, rows


def stages_table(results: Mapping[str, Any]) -> str:
  """Time and memory of each stage."""
  rows = []
  for name, s in results["stages"].items():
    done = "skipped" if s["skipped"] else "run"
    rows.append([name, f"{s['seconds']:.1f}", f"{s['peak_bytes'] / 1e6:,.0f}", done])
  return table(["stage", "seconds", "peak MB", "this time"], rows)


def _calibrations(results: Mapping[str, Any]) -> list[str]:
  """Class confidences before and after each calibration that was fitted."""
  fitted = [r for r in results["rows"] if "confidence_before" in r.get("calibration", {})]
  if not fitted:
    return []
  header, columns = ["class"], []
  for i, r in enumerate(fitted):
    known = [(other["images"], other["labels"]) for other in fitted[:i]]
    if (r["images"], r["labels"]) not in known:  # the same for all calibrators
      own = "" if r["labels"] == "teacher" else f" {r['labels']}"
      header.append(f"{r['images']}{own} before")
      columns.append(r["calibration"]["confidence_before"])
    after = r["calibration"]["confidence_after"]
    if any(x is not None for x in after):  # else the message says what was done
      header.append(f"{r['images']} {short(r)}")
      columns.append(after)
  rows = [
    [name, *(or_dash(column[c], ".3f") for column in columns)]
    for c, name in enumerate(results["class_names"])
  ]
  messages = [f"* {r['images']} / {short(r)}: {r['calibration']['message']}" for r in fitted]
  title = "## Class confidences (mean probability of the assigned class on the fitted views)"
  return [title, "\n".join(messages), table(header, rows)]


def or_dash(value: float | None, form: str) -> str:
  """A formatted number, or a dash where there is none."""
  return "-" if value is None else format(value, form)


def read_results(workdir: files.Pathlike) -> dict[str, Any]:
  """Reads `report/results.json` of a work directory."""
  return json.loads((files.path(workdir) / "report" / "results.json").read_text())
