"""Recover steps per second of EDC's CIFAR-10 setting, against the same in plain PyTorch.

  python -m benchmarks.edc --torch-python path/to/torch/env/bin/python --rounds 5
  python -m benchmarks.edc --observers convnet_w128 convnet_d1 --batch 20 --cycles 1 --rounds 2

Observers take turns, one a step, on all 100 images at once; a cycle is one step of each. Both sides
are processes of their own and take turns, round after round. PyTorch is eager, with the allocator
tuned as the library tunes it: crops have a size of their own in every step. The table has medians
over rounds, the range in brackets, and the median of the ratios within a round: above 1 means
slower than the library.
"""

import argparse
import contextlib
import statistics
import sys

from benchmarks import edc_recipe, timing


def arguments() -> argparse.Namespace:
  p = timing.parser(__doc__)
  names = list(edc_recipe.OBSERVERS)
  p.add_argument("--torch-python", help="interpreter of an environment with PyTorch")
  p.add_argument("--observers", nargs="+", default=names, choices=names, metavar="OBSERVER",
                 help=f"any of {', '.join(names)}")  # fmt: skip
  p.add_argument("--batch", type=int, default=edc_recipe.BATCH, help="images, a multiple of ten")
  p.add_argument("--cycles", type=int, default=2, help="turns of every observer in a measurement")
  p.add_argument("--rounds", type=int, default=5, help="measurements of each side")
  return p.parse_args()


def main() -> None:
  args = arguments()
  sides = {
    "ltdd_jax": (sys.executable, "benchmarks.edc_jax", ()),
    "PyTorch eager, tuned": (args.torch_python, "benchmarks.edc_torch", ("--tuned",)),
  }
  if not args.torch_python:
    sides.pop("PyTorch eager, tuned")
  facts, workers = {}, {}
  with contextlib.ExitStack() as stack:
    for name, (python, module, flags) in sides.items():
      timing.note(f"{name}: compiles")
      cpu = ("--cpu",) if args.device == "cpu" and flags else ()
      worker = timing.Worker(python, module, *flags, *cpu, env=timing.choose_device(args.device))
      workers[name] = stack.enter_context(worker)
      facts[name] = workers[name].ask(observers=args.observers, batch=args.batch)
    assert len({tuple(f["params"]) for f in facts.values()}) == 1, f"networks differ: {facts}"

    def measure(worker: timing.Worker) -> float:
      answer = worker.ask(steps=args.cycles * len(args.observers))
      return answer["seconds"] / answer["steps"]

    times = timing.interleave(
      {name: lambda w=worker: measure(w) for name, worker in workers.items()}, args.rounds
    )
  rows = []
  for name, seconds in times.items():
    rates = [1 / s for s in seconds]
    ratio = timing.median_ratio(seconds, times["ltdd_jax"])
    first = f"{facts[name]['first_seconds']:.0f}"
    rows.append((name, timing.spread(rates), f"{1e3 * statistics.median(seconds):.0f}", first,
                 f"{ratio:.2f}"))  # fmt: skip
  versions = {f"torch {f['torch']}" for f in facts.values() if "torch" in f}
  device = facts["ltdd_jax"]["device"]
  line = timing.hardware(device, ("jax", "jaxlib", "flax"), *versions)
  headers = ("side", "steps a second", "ms a step", "first cycle, s", "time / first row's")
  record = {"observers": args.observers, "batch": args.batch, "facts": facts, "seconds": times}
  timing.finish(line, headers, rows, record, args.out)


if __name__ == "__main__":
  main()
