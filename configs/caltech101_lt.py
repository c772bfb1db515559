"""Caltech-101, naturally long-tailed, at 64x64: from class folders or an npz file.

  python -m launch.main --workdir runs/caltech101 \
      --config configs/caltech101_lt.py:data=folder:my/caltech101,ipc=10,preset=cpu

`data` is `folder:PATH` or `npz:FILE` (docs/how-to/use_your_own_images.md), with a balanced test
set. All training images are used, with the counts that they have (rule `as_is`); there is no
published split. A ConvNet-4 stands where configs for 32 pixels have a ConvNet-3. Methods and
recipes have CIFAR-10's settings. Cost and accuracy were not measured; the smoke preset took three
minutes on two shared CPU cores.

Arguments: data, method (sre2l, or another of `configs/methods.py`), ipc (10), seed (0), preset
(full, cpu, smoke), recipe (a name of docs/reference/recipes.md), teacher (a name of
configs/teachers.py), calibrators (few, all, or names: plain+adsa).
"""

from configs import base
from ltdd_jax.core.types import LtddError


def get_config(arg: str | None = None):
  """See the module's docstring."""
  args = base.arguments(arg, data="", method="sre2l", ipc=10, seed=0, preset="full")
  if not args.data:
    raise LtddError(
      "data is empty: expected configs/caltech101_lt.py:data=folder:PATH or data=npz:FILE"
    )
  args.imbalance = 1.0  # rule as_is measures it
  config = base.base(args, args.data)
  base.shrink(config, data__rule="as_is", data__image_size=64)
  base.finish(config, args)
  base.deepen(config)
  if args.preset == "cpu":
    # Ten times the images of CIFAR-10 at the same number for each class: fewer passes.
    base.shrink(config, student__num_epochs=40, label__num_epochs=40)
  return config
