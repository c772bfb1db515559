"""What happens before JAX starts, each time in a process of its own."""

import json
import os
import pathlib
import platform
import subprocess
import sys

import pytest

from ltdd_jax import startup

ROOT = str(pathlib.Path(startup.__file__).parents[1])


def run(code, **env):
  """Runs code in a fresh process and returns what it prints as JSON."""
  kept = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "XLA_"))}
  done = subprocess.run(
    [sys.executable, "-W", "error", "-c", f"import json, sys\n{code}"],
    env=kept | {"PYTHONPATH": ROOT} | env, capture_output=True, text=True, check=False,
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  return json.loads(done.stdout)


def test_tuning_comes_before_jax():
  imported, tuned = run("""
from ltdd_jax import startup
tuned = startup.tune_host()
print(json.dumps([[m for m in ("jax", "numpy") if m in sys.modules], tuned]))
""")
  assert imported == []
  assert tuned == (platform.libc_ver()[0] == "glibc")


SETUP = """
from ltdd_jax import startup
startup.available_cores = lambda: 3
startup.accelerator_visible = lambda: {gpu}
{before}
facts = startup.setup_jax({args})
import jax
print(json.dumps([facts, jax.device_count(), jax.config.jax_compilation_cache_dir,
                  jax.config.jax_persistent_cache_min_compile_time_secs]))
"""


def setup(args="", gpu=False, before="", **env):
  return run(SETUP.format(args=args, gpu=gpu, before=before), **env)


def test_a_device_for_each_core_and_a_cache(tmp_path):
  facts, devices, cache, least = setup(HOME=str(tmp_path), JAX_PLATFORMS="cpu")
  folder = str(tmp_path / ".cache" / "ltdd_jax" / "xla")
  assert facts == [3, folder, False]
  assert devices == 3
  assert (cache, least) == (folder, 0)
  assert pathlib.Path(folder).is_dir()


def test_what_the_user_chose_stays(tmp_path):
  flag = "--xla_force_host_platform_device_count=2"
  facts, devices, cache, _ = setup(
    "cache_dir=None", XLA_FLAGS=flag, JAX_PLATFORMS="cpu", JAX_COMPILATION_CACHE_DIR=str(tmp_path)
  )
  assert (facts[0], devices) == (None, 2)
  assert (facts[1], cache) == (None, str(tmp_path))


def test_the_cache_of_the_environment_takes_the_place_of_the_default(tmp_path):
  facts, *_ = setup(JAX_COMPILATION_CACHE_DIR=str(tmp_path / "c"), JAX_PLATFORMS="cpu")
  assert facts[1] == str(tmp_path / "c")


def test_a_backend_that_runs_is_left_alone():
  before = "import jax; jax.devices()"
  facts, devices, *_ = setup("cache_dir=None", before=before, JAX_PLATFORMS="cpu")
  assert (facts[0], devices) == (None, 1)


def test_beside_an_accelerator_the_cpu_is_left_alone(tmp_path):
  (tmp_path / "file").write_text("")
  args = f"cache_dir={str(tmp_path / 'file' / 'xla')!r}"  # no folder can be there
  facts, devices, *_ = setup(args, gpu=True, JAX_PLATFORMS="cpu")
  assert facts == [None, None, False]
  assert devices == 1


@pytest.mark.parametrize(
  ("platforms", "visible"), [("cpu", False), ("cpu,cuda", False), ("cuda,cpu", True), ("tpu", True)]
)
def test_the_platforms_of_the_environment_decide(monkeypatch, platforms, visible):
  monkeypatch.setenv("JAX_PLATFORMS", platforms)
  assert startup.accelerator_visible() is visible


def test_device_files_decide_otherwise(monkeypatch):
  monkeypatch.delenv("JAX_PLATFORMS", raising=False)
  for there in ("/dev/nvidia[0-9]*", "/dev/accel*", "/dev/vfio/[0-9]*", None):
    monkeypatch.setattr(startup.glob, "glob", lambda p, there=there: [p] if p == there else [])
    assert startup.accelerator_visible() is (there is not None)


def test_cores_are_those_of_the_container(monkeypatch):
  monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(64)), raising=False)
  for text, cores in (("200000 100000", 2), ("50000 100000", 1), ("max 100000", 64), ("", 64)):
    monkeypatch.setattr(startup.pathlib.Path, "read_text", lambda path, text=text: text)
    assert startup.available_cores() == cores


def test_facts_read_well():
  assert str(startup.Facts(2, None, False)) == (
    "CPU devices: 2; compilation cache: none; distributed: no"
  )
