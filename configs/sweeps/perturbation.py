"""The perturbation study at several imbalance factors and numbers of images.

  python -m launch.sweep --config configs/sweeps/perturbation.py:preset=cpu --workdir runs/biases

Each cell is the study of configs/perturbation.py: whose bias is it, the teacher's or the images'?
Cells of one imbalance factor share their teachers. On CIFAR-10 no sweep was run.

Arguments: preset (full, cpu, smoke), dataset (cifar10; digits, the default of smoke), methods
(sre2l, or several with + between them), recipe, calibrators (plain+adsa), seed (0).
"""

from configs import perturbation
from configs.sweeps import base

IMBALANCES = (10, 50, 100)
IPCS = (10, 50)


def get_sweep(arg: str | None = None):
  """See the module's docstring."""
  args = base.arguments(arg, methods="sre2l")
  shared = {k: getattr(args, k) for k in ("preset", "dataset", "calibrators", "seed", "recipe")}
  for method in base.names(args):
    for imbalance in IMBALANCES:
      for ipc in IPCS:
        values = shared | {
          "method": method, "imbalance": imbalance, "ipc": base.ipc_of(args, ipc)
        }  # fmt: skip
        text = ",".join(f"{key}={value}" for key, value in values.items() if value != "")
        yield f"{method}-if{imbalance}-ipc{ipc}", perturbation.get_config(text)
