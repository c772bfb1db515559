"""Which teacher makes good students? A score without test data takes one of several.

  python -m launch.main --config configs/teacher_choice.py:ipc=10 --workdir runs/choice

Candidates label the same images (random real ones by default; images that are there already with
`method=imported`). A tenth of the training images is held out from all of them, and the score is
the log-loss of a closed-form student there (`ltdd_jax/studies/teachers_study.py`).
The best candidate is then trained on all images, in `chosen/`, an ordinary work directory. Written:
`report/teachers.md` and `report/teachers.json`. `--config.study.students=True` trains students of
every candidate too, to see how well the score orders them.

Arguments: dataset (cifar10, cifar100, digits), candidates (names of `CANDIDATES` with + between
them; all, and two with preset=smoke), method (random), imbalance (100), ipc (10), seed (0), preset
(cpu, smoke, full), recipe, calibrators (adsa).
"""

from typing import Any

from configs import base, teachers
from configs.teachers import NET, OTHER
from ltdd_jax.core.registry import check_choice


def _networks(*models: dict[str, Any]) -> dict[str, Any]:
  return {"models": {f"teacher{i}": model for i, model in enumerate(models)}}


CANDIDATES: dict[str, dict[str, Any]] = {  # what changes in `config.teacher`
  "convnet": _networks(NET),
  "three_convnets": _networks(NET, NET, NET),
  "wide_convnet": _networks(NET | {"width": 128}),
  "instance_norm": _networks(OTHER),
  "three_instance_norm": _networks(OTHER, OTHER, OTHER),
  "wide_instance_norm": _networks(OTHER | {"width": 128}),
  "narrow_resnet18": _networks({"name": "resnet18", "stem": "cifar", "width": 16}),
  "short_convnet": _networks(NET) | {"num_epochs": 3},  # a weak one
  "wide_resnet": _networks({"name": "wide_resnet", "depth": 16, "widen": 2}),
  "fast94": teachers.TEACHERS["fast94"],
  "four_convnets": teachers.TEACHERS["four_convnets"],
}
DATASETS = ("cifar10", "cifar100", "digits")


def get_config(arg: str | None = None):
  """See the module's docstring."""
  args = base.arguments(
    arg, dataset="cifar10", candidates="", method="random", imbalance=100.0, ipc=10, seed=0,
    preset="cpu", calibrators="adsa",
  )  # fmt: skip
  check_choice("dataset", args.dataset, DATASETS)
  known = [*CANDIDATES]
  if args.dataset == "digits":  # of 8x8 pixels
    known = ["convnet", "three_convnets", "wide_convnet", "short_convnet"]
  some = known[:2] if args.preset == "smoke" else known
  names = args.candidates.split("+") if args.candidates else some
  for name in names:
    check_choice("a name in candidates", name, known)
  config = base.of_dataset(args, imbalance=args.imbalance)
  config.student.hard_labels = False
  config.study = {
    "name": "teachers",
    "candidates": {name: CANDIDATES[name] for name in names},
    "held_out": 0.1,
    "num_views": 6000,
    "num_references": 2,
    "penalty": 0.01,
    "students": False,
  }
  return config
