"""Sweeps of a stub in place of runs: cells that end well, crash, are killed, or are interrupted."""

import concurrent.futures
import json
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
from ltdd_jax.sweeps import cells, pools, report

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


def test_slurm(sweep, tmp_path, monkeypatch):
  calls = {}

  class AutoExecutor:
    def __init__(self, folder, cluster):
      calls.update(folder=folder, cluster=cluster)

    def update_parameters(self, **options):
      if "partition" in options:
        raise NameError("Unknown argument(s): partition")
      calls.update(options)

    def map_array(self, fn, tasks):
      jobs = [concurrent.futures.Future() for _ in tasks]
      jobs[0].set_result(fn(tasks[0]))
      jobs[1].set_exception(RuntimeError("Job not requeued because:\n timed-out"))
      return jobs

  monkeypatch.setitem(sys.modules, "submitit", types.SimpleNamespace(AutoExecutor=AutoExecutor))
  pairs, args = [("a", 0), ("b", 2)], {"slurm_partition": "gpu"}
  assert not sweep(pairs, pool="slurm", jobs=7, pool_args=args)
  assert calls == {
    "folder": str(tmp_path / "run" / "slurm"),
    "cluster": "slurm",
    "slurm_array_parallelism": 7,
    "slurm_partition": "gpu",
  }
  text = (tmp_path / "run" / "report" / "sweep.md").read_text()
  assert "## b: failed: RuntimeError:  timed-out\n" in text
  with pytest.raises(LtddError, match=r"--pool=slurm: submitit refuses it: Unknown argument"):
    sweep(pairs, pool="slurm", pool_args={"partition": "gpu"})


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
  cell = """
import pathlib, signal, sys, time
def stop(*unused):
  pathlib.Path(sys.argv[1], "saved").touch()
  sys.exit()
signal.signal(signal.SIGTERM, stop)
pathlib.Path(sys.argv[1], "ready").touch()
time.sleep(60)
"""
  task = ([sys.executable, "-c", cell, str(tmp_path)], str(tmp_path / "log.txt"))
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
