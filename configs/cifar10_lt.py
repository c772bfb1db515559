"""CIFAR-10-LT.

  python -m launch.main --config configs/cifar10_lt.py:imbalance=100,ipc=10,preset=cpu \
      --config.data.data_dir=$HOME/tensorflow_datasets --workdir runs/cifar10

Arguments: method (sre2l, random), imbalance (100), ipc (10), seed (0), preset (full, cpu, smoke).
"""

from configs import base


def get_config(arg: str | None = None):
  """See the module's docstring."""
  args = base.arguments(arg, method="sre2l", imbalance=100.0, ipc=10, seed=0, preset="full")
  config = base.base(args, "cifar10")
  if args.preset == "cpu":
    base.cpu(config, args.ipc)
  elif args.preset == "smoke":
    base.smoke(config)
  return config
