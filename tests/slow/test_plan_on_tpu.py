"""EDC's steps at 224 pixels and 1,000 classes, compiled for slices of TPUs that are not here.

pip install -e '.[tpu]' && JAX_PLATFORMS=cpu pytest -m slow -n 0 tests/slow/test_plan_on_tpu.py
"""

import numpy as np
import pytest

from configs import cifar10_lt
from ltdd_jax.core import hardware
from ltdd_jax.pipeline import ahead_of_time, programs
from ltdd_jax.pipeline.blank import blank_context

pytestmark = pytest.mark.slow


def test_memory_falls_with_the_slice_and_collectives_do_not_grow():
  pytest.importorskip("libtpu", reason="libtpu is not installed (extra tpu)")
  config = cifar10_lt.get_config("method=edc")
  config.data.update(image_size=224, stream_workers=2)
  config.teacher.models = {"resnet18": {"name": "resnet18", "stem": "imagenet"}}
  config.teacher.update(batch_size=256)
  config.distil.update(batch_size=100, teachers=("resnet18",))
  counts = (1280 * 256.0 ** (-np.arange(1000) / 999)).astype(int)
  found = programs.of_run(blank_context(config, counts), ("teacher", "distil"))
  few, many = (
    [*ahead_of_time.compiled(found, hardware.of_topology(f"v5e:{size}"))] for size in ("2x2", "4x4")
  )
  assert [record.name for record in few][:2] == ["teacher/resnet18", "distil/edc"]
  for small, large in zip(few, many, strict=True):
    assert large.step.memory < small.step.memory
    count = lambda record: sum(n for n, _ in record.step.collectives.values())
    assert 0 < count(large) <= count(small)
    assert large.step.fits
