"""What a sweep shows and writes: a live table of its cells, and a report of all rows at the end."""

import json
import shutil
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, TextIO

from etils import epath

from ltdd_jax.core import files
from ltdd_jax.report import tables
from ltdd_jax.sweeps.cells import Cell

_LINES = 15  # of a failed cell's log
_TAIL = 1 << 16  # bytes of a log that are read


class Live:
  """Shows the state of all cells: a table that is printed over on a terminal, else a line each.

  Args:
    cells: of the sweep.
    stream: where to; a terminal or not.
  """

  def __init__(self, cells: Sequence[Cell], stream: TextIO | None = None):
    self.cells, self.stream = cells, sys.stdout if stream is None else stream
    self._before: dict[str, str] = {}
    self._since = {cell.name: time.monotonic() for cell in cells}
    self._height = 0

  def show(self, states: Mapping[str, str]) -> None:
    """Shows {cell: state}; call it often."""
    changed = [c.name for c in self.cells if states[c.name] != self._before.get(c.name)]
    self._since |= dict.fromkeys(changed, time.monotonic())
    self._before = dict(states)
    if self.stream.isatty():
      lines = self._lines(states)
      up = f"\x1b[{self._height}F\x1b[J" if self._height else ""
      self._height = len(lines)
      self.stream.write(up + "\n".join(lines) + "\n")
    else:
      for name in changed:
        if states[name] != "waiting":
          self.stream.write(f"{time.strftime('%X')} {name}: {states[name]}\n")
    self.stream.flush()

  def _lines(self, states: Mapping[str, str]) -> list[str]:
    """One line a cell, those that matter most first, as many as the terminal has."""
    size, width = shutil.get_terminal_size(), max(len(c.name) for c in self.cells)
    order = ("running", "failed", "waiting", "done")
    kind = {name: state.partition(":")[0] for name, state in states.items()}
    lines = []
    for c in sorted(self.cells, key=lambda c: order.index(kind[c.name])):
      line = f"{c.name:<{width}}  {states[c.name]}"
      if kind[c.name] == "running":
        minutes = (time.monotonic() - self._since[c.name]) / 60
        line += f" {minutes:6.1f} min  {' '.join(end_of(c.log, 1))}"
      lines.append(line)
    counts = [f"{[*kind.values()].count(k)} {k}" for k in order if k in kind.values()]
    return [x[: size.columns - 1] for x in [*lines[: size.lines - 2], ", ".join(counts)]]


def end_of(log: epath.Path, count: int = _LINES) -> list[str]:
  """The last lines of a log; progress bars print over theirs, of which the last counts."""
  if not log.exists():
    return []
  with log.open("rb") as file:
    file.seek(max(0, files.num_bytes(log) - _TAIL))
    text = file.read().decode("utf-8", "replace")
  lines = [line.rstrip("\r").rpartition("\r")[2].rstrip() for line in text.split("\n")]
  return [line for line in lines if line][-count:]


def explain(code: int) -> str:
  """Says what an exit code means."""
  number = -code if code < 0 else code - 128  # a shell's, and a container's
  if number in set(signal.Signals):
    often = ", often the out-of-memory killer" if number == signal.SIGKILL else ""
    return f"killed by {signal.Signals(number).name}{often}"
  return f"exit code {code}"


def write(cells: Sequence[Cell], states: Mapping[str, str], folder: epath.Path) -> str:
  """Writes `sweep.json` and `sweep.md` of a sweep that has ended; returns the text."""
  found = {c.name: rows(c) for c in cells if states[c.name] == "done"}
  failed = [c for c in cells if states[c.name] != "done"]
  content: dict[str, Any] = {
    "cells": [{"name": c.name, "state": states[c.name], "workdir": str(c.folder)} for c in cells],
    "rows": [row for some in found.values() for row in some],
    "failed": {c.name: end_of(c.log) for c in failed},
  }
  parts = ["# Sweep", f"{len(found)} of {len(cells)} cells are done."]
  if content["rows"]:
    parts += ["Top-1 in percent; ± is the standard deviation over seeds.", table(content["rows"])]
  done = [c for c in cells if "study" in c.config and c.name in found]
  parts += [f"* {c.name}: [{c.results.stem}]({_page(c)})" for c in done]
  for cell in failed:
    end = "\n".join(f"    {line}" for line in end_of(cell.log))
    parts += [f"## {cell.name}: {states[cell.name]}", f"The end of {cell.log}:", end]
  text = "\n\n".join(parts) + "\n"
  files.write_text(folder / "sweep.json", json.dumps(content, indent=1, allow_nan=False) + "\n")
  files.write_text(folder / "sweep.md", text)
  return text


def _page(cell: Cell) -> str:
  return f"../cells/{cell.name}/report/{cell.results.stem}.md"


def rows(cell: Cell) -> list[dict[str, Any]]:
  """The rows of a finished cell, with the facts of its run; none of a study without one run."""
  if not (cell.folder / "report" / "results.json").exists():
    return []
  results = tables.read_results(cell.folder)
  shared = {
    "cell": cell.name,
    "dataset": results["dataset"],
    "imbalance_factor": results["split"]["imbalance_factor"],
    "sha256": results["split"]["sha256"],
    "recipe": results["recipe"],
    "student": results["student"],
  }
  return [shared | {k: v for k, v in r.items() if k != "calibration"} for r in results["rows"]]


def table(found: Sequence[Mapping[str, Any]]) -> str:
  """One table of the rows of all cells."""
  groups = tables.present_groups(found)
  header = ["cell", "IF", "IPC", "images", "labels", "calibrator", "tau", "top-1", *groups]
  header += ["seeds", *tables.SIZES]
  lines = []
  for r in found:
    slots = r["images_per_class"]
    ipc = f"{sum(slots) / len(slots):g}"
    lines.append(
      [r["cell"], f"{r['imbalance_factor']:g}", ipc, r["images"], r["labels"]]
      + [r["calibrator"] or "-", tables.or_dash(r["tau"], ".3f"), tables.plus_minus(r["top1"])]
      + [tables.plus_minus(r["groups"][g]) if g in r["groups"] else "-" for g in groups]
      + [str(r["seeds"]), *tables.size_cells(r)]
    )
  return tables.table(header, lines)
