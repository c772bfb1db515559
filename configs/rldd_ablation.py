"""RLDD without one of its parts, with and without ADSA: which of them does ADSA replace?

  python -m launch.main --config configs/rldd_ablation.py:without=debiasing --workdir runs/ablation

Published, CIFAR-100-LT, IF 50, IPC 10: 42.1 whole; 31.7 without debiased teachers, 40.9 without
recalibrated batch norms, 40.8 without confident crops. Nothing was measured here yet.

Arguments: without (nothing, debiasing, recalibration, initialisation), dataset (cifar100, cifar10),
imbalance (50), ipc (10), seed (0), preset (full, cpu, smoke), recipe, calibrators (plain+adsa).
"""

from configs import base
from ltdd_jax.core.registry import check_choice

PARTS = ("nothing", "debiasing", "recalibration", "initialisation")


def get_config(arg: str | None = None):
  """See the module's docstring."""
  args = base.arguments(
    arg, without="nothing", dataset="cifar100", method="rldd", imbalance=50.0, ipc=10, seed=0,
    preset="full", calibrators="plain+adsa",
  )  # fmt: skip
  check_choice("without", args.without, PARTS)
  check_choice("dataset", args.dataset, ("cifar10", "cifar100"))
  config = base.of_dataset(args, imbalance=args.imbalance)
  if args.without == "debiasing":
    config.teacher.objective = {"name": "cross_entropy"}
    config.teacher.views = 1
  elif args.without == "recalibration":
    config.teacher.derive = ()
  elif args.without == "initialisation":
    config.distil.methods.rldd.init = "real"
  name = "rldd" if args.without == "nothing" else f"rldd_without_{args.without}"
  config.distil.methods = {name: config.distil.methods.rldd}  # tables of results tell them apart
  return config
