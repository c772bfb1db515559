"""Handwritten digits with a long tail: the whole pipeline on 8x8 images, on any machine.

  python -m launch.main --config configs/digits_lt.py --workdir runs/digits

The set is scikit-learn's, embedded; 600 images, 60 of each class, are held out as a balanced test.
It takes about three minutes on 2 CPU cores. Plain soft labels -> ADSA, mean of 3 seeds: SRe2L
images top-1 80.3 -> 84.5 and tail (2 to 5 training images a class) 54.6 -> 68.7, random images
83.7 -> 90.1 and 56.3 -> 80.2 (docs/results/digits.md).

Arguments: method (sre2l, or another of `configs/methods.py`), imbalance (50), ipc (5), seed (0),
preset (cpu, smoke, full), recipe (a name of docs/reference/recipes.md), teacher (a name of
configs/teachers.py), calibrators (few, all, priors, or names: plain+adsa).
"""

from configs import base, teachers


def get_config(arg: str | None = None):
  """See the module's docstring."""
  args = base.arguments(arg, method="sre2l", imbalance=50.0, ipc=5, seed=0, preset="cpu")
  config = base.base(args, "digits")
  base.small_networks(config, args, depth=2, width=32)
  if args.recipe:
    base.recipe(config, args.recipe)
  else:
    config.student.loss = {"name": "mse_ce", "ce_weight": 0.025}
    config.label.views = {"crop_scale": (0.5, 1.0), "flip": False, "mix": "cutmix"}
  base.shrink(
    config,
    teacher__num_epochs=60,
    teacher__batch_size=32,
    distil__batch_size=50,
    label__num_epochs=300,
    student__num_epochs=300,
    student__batch_size=10,
    student__evaluations=3,
  )
  config.teacher.optimizer.lr = 0.05
  longer = {"max_start_epoch": 10, "trajectories": {"num_experts": 6, "num_epochs": 20}}
  base.limit(config, base.CPU | longer)
  roll = {"name": "random_roll", "low": 0, "high": 1, "shared": True}
  for method in config.distil.methods.values():  # no flips, and shifts that fit 8x8 images
    if "augment" in method and not isinstance(method.augment, str | None):  # those are DSA's
      method.augment = (roll,)
      if "init" in method and method.init == "real":
        with config.ignore_type():  # in place of a name
          method.init = {"name": "real", "flip": False}
  if "sre2l" in config.distil.methods:
    config.distil.methods.sre2l.lr = 0.1
  if args.preset == "smoke":
    base.smoke(config, args)
  elif args.preset == "full":
    base.shrink(config, student__num_seeds=10)
  teachers.apply(config, args.teacher)
  config.teacher.augment = ({"name": "random_crop", "padding": 1},)
  return config
