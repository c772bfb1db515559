"""Tiny-ImageNet-LT: 200 classes of 64x64 images, from class folders or an npz file.

  python -m launch.main --workdir runs/tiny \
      --config configs/tiny_imagenet_lt.py:data=folder:my/tiny_imagenet,ipc=10,preset=cpu

`data` is `folder:PATH` or `npz:FILE` (docs/how-to/use_your_own_images.md). A ConvNet-4 stands where
configs for 32 pixels have a ConvNet-3. Recipes have their values for Tiny-ImageNet where there are
some; of methods EDC, RLDD, NCFM and DREAM have settings for it, the others CIFAR-10's. Cost and
accuracy were not measured.

`imbalance=1` takes the training set as it is (rule `as_is`): a long-tailed subset that was chosen
elsewhere, say. `imbalance=F` keeps the counts of LTDD's rule for 500 images in the largest class,
`data.longtail.class_counts(500, 200, F)`, chosen among the images that are there: of a set that is
no longer the full one this is the same rule with other images than the published ones.

Arguments: data, method (sre2l, or another of `configs/methods.py`), imbalance (1), ipc (10), seed
(0), preset (full, cpu, smoke), recipe (a name of docs/reference/recipes.md), teacher (a name of
configs/teachers.py), calibrators (few, all, or names: plain+adsa).
"""

from configs import base, methods
from ltdd_jax.core.types import LtddError
from ltdd_jax.data import longtail

LARGEST, CLASSES = 500, 200


def get_config(arg: str | None = None):
  """See the module's docstring."""
  args = base.arguments(arg, data="", method="sre2l", imbalance=1.0, ipc=10, seed=0, preset="full")
  if not args.data:
    raise LtddError(
      "data is empty: expected configs/tiny_imagenet_lt.py:data=folder:PATH or data=npz:FILE"
    )
  factor, args.imbalance = args.imbalance, 1.0
  config = base.base(args, args.data, "tiny_imagenet")
  base.shrink(config, data__rule="as_is", data__image_size=64)
  if factor != 1:
    counts = longtail.class_counts(LARGEST, CLASSES, factor)
    base.shrink(config, data__rule="counts", data__counts=tuple(counts.tolist()))
  config.report.groups = "counts(100,20)"
  if args.preset == "full" and not args.recipe:
    args.recipe = methods.METHODS[args.method]("tiny_imagenet", args.ipc).recipe
  args.recipe = args.recipe and base.with_values_of(args.recipe, "tiny")
  base.finish(config, args)
  base.deepen(config)
  if args.preset == "cpu":
    # Twenty times the images of CIFAR-10 at the same number for each class: fewer passes.
    base.shrink(config, student__num_epochs=20, label__num_epochs=20)
  return config
