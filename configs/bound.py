"""The two terms of the bound at several imbalance factors, for every calibrator.

  python -m launch.main --config configs/bound.py:dataset=digits --workdir runs/bound

Runs the pipeline at imbalance factors 1, 10, 50 and 100 and a reference teacher, and estimates
KL(p_te(y|x) || p_dd(y|x)) and KL(p_te(x) || p_dd(x)) (docs/explanation/bound.md). Written:
`report/report.md`, `report/bound.json` and a figure. The recipe is that of
`configs/<dataset>_lt.py`; every value of it can be changed on the command line, for all runs at
once. `--config.study.students=False` leaves out the students, and with them most of the time (and
the calibrators that ask one).

Arguments: dataset (digits, cifar10), method (sre2l, or another of `configs/methods.py`), ipc (5
for digits, 10), seed (0), preset (cpu, smoke, full), calibrators (few, all, or names:
plain+adsa).
"""

from configs import base, perturbation
from ltdd_jax.core.registry import check_choice


def get_config(arg: str | None = None):
  """See the module's docstring."""
  args = base.arguments(arg, dataset="digits", method="sre2l", ipc=0, seed=0, preset="cpu")
  check_choice("dataset", args.dataset, perturbation.DATASETS)
  _, ipc = perturbation.DATASETS[args.dataset]
  config = base.of_dataset(args, ipc=args.ipc or ipc)
  config.study = {
    "name": "bound",
    "imbalance_factors": (1.0, 10.0, 50.0, 100.0),
    "dims": 4,
    "neighbours": 1,
    "view_epochs": 20,
    "students": True,
  }
  return config
