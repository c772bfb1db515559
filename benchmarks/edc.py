"""Recover steps per second of EDC's CIFAR-10 setting, against the same in plain PyTorch.

  python -m benchmarks.edc --torch-python path/to/torch/env/bin/python --rounds 5
  python -m benchmarks.edc --teachers convnet_w128 convnet_d1 --batch 20 --cycles 1 --rounds 2

Teachers take turns, one a step, on all 100 images at once; a cycle is one step of each. Both sides
are processes of their own and take turns, round after round. PyTorch is eager, with the allocator
tuned as the library tunes it: crops have a size of their own in every step. The table has medians
over rounds, the range in brackets, and the median of the ratios within a round: above 1 means
slower than the library.
"""

import argparse
import statistics

from benchmarks import edc_recipe, timing


def arguments() -> argparse.Namespace:
  p = timing.parser(__doc__)
  names = list(edc_recipe.OBSERVERS)
  p.add_argument("--torch-python", help="interpreter of an environment with PyTorch")
  p.add_argument("--teachers", nargs="+", default=names, choices=names, metavar="OBSERVER",
                 help=f"any of {', '.join(names)}")  # fmt: skip
  p.add_argument("--batch", type=int, default=edc_recipe.BATCH, help="images, a multiple of ten")
  p.add_argument("--cycles", type=int, default=2, help="turns of every teacher in a measurement")
  p.add_argument("--rounds", type=int, default=5, help="measurements of each side")
  return p.parse_args()


def main() -> None:
  args = arguments()
  facts, times, line = timing.against_torch(
    "edc",
    args,
    ready={"teachers": args.teachers, "batch": args.batch},
    ask={"steps": args.cycles * len(args.teachers)},
  )
  seconds = {n: [a["seconds"] / a["steps"] for a in answers] for n, answers in times.items()}
  rows = []
  for name, each in seconds.items():
    ratio = timing.median_ratio(each, seconds["ltdd_jax"])
    first = f"{facts[name]['first_seconds']:.0f}"
    rows.append((name, timing.spread([1 / s for s in each]), f"{1e3 * statistics.median(each):.0f}",
                 first, f"{ratio:.2f}"))  # fmt: skip
  headers = ("side", "steps a second", "ms a step", "first cycle, s", "time / first row's")
  record = {"teachers": args.teachers, "batch": args.batch, "facts": facts, "seconds": seconds}
  timing.finish(line, headers, rows, record, args.out)


if __name__ == "__main__":
  main()
