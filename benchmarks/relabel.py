"""Labels a second from EDC's eight teachers on CIFAR-10, against the same in plain PyTorch.

  python -m benchmarks.relabel --torch-python path/to/torch/env/bin/python --rounds 5
  python -m benchmarks.relabel --teachers convnet_w128 convnet_d1 --epochs 5 --rounds 2

A label is the mean of the teachers' logits of one view (crop, flip, CutMix) of one of 100 images,
as float16. The library's side is `labels.label.label_images` with its store on disk, less the time
to compile; PyTorch's keeps labels in memory. Sides are processes of their own and take turns, round
after round. The table has medians over rounds, the range in brackets, and the median of the ratios
within a round: above 1 means slower than the library.
"""

import argparse
import statistics

from benchmarks import edc_recipe, timing


def arguments() -> argparse.Namespace:
  p = timing.parser(__doc__)
  names = list(edc_recipe.OBSERVERS)
  p.add_argument("--torch-python", help="interpreter of an environment with PyTorch")
  p.add_argument("--teachers", nargs="+", default=names, choices=names, metavar="LABELER",
                 help=f"any of {', '.join(names)}")  # fmt: skip
  p.add_argument("--epochs", type=int, default=20, help="labels of each image in a measurement")
  p.add_argument("--rounds", type=int, default=5, help="measurements of each side")
  return p.parse_args()


def main() -> None:
  args = arguments()
  facts, times, line = timing.against_torch(
    "relabel", args, ready={"teachers": args.teachers}, ask={"epochs": args.epochs}
  )
  seconds = {n: [a["seconds"] / a["labels"] for a in answers] for n, answers in times.items()}
  rows = [
    (name, timing.spread([1 / s for s in each], 0), f"{1e3 * statistics.median(each):.2f}",
     f"{timing.median_ratio(each, seconds['ltdd_jax']):.2f}")
    for name, each in seconds.items()
  ]  # fmt: skip
  headers = ("side", "labels a second", "ms a label", "time / first row's")
  record = {"teachers": args.teachers, "facts": facts, "times": times}
  timing.finish(line, headers, rows, record, args.out)


if __name__ == "__main__":
  main()
