"""Sweeps of a stub in place of runs: cells that end well, crash, are killed, or are interrupted."""

import _thread
import concurrent.futures
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import textwrap
import time
import types

import pytest

from ltdd_jax import sweeps
from ltdd_jax.artefacts import checkpoint
from ltdd_jax.artefacts.workdir import Workdir
from ltdd_jax.core.types import LtddError
from ltdd_jax.sweeps import cells, pools, report, slurm

# What a cell does is its seed: 1 crashes, 9 is killed; others wait for the file `go`.
STUB = """
import json, os, pathlib, signal, sys, time
args = dict(arg[2:].split("=", 1) for arg in sys.argv[1:])
folder, config = pathlib.Path(args["workdir"]), json.loads(pathlib.Path(args["config"]).read_text())
with (folder / "starts").open("a") as file:
  file.write("x")
print("cache", args["cache"], flush=True)
if config["seed"] == 1:
  raise RuntimeError("no such luck")
if config["seed"] == 9:
  os.kill(os.getpid(), signal.SIGKILL)
while config["seed"] == 5 and not (folder / "go").exists():
  (folder / "waits").touch()
  time.sleep(0.01)
score = {"mean": 50.0 + config["seed"], "std": None}
row = {"images": "random", "labels": "hard", "calibrator": None, "tau": None, "top1": score}
row |= {"groups": {"head": score}, "images_per_class": [2, 2], "seeds": 1, "image_bytes": 64}
results = {"dataset": "digits", "split": {"imbalance_factor": 50.0, "sha256": "0"}, "student": {}}
row |= {"label_bytes": 0, "calibration": {}, "worst_class": score | {"class": 0}}
row |= {"per_class": [50.0, 50.0]}
results |= {"schema": 3, "recipe": None, "rows": [row]}
(folder / "report").mkdir(exist_ok=True)
(folder / "report" / "results.json").write_text(json.dumps(results))
"""

# Saves when it is asked to stop.
SAVES = """
import pathlib, signal, sys, time
def stop(*unused):
  pathlib.Path(sys.argv[1], "saved").touch()
  sys.exit()
signal.signal(signal.SIGTERM, stop)
pathlib.Path(sys.argv[1], "ready").touch()
time.sleep(60)
"""


@pytest.fixture
def sweep(tmp_path, monkeypatch):
  """Runs cells of (name, seed) pairs in `tmp_path/run`."""
  monkeypatch.setattr(cells.graph, "make_stages", lambda ctx: [])
  (tmp_path / "stub.py").write_text(STUB)

  def run(pairs, folder="run", **options):
    file = tmp_path / "sweep.py"
    file.write_text(
      textwrap.dedent(f"""
      from configs import digits_lt
      def get_sweep(arg=None):
        for name, seed in {pairs!r}:
          config = digits_lt.get_config("preset=smoke,calibrators=plain")
          config.seed = seed
          yield name, config
      """)
    )
    command = (sys.executable, str(tmp_path / "stub.py"))
    return sweeps.run(str(file), tmp_path / folder, command, **options)

  return run


def starts(tmp_path, name, folder="run"):
  path = tmp_path / folder / "cells" / name / "starts"
  return len(path.read_text()) if path.exists() else 0


def test_done_cells_are_skipped_and_changed_ones_run_again(sweep, tmp_path, capsys):
  assert sweep([("a", 0)])
  assert sweep([("a", 0), ("b", 2)], jobs=2)
  assert (starts(tmp_path, "a"), starts(tmp_path, "b")) == (1, 1)
  lines = (tmp_path / "run" / "report" / "sweep.md").read_text().splitlines()
  assert lines[2] == "2 of 2 cells are done."
  found = [[cell.strip() for cell in x.split("|")[1:-1]] for x in lines if x.startswith("|")]
  assert found[0][:4] == ["cell", "IF", "IPC", "images"]
  assert found[0][7:9] == ["top-1", "head"]
  assert found[2][:9] == ["a", "50", "2", "random", "hard", "-", "-", "50.0", "50.0"]
  assert found[3][7] == "52.0"
  assert str(tmp_path / "run" / "cache") in (tmp_path / "run/cells/b/log.txt").read_text()
  assert "b: done" in capsys.readouterr().out
  assert sweep([("a", 3), ("b", 2)])
  assert (starts(tmp_path, "a"), starts(tmp_path, "b")) == (2, 1)
  rows = json.loads((tmp_path / "run" / "report" / "sweep.json").read_text())["rows"]
  assert [(r["cell"], r["top1"]["mean"]) for r in rows] == [("a", 53.0), ("b", 52.0)]
  table = (tmp_path / "run" / "report" / "index.csv").read_text().splitlines()[1:]
  assert [line.split(",")[0] for line in table] == ["a", "b"]
  assert "<h1>2 runs</h1>" in (tmp_path / "run" / "report" / "index.html").read_text()


def test_results_of_an_older_version_are_made_again(sweep, tmp_path):
  assert sweep([("a", 0)])
  file = tmp_path / "run" / "cells" / "a" / "report" / "results.json"
  older = {k: v for k, v in json.loads(file.read_text()).items() if k != "student"}
  file.write_text(json.dumps(older | {"schema": 2}))
  assert sweep([("a", 0)])
  assert starts(tmp_path, "a") == 2


def test_a_dry_run_starts_nothing(sweep, tmp_path, capsys):
  sweep([("a", 0)], dry_run=True)
  assert capsys.readouterr().out.split() == ["a", "waiting"]
  assert not (tmp_path / "run").exists()


def test_cells_that_fail_are_listed_with_the_end_of_their_log(sweep, tmp_path):
  assert not sweep([("crash", 1), ("killed", 9), ("fine", 0)])
  text = (tmp_path / "run" / "report" / "sweep.md").read_text()
  assert "1 of 3 cells are done." in text
  assert "## crash: failed: exit code 1\n" in text
  assert "    RuntimeError: no such luck\n" in text
  assert "## killed: failed: killed by SIGKILL, often the out-of-memory killer\n" in text
  failed = json.loads((tmp_path / "run" / "report" / "sweep.json").read_text())["failed"]
  assert failed["crash"][-1] == "RuntimeError: no such luck"
  assert not sweep([("crash", 1), ("fine", 0)])
  assert (starts(tmp_path, "crash"), starts(tmp_path, "fine")) == (2, 1)


def test_an_interrupted_sweep_goes_on_and_gives_the_same_table(sweep, tmp_path, monkeypatch):
  pairs = [("a", 0), ("b", 5), ("c", 2)]
  waits, show = tmp_path / "run" / "cells" / "b" / "waits", report.Live.show

  def interrupt(self, states):
    show(self, states)
    if waits.exists():
      raise KeyboardInterrupt

  with monkeypatch.context() as patch:
    patch.setattr(report.Live, "show", interrupt)
    with pytest.raises(checkpoint.Interrupted, match="stopped with 1 of 3 cells done"):
      sweep(pairs)
  assert [starts(tmp_path, name) for name in "abc"] == [1, 1, 0]
  (waits.parent / "go").touch()
  assert sweep(pairs)
  assert [starts(tmp_path, name) for name in "abc"] == [1, 2, 1]
  (tmp_path / "whole" / "cells" / "b").mkdir(parents=True)
  (tmp_path / "whole" / "cells" / "b" / "go").touch()
  assert sweep(pairs, folder="whole")
  tables = [(tmp_path / f / "report" / "sweep.md").read_text() for f in ("run", "whole")]
  assert tables[0] == tables[1]


@pytest.mark.parametrize(
  ("pairs", "options", "text"),
  [
    ([("a/b", 0)], {}, r"cell name 'a/b': expected letters, digits"),
    ([("..", 0)], {}, r"cell name '..': expected letters, digits"),
    ([("a", 0), ("a", 2)], {}, r"sweep.py has two cells 'a'; expected names that differ"),
    ([], {}, r"sweep.py has no cells"),
    ([("a", -1)], {}, r"cell a: config.seed is -1; expected 0 or more"),
    ([("a", 0)], {"pool": "slrum"}, r"--pool is 'slrum'; expected .* Did you mean 'slurm'\?"),
    ([("a", 0)], {"jobs": 0}, r"--jobs is 0; expected 1 or more"),
    ([("a", 0)], {"overrides": ["--config.sed=1"]}, r"cell a: config: unexpected group 'sed'"),
    ([("a", 0)], {"overrides": ["--config.study.name='x'"]}, r"cell a: config.study.name is"),
    ([("a", 0)], {"pool_args": {"n": 1}}, r"--pool_args has n; the local pool takes none"),
    ([("a", 0)], {"pool": "ray", "jobs": 2}, r"--jobs=2 is not for Ray"),
  ],
)
def test_mistakes_are_found_before_a_cell_is_started(
  sweep, tmp_path, pairs, options, text, fake_ray
):
  with pytest.raises(LtddError, match=text):
    sweep(pairs, **options)
  assert not starts(tmp_path, "a")


def test_two_sweeps_in_one_folder(sweep, tmp_path):
  with Workdir(tmp_path / "run"), pytest.raises(LtddError, match="is in use by process"):
    sweep([("a", 0)])


@pytest.mark.parametrize(("pool", "package"), [("slurm", "submitit"), ("ray", "ray")])
def test_a_pool_whose_package_is_missing(sweep, monkeypatch, pool, package):
  monkeypatch.setitem(sys.modules, package, None)
  with pytest.raises(LtddError, match=rf"--pool={pool} needs the package {package}; install it"):
    sweep([("a", 0)], pool=pool)


@pytest.fixture
def fake_ray(monkeypatch):
  """Ray's three functions, with threads; returns what they were called with."""
  executor, calls = concurrent.futures.ThreadPoolExecutor(1), {}

  def remote(**options):
    calls.update(options)
    start = lambda fn: lambda task: types.SimpleNamespace(future=lambda: executor.submit(fn, task))
    return lambda fn: types.SimpleNamespace(remote=start(fn))

  module = types.SimpleNamespace(init=calls.update, remote=remote, shutdown=executor.shutdown)
  monkeypatch.setitem(sys.modules, "ray", module)
  yield calls
  executor.shutdown()


def test_ray(sweep, tmp_path, fake_ray):
  assert sweep([("a", 0), ("b", 2)], pool="ray", pool_args={"num_gpus": 1})
  assert starts(tmp_path, "b") == 1
  assert (fake_ray["num_gpus"], fake_ray["num_cpus"], fake_ray["max_retries"]) == (1, 1, 0)


class Job:
  """submitit's, of an array 7: `outcome` is its exit code, an error, or None for no result."""

  def __init__(self, folder, number, outcome):
    self.job_id, self.outcome, self.cancelled = f"7_{number}", outcome, False
    self.paths = types.SimpleNamespace(
      result_pickle=folder / f"{number}.pkl", stderr=folder / f"{number}.err"
    )
    if outcome is not None:
      self.paths.result_pickle.touch()

  def result(self):
    if isinstance(self.outcome, Exception):
      raise self.outcome
    return self.outcome

  def cancel(self, check):
    self.cancelled = True


@pytest.fixture
def squeue(tmp_path, monkeypatch):
  """Writes a program `squeue` that prints some text; Slurm is asked anew each time."""
  monkeypatch.setattr(slurm, "_ASK_SECONDS", -1.0)
  monkeypatch.setattr(slurm, "_LOST_SECONDS", 0.0)
  (tmp_path / "bin").mkdir()
  monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=":")

  def write(text, code=0):
    program = tmp_path / "bin" / "squeue"
    program.write_text(f"#!/bin/sh\necho '{text}' {'>&2' if code else ''}\nexit {code}\n")
    program.chmod(0o755)

  return write


TRACE = """Job (task=0) failed during processing with trace:
----------------------
Traceback (most recent call last):
submitit.core.utils.UncompletedJobError: Job not requeued because: timed-out too many times.

----------------------
You can check full logs with 'job.stderr(0)' and 'job.stdout(0)'or at paths:
  - 7_1_0_log.out"""


def test_slurm(sweep, tmp_path, monkeypatch, squeue):
  calls = {}
  squeue("7_0")

  class AutoExecutor:
    def __init__(self, folder, cluster):
      calls.update(folder=folder, cluster=cluster)

    def update_parameters(self, **options):
      if "partition" in options:
        raise NameError("Unknown argument(s): partition")
      calls.update(options)

    def map_array(self, fn, tasks):
      (tmp_path / "2.err").write_text("first\nslurmstepd: error: CANCELLED\n")
      outcomes = [fn(tasks[0]), RuntimeError(TRACE), None]
      return [Job(tmp_path, i, outcome) for i, outcome in enumerate(outcomes)]

  monkeypatch.setitem(sys.modules, "submitit", types.SimpleNamespace(AutoExecutor=AutoExecutor))
  pairs, args = [("a", 0), ("b", 2), ("c", 3)], {"slurm_partition": "gpu"}
  assert not sweep(pairs, pool="slurm", jobs=7, pool_args=args)
  assert calls == {
    "folder": str(tmp_path / "run" / "slurm"),
    "cluster": "slurm",
    "slurm_array_parallelism": 7,
    "slurm_partition": "gpu",
  }
  text = (tmp_path / "run" / "report" / "sweep.md").read_text()
  assert "1 of 3 cells are done." in text
  assert "UncompletedJobError: Job not requeued because: timed-out too many times.\n" in text
  assert f"Slurm ended job 7_2; the end of {tmp_path}/2.err: slurmstepd: error: CANCELLED\n" in text
  with pytest.raises(LtddError, match=r"--pool=slurm: submitit refuses it: Unknown argument"):
    sweep(pairs, pool="slurm", pool_args={"partition": "gpu"})


@pytest.mark.parametrize(
  ("text", "code", "done"),
  [
    ("7_0\n7_1", 0, False),
    ("7_1", 0, True),
    ("slurm_load_jobs error: Invalid job id specified", 1, True),  # forgotten
    ("slurm_load_jobs error: Unable to contact slurm controller", 1, False),
  ],
)
def test_a_job_has_ended_when_slurm_lists_it_no_more(tmp_path, squeue, text, code, done):
  squeue(text, code)
  job = Job(tmp_path, 0, None)
  future = slurm.Future(job, slurm.Array("7"))
  time.sleep(0.01)
  assert future.done() == done
  future.cancel()
  assert job.cancelled


def test_a_cell_that_slurm_warns_saves_and_is_queued_again(tmp_path, monkeypatch):
  helpers = types.SimpleNamespace(DelayedSubmission=lambda fn, *args: (fn, args))
  monkeypatch.setitem(sys.modules, "submitit", types.SimpleNamespace(helpers=helpers))
  monkeypatch.setitem(sys.modules, "submitit.helpers", helpers)
  task = pools.Task([sys.executable, "-c", SAVES, str(tmp_path)], str(tmp_path / "log.txt"))
  requeued, kept = pools.Requeued(), []

  def warn():
    wait_for(tmp_path / "ready")
    (process,) = requeued.running
    process.send_signal(signal.SIGUSR2)  # Slurm's warning reaches the cell, too
    os.kill(os.getpid(), signal.SIGUSR2)

  before = signal.signal(signal.SIGUSR2, lambda *unused: kept.append(requeued.checkpoint(task)))
  try:
    with concurrent.futures.ThreadPoolExecutor(1) as executor:
      warned = executor.submit(warn)
      assert requeued(task) == 0
      warned.result()
  finally:
    signal.signal(signal.SIGUSR2, before)
  assert (tmp_path / "saved").exists()
  ((again, args),) = kept
  assert isinstance(again, pools.Requeued)
  assert args == (task,)


def test_a_cell_that_ray_cancels_saves(tmp_path):
  task = pools.Task([sys.executable, "-c", SAVES, str(tmp_path)], str(tmp_path / "log.txt"))

  def cancel():
    wait_for(tmp_path / "ready")
    _thread.interrupt_main()  # as Ray does

  before = signal.signal(signal.SIGINT, signal.default_int_handler)  # shells ignore it in jobs
  try:
    with concurrent.futures.ThreadPoolExecutor(1) as executor:
      executor.submit(cancel)
      with pytest.raises(KeyboardInterrupt):
        pools.run_task(task)
  finally:
    signal.signal(signal.SIGINT, before)
  assert (tmp_path / "saved").exists()


def test_a_cluster_of_ray_that_is_not_there(sweep, monkeypatch):
  def init(**unused):
    raise ConnectionError("Failed to connect to Ray cluster at 10.0.0.1:6380")

  monkeypatch.setitem(sys.modules, "ray", types.SimpleNamespace(init=init))
  with pytest.raises(LtddError, match=r"--pool=ray: Failed to connect .*:6380; expected a cluster"):
    sweep([("a", 0)], pool="ray")


def test_studies_that_failed_have_no_link(tmp_path):
  config = {"study": {"name": "bound"}}
  found = [cells.Cell(name, config, tmp_path / "cells" / name) for name in ("good", "bad")]
  text = report.write(found, {"good": "done", "bad": "failed: exit code 1"}, tmp_path / "report")
  assert "* good: [bound](../cells/good/report/bound.md)" in text
  assert "cells/bad/report" not in text  # an older one may lie there


def test_the_end_of_a_log(tmp_path):
  log = tmp_path / "log.txt"
  assert report.end_of(log) == []
  log.write_bytes(b"one\n  2%|#\r 50%|##\rtwo\xff\n\nthree\n")
  assert report.end_of(log, 2) == ["two\N{REPLACEMENT CHARACTER}", "three"]


def test_exit_codes_in_words():
  assert report.explain(-11) == "killed by SIGSEGV"
  assert report.explain(137) == "killed by SIGKILL, often the out-of-memory killer"
  assert report.explain(2) == "exit code 2"


def test_the_table_on_a_terminal_is_printed_over(tmp_path):
  class Terminal(list):
    def isatty(self):
      return True

    write, flush = list.append, lambda self: None

  found = [cells.Cell(name, {}, tmp_path / name) for name in ("a", "bb")]
  (tmp_path / "bb").mkdir()
  found[1].log.write_text("teacher: step 3\n")
  terminal = Terminal()
  live = report.Live(found, terminal)
  live.show({"a": "waiting", "bb": "running"})
  live.show({"a": "failed: exit code 1", "bb": "done"})
  first, second = terminal
  assert first.splitlines() == [
    "bb  running    0.0 min  teacher: step 3", "a   waiting", "1 running, 1 waiting"
  ]  # fmt: skip
  assert second == "\x1b[3F\x1b[Ja   failed: exit code 1\nbb  done\n1 failed, 1 done\n"


@pytest.mark.skipif(shutil.which("setpriv") is None, reason="of util-linux")
def test_cells_of_a_killed_sweep_are_asked_to_stop(tmp_path):
  task = ([sys.executable, "-c", SAVES, str(tmp_path)], str(tmp_path / "log.txt"))
  code = f"from ltdd_jax.sweeps import pools; pools.run_task(pools.Task(*{task!r}))"
  sweep = subprocess.Popen([sys.executable, "-c", code])
  wait_for(tmp_path / "ready")
  sweep.kill()
  assert sweep.wait() == -signal.SIGKILL
  wait_for(tmp_path / "saved")


def wait_for(path, seconds=60.0):
  end = time.monotonic() + seconds
  while not path.exists():
    assert time.monotonic() < end, path
    time.sleep(0.01)


def test_a_process_that_an_earlier_sweep_left_may_save_first(tmp_path, monkeypatch):
  monkeypatch.setattr(pools, "_LEFT_SECONDS", 0.2)
  code = f"import pathlib; print(pathlib.Path({str(tmp_path)!r}, '.lock').exists())"
  task = pools.Task([sys.executable, "-c", code], str(tmp_path / "log.txt"))
  with Workdir(tmp_path):
    assert pools.run_task(task) == 0
  assert pathlib.Path(task.log).read_text() == "True\n"
