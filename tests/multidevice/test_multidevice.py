"""Eight virtual devices, in a process of their own."""

import os
import re
import subprocess
import sys


def environment(**values):
  """The variables of this process, without a number of devices, and with others."""
  flags = re.sub(r"--xla_force_host_platform_device_count=\d+", "", os.environ.get("XLA_FLAGS", ""))
  return os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags} | values


def test_eight_devices_equal_one():
  done = subprocess.run(
    [sys.executable, "-m", "tests.multidevice.program"],
    env=environment(NPROC="64"),  # see startup.setup_jax
    capture_output=True,
    text=True,
    check=False,
    timeout=550,
  )
  assert done.returncode == 0, done.stdout + done.stderr
  assert done.stdout.count("ok") == 18
