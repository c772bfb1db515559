"""Fashion-MNIST-LT: 28x28 grey images, ten classes.

  python -m launch.main --config configs/fashion_mnist_lt.py:imbalance=100,ipc=10,preset=cpu \
      --config.data.data_dir=$HOME/tensorflow_datasets --workdir runs/fashion

`imbalance=100,ipc=10,preset=cpu` was measured on one CPU core with another division into training
and test images (docs/results/cifar10_labels.md), 42 minutes for thirteen kinds of labels. Top-1 of
plain soft labels -> ADSA -> a probe, mean of 3 seeds: SRe2L images 76.9 -> 79.7 -> 81.0, random
images 76.7 -> 79.9 -> 80.4. `full` was not run. First layers of ConvNets are padded by 1, where
DC's and FRePo's code pads grey images by 3 (`--config.student.model.stem_padding=3`).

Arguments: method (sre2l, or another of `configs/methods.py`), imbalance (100), ipc (10), seed (0),
preset (full, cpu, smoke), recipe (a name of docs/reference/recipes.md), teacher (a name of
configs/teachers.py), calibrators (few, all, priors, or names: plain+adsa).
"""

from configs import base


def get_config(arg: str | None = None):
  """See the module's docstring."""
  args = base.arguments(arg, method="sre2l", imbalance=100.0, ipc=10, seed=0, preset="full")
  config = base.base(args, "fashion_mnist")
  return base.finish(config, args)
