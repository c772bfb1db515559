"""What do soft labels cost, and what does a cheaper label lose? Bytes beside accuracy.

  python -m launch.sweep --config configs/sweeps/label_budgets.py:preset=cpu,dataset=digits \
      --workdir runs/budgets

The same teachers and images in all cells, with students for each budget of labels: label epochs,
number format, classes kept; and hard labels mixed in (docs/how-to/save_label_bytes.md).

Arguments: preset (full, cpu, smoke), dataset (cifar10; digits, the default of smoke), methods
(sre2l, or several with + between them), imbalance (100; 50 for digits), ipc (10; 5 for digits),
recipe, calibrators (plain+adsa), seed (0).
"""

from typing import Any

from configs.sweeps import base

BUDGETS: dict[str, dict[str, Any]] = {  # of config.label
  "all-float16": {},
  "all-uint8": {"dtype": "uint8"},
  "all-uint8-top3": {"dtype": "uint8", "top_k": 3},
  "10-float16": {"num_epochs": 10},
  "5-float16": {"num_epochs": 5},
  "1-float16": {"num_epochs": 1},
  "10-uint8-top3": {"num_epochs": 10, "dtype": "uint8", "top_k": 3},
}
MIXES = {"all-float16-hard": 0.25}  # of config.student.hard_weight


def get_sweep(arg: str | None = None):
  """See the module's docstring."""
  args = base.arguments(arg, methods="sre2l", imbalance=0.0, ipc=0)
  imbalance, ipc = (50.0, 5) if args.dataset == "digits" else (100.0, 10)
  args.imbalance, args.ipc = args.imbalance or imbalance, args.ipc or ipc
  for method in base.names(args):
    for name in (*BUDGETS, *MIXES):
      config = base.run(args, method, args.imbalance, args.ipc)
      epochs = config.label.num_epochs
      config.label.update(BUDGETS.get(name, {}))
      config.label.num_epochs = min(epochs, config.label.num_epochs)
      config.student.hard_weight = MIXES.get(name, 0.0)
      config.student.hard_labels = False
      yield f"{method}-{name}", config
