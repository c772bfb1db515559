"""Steps per second of teacher, recover and student steps, against PyTorch.

  python -m benchmarks.steps --torch-python path/to/torch/env/bin/python --rounds 5

The environment of `--torch-python` needs PyTorch and NumPy; without it only the library is timed.
Every implementation is a process of its own; they take turns, round after round, at the same number
of steps, on the same network, batch and optimiser. `ltdd_jax` is set up as a run is. "as shipped"
leaves the allocator alone; "tuned" stops it from giving pages back, as the library does for itself;
"virtual devices" splits the batch over those of a CPU, one a core or `--devices`. On whatever
device there is, it is one table; bfloat16 is for accelerators, several devices for CPUs.

The table has medians over rounds, the range in brackets, and the median of the ratios within a
round: above 1 means slower than the library.
"""

import argparse
import contextlib
import statistics
import sys
from typing import Any

from benchmarks import timing
from benchmarks.recipes import CASES, SMOKE

LIBRARY = "ltdd_jax"
BFLOAT16, VIRTUAL = f"{LIBRARY}, bfloat16", f"{LIBRARY}, virtual devices"
SIDES: dict[str, tuple[str, tuple[str, ...]]] = {
  LIBRARY: ("benchmarks.jax_steps", ()),
  "ltdd_jax, as shipped": ("benchmarks.jax_steps", ("--untuned",)),
  BFLOAT16: ("benchmarks.jax_steps", ("--bfloat16",)),
  VIRTUAL: ("benchmarks.jax_steps", ("--devices",)),
  "PyTorch eager, as shipped": ("benchmarks.torch_steps", ()),
  "PyTorch eager, tuned": ("benchmarks.torch_steps", ("--tuned",)),
  "PyTorch compile, as shipped": ("benchmarks.torch_steps", ("--compile",)),
  "PyTorch compile, tuned": ("benchmarks.torch_steps", ("--compile", "--tuned")),
}
FEW = (LIBRARY, BFLOAT16, "PyTorch eager, tuned", "PyTorch compile, tuned")  # for slow networks


def arguments() -> argparse.Namespace:
  p = timing.parser(__doc__)
  p.add_argument("--torch-python", help="interpreter of an environment with PyTorch")
  p.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES), metavar="CASE",
                 help=f"any of {', '.join(CASES)}")  # fmt: skip
  p.add_argument("--sides", nargs="+", choices=list(SIDES), metavar="SIDE",
                 help=f"any of {', '.join(map(repr, SIDES))}; or those that fit")  # fmt: skip
  p.add_argument("--devices", type=int, default=timing.cores(), help="virtual devices")
  p.add_argument("--rounds", type=int, default=5, help="turns of each implementation")
  p.add_argument("--resnet-rounds", type=int, default=3, help="the same, of larger networks")
  p.add_argument("--smoke", action="store_true", help="tiny cases and one round: does it run?")
  p.add_argument("--seconds", type=float, default=0.7, help="least time of the library's turn")
  args = p.parse_args()
  if args.smoke:
    args.rounds, args.resnet_rounds, args.seconds = 1, 1, 0.0
  return args


def start(name: str, args: argparse.Namespace) -> timing.Worker:
  """Starts the process of one implementation."""
  module, flags = SIDES[name]
  flags = (*flags, str(args.devices)) if name == VIRTUAL else flags
  if module.endswith("torch_steps"):
    flags = (*flags, "--cpu") if args.device == "cpu" else flags
    return timing.Worker(args.torch_python, module, *flags)
  return timing.Worker(sys.executable, module, *flags, env=timing.choose_device(args.device))


def chosen_sides(case: str, args: argparse.Namespace) -> list[str]:
  sides = args.sides or (SIDES if "convnet" in case else FEW)
  return [s for s in sides if args.torch_python or not s.startswith("PyTorch")]


def pointless(name: str, facts: dict[str, Any]) -> bool:
  """Whether a side has nothing to show on the device of the first one."""
  device = next(iter(facts.values()), {}).get("device")
  return bool(device) and name == (BFLOAT16 if device == "cpu" else VIRTUAL)


def run_case(case: str, args: argparse.Namespace) -> dict[str, Any]:
  """Times all implementations of one case; returns seconds of a step, a list for each."""
  sides = chosen_sides(case, args)
  facts, workers = {}, {}
  with contextlib.ExitStack() as stack:
    for name in sides:
      if not args.sides and pointless(name, facts):
        continue
      timing.note(f"{case}: {name}: compiles")
      workers[name] = stack.enter_context(start(name, args))
      chosen = CASES[case] | (SMOKE[CASES[case]["stage"]] if args.smoke else {})
      facts[name] = workers[name].ask(case=chosen)
    params = {f["params"] for f in facts.values()}
    assert len(params) == 1, f"{case}: the networks differ, parameters {params}"

    def measure(worker: timing.Worker, steps: int) -> float:
      answer = worker.ask(steps=steps)
      return answer["seconds"] / answer["steps"]

    steps = max(1, round(args.seconds / measure(workers[sides[0]], 1)))

    times = timing.interleave(
      {name: lambda w=worker: measure(w, steps) for name, worker in workers.items()},
      args.rounds if "convnet" in case else args.resnet_rounds,
    )
  return {"params": params.pop(), "steps_a_turn": steps, "facts": facts, "step_seconds": times}


def table(results: dict[str, Any]) -> list[tuple[str, ...]]:
  """Rows of the report: the ratio is above 1 where the library is the faster one."""
  rows = []
  for case, result in results.items():
    times = result["step_seconds"]
    first = next(iter(times))
    for name, seconds in times.items():
      rates = [1 / s for s in seconds]
      images = CASES[case]["batch"] * statistics.median(rates)
      ratio = timing.median_ratio(seconds, times[first])
      rows.append((case, name, timing.spread(rates), f"{images:.0f}", f"{ratio:.2f}"))
  return rows


def main() -> None:
  args = arguments()
  results = {case: run_case(case, args) for case in args.cases}
  facts = [f for r in results.values() for f in r["facts"].values()]
  device = next((f["device"] for f in facts if "device" in f), args.device)
  versions = {f"torch {f['torch']}" for f in facts if "torch" in f}
  line = timing.hardware(device, ("jax", "jaxlib", "flax"), *versions)
  headers = ("step", "implementation", "steps a second", "images a second", "time / first row's")
  timing.finish(line, headers, table(results), results, args.out)


if __name__ == "__main__":
  main()
