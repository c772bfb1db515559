"""Runs a sweep: `python -m launch.sweep --config configs/sweeps/NAME.py --workdir DIR`.

Each cell is a run or a study in a process of its own. The same command, given again, goes on where
it stopped, and runs failed cells again. `--config.KEY=VALUE` changes a value of all cells.
"""

import sys

from launch import errors
from launch import main as launch_main  # before JAX: it tunes the host; some flags are of cells

from absl import app, flags  # isort: skip

_POOL = flags.DEFINE_string("pool", "local", "where cells run: local, slurm or ray")
_JOBS = flags.DEFINE_integer("jobs", None, "cells at a time; 1 of a local pool, all of Slurm's")
_POOL_ARGS = flags.DEFINE_string(
  "pool_args", None, "of submitit or ray.remote: 'slurm_partition=gpu,timeout_min=600'"
)
_PASSED = ("cpu_devices", "checkpoint_seconds", "compile_cache")  # on to the cells
for _name in ("config", "workdir", "cache", "dry_run", *_PASSED):
  flags.declare_key_flag(_name)  # for --help


@errors.in_one_message
def main(argv: list[str]) -> int:
  """Calls `sweeps`; returns 1 if a cell failed."""
  import jax

  from ltdd_jax import interop, sweeps
  from ltdd_jax.core.types import LtddError

  launch_main.set_up_logs()
  jax.config.update("jax_platforms", "cpu")  # accelerators are for the cells
  given = flags.FLAGS
  for name in ("stage", "distributed"):
    if given[name].present:
      raise LtddError(f"--{name} is for a single run; leave it out")
  passed = [given[name].serialize() for name in _PASSED if given[name].present]
  done = sweeps.run(
    given.config,
    given.workdir,
    (sys.executable, "-X", "faulthandler", "-m", "launch.main", *passed),
    overrides=argv[1:],
    cache=given.cache,
    pool=_POOL.value,
    jobs=_JOBS.value,
    pool_args=interop.parse_args(_POOL_ARGS.value, "--pool_args"),
    dry_run=given.dry_run,
  )
  return 0 if done else 1


if __name__ == "__main__":
  app.run(main, flags_parser=launch_main.parse_flags)
