"""The sections of a report on several runs beside each other."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ltdd_jax.core.config import flatten
from ltdd_jax.report import formats, html, run_plots, tables
from ltdd_jax.report.html import Block, Section, Table, Text
from ltdd_jax.report.run_folder import Run

_SETTING = ("data set", "IF", "IPC")


def of_runs(runs: Sequence[Run]) -> list[Section]:
  """All sections, those without content too."""
  made = [
    ("results", "Results", _results),
    ("costs", "Accuracy and cost", _costs),
    ("config", "How the runs differ", _differences),
    ("missing", "What is missing", _missing),
  ]
  return [Section(name, title, list(blocks(runs))) for name, title, blocks in made]


def results_table(runs: Sequence[Run]) -> tuple[list[str], list[list[str]]]:
  """The rows of all runs that have results, with the run and its setting before them."""
  groups = list(tables.GROUPS)
  header = ["run", *_SETTING, "images", "labels", "calibrator", "tau", "top-1", *groups]
  header += ["worst class", "seeds"]
  rows = []
  for run in runs:
    if run.results is not None:
      own, body = formats.results_table(run.results)
      for row, cells in zip(run.results["rows"], body, strict=True):
        known = dict(zip([*own, *_SETTING], [*cells, *_setting(run, row)], strict=True))
        rows.append([run.name, *(known.get(name, "-") for name in header[1:])])
  return header, rows


def marks(header: Sequence[str], rows: Sequence[Sequence[str]]) -> dict[tuple[int, int], str]:
  """Best and second of the rows of one setting."""
  groups: dict[tuple[str, ...], list[int]] = {}
  for i, row in enumerate(rows):
    groups.setdefault(tuple(row[1 : 1 + len(_SETTING)]), []).append(i)
  return {
    (members[i], j): mark
    for members in groups.values()
    for (i, j), mark in formats.marks(header, [rows[i] for i in members]).items()
  }


def _setting(run: Run, row: Mapping[str, Any]) -> tuple[str, str, str]:
  """Data set, imbalance factor and images per class of a row."""
  results: Any = run.results
  slots = row["images_per_class"]
  factor = results["split"]["imbalance_factor"]
  return results["dataset"], f"{factor:g}", f"{sum(slots) / len(slots):g}"


def _results(runs: Sequence[Run]) -> Iterator[Block]:
  header, rows = results_table(runs)
  caption = "Top-1 in percent, mean ± standard deviation over seeds, after the last step. Best and "
  caption += (
    "second best of a data set, imbalance factor (IF) and images per class (IPC) are marked."
  )
  if rows:
    yield Table(caption, header, rows, marks(header, rows))
  else:
    yield Text("No run has results yet.")


def _costs(runs: Sequence[Run]) -> Iterator[Block]:
  """Accuracy against bytes of labels and images per class, where they differ."""
  costs = {
    "bytes of labels": lambda row: row["label_bytes"],
    "images per class, mean": lambda row: (
      sum(row["images_per_class"]) / len(row["images_per_class"])
    ),
  }
  found = [(run, row) for run in runs if run.results for row in run.results["rows"]]
  for name, cost in costs.items():
    points = [
      (_series(run, row), cost(row), row["top1"]["mean"], row["top1"]["std"])
      for run, row in found
      if cost(row) is not None
    ]
    if len({point[1] for point in points}) > 1:
      yield html.figure(run_plots.trade_off(points, name), f"Top-1 against {name}.")


def _series(run: Run, row: Mapping[str, Any]) -> str:
  """What points of one line share."""
  dataset, factor, _ = _setting(run, row)
  return f"{dataset} IF {factor}: {row['images']} / {tables.short(row)}"


def _differences(runs: Sequence[Run]) -> Iterator[Block]:
  known = [run for run in runs if run.config is not None]
  configs = [flatten(run.config) for run in known if run.config is not None]
  keys = dict.fromkeys(key for config in configs for key in config)
  shown = [
    [json.dumps(config[key]) if key in config else "-" for config in configs] for key in keys
  ]
  rows = [[key, *cells] for key, cells in zip(keys, shown, strict=True) if len(set(cells)) > 1]
  if rows:
    yield Table("Values that are not the same", ["key", *(run.name for run in known)], rows)
  elif len(known) > 1:
    yield Text("All configs are equal.")
  commands = [
    f"{run.name}: {run.starts[-1]['command']}"
    for run in runs
    if run.starts and "command" in run.starts[-1]
  ]
  if commands:
    yield Text("Last commands:", commands)


def _missing(runs: Sequence[Run]) -> Iterator[Block]:
  if entries := [f"{run.name}: {what}" for run in runs for what in run.missing]:
    yield Text("Work directories that are unfinished, damaged or of another version:", entries)
