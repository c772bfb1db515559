"""A sweep: starts what is not done, shows how it goes, and writes one report at the end."""

import time
import types
from collections.abc import Mapping, Sequence
from typing import Any

from ltdd_jax.artefacts import checkpoint
from ltdd_jax.artefacts import workdir as workdir_lib
from ltdd_jax.core import files
from ltdd_jax.core.registry import check_at_least, check_choice
from ltdd_jax.core.types import LtddError
from ltdd_jax.report import html, page
from ltdd_jax.sweeps import cells as cells_lib
from ltdd_jax.sweeps import pools, report
from ltdd_jax.sweeps.cells import Cell

_POLL_SECONDS = 0.5


def run(
  name: str,
  workdir: files.Pathlike,
  command: Sequence[str],
  *,
  overrides: Sequence[str] = (),
  cache: files.Pathlike | None = None,
  pool: str = "local",
  jobs: int | None = None,
  pool_args: Mapping[str, Any] = types.MappingProxyType({}),
  dry_run: bool = False,
) -> bool:
  """Runs all cells of a sweep that are not done; the same call goes on where it stopped.

  Args:
    name: of the sweep's file, see `cells.read`.
    workdir: folder of the sweep, in a file system; cells have theirs in `workdir/cells`.
    command: runs a config, given `--config`, `--workdir` and `--cache`.
    overrides: `--config.KEY=VALUE`, for all cells.
    cache: folder of artefacts that cells share; `workdir/cache` by default.
    pool: where cells run, a name of `pools.POOLS`.
    jobs: cells at a time.
    pool_args: of the pool.
    dry_run: say which cells are done, and do nothing.

  Returns:
    Whether all cells are done.

  Raises:
    LtddError: anything wrong with the sweep or a config in it, before a cell is started.
    checkpoint.Interrupted: a signal asked to stop; running cells have saved their work.
  """
  check_choice("--pool", pool, pools.POOLS)
  check_at_least("--", 1, jobs=1 if jobs is None else jobs)
  if not files.is_local(workdir):
    raise LtddError(f"--workdir is {workdir}; a sweep needs a folder of a file system, with locks")
  folder = files.absolute(files.path(workdir))
  cells = cells_lib.read(name, folder, overrides)
  sources: dict[str, Any] = {}
  states = {c.name: "done" if cells_lib.done(c, sources) else "waiting" for c in cells}
  if dry_run:
    print("\n".join(f"{c.name:<32} {states[c.name]}" for c in cells))
    return True
  todo = [c for c in cells if states[c.name] == "waiting"]
  with workdir_lib.Workdir(folder):  # one sweep at a time
    if todo:
      shared = files.path(folder / "cache" if cache is None else cache)
      tasks = [_task(cell, command, files.absolute(shared)) for cell in todo]
      _follow(cells, states, todo, pools.start(pool, tasks, jobs, str(folder / pool), pool_args))
    text = report.write(cells, states, folder / "report")
    done = [c.folder for c in cells if states[c.name] == "done" and "study" not in c.config]
    if done and html.available():
      page.compare(done, folder / "report" / "index.html")
  print(text)
  return set(states.values()) == {"done"}


def _task(cell: Cell, command: Sequence[str], cache: files.Pathlike) -> pools.Task:
  cells_lib.prepare(cell)
  values = {"config": cell.config_file, "workdir": cell.folder, "cache": cache}
  return pools.Task([*command, *(f"--{k}={v}" for k, v in values.items())], str(cell.log))


def _follow(
  cells: Sequence[Cell], states: dict[str, str], todo: Sequence[Cell], pool: pools.Pool
) -> None:
  """Shows the states of cells, and changes them, until none is waiting or running."""
  live = report.Live(cells)
  pending = dict(zip((c.name for c in todo), pool.futures, strict=True))
  try:
    while pending:
      for cell in [c for c in todo if c.name in pending]:
        if pending[cell.name].done():
          states[cell.name] = _outcome(cell, pending.pop(cell.name))
        elif cell.log.exists():
          states[cell.name] = "running"
      live.show(states)
      time.sleep(_POLL_SECONDS if pending else 0)
  except BaseException as error:
    pool.stop()
    if not isinstance(error, KeyboardInterrupt):
      raise
    count = sum(c.results.exists() for c in cells)
    raise checkpoint.Interrupted(f"stopped with {count} of {len(cells)} cells done") from None


def _outcome(cell: Cell, future: pools.Future) -> str:
  try:
    code = future.result()
  except Exception as error:  # of the pool: a job that was cancelled, a machine that was lost
    return f"failed: {type(error).__name__}: {(str(error).strip().splitlines() or [''])[-1]}"
  if code:
    return f"failed: {report.explain(code)}"
  return "done" if cell.results.exists() else f"failed: it ended without {cell.results}"
