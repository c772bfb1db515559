"""The definitions of sweeps, and one of them for real: two runs that share their teacher."""

import importlib
import json
import subprocess
import sys

import pytest

from ltdd_jax import studies
from ltdd_jax.pipeline import check
from ltdd_jax.pipeline.context import Context
from tests.e2e import test_configs

NAMES = {"main_table": 13, "label_budgets": 8, "perturbation": 6}
real_size_source = test_configs.real_size_source

SWEEP = """
from configs import digits_lt

def get_sweep(arg=None):
  for epochs in (1, 2):
    config = digits_lt.get_config("preset=smoke,method=random,calibrators=plain,imbalance=10")
    config.student.update(num_epochs=epochs, num_seeds=1, evaluations=1, hard_labels=False)
    for network in (config.student.model, config.teacher.models.teacher):
      network.update(depth=1, width=4)
    yield f"epochs{epochs}", config
"""


@pytest.mark.parametrize("preset", ["smoke", "cpu", "full"])
@pytest.mark.parametrize("name", NAMES)
def test_every_cell_of_every_sweep_is_a_config(name, preset):
  cells = dict(importlib.import_module(f"configs.sweeps.{name}").get_sweep(f"preset={preset}"))
  assert len(cells) == NAMES[name]
  for config in cells.values():
    plain = config.to_dict()
    if study := plain.pop("study", None):
      studies.check(study)
    checked = check.check(plain)
    assert checked["data"]["name"] == ("digits" if preset == "smoke" else "cifar10")


def test_smoke_cells_of_the_main_table_can_be_made():
  for _, config in importlib.import_module("configs.sweeps.main_table").get_sweep("preset=smoke"):
    assert config.distil.images_per_class <= 2
    if config.distil.images_per_class == 2:
      check.check_with_data(Context(check.check(config)))


def test_two_cells_share_a_teacher_and_make_one_table(tmp_path):
  (tmp_path / "two.py").write_text(SWEEP)
  command = [sys.executable, "-m", "launch.sweep", "--config", str(tmp_path / "two.py")]
  command += ["--workdir", str(tmp_path / "run"), "--jobs", "2", "--config.student.batch_size=5"]
  first = subprocess.run(command, capture_output=True, text=True, check=False)
  assert first.returncode == 0, first.stderr
  text = (tmp_path / "run" / "report" / "sweep.md").read_text()
  assert first.stdout.endswith(text + "\n")
  rows = json.loads((tmp_path / "run" / "report" / "sweep.json").read_text())["rows"]
  assert [r["cell"] for r in rows] == ["epochs1", "epochs2"]
  logs = [(tmp_path / "run" / "cells" / r["cell"] / "log.txt").read_text() for r in rows]
  assert sum("teacher: done in" in log for log in logs) == 1
  again = subprocess.run(command, capture_output=True, text=True, check=False)
  assert again.stdout == text + "\n"
  changed = subprocess.run(
    [*command, "--config.student.batch_size=4"], capture_output=True, text=True, check=False
  )
  assert changed.returncode == 2
  assert "error: cell epochs1: " in changed.stderr
  assert "batch_size: 5 -> 4" in changed.stderr
