"""Pools: where the processes of a sweep's cells run.

A pool starts commands and returns a future of each, with `done()` and `result()`, the exit code.
"""

import concurrent.futures
import contextlib
import os
import pathlib
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import filelock

from ltdd_jax.core.types import LtddError
from ltdd_jax.sweeps import slurm as slurm_lib

_LEFT_SECONDS = 60.0  # how long the cell of a stopped sweep may take to save


class Future(Protocol):
  """What `concurrent.futures`, submitit and Ray give."""

  def done(self) -> bool: ...
  def result(self) -> Any: ...


class Task(NamedTuple):
  """A command, and the file that gets what it prints, in the work directory of its cell."""

  command: Sequence[str]
  log: str


class Pool(NamedTuple):
  """Tasks that were given away."""

  futures: list[Future]
  stop: Callable[[], None]  # ends them; local ones save, and it waits for that


def run_task(task: Task, running: set[subprocess.Popen[bytes]] | None = None) -> int:
  """Runs a command to its end in a process group of its own; returns its exit code.

  Signals of the terminal reach the sweep alone, which passes them on once. If the sweep is killed,
  the command gets SIGTERM (`setpriv`). One that an earlier sweep left may go on saving for a while.
  """
  lock = filelock.FileLock(pathlib.Path(task.log).parent / ".lock")  # of its work directory
  with contextlib.suppress(filelock.Timeout), lock.acquire(timeout=_LEFT_SECONDS):
    pass
  prefix = ["setpriv", "--pdeathsig", "TERM", "--"] if shutil.which("setpriv") else []
  with open(task.log, "wb") as log:
    process = subprocess.Popen(
      [*prefix, *task.command],
      stdin=subprocess.DEVNULL,
      stdout=log,
      stderr=subprocess.STDOUT,
      start_new_session=True,
    )
    if running is None:
      return _wait(process)
    running.add(process)
    code = process.wait()
    running.remove(process)
    return code


def _wait(process: subprocess.Popen[bytes]) -> int:
  """The exit code of a process; if Ray cancels the task, the process saves first."""
  try:
    while process.poll() is None:
      time.sleep(0.1)  # Ray's KeyboardInterrupt does not end `process.wait`
    return process.returncode
  except KeyboardInterrupt:
    process.terminate()
    process.wait()
    raise


def local(tasks: Sequence[Task], jobs: int | None, folder: str, args: Mapping[str, Any]) -> Pool:
  """`jobs` processes at a time on this machine, one by default."""
  del folder
  if args:
    raise LtddError(f"--pool_args has {', '.join(args)}; the local pool takes none. Leave it out")
  running: set[subprocess.Popen[bytes]] = set()
  executor = concurrent.futures.ThreadPoolExecutor(jobs or 1)
  futures = [executor.submit(run_task, task, running) for task in tasks]

  def stop() -> None:
    executor.shutdown(wait=False, cancel_futures=True)
    asked: set[subprocess.Popen[bytes]] = set()
    while not all(f.done() for f in futures):
      try:
        for process in running - asked:
          process.terminate()
          asked.add(process)
        time.sleep(0.1)
      except KeyboardInterrupt:  # a second signal: they stop at once
        asked.clear()

  return Pool(list(futures), stop)


class Requeued:
  """`run_task`; a cell whose time is up, or that is preempted, saves and is queued again.

  submitit calls `checkpoint` when Slurm warns it by SIGUSR2, and limits how often.
  """

  def __init__(self) -> None:
    self.running: set[subprocess.Popen[bytes]] = set()

  def __call__(self, task: Task) -> int:
    shield = ["sh", "-c", 'trap "" USR2; exec "$@"', "sh"]  # the warning would kill the cell
    return run_task(task._replace(command=[*shield, *task.command]), self.running)

  def checkpoint(self, task: Task) -> Any:
    """Lets the cell save; returns what is to run next time."""
    from submitit.helpers import DelayedSubmission

    for process in self.running:
      process.terminate()
      os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # `run_task` holds Popen's lock
    return DelayedSubmission(Requeued(), task)


def slurm(tasks: Sequence[Task], jobs: int | None, folder: str, args: Mapping[str, Any]) -> Pool:
  """A Slurm array, of at most `jobs` at a time; `args` are submitit's (`slurm_partition`, ...)."""
  import submitit

  options = {"slurm_array_parallelism": jobs or len(tasks)} | dict(args)
  try:
    executor = submitit.AutoExecutor(folder, cluster="slurm")
    executor.update_parameters(**options)
    started = executor.map_array(Requeued(), tasks)
  except (RuntimeError, NameError, TypeError, ValueError) as error:
    raise LtddError(f"--pool=slurm: submitit refuses it: {error}") from error
  array = slurm_lib.Array(started[0].job_id.split("_")[0])
  futures = [slurm_lib.Future(job, array) for job in started]

  def stop() -> None:
    for future in futures:
      future.cancel()

  return Pool(list(futures), stop)


def ray(tasks: Sequence[Task], jobs: int | None, folder: str, args: Mapping[str, Any]) -> Pool:
  """Tasks of Ray; `args` are those of `ray.remote` (`num_cpus`, `num_gpus`, ...)."""
  import ray as ray_lib

  del folder
  if jobs is not None:
    raise LtddError(f"--jobs={jobs} is not for Ray; say what a cell needs: --pool_args=num_cpus=2")
  try:
    ray_lib.init(ignore_reinit_error=True, log_to_driver=False)
  except ConnectionError as error:
    raise LtddError(
      f"--pool=ray: {error}; expected a cluster of Ray that RAY_ADDRESS names"
    ) from error
  remote = ray_lib.remote(**{"num_cpus": 1, "max_retries": 0} | dict(args))(run_task)
  refs = [remote.remote(task) for task in tasks]

  def stop() -> None:
    for ref in refs:
      ray_lib.cancel(ref)
    ray_lib.wait(refs, num_returns=len(refs), timeout=_LEFT_SECONDS)  # workers kill their cells
    ray_lib.shutdown()

  return Pool([ref.future() for ref in refs], stop)


POOLS: dict[str, Callable[..., Pool]] = {"local": local, "slurm": slurm, "ray": ray}
_PACKAGES = {"slurm": "submitit", "ray": "ray"}


def start(
  name: str, tasks: Sequence[Task], jobs: int | None, folder: str, args: Mapping[str, Any]
) -> Pool:
  """Gives tasks to a pool.

  Args:
    name: of `POOLS`.
    tasks: what to run.
    jobs: how many at a time; None for the pool's default.
    folder: for files of the pool.
    args: of the pool.

  Raises:
    LtddError: its package is not installed, or arguments that it refuses.
  """
  try:
    return POOLS[name](tasks, jobs, folder, args)
  except ModuleNotFoundError as error:
    if error.name != _PACKAGES.get(name):
      raise
    raise LtddError(
      f"--pool={name} needs the package {error.name}; install it: pip install {error.name}"
    ) from error
