"""Students of several networks on the same images and labels: do they serve other architectures?

  python -m launch.main --config configs/networks.py:dataset=cifar10,ipc=10 --workdir runs/networks

Images and labels are made once, by the networks of `configs/<dataset>_lt.py`; students of each
network are trained by one recipe (docs/reference/recipes.md), the neutral one if none is given.
Written: `report/report.md`, rows = images x labels, columns = networks, and `report/networks.json`.
Every value can be changed on the command line, for all networks at once. Nothing was measured yet.

Arguments: dataset (cifar10, cifar100, digits), networks (names of `NETWORKS` with + between them;
digits take those of one size only), recipe (rd3), method, imbalance (100), ipc (10), seed (0),
preset (full, cpu, smoke), calibrators (few, all, priors, or names: plain+adsa).
"""

from configs import base
from ltdd_jax.core.registry import check_choice

NETWORKS = {
  "convnet3": {"name": "convnet", "depth": 3, "width": 128, "norm": "instance"},
  "resnet18": {"name": "resnet18", "stem": "cifar"},
  "vgg11": {"name": "vgg11"},
  "alexnet": {"name": "alexnet"},
  "mobilenet_v2": {"name": "mobilenet_v2"},
}
DATASETS = ("cifar10", "cifar100", "digits")


def get_config(arg: str | None = None):
  """See the module's docstring."""
  args = base.arguments(
    arg, dataset="cifar10", networks="", method="sre2l", imbalance=100.0, ipc=10, seed=0,
    preset="full",
  )  # fmt: skip
  check_choice("dataset", args.dataset, DATASETS)
  small = "convnet3+resnet18" if args.dataset == "digits" else "+".join(NETWORKS)
  names = (args.networks or small).split("+")
  for name in names:
    check_choice("a name in networks", name, NETWORKS)
  config = base.of_dataset(args, imbalance=args.imbalance, recipe=args.recipe or "rd3")
  config.study = {"name": "networks", "networks": {name: NETWORKS[name] for name in names}}
  return config
