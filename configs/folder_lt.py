"""Your own images: PATH/train/CLASS/*.png and PATH/test/CLASS/*.png, of any size and count.

  python -m launch.main --config configs/folder_lt.py:path=my/images,size=32,preset=cpu \
      --workdir runs/mine

The cost is that of CIFAR-10's recipe for as many images (docs/results/README.md).

The counts are measured and used as they are (rule `as_is`); set
`--config.data.rule=ltdd --config.data.imbalance_factor=50` to make a balanced set long-tailed. An
unreadable image stops the run and is named; `--config.data.on_unreadable=skip` counts and skips.
Arguments: path, size (32), method (sre2l, or another of `configs/methods.py`), ipc (10), seed (0),
preset (cpu, smoke, full), recipe (a name of docs/reference/recipes.md), teacher (a name of
configs/teachers.py), calibrators (few, all, priors, or names: plain+adsa).
"""

from configs import base
from ltdd_jax.core.types import LtddError


def get_config(arg: str | None = None):
  """See the module's docstring."""
  args = base.arguments(
    arg, path="", size=32, method="sre2l", imbalance=1.0, ipc=10, seed=0, preset="cpu"
  )
  if not args.path:
    raise LtddError("path is empty: expected configs/folder_lt.py:path=FOLDER, see its docstring")
  config = base.base(args, f"folder:{args.path}")
  base.shrink(config, data__rule="as_is", data__image_size=args.size)
  return base.finish(config, args)
