"""One of two processes that run a pipeline together; or, without numbers, the only one.

python -m tests.multidevice.pair WORKDIR [stop] [stream]
"""

import os
import sys

from ltdd_jax.core import startup

startup.setup_jax(cache_dir=None, distributed="JAX_PROCESS_ID" in os.environ)

import jax  # noqa: E402

from configs import digits_lt  # noqa: E402
from ltdd_jax import pipeline  # noqa: E402
from ltdd_jax.artefacts import checkpoint  # noqa: E402

config = digits_lt.get_config("preset=smoke,calibrators=adsa+probe")
del config.distil.methods.random
config.student.update(num_seeds=1, hard_labels=False)
for model in (config.teacher.models.teacher, config.student.model):
  model.update(depth=1, width=4)
if "stream" in sys.argv:  # images stay on disk, and each process reads its part of a batch
  config.data.stream_workers = 0


class ToldToStop(checkpoint.Progress):
  """Process 1 alone is asked to stop at its first look, and both have to."""

  def due(self) -> bool:
    if jax.process_index() == 1:
      checkpoint._stop.set()
    return False


if "stop" in sys.argv:
  checkpoint.Progress = ToldToStop
try:
  results = pipeline.run(config, sys.argv[1], show_progress=False)
  print("top1", results["rows"][0]["top1"]["mean"], "devices", jax.device_count())
except checkpoint.Interrupted as stopped:
  print("interrupted:", stopped)
