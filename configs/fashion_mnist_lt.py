"""Fashion-MNIST-LT: 28x28 grey images, ten classes.

  python -m launch.main --config configs/fashion_mnist_lt.py:imbalance=100,ipc=10,preset=cpu \
      --config.data.data_dir=$HOME/tensorflow_datasets --workdir runs/fashion

Cost and results were not measured for this set; the smoke preset runs in the tests.

Arguments: method (sre2l, or another of `configs/published.py`), imbalance (100), ipc (10), seed
(0), preset (full, cpu, smoke), recipe (a name of docs/recipes.md), calibrators (few, all,
priors, or names: plain+adsa).
"""

from configs import base


def get_config(arg: str | None = None):
  """See the module's docstring."""
  args = base.arguments(arg, method="sre2l", imbalance=100.0, ipc=10, seed=0, preset="full")
  config = base.base(args, "fashion_mnist")
  return base.finish(config, args)
