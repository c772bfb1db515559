"""Two processes, as on a pod, against one."""

import socket
import subprocess
import sys

import numpy as np

from ltdd_jax.artefacts import workdir as workdir_lib
from tests.multidevice.test_multidevice import environment


def free_port():
  with socket.socket() as free:
    free.bind(("localhost", 0))
    return free.getsockname()[1]


def run(workdir, processes, *flags):
  """Runs `pair.py` in so many processes; returns what each printed."""
  env = environment()
  env.pop("NPROC", None)
  env["JAX_COORDINATOR_ADDRESS"] = f"localhost:{free_port()}"
  several = env | {"JAX_NUM_PROCESSES": str(processes)}
  started = [
    subprocess.Popen(
      [sys.executable, "-m", "tests.multidevice.pair", str(workdir), *flags],
      env=several | {"JAX_PROCESS_ID": str(i)} if processes > 1 else env,
      stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )
    for i in range(processes)
  ]  # fmt: skip
  try:
    out = [p.communicate(timeout=500)[0] for p in started]
  finally:
    for p in started:
      p.kill()
  assert [p.returncode for p in started] == [0] * processes, "\n".join(out)
  return out


def test_two_processes_stop_together_go_on_and_give_what_one_gives(tmp_path):
  """The two read images from disk, each its part of a batch; the one has them in memory."""
  for text in run(tmp_path / "two", 2, "stop", "stream"):
    assert "interrupted: teacher/teacher: stopped after step" in text
  first, second = (text.split("top1 ")[1] for text in run(tmp_path / "two", 2, "stream"))
  assert first == second
  assert "devices 2" in first
  run(tmp_path / "one", 1)
  images, logits = (
    [workdir_lib.Workdir(tmp_path / name).load(stage).arrays[key] for name in ("one", "two")]
    for stage, key in (("distil/sre2l", "images"), ("label/sre2l/teacher", "clean_logits"))
  )
  # Sums over two devices round otherwise; a pixel may fall to the other side of a truncation.
  assert np.abs(images[0].astype(int) - images[1]).max() <= 1
  np.testing.assert_allclose(*logits, atol=0.05)
