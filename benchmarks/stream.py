"""How fast ADSA streams a memory map, against a plain read of the same file in the same run.

    python -m benchmarks.stream                         # 10 label epochs, 1 GB; a minute or two
    python -m benchmarks.stream --views 300 --rounds 1  # as for 300 epochs, 30 GB

`--written` label epochs of 50,000 x 1,000 float16 logits are written, with a learnt prior and
noise; more `--views` than that are the same file again and again, so that no 30 GB are needed.
*cold*: the file is dropped from the page cache before it is read, at every pass and every
repetition, as it is with a file larger than memory. *warm*: it stays there. A plain read fills one
4 MB buffer again and again. Bandwidth of a fit counts every byte that it read, in all its passes.
"""

import gc
import math
import os
import pathlib
import resource
import tempfile
import time
from collections.abc import Callable
from typing import Any

from benchmarks import timing
from ltdd_jax.core import startup

IMBALANCE = 256  # of ImageNet-LT
BUFFER = 1 << 22


class Cycle:
  """A row source: the rows of a file, again and again, that counts what it gives.

  Args:
    path: an .npy file of logits (e, n, k).
    views: label epochs that it pretends to have.
    cold: whether to drop the file from the page cache each time that it begins anew.
  """

  def __init__(self, path: pathlib.Path, views: int, cold: bool):
    self._path, self._cold, self.bytes, self.passes = path, cold, 0, 0
    self._open()
    e, n, k = self._source.shape
    self._rows, self.shape, self.dtype = e * n, (views, n, k), self._source.dtype

  def _open(self) -> None:
    from ltdd_jax.interop import inputs

    self._source = None
    if self._cold:
      drop(self._path)
    _, self._source = inputs.open_logits(self._path)

  def rows(self, start: int, stop: int) -> Any:
    import numpy as np

    self.bytes += (stop - start) * self.shape[-1] * self.dtype.itemsize
    self.passes += start == 0
    first, last = start % self._rows, (stop - 1) % self._rows + 1
    if first < last:
      if first == 0 and self._cold:
        self._open()
      return self._source.rows(first, last)
    head = self._source.rows(first, self._rows)
    if self._cold:
      self._open()
    return np.concatenate([head, self._source.rows(0, last)])


def drop(path: pathlib.Path) -> None:
  """Drops a file from the page cache; pages of a map that is still there would stay."""
  gc.collect()
  with open(path, "rb") as file:
    os.fsync(file.fileno())
    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read(path: pathlib.Path) -> int:
  """Reads a file into one buffer; returns its bytes."""
  buffer, total = bytearray(BUFFER), 0
  with open(path, "rb", buffering=0) as file:
    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
    while count := file.readinto(buffer):
      total += count
  return total


def write(path: pathlib.Path, e: int, n: int, k: int) -> tuple[Any, Any]:
  """Writes logits (e, n, k) of a teacher that has learnt the prior; returns labels and counts."""
  import numpy as np

  random = np.random.default_rng(0)
  counts = (1280 * (1 / IMBALANCE) ** (np.arange(k) / (k - 1))).astype(int)
  labels, prior = np.arange(n) % k, np.log(counts / counts.sum()).astype(np.float32)
  out = np.lib.format.open_memmap(path, "w+", np.float16, (e, n, k))
  for epoch in out:
    for rows in np.array_split(np.arange(n), 16):
      z = random.standard_normal((len(rows), k), np.float32) + prior
      z[np.arange(len(rows)), labels[rows]] += 6
      epoch[rows[0] : rows[-1] + 1] = z
  out.flush()
  return labels, counts


def clock(function: Callable[[], int]) -> dict[str, float]:
  """Bytes, wall seconds and CPU seconds of a call that returns how many bytes it read."""
  used, start = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
  size = function()
  wall, now = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF)
  cpu = now.ru_utime - used.ru_utime + now.ru_stime - used.ru_stime
  return {"bytes": size, "wall": wall, "cpu": cpu, "rate": size / wall / 1e9}


def sides(path: pathlib.Path, labels: Any, counts: Any, views: int) -> dict[str, Callable]:
  """What is timed in turn."""
  import numpy as np

  from ltdd_jax.adsa import Rows
  from ltdd_jax.calibrate import criteria

  log_prior = np.log(counts / counts.sum())

  def plain(cold: bool) -> int:
    if cold:
      drop(path)
    return read(path)

  def fit(cold: bool) -> int:
    source = Cycle(path, views, cold)
    criteria.fit(Rows(source, labels), log_prior, "confidence", (0.0, 3.0))
    return source.bytes

  return {
    f"{name}, {state}": lambda f=f, cold=state == "cold": clock(lambda: f(cold))
    for state in ("cold", "warm")
    for name, f in (("plain read", plain), ("fit", fit))
  }


def main() -> None:
  parser = timing.parser(__doc__)
  parser.add_argument("--images", type=int, default=50_000)
  parser.add_argument("--classes", type=int, default=1_000)
  parser.add_argument("--written", type=int, default=10, help="label epochs that are written")
  parser.add_argument("--views", type=int, help="label epochs that are read (those written)")
  parser.add_argument("--rounds", type=int, default=5)
  parser.add_argument("--folder", help="where the file is written (the temporary folder)")
  args = parser.parse_args()
  os.environ.update(timing.choose_device(args.device))
  startup.tune_host()
  import jax
  import numpy as np

  from ltdd_jax import adsa

  views = args.views or args.written
  with tempfile.TemporaryDirectory(dir=args.folder) as folder:
    path = pathlib.Path(folder) / "logits.npy"
    timing.note(f"writing {args.written} label epochs")
    labels, counts = write(path, args.written, args.images, args.classes)
    adsa.fit(np.load(path, mmap_mode="r")[:1], labels, counts)  # compiles
    times = timing.interleave(sides(path, labels, counts, views), args.rounds)
    size = path.stat().st_size
  rows = []
  for name, rounds in times.items():
    base = times[f"plain read, {name.split()[-1]}"]
    ratio = timing.median_ratio([r["rate"] for r in rounds], [r["rate"] for r in base])
    column = lambda key, rounds=rounds, digits=2: timing.spread([r[key] for r in rounds], digits)
    passes = rounds[0]["bytes"] / (
      size if name.startswith("plain") else size * views / args.written
    )
    rows.append(
      (name, f"{passes:.2f}", column("wall"), column("cpu"), column("rate"), f"{ratio:.2f}")
    )
  logits = math.prod((views, args.images, args.classes))
  print(f"{logits * 2 / 1e9:.1f} GB of float16 logits, {size / 1e9:.1f} GB of them written\n")
  timing.finish(
    timing.hardware(jax.default_backend(), ("jax", "numpy")),
    ("", "passes", "seconds", "CPU seconds", "GB/s", "of plain read"), rows, times, args.out,
  )  # fmt: skip


if __name__ == "__main__":
  main()
