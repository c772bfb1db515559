"""Steps per second of DM, MTT, DATM and DREAM, against the same in plain PyTorch.

  python -m benchmarks.matching --torch-python path/to/torch/env/bin/python --rounds 5
  python -m benchmarks.matching --cases mtt --width 128 --inner-steps 30

100 images, ten of each class, and a ConvNet-3 with instance norm. A step of DM draws a network and
matches the mean features of `--batch-real` images of each class; one of MTT and of DATM goes
through `--inner-steps` steps on all images and back; one of DREAM matches the gradients of 64 real
images of each class and trains its network on 512 more. Both sides are without views and DREAM
without its clusters, which are made once in ten steps. They are processes of their own and take
turns, round after round; PyTorch is eager, with the allocator tuned. The table has medians over
rounds, the range in brackets, and the median of the ratios within a round: above 1 means slower
than the library.
"""

import argparse
import statistics

from benchmarks import timing

CASES = ("dm", "mtt", "datm", "dream")


def arguments() -> argparse.Namespace:
  p = timing.parser(__doc__)
  p.add_argument("--torch-python", help="interpreter of an environment with PyTorch")
  p.add_argument("--cases", nargs="+", default=list(CASES), choices=CASES)
  p.add_argument("--width", type=int, default=32, help="channels of the network")
  p.add_argument("--batch-real", type=int, default=64, help="real images of a class, of DM")
  p.add_argument("--inner-steps", type=int, default=10, help="of MTT and DATM")
  p.add_argument("--steps", type=int, default=3, help="in a measurement")
  p.add_argument("--rounds", type=int, default=5, help="measurements of each side")
  return p.parse_args()


def main() -> None:
  args = arguments()
  rows, record = [], {}
  for case in args.cases:
    sizes = {"width": args.width, "batch_real": args.batch_real, "inner_steps": args.inner_steps}
    facts, times, line = timing.against_torch(
      "matching", args, ready={"case": case} | sizes, ask={"steps": args.steps}
    )
    seconds = {n: [a["seconds"] / a["steps"] for a in answers] for n, answers in times.items()}
    for name, each in seconds.items():
      ratio = timing.median_ratio(each, seconds["ltdd_jax"])
      milliseconds = f"{1e3 * statistics.median(each):.0f}"
      rows.append((case, name, timing.spread([1 / s for s in each]), milliseconds, f"{ratio:.2f}"))
    record[case] = sizes | {"facts": facts, "seconds": seconds}
  headers = ("case", "side", "steps a second", "ms a step", "time / library's")
  timing.finish(line, headers, rows, record, args.out)


if __name__ == "__main__":
  main()
