"""CIFAR-100-LT.

  python -m launch.main --config configs/cifar100_lt.py:imbalance=10,ipc=10,preset=cpu \
      --config.data.data_dir=$HOME/tensorflow_datasets --workdir runs/cifar100

Cost and results were not measured for this set; the smoke preset took 71 s on two shared
CPU cores. A prepared set that is long-tailed already is taken as it is, in the order that it has:
`imbalance=1` and `--config.data.rule=as_is`, also with `--config.data.name=npz:FILE`.

Arguments: method (sre2l, or another of `configs/methods.py`), imbalance (10), ipc (10), seed (0),
preset (full, cpu, smoke), recipe (a name of docs/reference/recipes.md), teacher (a name of
configs/teachers.py), calibrators (few, all, priors, or names: plain+adsa).
"""

from configs import base


def get_config(arg: str | None = None):
  """See the module's docstring."""
  args = base.arguments(arg, method="sre2l", imbalance=10.0, ipc=10, seed=0, preset="full")
  config = base.base(args, "cifar100")
  config.report.groups = "counts(100,20)"
  base.finish(config, args)
  if args.preset == "cpu":
    # Ten times the images of CIFAR-10 at the same number for each class: fewer passes.
    base.shrink(config, student__num_epochs=40, label__num_epochs=40)
  return config
