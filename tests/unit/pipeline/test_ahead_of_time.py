"""Plans: steps compiled ahead of time on the CPU, what they take, and refusals."""

import subprocess
import sys

import jax
import numpy as np
import pytest

from configs import digits_lt
from ltdd_jax.core import hardware
from ltdd_jax.core import mesh as mesh_lib
from ltdd_jax.core.types import LtddError
from ltdd_jax.pipeline import ahead_of_time, programs
from ltdd_jax.pipeline.blank import blank_context
from ltdd_jax.training import ahead

HLO = """
%a = f32[2,3]{1,0} all-reduce(%b), to_apply=%add
%c = (f32[4]{0}, bf16[8]{0}) all-reduce-start(%d, %e), to_apply=%add
%f = (f32[2]{0}, f32[16]{0}) all-gather-start(%g), dimensions={0}
%h = f32[16]{0} all-gather-done(%f)
%i = pred[5]{0} collective-permute(%j)
"""


@pytest.fixture(scope="module")
def ctx():
  return blank_context(digits_lt.get_config("preset=smoke,calibrators=few"))


def target(count: int = 1) -> hardware.Target:
  mesh = mesh_lib.make_mesh(jax.devices()[:count])
  return hardware.Target("here", mesh, 2**30, 1e9, 1e9)


def test_collectives_of_a_compiled_program():
  assert ahead.collectives(HLO) == {
    "all-reduce": (2, 24 + 16 + 16),
    "all-gather": (1, 64),  # the result, and not its operand
    "collective-permute": (1, 5),
  }


def test_records_of_a_run(ctx):
  found = programs.of_run(ctx, ("teacher", "distil"))
  teacher, distil = ahead_of_time.compiled(found, target())
  config, images = ctx.config["teacher"], int(ctx.counts.sum())
  assert (teacher.name, distil.name) == ("teacher/teacher", "distil/sre2l")
  assert teacher.steps == config["num_epochs"] * (-(-images // config["batch_size"]))
  assert distil.steps == ctx.method("sre2l").num_steps
  assert teacher.step.memory > images * 8 * 8  # the training images, one byte a pixel
  assert teacher.step.collectives == {}
  by_flops, by_bytes = teacher.step.flops / 4e8, teacher.step.moved / 1e9
  assert teacher.seconds == pytest.approx(max(by_flops, by_bytes))
  text = ahead_of_time.table([teacher, distil], target())
  assert "distil/sre2l | " in text
  assert " by FLOPs at 0.4 of the peak, " in text
  assert " by bytes, those within a chip too. Not in it: input, evaluations" in text
  assert "and stages without a line." in text  # students and labels, here


def test_experts_are_counted_whole_and_compiled_as_they_are_trained():
  config = digits_lt.get_config("preset=smoke,method=mtt,calibrators=few")
  config.trajectories.update(num_experts=5, at_once=2, num_epochs=3)
  ctx = blank_context(config)
  epoch = -(-3 * int(ctx.counts.sum()) // config.trajectories.batch_size)
  for parallel, times in (("loop", 5), ("vmap", 3)):
    config.trajectories.parallel = parallel
    found = programs.of_run(blank_context(config), ("trajectories",))
    (record,) = ahead_of_time.compiled(found, target())
    assert (record.name, record.steps) == ("trajectories", times * epoch)


def test_equal_steps_are_compiled_once(ctx):
  first, second = ahead_of_time.compiled(programs.of_run(ctx, ("distil",)) * 2, target())
  assert first.step is second.step


def test_a_batch_smaller_than_the_number_of_devices_is_refused(ctx):
  (program,) = programs.of_run(ctx, ("distil",))
  with pytest.raises(
    LtddError, match=r"distil/sre2l: a batch of 0 images .* on the 1 devices of he"
  ):
    next(ahead_of_time.compiled([program._replace(batch=0)], target()))


def test_a_topology_that_does_not_exist_is_refused():
  with pytest.raises(LtddError, match=r"topology 'v5e:3x3' does not exist; expected .*v5e:4x4"):
    hardware.of_topology("v5e:3x3")
  assert hardware.slices("v5e", ["4", "256"]) == ["v5e:2x2", "v5e:16x16"]
  with pytest.raises(LtddError, match="--sweep has '5' chips of v5e; expected numbers out of 1, 4"):
    hardware.slices("v5e", ["5"])
  with pytest.raises(LtddError, match=r"'4' chips of v9; expected .* of those of v5e, v5p, v6e"):
    hardware.slices("v9", ["4"])


def test_a_topology_is_looked_at_before_the_data():
  command = [sys.executable, "-m", "launch.plan", "--config", "configs/cifar10_lt.py"]
  command += ["--config.data.data_dir=/none", "--topology", "v5e:3x3"]
  done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
  assert done.returncode == 2
  assert "error: topology 'v5e:3x3' does not exist; expected one of v5e:1x1" in done.stderr


def test_a_missing_libtpu_is_named(monkeypatch):
  monkeypatch.setattr(hardware.importlib.util, "find_spec", lambda name: None)
  with pytest.raises(
    LtddError, match=r"the compiler for TPUs is missing; .*pip install 'ltdd-jax\[t"
  ):
    hardware.of_topology("v5e:2x2")


def test_class_counts_in_the_place_of_a_data_set():
  config = digits_lt.get_config("preset=smoke")
  assert blank_context(config, np.array([9, 5] * 5)).counts.tolist() == [9, 5] * 5
  with pytest.raises(LtddError, match=r"counts are float64 of shape .*; expected whole numbers"):
    blank_context(config, np.ones(10))


MEMORY = """
import jax
from configs import digits_lt
from ltdd_jax.core import hardware, mesh
from ltdd_jax.pipeline import ahead_of_time, blank, programs
config = digits_lt.get_config("preset=smoke")
config.teacher.batch_size = 512
found = programs.of_run(blank.blank_context(config), ("teacher",))
for n in (1, 8):
  target = hardware.Target("cpu", mesh.make_mesh(jax.devices()[:n]), 2**30, 1e9, 1e9)
  (record,) = ahead_of_time.compiled(found, target)
  print(record.step.memory, sum(count for count, _ in record.step.collectives.values()))
"""


def test_memory_of_a_device_falls_with_their_number():
  environment = {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "8", "PYTHONPATH": "."}
  done = subprocess.run(
    [sys.executable, "-c", MEMORY],
    env=environment,
    capture_output=True,
    text=True,
    check=False,
    timeout=300,
  )
  assert done.returncode == 0, done.stderr
  (one, none), (eight, several) = (map(int, line.split()) for line in done.stdout.splitlines())
  assert eight < one / 2
  assert none == 0
  assert several > 0
