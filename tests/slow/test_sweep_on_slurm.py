"""A sweep of two cells on a Slurm cluster, whose nodes see the folder of pytest (`--basetemp`)."""

import json
import pathlib
import shutil
import subprocess
import sys

import pytest

from tests.e2e.test_sweep_runs import SWEEP

pytestmark = [
  pytest.mark.slow,
  pytest.mark.skipif(shutil.which("sbatch") is None, reason="needs a Slurm cluster (sbatch)"),
]


def test_two_cells_run_and_a_second_time_none(tmp_path):
  pytest.importorskip("submitit", reason="needs the extra slurm")
  (tmp_path / "two.py").write_text(SWEEP)
  command = [sys.executable, "-m", "launch.sweep", "--config", str(tmp_path / "two.py")]
  command += ["--workdir", str(tmp_path / "run"), "--pool=slurm", "--pool_args=timeout_min=10"]
  first = subprocess.run(command, capture_output=True, text=True, check=False)
  assert first.returncode == 0, first.stdout + first.stderr
  report = json.loads(pathlib.Path(tmp_path, "run/report/sweep.json").read_text())
  assert [r["cell"] for r in report["rows"]] == ["epochs1", "epochs2"]
  again = subprocess.run(command, capture_output=True, text=True, check=False)
  assert "running" not in again.stdout
  assert "2 of 2 cells are done." in again.stdout
