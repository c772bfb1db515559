"""CIFAR-10-LT.

  python -m launch.main --config configs/cifar10_lt.py:imbalance=100,ipc=10,preset=cpu \
      --config.data.data_dir=$HOME/tensorflow_datasets --workdir runs/cifar10

`imbalance=100,ipc=10,preset=cpu` was measured on 2 busy CPU cores (docs/results/README.md), about
45 minutes. Top-1 of plain soft labels -> ADSA -> a probe, mean of 3 seeds, no recipe named: SRe2L
images 34.4 -> 42.3 -> 47.5, random images 38.4 -> 46.3 -> 51.9. With `recipe=rd3` SRe2L images have
37.5 -> 46.2 -> 49.1, with `recipe=sre2l_kl` 28.5 -> 32.3 -> 39.8.
Its students are short: `--config.student.num_epochs=1000`, five times as long, took images of EDC,
random and SRe2L with ADSA and `recipe=rd3` from 56.6, 50.0 and 46.2 to 64.4, 62.5 and 58.2.
`full` is for an accelerator and was not run; `smoke` takes a minute or two.

Arguments: method (sre2l, or another of `configs/methods.py`), imbalance (100), ipc (10), seed (0),
preset (full, cpu, smoke), recipe (a name of docs/reference/recipes.md), teacher (a name of
configs/teachers.py), calibrators (few, all, priors, or names: plain+adsa).
"""

from configs import base


def get_config(arg: str | None = None):
  """See the module's docstring."""
  args = base.arguments(arg, method="sre2l", imbalance=100.0, ipc=10, seed=0, preset="full")
  config = base.base(args, "cifar10")
  return base.finish(config, args)
