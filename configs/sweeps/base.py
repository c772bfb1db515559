"""What the sweeps share: their arguments, and a run of `configs/<dataset>_lt.py`."""

from types import SimpleNamespace
from typing import Any

from ml_collections import ConfigDict

from configs import base, methods
from ltdd_jax.core.config import parse_arg
from ltdd_jax.core.registry import check_choice


def arguments(arg: str | None, **defaults: Any) -> SimpleNamespace:
  """Parses a sweep's argument; smoke is on digits unless a data set is named."""
  shared = {"preset": "full", "dataset": "", "calibrators": "plain+adsa", "seed": 0, "recipe": ""}
  args = parse_arg(arg, **shared | defaults)
  check_choice("preset", args.preset, base.PRESETS)
  args.dataset = args.dataset or ("digits" if args.preset == "smoke" else "cifar10")
  check_choice("dataset", args.dataset, ("cifar10", "digits"))
  return args


def names(args: SimpleNamespace) -> list[str]:
  """The methods of `methods=sre2l+edc`."""
  found = args.methods.split("+")
  for name in found:
    check_choice("a name in methods", name, methods.METHODS)
  return found


def ipc_of(args: SimpleNamespace, ipc: int) -> int:
  """Images per class: one or two in a smoke run."""
  return (1 if ipc <= 10 else 2) if args.preset == "smoke" else ipc


def run(args: SimpleNamespace, method: str, imbalance: float, ipc: int) -> ConfigDict:
  """The config of a run; the recipe "own" is the method's, whatever the preset."""
  recipe = args.recipe
  if recipe == "own":
    recipe = methods.published(method, args.dataset, ipc, imbalance).recipe
  values = {"method": method, "ipc": ipc_of(args, ipc), "recipe": recipe, "teacher": ""}
  return base.of_dataset(SimpleNamespace(**vars(args) | values), imbalance=imbalance)
