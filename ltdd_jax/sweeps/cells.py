"""Cells of a sweep: a name, a config, and a work directory that `launch.main` runs it in."""

import json
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from etils import epath

from ltdd_jax import studies
from ltdd_jax.artefacts import manifest
from ltdd_jax.artefacts import workdir as workdir_lib
from ltdd_jax.core import command_line, files
from ltdd_jax.core import config as config_lib
from ltdd_jax.core.registry import within
from ltdd_jax.core.types import LtddError
from ltdd_jax.data import sources
from ltdd_jax.pipeline import check, graph
from ltdd_jax.pipeline.context import Context
from ltdd_jax.report import tables


class Cell(NamedTuple):
  """One config of a sweep."""

  name: str
  config: dict[str, Any]
  folder: epath.Path  # its work directory

  @property
  def config_file(self) -> epath.Path:
    """The config as the sweep gives it; a run writes what it makes of it as `config.json`."""
    return self.folder / "cell.json"

  @property
  def log(self) -> epath.Path:
    """All that the cell's process says."""
    return self.folder / "log.txt"

  @property
  def results(self) -> epath.Path:
    """What is written last: the results of a run or of a study."""
    name = self.config["study"]["name"] if "study" in self.config else "results"
    return self.folder / "report" / f"{name}.json"

  @property
  def text(self) -> str:
    """The config as JSON."""
    return json.dumps(config_lib.canonical(self.config), indent=1) + "\n"


def read(name: str, workdir: epath.Path, overrides: Iterable[str] = ()) -> list[Cell]:
  """Reads the cells of a sweep's file, with values of the command line in all of them.

  Args:
    name: file with a function `get_sweep`, with an argument after a colon; it yields pairs of a
      name and a config, or returns a dict of them.
    workdir: of the sweep.
    overrides: `--config.KEY=VALUE`.

  Raises:
    LtddError: no such file, no cell, or a cell whose name or config is bad.
  """
  found = command_line.call(name, "get_sweep")
  pairs = found.items() if isinstance(found, Mapping) else found
  cells: dict[str, Cell] = {}
  for key, config in pairs:
    manifest.check_name("cell", str(key))
    if key in cells:
      raise LtddError(f"{name} has two cells {key!r}; expected names that differ")
    config = config.to_dict() if hasattr(config, "to_dict") else config
    config = command_line.override(config, overrides)
    with within(f"cell {key}"):
      check.check({k: v for k, v in config.items() if k != "study"})
      if "study" in config:
        studies.check(config["study"])
    cells[key] = Cell(key, config, workdir / "cells" / key)
  if not cells:
    raise LtddError(f"{name} has no cells; expected names with configs from get_sweep")
  return list(cells.values())


def done(cell: Cell, known: dict[str, sources.DataSource]) -> bool:
  """Whether a cell has its results, of this very config and with every artefact of the run.

  Args:
    cell: any cell.
    known: data sources by their config, which cells share; the cell's own is added.

  Raises:
    LtddError: artefacts of another config are there.
  """
  if not cell.folder.exists():
    return False
  same = cell.config_file.exists() and cell.config_file.read_text() == cell.text
  if "study" in cell.config:  # which finds out for itself what its runs have
    return same and _has_results(cell)
  with within(f"cell {cell.name}"):
    ctx, work = Context(check.check(cell.config)), workdir_lib.Workdir(cell.folder)
    if ctx.config["data"]["whiten"] is None:  # else the source belongs to the run
      key = json.dumps(config_lib.canonical(ctx.config["data"]))
      ctx.source = known[key] if key in known else known.setdefault(key, ctx.source)
    stages = graph.make_stages(ctx)
    work.check((s.name, s.config, s.inputs) for s in stages)
  return same and _has_results(cell) and all(work.exists(s.name) for s in stages)


def _has_results(cell: Cell) -> bool:
  """Whether the results are there, and those of a run not of an older version."""
  of_run = cell.folder / "report" / "results.json"  # a study of one run has them too
  old = of_run.exists() and tables.read_results(cell.folder).get("schema") != tables.SCHEMA
  return cell.results.exists() and not old


def prepare(cell: Cell) -> None:
  """Writes the config of a cell that is about to run; an old log and stale results go."""
  cell.folder.mkdir(parents=True, exist_ok=True)
  for path in (cell.results, cell.log):
    path.unlink(missing_ok=True)
  files.write_text(cell.config_file, cell.text)
