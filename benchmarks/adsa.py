"""Speed and memory of `adsa.fit`, against one read of the logits measured in the same run.

    python benchmarks/adsa.py            # 50,000 x 1,000 float32 logits; a minute or two on 2 cores
    python benchmarks/adsa.py --rows 5000 --repeats 3

All rows of the table are timed in turn, again and again, and medians are shown, so that a ratio
compares like with like on a machine that others use. CPU time, summed over threads, depends less on
who else is running. `extra` is the peak of anonymous memory beyond what was there before the call,
the first one of a fresh process, so that it holds what compilation takes as well; `of logits` is
that plus the logits, as a share of the logits.
"""

import argparse
import pathlib
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
from ltdd_jax import adsa
from ltdd_jax.adsa import Rows
from ltdd_jax.core import startup

IMBALANCE = 256  # of ImageNet-LT
READ = "one read (sum)"


def make_data(rows: int, k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Logits (rows, k) float32 of a teacher that has learnt the prior, classes, class counts."""
  random = np.random.default_rng(0)
  counts = (1280 * (1 / IMBALANCE) ** (np.arange(k) / (k - 1))).astype(int)
  labels = np.arange(rows) % k
  logits = np.empty((rows, k), np.float32)
  for chunk in np.array_split(logits, 32):
    random.standard_normal(out=chunk, dtype=np.float32)
  logits += np.log(counts / counts.sum()).astype(np.float32)
  logits[np.arange(rows), labels] += 6
  return logits, labels, counts


def memory_map(logits: np.ndarray) -> np.ndarray:
  with tempfile.NamedTemporaryFile(suffix=".npy") as file:
    np.save(file.name, logits.astype(np.float16))
    return np.load(file.name, mmap_mode="r")


def to_device(logits: np.ndarray) -> jax.Array:
  return jnp.asarray(logits).block_until_ready()


def cases(labels: np.ndarray, counts: np.ndarray) -> dict[str, tuple[Callable, Callable]]:
  """By name: a function from float32 logits to those of the case, and one of these to measure."""
  prior = np.log(counts / counts.sum())
  taus = np.linspace(0.0, 3.0, 48)

  @jax.jit
  def by_softmax(z: jax.Array, tau: float) -> jax.Array:
    p = jax.nn.softmax(z - tau * jnp.asarray(prior, jnp.float32)[None])
    return jnp.take_along_axis(p, jnp.asarray(labels)[:, None], 1).mean()

  same = lambda z: z
  half = lambda z: z.astype(np.float16)
  fit = lambda z: adsa.fit(z, labels, counts)
  return {
    READ: (same, lambda z: z.sum()),
    "fit, float32": (same, fit),
    "fit, float32, JAX array": (to_device, fit),
    "fit, float16": (half, fit),
    "fit, float16, memory map": (memory_map, fit),
    "48 taus in one pass": (same, lambda z: adsa.class_means(Rows(z, labels), prior, taus)),
    "1 tau through jax softmax": (to_device, lambda z: by_softmax(z, 1.0).block_until_ready()),
  }


def time_all(functions: dict[str, Callable[[], Any]], repeats: int) -> dict[str, tuple[float, ...]]:
  """Median wall, least wall and median CPU seconds of each, in turn; once before to compile."""
  wall: dict[str, list[float]] = {name: [] for name in functions}
  cpu: dict[str, list[float]] = {name: [] for name in functions}
  for repeat in range(repeats + 1):
    for name, function in functions.items():
      used, start = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
      function()
      end, now = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
      if repeat:
        wall[name].append(now - start)
        cpu[name].append(end.ru_utime - used.ru_utime + end.ru_stime - used.ru_stime)
  median = statistics.median
  return {name: (median(wall[name]), min(wall[name]), median(cpu[name])) for name in functions}


def anonymous_bytes() -> int:
  """Memory of this process that is not a file's."""
  for line in pathlib.Path("/proc/self/status").read_text().splitlines():
    if line.startswith("RssAnon"):
      return int(line.split()[1]) * 1024
  raise RuntimeError("no RssAnon in /proc/self/status: this measurement needs Linux.")


def peak_beyond(function: Callable[[], Any]) -> int:
  """Most memory at any time of a call beyond that before it, sampled every millisecond."""
  done, peak, before = threading.Event(), [0], anonymous_bytes()

  def sample() -> None:
    while not done.wait(0.001):
      peak[0] = max(peak[0], anonymous_bytes() - before)

  thread = threading.Thread(target=sample)
  thread.start()
  function()
  done.set()
  thread.join()
  return peak[0]


def memory_of(name: str, argv: list[str]) -> tuple[int, int]:
  """Peak of a case in a fresh process, and the bytes of its logits."""
  command = [sys.executable, __file__, *argv, "--memory_of", name]
  done = subprocess.run(command, check=True, capture_output=True, text=True)
  peak, size = done.stdout.split()
  return int(peak), int(size)


def main() -> None:
  parser = argparse.ArgumentParser(description="Speed and memory of adsa.fit")
  parser.add_argument("--rows", type=int, default=50_000)
  parser.add_argument("--classes", type=int, default=1_000)
  parser.add_argument("--repeats", type=int, default=11)
  parser.add_argument("--tune", action="store_true", help="malloc settings of the command line")
  parser.add_argument("--memory_of", help="only print the peak of this case, for our own use")
  args = parser.parse_args()
  logits, labels, counts = make_data(args.rows, args.classes)
  todo = cases(labels, counts)
  if args.memory_of:
    prepare, function = todo[args.memory_of]
    z = prepare(logits)
    time.sleep(0.5)  # JAX may still be freeing what it copied from
    print(peak_beyond(lambda: function(z)), z.nbytes)
    return
  if args.tune:
    startup.tune_host()
  inputs = {prepare: prepare(logits) for prepare, _ in todo.values()}
  bound = {name: lambda f=f, z=inputs[prepare]: f(z) for name, (prepare, f) in todo.items()}
  times = time_all(bound, args.repeats)
  print(f"{args.rows} x {args.classes} logits, {logits.nbytes / 1e6:.0f} MB as float32")
  print(f"{'':30}median ms  best ms  CPU ms  reads   extra  of logits")
  for name, (wall, best, cpu) in times.items():
    peak, size = memory_of(name, sys.argv[1:])
    print(
      f"{name:30}{wall * 1e3:9.1f}{best * 1e3:9.1f}{cpu * 1e3:8.1f}{wall / times[READ][0]:7.1f}"
      f"{peak / 1e6:5.0f} MB{1 + peak / size:10.2f}x"
    )


if __name__ == "__main__":
  main()
