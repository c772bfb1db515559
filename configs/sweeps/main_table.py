"""The main table of the paper: methods with plain soft labels and with ADSA on CIFAR-10-LT.

  python -m launch.sweep --config configs/sweeps/main_table.py:preset=cpu --workdir runs/main_table

SRe2L, G-VBSM and EDC at imbalance factors 100 and 50, MTT and DREAM at 50: the cells of
docs/results/cifar10_methods.md and four more. A cell has the method's images, random ones and hard
labels. Its smoke preset was run, 13 cells; what one of `preset=cpu` takes is in
configs/cifar10_lt.py.

Arguments: preset (full, cpu, smoke), dataset (cifar10; digits, the default of smoke), recipe (own,
the method's; or a name of docs/reference/recipes.md), calibrators (plain+adsa), seed (0).
"""

from configs.sweeps import base

CELLS = (  # imbalance factor, images per class, methods
  (100, 10, ("sre2l", "gvbsm", "edc")),
  (100, 50, ("sre2l", "gvbsm", "edc")),
  (50, 10, ("mtt", "dream")),
  (50, 50, ("sre2l", "gvbsm", "edc", "mtt", "dream")),
)


def get_sweep(arg: str | None = None):
  """See the module's docstring."""
  args = base.arguments(arg, recipe="own")
  for imbalance, ipc, methods in CELLS:
    for method in methods:
      yield f"if{imbalance}-ipc{ipc}-{method}", base.run(args, method, imbalance, ipc)
