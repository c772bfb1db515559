"""Eight virtual devices, in a process of their own."""

import os
import subprocess
import sys


def test_eight_devices_equal_one():
  env = os.environ | {"JAX_PLATFORMS": "cpu", "NPROC": "64"}  # see startup.setup_jax
  env.pop("XLA_FLAGS", None)
  done = subprocess.run(
    [sys.executable, "-m", "tests.multidevice.program"],
    env=env, capture_output=True, text=True, check=False, timeout=550,
  )  # fmt: skip
  assert done.returncode == 0, done.stdout + done.stderr
  assert done.stdout.count("ok") == 13
