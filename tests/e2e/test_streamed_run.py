"""Runs whose images stay on disk; `tests/multidevice/test_processes.py` compares their numbers."""

import pytest

from configs import digits_lt
from ltdd_jax import pipeline
from ltdd_jax.core.types import LtddError
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


def test_a_method_that_needs_all_images_says_so(tmp_path):
  with pytest.raises(LtddError, match=r"digits: 314 images stay on disk .*needs them all at once"):
    pipeline.run(config_of(0, "dream"), tmp_path, stage="distil", show_progress=False)
