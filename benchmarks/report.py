"""Seconds and bytes of an HTML report, of a made-up run of 1,000 classes or of work directories.

python -m benchmarks.report [RUN...]
"""

import pathlib
import sys
import tempfile
import time

from ltdd_jax.report import page
from tests import small_run


def measure(name: str, workdir: pathlib.Path) -> None:
  """Writes a report three times; prints the fastest."""
  seconds = []
  for _ in range(3):
    start = time.perf_counter()
    target = page.write([workdir])
    seconds.append(time.perf_counter() - start)
  print(f"{name}: {min(seconds):.1f} s, {target.stat().length / 1e6:.1f} MB")


def main() -> None:
  for name in sys.argv[1:]:
    measure(name, pathlib.Path(name))
  with tempfile.TemporaryDirectory() as folder:
    workdir = pathlib.Path(folder) / "run"
    small_run.write(workdir, 1000, per_class=50, side=64, seeds=3)
    measure("1,000 classes x 50 images 64x64", workdir)


if __name__ == "__main__":
  main()
