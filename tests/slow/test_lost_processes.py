"""Four processes; one of two that is killed; and going on with another number of them."""

import os
import signal
import subprocess
import sys
import time

import pytest

from ltdd_jax.artefacts import workdir as workdir_lib
from tests.multidevice import test_processes
from tests.multidevice.test_multidevice import environment

pytestmark = pytest.mark.slow
COMMAND = (
  sys.executable, "-m", "launch.main", "--config",
  "configs/digits_lt.py:preset=smoke,calibrators=plain,method=random",
  "--config.teacher.num_epochs=600", "--checkpoint_seconds=1", "--compile_cache=", "--workdir",
)  # fmt: skip


def start(workdir, **env):
  env = {k: v for k, v in environment().items() if k != "NPROC"} | env
  distributed = ["--distributed"] if env else []
  return subprocess.Popen(
    [*COMMAND, str(workdir), *(distributed if "JAX_PROCESS_ID" in env else [])],
    env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
  )  # fmt: skip


def top1(text):
  return text.split("top1 ")[1].split()[0]


def test_four_processes_give_what_one_gives(tmp_path):
  four = test_processes.run(tmp_path / "four", 4, "stream")
  (one,) = test_processes.run(tmp_path / "one", 1)
  assert [top1(text) for text in four] == [top1(one)] * 4
  assert "devices 4" in four[0]


def test_a_killed_process_ends_the_others_and_one_alone_goes_on(tmp_path):
  port = test_processes.free_port()
  env = {"JAX_COORDINATOR_ADDRESS": f"localhost:{port}", "JAX_NUM_PROCESSES": "2"}
  first, second = (start(tmp_path / "lost", JAX_PROCESS_ID=str(i), **env) for i in range(2))
  try:
    wait_for(tmp_path / "lost")
    os.kill(second.pid, signal.SIGKILL)
    said = first.communicate(timeout=60)[0]
  finally:
    for process in (first, second):
      process.kill()
      process.communicate()
  assert first.returncode == 3, said
  assert "error: process 0: a step failed, most likely since another process has ended" in said
  assert "Give the same command on every host again" in said
  alone, whole = (start(tmp_path / name) for name in ("lost", "whole"))
  for process in (alone, whole):
    process.said = process.communicate(timeout=600)[0]
    assert process.returncode == 0, process.said
  assert "resumed; its time and memory" in alone.said
  score = [workdir_lib.Workdir(tmp_path / x).load("teacher").arrays for x in ("lost", "whole")]
  assert abs(int(score[0]["test_correct"].sum()) - int(score[1]["test_correct"].sum())) <= 6


def wait_for(workdir, seconds=200.0):
  """Waits until the teacher has a checkpoint."""
  end = time.monotonic() + seconds
  while not [p for p in workdir.glob(".scratch/teacher/*/teacher/teacher/*") if p.name.isdigit()]:
    assert time.monotonic() < end
    time.sleep(0.2)
