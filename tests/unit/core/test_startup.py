"""What happens before JAX starts, each time in a process of its own."""

import json
import os
import pathlib
import platform
import subprocess
import sys

from jaxlib import version

from ltdd_jax.core import startup

ROOT = str(pathlib.Path(startup.__file__).parents[2])


def run(code, cwd=None, **env):
  """Runs code in a fresh process and returns what it prints as JSON."""
  kept = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "XLA_"))}
  done = subprocess.run(
    [sys.executable, "-W", "error", "-c", f"import json, sys\n{code}"],
    env=kept | {"PYTHONPATH": ROOT} | env, capture_output=True, text=True, check=False,
    cwd=cwd,
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  return json.loads(done.stdout)


def test_tuning_comes_before_jax():
  imported, tuned = run("""
from ltdd_jax.core import startup
tuned = startup.tune_host()
print(json.dumps([[m for m in ("jax", "numpy") if m in sys.modules], tuned]))
""")
  assert imported == []
  assert tuned == (platform.libc_ver()[0] == "glibc")


SETUP = """
from ltdd_jax.core import startup
{before}
facts = startup.setup_jax({args})
import jax, os
print(json.dumps([facts, jax.device_count(), jax.config.jax_compilation_cache_dir,
                  jax.config.jax_persistent_cache_min_compile_time_secs, os.environ.get("NPROC")]))
"""


SOUND = tuple(map(int, version.__version__.split(".")[:2])) >= (0, 12)


def setup(args="", before="", **env):
  return run(SETUP.format(args=args, before=before), **env, JAX_PLATFORMS="cpu")


def test_one_device_and_a_cache(tmp_path):
  facts, devices, cache, least, threads = setup(HOME=str(tmp_path))
  folder = str(tmp_path / ".cache" / "ltdd_jax" / "xla")
  assert facts == [None, folder, False]
  assert devices == 1
  assert (cache, least) == (folder, 0)
  assert threads is None
  assert pathlib.Path(folder).is_dir()


def test_several_devices_get_a_larger_pool_of_threads_where_they_may_hang():
  facts, devices, *_, threads = setup("3, cache_dir=None")
  assert (facts[0], devices, threads) == (3, 3, None if SOUND else "48")


def test_what_the_user_chose_stays(tmp_path):
  flag = "--xla_force_host_platform_device_count=2"
  facts, devices, cache, *_ = setup(
    "cache_dir=None", XLA_FLAGS=flag, JAX_COMPILATION_CACHE_DIR=str(tmp_path)
  )
  assert (facts[0], devices) == (None, 2)
  assert (facts[1], cache) == (None, str(tmp_path))


def test_the_cache_of_the_environment_takes_the_place_of_the_default(tmp_path):
  facts, *_ = setup(JAX_COMPILATION_CACHE_DIR=str(tmp_path / "c"))
  assert facts[1] == str(tmp_path / "c")


def test_a_backend_that_runs_is_left_alone():
  facts, devices, *_ = setup("2, cache_dir=None", before="import jax; jax.devices()")
  assert (facts[0], devices) == (None, 1)


def test_a_cache_that_cannot_be_made_is_done_without(tmp_path):
  (tmp_path / "file").write_text("")
  facts, *_ = setup(f"cache_dir={str(tmp_path / 'file' / 'xla')!r}")  # no folder can be there
  assert facts[1] is None


def test_facts_read_well():
  assert str(startup.Facts(2, None, False)) == (
    "CPU devices: 2; compilation cache: none; distributed: no"
  )


def test_the_program_has_as_many_devices_as_asked_for(tmp_path):
  code = """
import contextlib, os, warnings
from absl import app
from launch import main
warnings.simplefilter("default")  # ml_collections loads configs in an old way
with contextlib.redirect_stdout(sys.stderr), contextlib.suppress(SystemExit):
  app.run(main.main, flags_parser=main.parse_flags, argv=["main", *os.environ["ARGS"].split()])
import jax
print(json.dumps([jax.device_count(), os.path.exists("runs")]))
"""
  config = pathlib.Path(ROOT) / "configs" / "digits_lt.py"
  args = f"--config={config} --workdir=runs --dry_run --compile_cache="
  for more, count in (("", 1), (" --cpu_devices=4", 4)):
    assert run(code, ARGS=args + more, JAX_PLATFORMS="cpu", cwd=tmp_path) == [count, False]
