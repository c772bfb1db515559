"""The sections of a report on one run: each function makes blocks of what the run has."""

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from ltdd_jax.core import files
from ltdd_jax.core.config import ABSENT, flatten
from ltdd_jax.interop import distilled_sets
from ltdd_jax.report import (
  class_plots,
  formats,
  html,
  pictures,
  plots,
  published,
  run_folder,
  run_plots,
  scores_report,
  tables,
)
from ltdd_jax.report.html import Block, Code, Section, Strip, Strips, Table, Text
from ltdd_jax.report.run_folder import Run

_SEEDS = re.compile(r"/?seed(\d+)(?:\+\d+)?$")
_CURVES = 16  # of a stage
_TALL = 30  # rows of a table that is shown open


def of_run(run: Run) -> list[Section]:
  """All sections, those without content too."""
  made = [
    ("results", "Results", _results),
    ("repeat", "How to repeat it", _repeat),
    ("split", "Training set", _split),
    ("classes", "Accuracy of classes", _classes),
    ("labels", "Soft labels", _labels),
    ("images", "Distilled images", _images),
    ("scores", "Scores", _scores),
    ("confusion", "Confusion", _confusion),
    ("training", "Training", _training),
    ("cost", "Cost", _cost),
    ("config", "Config", _config),
    ("machine", "Versions and hardware", _machine),
    ("missing", "What is missing", _missing),
  ]
  return [Section(name, title, _made(run, title, blocks)) for name, title, blocks in made]


def _made(run: Run, title: str, make: Callable[[Run], Iterator[Block]]) -> list[Block]:
  """The blocks of a section, up to one that damaged files have nothing sensible for."""
  found: list[Block] = []
  try:
    found.extend(make(run))
  except run_folder.DAMAGED as error:
    run.missing.append(f"the section {title!r} cannot be made: {error!r}")
  return found


def _results(run: Run) -> Iterator[Block]:
  if run.results is None:
    yield Text("The run has no results yet.")
    return
  header, rows = formats.results_table(run.results)
  marked = formats.marks(header, rows)
  if beside := published.beside_run(run.results):
    header = [*header, "published", "best published"]
    rows = [[*row, *pair] for row, pair in zip(rows, beside, strict=True)]
  sizes = [tables.size_cells(row) for row in run.results["rows"]]
  rows = [[*row, *cells] for row, cells in zip(rows, sizes, strict=True)]
  test = tables.test_sentence(run.results["test_counts"])
  caption = f"Top-1 in percent of the test set ({test}), mean ± standard deviation over seeds, "
  caption += "after the last step. Best and second best are marked."
  yield Table(caption, [*header, *tables.SIZES], rows, marked)
  if any(row["seeds"] == 1 for row in run.results["rows"]):
    yield Text("Rows of one seed have no standard deviation.")
  if beside:
    split = run.results["split"]["provenance"] or "not known to be the published one"
    yield Text(
      "Published numbers may be of other networks; they are named in brackets. The split of this "
      f"run: {split}."
    )
  if run.results.get("recipe"):
    yield Text(f"Students by recipe {run.results['recipe']}.")
  if run.results["notes"]:
    yield Text("Notes of the run:", run.results["notes"])


def _repeat(run: Run) -> Iterator[Block]:
  if commands := list(dict.fromkeys(s["command"] for s in run.starts if "command" in s)):
    yield Code(
      "Commands that this work directory was made with, the last one last.", "\n".join(commands)
    )
  if run.starts and (code := run.starts[-1].get("code")):
    changed = ", with changes that were not committed" if code["dirty"] else ""
    yield Text(f"Code: revision {code['revision']}{changed}.")
  if run.config:
    seed = flatten(run.config).get("seed", "unknown")
    yield Text(f"Seed {seed}. All values are in the config below.")


def _split(run: Run) -> Iterator[Block]:
  if run.results is None:
    return
  split, counts = run.results["split"], run.results["split"]["counts"]
  test = run.results["test_counts"]
  yield Text(
    f"{sum(counts):,} training images in {len(counts):,} classes, {max(counts):,} to "
    f"{min(counts):,} a class (rule {split['rule']}, imbalance factor "
    f"{split['imbalance_factor']:g}); {sum(test):,} test images.",
    [
      f"SHA-256 of the split: {split['sha256']}",
      f"Published split: {split['provenance'] or 'not known for this data set'}",
    ],
  )
  yield html.figure(
    class_plots.class_counts(run.results),
    f"Training images of each class, from {max(counts):,} to {min(counts):,}.",
  )


def _classes(run: Run) -> Iterator[Block]:
  if run.results is None:
    return
  yield html.figure(
    plots.accuracies(run.results),
    "Accuracy of each class by kind of label, from head to tail, mean over seeds.",
  )
  order = np.argsort(-np.asarray(run.results["split"]["counts"]), kind="stable")
  header, rows = tables.per_class_cells(run.results, order)
  yield Table("Accuracy of each class in percent", header, rows, folded=len(rows) > _TALL)
  if run.results["teachers"]:
    caption = "Teachers on the test set; nothing is selected by it"
    yield Table(caption, *tables.teachers_cells(run.results))


def _labels(run: Run) -> Iterator[Block]:
  if run.results is None:
    return
  rows = run.results["rows"]
  if any(plots.has_confidences(row) for row in rows):
    yield html.figure(
      plots.confidences(run.results),
      "Mean probability that soft labels give to the class of their image, before and after.",
    )
  if any(row.get("calibration", {}).get("curve") for row in rows):
    yield html.figure(
      run_plots.objectives(run.results),
      "Objective of each calibration along tau, its choice and the interval of the choice.",
    )
  yield from _heat_maps(run, "labels", "class of the image", "probability given to")
  messages = [
    f"{row['images']} / {tables.short(row)}: {row['calibration']['message']}"
    for row in rows
    if row.get("calibration", {}).get("message")
  ]
  if messages:
    yield Text("What calibrators say:", messages)


def _confusion(run: Run) -> Iterator[Block]:
  yield from _heat_maps(run, "confusion", "true class", "predicted as")


def _heat_maps(run: Run, kind: str, rows: str, columns: str) -> Iterator[Block]:
  """A figure for each image source, a panel for each kind of label."""
  if run.results is None:
    return
  sources: dict[str, dict[str, np.ndarray]] = {}
  for name, matrix in run.matrices.items():
    found, images, labels, calibrator = (*name.split("|"), "", "", "")[:4]
    if found == kind:
      row = {"labels": labels, "calibrator": calibrator or None}
      sources.setdefault(images, {})[tables.short(row)] = matrix
  what = {"labels": "Mean soft labels", "confusion": "Predictions of students"}[kind]
  for images, panels in sources.items():
    yield html.figure(
      class_plots.heat_maps(panels, run.results, rows=rows, columns=columns),
      f"{what} of {images} images by kind of label ({', '.join(panels)}); classes from head to "
      "tail, rows sum to 1.",
    )


def _images(run: Run) -> Iterator[Block]:
  for source, stored in run.images.items():
    images, labels = stored["images"], np.asarray(stored["labels"])
    names, order, near = _class_names(run, labels), _order(run, labels), _neighbours(run, source)
    how = pictures.plan(images.shape[1:], len(order), len(run.images) + len(run.neighbours))
    strips = []
    for c in order:
      own = np.flatnonzero(labels == c)
      rows = own[: how.each]
      neighbours, text = None, f"{len(rows)} of {len(own)} images"
      if near is not None:
        neighbours = pictures.strip(near["images"][rows], how)
        text += "; below, the nearest training image of each"
      alt = f"{len(rows)} distilled images of class {names[c]}"
      strips.append(Strip(names[c], alt, pictures.strip(images[rows], how), text, neighbours))
    changed = how.sentence(images.shape[1:])
    caption = f"{source}: {len(labels):,} images{', shown ' + changed if changed else ''}."
    yield Strips(f"{caption} Open a class to enlarge it.", strips)


def _neighbours(run: Run, source: str) -> dict[str, np.ndarray] | None:
  """The nearest training images of a source's images; None if they are of other images."""
  found, stored = run.neighbours.get(source), run.images[source]
  own = distilled_sets.content_sha256(stored["images"], stored["labels"])
  return found if found and str(found.get("of")) == own else None


def _scores(run: Run) -> Iterator[Block]:
  if run.scores is not None:
    header, rows = scores_report.scores_table(run.scores)
    caption = f"DD-Ranking's scores of {run.scores['images']} images, as fractions; "
    caption += f"accuracies: {run.scores['accuracy']}"
    yield Table(caption, header, rows)
    yield Table("Leakage of training images", *scores_report.leakage_table(run.scores))
    yield Text(scores_report.LEAKAGE)


def _class_names(run: Run, labels: np.ndarray) -> dict[int, str]:
  names = next((m["class_names"] for m in run.stages.values() if m.get("class_names")), None)
  return {
    int(c): tables.printable(names[c]) if names else str(c) for c in range(int(labels.max()) + 1)
  }


def _order(run: Run, labels: np.ndarray) -> list[int]:
  """Classes with images, from head to tail where the counts are known."""
  there = np.unique(labels)
  counts = run.stages.get("data", {}).get("extra", {}).get("counts")
  return sorted((int(c) for c in there), key=lambda c: (-counts[c] if counts else 0, c))


def _training(run: Run) -> Iterator[Block]:
  kinds: dict[str, dict[str, Any]] = {}
  for name, curve in run.curves.items():
    kind, _, rest = name.partition("/")
    kinds.setdefault(kind, {})[rest] = curve
  for kind, curves in kinds.items():
    shown = {_SEEDS.sub("", k) or kind: v for k, v in curves.items() if _is_first(k)}
    names = list(shown)[:_CURVES]
    caption = f"Loss of stage {kind} by step; of several seeds, the first"
    caption += f"; {len(names)} of {len(shown)}." if len(names) < len(shown) else "."
    if names:
      yield html.figure(run_plots.training_curves({k: shown[k] for k in names}), caption)


def _is_first(name: str) -> bool:
  """Whether a loop is not one of later seeds; those that train at once are "seed0+2"."""
  found = _SEEDS.search(name)
  return found is None or found[1] == "0"


def _cost(run: Run) -> Iterator[Block]:
  rows = [
    [name, f"{about['seconds']:,.1f}", f"{about['peak_bytes'] / 1e6:,.0f}",
     files.size(sum(f["bytes"] for f in about["files"].values())), about.get("hardware", "-")]
    for name, about in sorted(run.stages.items(), key=lambda item: -item[1]["seconds"])
  ]  # fmt: skip
  if rows:
    total = sum(about["seconds"] for about in run.stages.values())
    caption = f"Finished stages, the longest first; {total:,.0f} seconds in all"
    header = ["stage", "seconds", "peak MB", "on disk", "hardware"]
    yield Table(caption, header, rows, folded=len(rows) > _TALL)


def _config(run: Run) -> Iterator[Block]:
  if run.config is None:
    return
  rows = [[key, json.dumps(value)] for key, value in flatten(run.config).items()]
  if changed := run.starts[-1].get("changed") if run.starts else None:
    values = [[key, *map(_value, pair)] for key, pair in changed.items()]
    header = ["key", "default", "value"]
    yield Table("Values other than those of the config file without arguments", header, values)
  yield Table(f"All {len(rows)} values", ["key", "value"], rows, folded=True)


def _value(value: Any) -> str:
  return "-" if value == ABSENT else json.dumps(value)


def _machine(run: Run) -> Iterator[Block]:
  versions = {k: v for s in run.starts for k, v in s.get("versions", {}).items()}
  if versions:
    yield Table("Packages", ["package", "version"], [[k, v] for k, v in versions.items()])
  rows = [
    [s.get("since", "-"), ", ".join(s.get("devices", [])), str(s.get("processes", "-"))]
    for s in run.starts
  ]
  if rows:
    yield Table("Starts", ["time", "devices", "processes"], rows, folded=len(rows) > _TALL)


def _missing(run: Run) -> Iterator[Block]:
  if run.missing:
    yield Text("The work directory is unfinished, damaged or of another version:", run.missing)
