"""Shell scripts of `launch/`, with programs that stand for those of a cluster."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

LAUNCH = pathlib.Path(__file__).parents[2] / "launch"
SHELLS = ("sh", "bash")
# A process that saves for a while when it is asked to stop, as `launch.main` does.
SAVES = """#!/bin/bash
trap 'sleep 0.7; touch "$OUT/saved$JAX_PROCESS_ID"; exit 130' TERM
touch "$OUT/started$JAX_PROCESS_ID"
while true; do sleep 0.05; done
"""


@pytest.fixture
def bin_folder(tmp_path):
  folder = tmp_path / "bin"
  folder.mkdir()

  def add(name, text):
    (folder / name).write_text(text)
    (folder / name).chmod(0o755)

  add.env = os.environ | {"PATH": f"{folder}:{os.environ['PATH']}", "OUT": str(tmp_path)}
  return add


def stop(process, tmp_path, started):
  while not all((tmp_path / f"started{i}").exists() for i in started):
    assert process.poll() is None
    time.sleep(0.02)
  os.killpg(process.pid, signal.SIGTERM)
  return process.wait(timeout=60)


@pytest.mark.parametrize("program", ["score", "sweep", "plan"])
def test_help_has_the_flags_that_an_error_sends_there_for(program):
  command = [sys.executable, "-m", f"launch.{program}", "--help"]
  done = subprocess.run(command, cwd=LAUNCH.parent, capture_output=True, text=True)
  assert "--config: config file" in done.stdout
  assert ("--workdir:" in done.stdout) == (program != "plan")


@pytest.mark.parametrize("shell", SHELLS)
def test_processes_of_a_machine_are_waited_for_until_they_have_saved(shell, bin_folder, tmp_path):
  bin_folder("python", SAVES)
  process = subprocess.Popen(
    [shell, LAUNCH / "multi_gpu.sh", "2"], env=bin_folder.env, start_new_session=True
  )
  assert stop(process, tmp_path, "01") == 130
  assert all((tmp_path / f"saved{i}").exists() for i in "01")


@pytest.mark.parametrize("shell", SHELLS)
def test_a_job_that_saved_is_queued_again(shell, bin_folder, tmp_path):
  bin_folder("srun", SAVES)
  bin_folder("scontrol", '#!/bin/sh\necho "$@" > "$OUT/queued"\n')
  env = bin_folder.env | {"SLURM_JOB_ID": "7", "JAX_PROCESS_ID": "0"}
  process = subprocess.Popen([shell, LAUNCH / "slurm.sh"], env=env, start_new_session=True)
  assert stop(process, tmp_path, "0") == 130
  assert (tmp_path / "queued").read_text() == "requeue 7\n"


def test_arguments_reach_the_hosts_of_a_pod_as_they_are(bin_folder, tmp_path):
  """The command is run by a shell of the host."""
  bin_folder("gcloud", '#!/bin/sh\ncd "$OUT"\nmkdir ltdd_jax\nsh -c "${8#--command=}"\n')
  say = "import json,os,sys; json.dump(sys.argv[1:], open(os.environ['OUT'] + '/said', 'w'))"
  bin_folder("python3", f'#!/bin/sh\nexec /usr/bin/env python -c "{say}" "$@"\n')
  asked = ["--config", "a.py:x=1", "--config.m={'name': 'a b'}", 'it\'s; $HOME "q"', ""]
  command = ["sh", LAUNCH / "tpu_pod.sh", "pod", "zone", *asked]
  subprocess.run(command, env=bin_folder.env, check=True)
  said = json.loads((tmp_path / "said").read_text())
  assert said[said.index("--distributed") + 1 :] == asked
