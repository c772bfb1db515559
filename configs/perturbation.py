"""The perturbation study: whose bias is it, the teacher's or the images'?

  python -m launch.main --config configs/perturbation.py:dataset=digits --workdir runs/perturbation

Distils images from a balanced and from an imbalanced set, has teachers of both sets label both,
splits the bias of the labels into a teacher part, an image part and what their sum misses, and
trains students in the four cells (docs/perturbation.md). Written: `report/report.md`,
`report/perturbation.json` and figures. The recipe is that of `configs/<dataset>_lt.py`; every value
of it can be changed on the command line, for both runs at once.

Arguments: dataset (digits, cifar10), method (sre2l; see `configs/published.py`), imbalance (50 for
digits, 100), ipc (5 for digits, 10), matched (True), seed (0), preset (cpu, smoke, full),
calibrators (few, all, or names: plain+adsa).
`matched=False` gives the balanced run all images of the source and not as many as the imbalanced
run has.
"""

import importlib

from configs import base
from ltdd_jax.core.types import LtddError

DATASETS = {"digits": (50.0, 5), "cifar10": (100.0, 10)}  # imbalance, images per class


def get_config(arg: str | None = None):
  """See the module's docstring."""
  args = base.arguments(
    arg, dataset="digits", method="sre2l", imbalance=0.0, ipc=0, matched=True, seed=0, preset="cpu"
  )
  if args.dataset not in DATASETS:
    raise LtddError(f"dataset={args.dataset}: expected one of {', '.join(DATASETS)}")
  imbalance, ipc = DATASETS[args.dataset]
  config = importlib.import_module(f"configs.{args.dataset}_lt").get_config(
    f"method={args.method},imbalance={args.imbalance or imbalance},ipc={args.ipc or ipc},"
    f"seed={args.seed},preset={args.preset},calibrators={args.calibrators}"
    + (f",recipe={args.recipe}" if args.recipe else "")
  )
  config.distil.methods = {args.method: config.distil.methods[args.method].to_dict()}
  config.study = {"name": "perturbation", "matched": args.matched, "num_bootstrap": 2000}
  return config
