"""What do soft labels cost, and what does a cheaper label lose? Bytes beside accuracy.

  python -m benchmarks.label_budgets --workdir runs/budgets \
      --config configs/digits_lt.py:calibrators=plain+adsa+adsa_nll

Trains the students of a config for each budget of labels, with each of its calibrators, and prints
a table. Teachers and images are made once; every budget is a work directory below `--workdir`, so
the same command, given again, goes on where it stopped.
"""

import argparse
import copy
import importlib
import pathlib
from typing import Any

from ltdd_jax.core import startup

startup.tune_host()  # before jax is imported

from benchmarks import timing  # noqa: E402
from ltdd_jax import pipeline  # noqa: E402
from ltdd_jax.report import tables  # noqa: E402

BUDGETS: dict[str, dict[str, Any]] = {
  "all epochs, float32": {"dtype": "float32"},
  "all epochs, float16": {},
  "all epochs, bfloat16": {"dtype": "bfloat16"},
  "all epochs, uint8": {"dtype": "uint8"},
  "all epochs, uint8, top 3 spread": {"dtype": "uint8", "top_k": 3},
  "10 epochs, float16": {"num_epochs": 10},
  "5 epochs, float16": {"num_epochs": 5},
  "1 epoch, float16": {"num_epochs": 1},
  "10 epochs, uint8, top 3 spread": {"num_epochs": 10, "dtype": "uint8", "top_k": 3},
}
MIXES = {"all epochs, float16, 0.25 hard": 0.25}


def variants(config: Any) -> dict[str, Any]:
  """The config of each budget."""
  out = {}
  for name in (*BUDGETS, *MIXES):
    out[name] = copy.deepcopy(config)
    out[name].label.update(BUDGETS.get(name, {}))
    out[name].student.hard_weight = MIXES.get(name, 0.0)
    out[name].student.hard_labels = False
  return out


def row(name: str, results: dict[str, Any], regimes: list[str]) -> list[tuple[str, ...]]:
  """A line for each image source."""
  lines = []
  for source in dict.fromkeys(r["images"] for r in results["rows"]):
    found = {r["labels"]: r for r in results["rows"] if r["images"] == source}
    size = f"{found[regimes[0]]['label_bytes'] / 1e3:,.1f}"
    lines.append((source, name, size, *(tables.plus_minus(found[r]["top1"]) for r in regimes)))
  return lines


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--config", default="configs/digits_lt.py")
  parser.add_argument("--workdir", required=True, type=pathlib.Path)
  parser.add_argument("--cache", type=pathlib.Path, help="as of launch.main; else in --workdir")
  parser.add_argument("--data_dir", help="config.data.data_dir")
  args = parser.parse_args()
  startup.setup_jax()
  path, _, argument = args.config.partition(":")
  module = importlib.import_module(path.removesuffix(".py").replace("/", "."))
  base = module.get_config(argument or None)
  if args.data_dir:
    base.data.data_dir = args.data_dir
  regimes, cache, rows = [*base.calibrate.calibrators], args.cache or args.workdir / "cache", []
  for name, config in variants(base).items():
    folder = args.workdir / name.replace(",", "").replace(" ", "-")
    rows += row(name, pipeline.run(config, folder, cache=cache, show_progress=False), regimes)
  header = ("images", "labels", "kB", *regimes)
  print(timing.markdown(header, sorted(rows, key=lambda r: r[0])))


if __name__ == "__main__":
  main()
