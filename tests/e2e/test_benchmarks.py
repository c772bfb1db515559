"""The benchmark that is run on other machines runs here, on tiny cases."""

import json
import subprocess
import sys

from tests.readme_commands import ROOT


def test_steps_of_all_stages(tmp_path):
  cases, sides = ("teacher/convnet", "distil/convnet", "student/convnet"), ("ltdd_jax",)
  command = [sys.executable, "-m", "benchmarks.steps", "--smoke", "--out", tmp_path / "out.json"]
  command += ["--cases", *cases, "--sides", *sides]
  done = subprocess.run(command, check=True, cwd=ROOT, capture_output=True, text=True)
  assert [line.split("|")[1].strip() for line in done.stdout.splitlines()[-3:]] == [*cases]
  found = json.loads((tmp_path / "out.json").read_text())
  assert "teacher/convnet" in json.dumps(found)
