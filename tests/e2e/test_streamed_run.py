"""Runs whose images stay on disk; `tests/multidevice/test_processes.py` compares their numbers."""

import subprocess
import sys

from configs import digits_lt
from ltdd_jax import pipeline
from ltdd_jax.pipeline import graph
from ltdd_jax.pipeline.context import Context


def config_of(workers, method="edc"):
  config = digits_lt.get_config(f"preset=smoke,calibrators=probe,method={method}")
  del config.distil.methods.random
  config.student.update(num_seeds=1, hard_labels=False)
  for model in (config.teacher.models.teacher, config.student.model):
    model.update(depth=1, width=4)
  config.data.stream_workers = workers
  return config


def test_the_number_of_workers_has_no_part_in_fingerprints():
  names = {}
  for workers in (None, 0, 3):
    stages = graph.make_stages(Context(pipeline.check.check(config_of(workers))))
    names[workers] = [stage.fingerprint for stage in stages]
  assert names[0] == names[3]
  assert names[0][0] != names[None][0]


SCRIPT = """
import sys
from configs import digits_lt
from ltdd_jax import pipeline
config = digits_lt.get_config("preset=smoke,calibrators=plain")
config.data.update(stream_workers=2, whiten=0.1)
pipeline.run(config, sys.argv[1], stage="teacher", show_progress=False)
"""


def test_workers_do_not_run_a_script_again_and_get_no_whitening(tmp_path):
  (tmp_path / "script.py").write_text(SCRIPT)
  command = [sys.executable, "-W", "error", str(tmp_path / "script.py"), str(tmp_path / "run")]
  subprocess.run(command, check=True, timeout=120)
