"""Random resized crops of JPEGs a second, against torchvision's loader.

  python -m tests.jpegs jpegs 4 100 375
  python -m benchmarks.input_pipeline jpegs --torch-python path/to/torch/env/bin/python

Batches of 64 crops of 224 pixels, uint8, with 0, 1 and 2 workers. Files are in the system's memory.
Without workers the library decodes in threads and a batch ahead, and torchvision in one. With
--array-record the library reads the same files packed as ArrayRecord.
"""

import argparse

from benchmarks import timing

BATCH = 64
DRAINED = 20  # batches that a side may have read while the other had its turn


def arguments() -> argparse.Namespace:
  p = timing.parser(__doc__)
  p.add_argument("folder", help="with train/CLASS/*.JPEG")
  p.add_argument("--torch-python", help="interpreter of an environment with torchvision")
  p.add_argument("--array-record", action="store_true", help="read records on the library's side")
  p.add_argument("--batches", type=int, default=30, help="batches in a measurement")
  p.add_argument("--rounds", type=int, default=3, help="measurements of each side")
  return p.parse_args()


def main() -> None:
  args, rows, record, line = arguments(), [], {}, ""
  for workers in (0, 1, 2):
    _, times, line = timing.against_torch(
      "input_pipeline", args, ask={"batches": args.batches},
      ready={
        "folder": args.folder, "workers": workers, "size": BATCH, "drained": DRAINED,
        "array_record": args.array_record,
      },
    )  # fmt: skip
    seconds = {n: [a["seconds"] / a["images"] for a in answers] for n, answers in times.items()}
    rows += [
      (str(workers), name, timing.spread([1 / s for s in each], 0),
       f"{timing.median_ratio(each, seconds['ltdd_jax']):.2f}")
      for name, each in seconds.items()
    ]  # fmt: skip
    record[workers] = times
  headers = ("workers", "side", "images a second", "time / ltdd_jax's")
  timing.finish(line, headers, rows, record, args.out)


if __name__ == "__main__":
  main()
