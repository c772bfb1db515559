"""Seconds and bytes of exports of 1,000 classes x 50 images of 64 x 64.

    python -m benchmarks.exports                # or the names of some formats

Pixels are uniform noise, which PNG cannot compress, so bytes of image files are the most they can
be. Soft labels are float32 logits (50,000, 1,000). Formats whose package is missing are left out.
"""

import pathlib
import sys
import tempfile
import time

import numpy as np

from ltdd_jax.core import files
from ltdd_jax.core.types import LtddError
from ltdd_jax.data.specs import DatasetSpec
from ltdd_jax.interop import distilled_sets, exports
from ltdd_jax.interop.exports import fkd, record

K, IPC, SIDE = 1000, 50, 64


def main(argv: list[str]) -> None:
  """Writes each format once, into a folder in the place of TMPDIR, and reads it again."""
  n, random = K * IPC, np.random.default_rng(0)
  images = random.integers(0, 256, (n, SIDE, SIDE, 3), np.uint8)
  labels = np.repeat(np.arange(K, dtype=np.int32), IPC)
  logits = random.standard_normal((n, K), np.float32)
  names, mean = tuple(f"class {c}" for c in range(K)), (0.5, 0.5, 0.5)
  whole = np.tile(np.array([0, 0, 1, 1], np.float32), (n, 1))
  rows = {"coords": whole, "flip": np.zeros(n, bool), "mix_index": np.arange(n, dtype=np.int32)}
  rows |= {"mix_lam": np.ones(n, np.float32), "mix_bbox": np.zeros((n, 4), np.int32)}
  views = record.LabelledViews(1, "cutmix", lambda e: rows | {"logits": logits.astype(np.float16)})
  spec = DatasetSpec("noise", K, (SIDE, SIDE, 3), mean, mean, n, n, names)
  found = record.DistilledSet(images, labels, names, mean, mean, logits, views=views)
  print("| --to | seconds out | seconds in | bytes |\n|---|---:|---:|---:|")
  for to in argv[1:] or exports.FORMATS:
    with tempfile.TemporaryDirectory() as folder:
      try:
        start = time.monotonic()
        path = exports.write(found, to, pathlib.Path(folder) / "set.npz")
        out = time.monotonic() - start
      except LtddError as error:
        print(f"| `{to}` | {error} |")
        continue
      size = sum(map(files.num_bytes, files.below(path))) if path.is_dir() else path.stat().st_size
      start = time.monotonic()
      got = distilled_sets.read("benchmark", str(path), spec, names)
      if to == "fkd":
        fkd.read_epoch(path, 0)
      seconds = time.monotonic() - start
      assert (got.images == images).all()
      assert (got.learned["soft_labels"] == logits).all()
    print(f"| `{to}` | {out:.1f} | {seconds:.1f} | {files.size(size)} |", flush=True)


if __name__ == "__main__":
  main(sys.argv)
