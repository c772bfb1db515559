"""The report of the perturbation study, from `report/perturbation.json` alone."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from ltdd_jax.report import plots, tables

CELLS = {
  "bb": "balanced images, balanced teacher",
  "bi": "balanced images, imbalanced teacher",
  "ib": "imbalanced images, balanced teacher",
  "ii": "imbalanced images, imbalanced teacher",
}
TERMS = {"teacher": "teacher bias", "image": "image bias", "interaction": "interaction"}
SIDES = {"b": "balanced", "i": "imbalanced"}

# ---- Markdown ----


def render(results: Mapping[str, Any]) -> str:
  """The report as Markdown."""
  counts, images = results["counts"], results["images"]
  plain = results["labels"][results["plain"]]
  tested = plain["additivity"]["classes"]
  parts = [
    f"# {results['dataset']}: the perturbation study",
    f"Images by `{results['method']['name']}`: {images['balanced']:,} distilled from "
    f"{sum(counts['balanced']):,} balanced training images ({max(counts['balanced']):,} a class), "
    f"{images['imbalanced']:,} from {sum(counts['imbalanced']):,} imbalanced ones "
    f"({max(counts['imbalanced']):,} to {min(counts['imbalanced']):,}). Labels: class means of the "
    f"softmax over {results['label_epochs']:,} views of each image. Intervals are 95 % bootstrap "
    f"intervals over images, {results['study']['num_bootstrap']:,} samples; teachers and training "
    "sets are taken as given.",
    "## How large the biases are",
    "Frobenius norms of teacher bias T, image bias I and interaction X, all against balanced "
    "images with the balanced teacher's labels; in brackets the norm that chance alone would give. "
    f"p: test of X = 0, that is, of additivity, in {len(tested)} classes. tau: on balanced / "
    "imbalanced images.",
    sizes_table(results),
    f"## Class confidences and biases of the true class, {results['plain']} labels",
    confidence_table(results),
    "## Probability that each class gains or loses, mean over images of all classes, percent",
    mass_table(results),
    "## Students",
    "Accuracies in percent, of the last step; ± is the standard deviation over seeds. Students of "
    "one image source see the same views whoever labels them. With the balanced teacher the prior "
    "is uniform, and calibrators that follow the prior change nothing.",
    students_table(results),
    "Teachers:",
    tables.teachers_table(results),
    "## Accuracy of each class",
    accuracy_table(results),
    f"{results['seconds']:.0f} s in all stages.",
  ]
  return "\n\n".join(parts) + "\n"


def sizes_table(results: Mapping[str, Any]) -> str:
  """One line for each kind of label."""
  rows = []
  for regime, found in results["labels"].items():
    sizes = [_size(found["sizes"][t]) for t in TERMS]
    taus = [found["tau"][side] for side in SIDES.values()]
    text = "-" if None in taus else " / ".join(f"{t:.3f}" for t in taus)
    rows.append([regime, text, *sizes, tables.or_dash(found["additivity"]["p_value"], ".4f")])
  return tables.table(["labels", "tau", "T", "I", "X", "p"], rows)


def _size(size: Mapping[str, Any]) -> str:
  if size["norm"] is None:
    return "-"
  return f"{size['norm']:.3f} ({size['noise']:.3f})"


def confidence_table(results: Mapping[str, Any]) -> str:
  """Confidences of the classes in the four cells, and the diagonal of the biases."""
  found = results["labels"][results["plain"]]
  header = ["class", "images", *(" ".join(cell) for cell in CELLS), *TERMS.values()]
  rows = []
  for c, name in enumerate(results["class_names"]):
    cells = [tables.or_dash(found["confidence"][cell]["value"][c], ".3f") for cell in CELLS]
    terms = [_interval([found[t][e][c][c] for e in ("value", "low", "high")]) for t in TERMS]
    rows.append([name, f"{results['counts']['imbalanced'][c]:,}", *cells, *terms])
  return tables.table(header, rows)


def mass_table(results: Mapping[str, Any]) -> str:
  """Mean over rows of the three matrices, in percentage points."""
  found = results["labels"][results["plain"]]["mass"]
  rows = [
    [
      name,
      f"{results['counts']['imbalanced'][c]:,}",
      *(
        _interval([_percent(found[t][e][c]) for e in ("value", "low", "high")], ".1f")
        for t in TERMS
      ),
    ]
    for c, name in enumerate(results["class_names"])
  ]
  return tables.table(["class", "images", *TERMS.values()], rows)


def _percent(value: float | None) -> float | None:
  return None if value is None else 100 * value


def _interval(numbers: Sequence[float | None], form: str = ".3f") -> str:
  value, low, high = numbers
  if value is None:
    return "-"
  text = format(value, "+" + form)
  return text if low is None else f"{text} [{low:{form}}, {high:{form}}]"


def students_table(results: Mapping[str, Any]) -> str:
  """The main table of students."""
  header = ["images", "teacher", "labels", "tau", "top-1", *tables.GROUPS, "worst class"]
  header += tables.SIZES
  names = results["class_names"]
  rows = [
    [
      r["images"],
      "-" if r["calibrator"] is None else r["teacher"],
      _kind(r),
      tables.or_dash(r["tau"], ".3f"),
      tables.plus_minus(r["top1"]),
      *tables.group_cells(r),
      f"{r['worst_class']['mean']:.1f} ({names[r['worst_class']['class']]})",
      *tables.size_cells(r),
    ]
    for r in results["students"]
  ]
  return tables.table(header, rows)


def accuracy_table(results: Mapping[str, Any]) -> str:
  """Accuracy of each class in each cell, a column for each kind of label."""
  header = ["class", "images", *map(_short, results["students"])]
  rows = [
    [
      name,
      f"{results['counts']['imbalanced'][c]:,}",
      *(tables.or_dash(r["per_class"][c], ".1f") for r in results["students"]),
    ]
    for c, name in enumerate(results["class_names"])
  ]
  legend = "b balanced, i imbalanced: images, then teacher."
  return legend + "\n\n" + tables.table(header, rows)


def _short(row: Mapping[str, Any]) -> str:
  teacher = "" if row["calibrator"] is None else f" {row['teacher'][0]}"
  return f"{row['images'][0]}{teacher} {_kind(row)}"


def _kind(row: Mapping[str, Any]) -> str:
  """The calibrator of a row, or "hard"."""
  return row["calibrator"] or row["labels"]


# ---- figures ----


def write_plots(results: Mapping[str, Any], folder: epath.Path) -> tuple[epath.Path, ...]:
  """Writes the figures; none if matplotlib is not installed.

  Returns:
    The files that were written.
  """
  if not plots.available():
    return ()
  makers = {
    "labels": matrices_figure,
    "confidences": confidences_figure,
    "accuracies": accuracies_figure,
  }
  written = []
  for name, make in makers.items():
    written.append(folder / f"perturbation-{name}.png")
    plots.save(make(results), written[-1])
  return tuple(written)


def matrices_figure(results: Mapping[str, Any]) -> Any:
  """Heat maps: class-mean soft labels in the four cells, and below them the three terms."""
  found = results["labels"][results["plain"]]
  order = np.argsort(-np.asarray(results["counts"]["imbalanced"]), kind="stable")
  names = [results["class_names"][c] for c in order]
  figure = plots.new_figure(11.0, 5.8)
  axes = figure.subplots(2, 4)
  for axis, (cell, title) in zip(axes[0], CELLS.items(), strict=True):
    image = _heat_map(axis, found["matrices"][cell], order, names, cmap="viridis", low=0, high=1)
    axis.set_title(title.replace(", ", ",\n"), fontsize=9)
  figure.colorbar(image, ax=axes[0], shrink=0.8, label="mean probability")
  matrices = [np.asarray(found[t]["value"], np.float64) for t in TERMS]
  top = max(float(np.nanmax(np.abs(m))) for m in matrices) or 1.0
  for axis, (name, title) in zip(axes[1], TERMS.items(), strict=False):
    image = _heat_map(axis, found[name]["value"], order, names, cmap="RdBu_r", low=-top, high=top)
    axis.set_title(title, fontsize=9)
  figure.colorbar(image, ax=axes[1], shrink=0.8, label="difference")
  axes[1, 3].set_axis_off()
  axes[0, 0].set_ylabel("class of the image")
  axes[1, 0].set_ylabel("class of the image")
  figure.supxlabel("label, from head to tail", fontsize=10)
  return figure


def _heat_map(axis, matrix, order, names, *, cmap: str, low: float, high: float) -> Any:
  values = np.asarray(matrix, np.float64)[np.ix_(order, order)]
  image = axis.imshow(values, cmap=cmap, vmin=low, vmax=high, interpolation="nearest")
  few = len(names) <= plots.MAX_BARS
  axis.set_xticks(range(len(names)) if few else [], names if few else [], fontsize=7)
  axis.set_yticks(range(len(names)) if few else [], names if few else [], fontsize=7)
  if few and max(map(len, names)) > 2:
    axis.tick_params(axis="x", rotation=90)
  return image


def confidences_figure(results: Mapping[str, Any]) -> Any:
  """Class confidences: a panel for each image source, bars for teachers and calibrators."""
  labels, plain = results["labels"], results["plain"]
  kinds = {_kind(r): r["calibrator_name"] for r in results["students"]}
  first, *rest = plots.colours([{"calibrator_name": c} for c in (None, *map(kinds.get, labels))])
  panels = {}
  for short, side in SIDES.items():
    cell = lambda teacher, regime, s=short: _series(labels[regime]["confidence"][s + teacher])
    panels[side] = [
      plots.Series("balanced teacher", first, **cell("b", plain)),
      *(
        plots.Series(f"imbalanced, {r}", c, **cell("i", r))
        for r, c in zip(labels, rest, strict=True)
      ),
    ]
  return plots.bars(panels, _bins(results), "mean confidence", top=1.0)


def _series(estimate: Mapping[str, Any]) -> dict[str, Any]:
  return {"values": estimate["value"], "low": estimate["low"], "high": estimate["high"]}


def accuracies_figure(results: Mapping[str, Any]) -> Any:
  """Accuracies of students by class: a panel for each image source."""
  return plots.accuracies(
    {
      "rows": results["students"],
      "class_names": results["class_names"],
      "split": {"counts": results["counts"]["imbalanced"]},
    }
  )


def _bins(results: Mapping[str, Any]) -> plots.Bins:
  counts = {"counts": results["counts"]["imbalanced"]}
  return plots.bins({"class_names": results["class_names"], "split": counts})
