"""The perturbation study: whose bias is it, the teacher's or the images'?

  python -m launch.main --config configs/perturbation.py:dataset=digits --workdir runs/perturbation

Distils images from a balanced and from an imbalanced set, has teachers of both sets label both,
splits the bias of the labels into a teacher part, an image part and what their sum misses, and
trains students in the four cells (docs/explanation/perturbation.md). Written:
`report/perturbation.md`, `report/perturbation.json` and figures, beside the run's own report. The
recipe is that of `configs/<dataset>_lt.py`; every value of it can be changed on the command line.

Arguments: dataset (digits, cifar10), method (sre2l; see `configs/methods.py`), imbalance (50 for
digits, 100), ipc (5 for digits, 10), matched (True), seed (0), preset (cpu, smoke, full),
calibrators (few, all, or names: plain+adsa).
`matched=False` gives the balanced split all images of the source and not as many as the imbalanced
one has.
"""

from configs import base
from ltdd_jax import calibrate
from ltdd_jax.core.registry import check_choice

DATASETS = {"digits": (50.0, 5), "cifar10": (100.0, 10)}  # imbalance, images per class


def get_config(arg: str | None = None):
  """See the module's docstring."""
  args = base.arguments(
    arg, dataset="digits", method="sre2l", imbalance=0.0, ipc=0, matched=True, seed=0, preset="cpu"
  )
  check_choice("dataset", args.dataset, DATASETS)
  imbalance, ipc = DATASETS[args.dataset]
  config = base.of_dataset(args, imbalance=args.imbalance or imbalance, ipc=args.ipc or ipc)
  cross(config, args)
  config.study = {"name": "perturbation", "num_bootstrap": 2000}
  return config


def cross(config, args):
  """Crosses images of both splits with teachers of both, in one run.

  Calibrators that follow the prior (adsa, tau1, ...) are for the imbalanced teachers: for the
  uniform prior of the balanced ones they are the identity.
  """
  matched = {"rule": "matched"}  # as many images as the run's own split has, evenly
  config.data.splits = {"balanced": matched if args.matched else {"rule": "ltdd"}}
  models = config.teacher.models.to_dict()
  balanced = {f"{name}_balanced": model for name, model in models.items()}
  config.teacher.models = models | balanced
  config.teacher.splits = dict.fromkeys(balanced, "balanced")
  order = tuple(config.distil.teachers or sorted(models))
  sides = {"balanced": tuple(f"{name}_balanced" for name in order), "imbalanced": order}
  method = config.distil.methods[args.method].to_dict()
  config.distil.teachers = None
  config.distil.methods = {
    "balanced": method | {"split": "balanced", "teachers": sides["balanced"]},
    "imbalanced": method | {"teachers": sides["imbalanced"]},
  }
  known = config.calibrate.calibrators.to_dict()
  if "none" not in [v["name"] for v in known.values()]:
    known = {"plain": {"name": "none"}} | known
    config.calibrate.calibrators = known
  own = {
    "balanced": tuple(
      k for k, v in known.items() if "prior" not in calibrate.make_calibrator(**v).needs
    ),
    "imbalanced": tuple(known),
  }
  teacher = config.label.sources.teacher.to_dict()
  config.label.sources = {
    side: teacher | {"teachers": tuple(sorted(sides[side])), "calibrators": own[side]}
    for side in sides
  }
