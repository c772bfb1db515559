"""ImageNet-LT at 224 pixels by EDC, 50 images per class, compiled for TPUs that are not here.

pip install -e '.[tpu]' && JAX_PLATFORMS=cpu pytest -m slow -n 0 tests/slow/test_plan_on_tpu.py
"""

import numpy as np
import pytest

from configs import imagenet_lt
from ltdd_jax.core import hardware
from ltdd_jax.pipeline import ahead_of_time, programs
from ltdd_jax.pipeline.blank import blank_context

pytestmark = [pytest.mark.slow, pytest.mark.timeout(0)]


def test_memory_falls_with_the_slice_and_collectives_do_not_grow():
  """Of EDC's networks one, which takes a fifth of the time to compile."""
  pytest.importorskip("libtpu", reason="libtpu is not installed (extra tpu)")
  config = imagenet_lt.get_config("path=none,method=edc,ipc=50,calibrators=adsa")
  del config.distil.methods["random"]
  config.student.update(hard_labels=False, batch_size=128)  # divides by both slices
  config.teacher.models = {"resnet18": config.teacher.models["resnet18"]}
  config.distil.teachers = config.label.sources.teacher.teachers = ("resnet18",)
  counts = (1280 * 256.0 ** (-np.arange(1000) / 999)).astype(int)
  found = programs.of_run(blank_context(config, counts), ("teacher", "distil", "label", "student"))
  few, many = (
    [*ahead_of_time.compiled(found, hardware.of_topology(f"v5e:{size}"))] for size in ("2x2", "4x4")
  )
  names = ["teacher/resnet18", "distil/edc", "label/edc/teacher", "student/edc/teacher/adsa"]
  assert [record.name for record in few] == names
  for small, large in zip(few, many, strict=True):
    assert large.step.memory < small.step.memory
    count = lambda record: sum(n for n, _ in record.step.collectives.values())
    assert 0 < count(large) <= count(small)
    assert large.step.fits
