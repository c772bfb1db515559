"""Teachers by name, `teacher=fast94` after any config file: all of `config.teacher` but its splits.

`fast94` and `fast96` are airbench's (Jordan, 2024) for long-tailed sets: steps and not passes are
kept, there is no label smoothing (which a correction by the prior would turn into a bias for the
tail), and running statistics are those of one pass at the end. `fast94` has 71.4 top-1 on the
published CIFAR-10-LT of factor 100, 80.7 at tau 1 and 81.6 at the best tau (1.25); with the mean of
image and mirror 72.0, 82.2 and 83.1 (one seed, 15 minutes of 2 quiet CPU cores with
`--cpu_devices=2`, `--stage=teacher`). A strong teacher is not the best one for students of few
images. `fast96` was not run; both need images of 9x9 pixels or more. `convnet` is the teacher of
the preset cpu, `rldd` RLDD's for CIFAR-10, `four_convnets` those of our best ConvNet students
(docs/results/beside_published.md).
"""

from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from configs import methods

_PLAIN: dict[str, Any] = {
  "num_epochs": 40,
  "num_steps": None,
  "objective": {"name": "cross_entropy", "label_smoothing": 0.0},
  "views": 1,
  "derive": ({"name": "recalibrate_bn"},),
  "lookahead": True,
  "parallel": "auto",
  "compute_dtype": "float32",
}
NET = {"name": "convnet", "depth": 3, "width": 64, "norm": "batch"}
OTHER = NET | {"norm": "instance"}
_CROP_AND_FLIP = ({"name": "random_crop", "padding": 4}, {"name": "random_flip"})

TEACHERS: dict[str, dict[str, Any]] = {
  "fast94": _PLAIN
  | {
    "models": {"teacher": {"name": "airbench", "widths": (64, 256, 256), "depth": 2}},
    "num_steps": 952,  # 39 passes over CIFAR-10-LT of factor 100
    "batch_size": 512,
    "optimizer": {"name": "airbench_sgd", "lr": 11.5, "weight_decay": 0.0153},
    "schedule": {"name": "triangle", "start": 0.2, "warmup": 0.23, "end": 0.07},
    "augment": ({"name": "random_translate", "padding": 2}, {"name": "alternating_flip"}),
  },
  "fast96": _PLAIN
  | {
    "models": {"teacher": {"name": "airbench", "widths": (128, 384, 512), "depth": 3}},
    "num_steps": 1776,
    "batch_size": 1024,
    "optimizer": {"name": "airbench_sgd", "lr": 9.0, "weight_decay": 0.012},
    "schedule": {"name": "triangle", "start": 0.2, "warmup": 0.1, "end": 0.0},
    "augment": (
      {"name": "random_translate", "padding": 4},
      {"name": "alternating_flip"},
      {"name": "cutout", "size": 12},
    ),
  },
  "convnet": _PLAIN
  | {
    "models": {"teacher": NET},
    "num_epochs": 30,
    "batch_size": 64,
    "optimizer": {"name": "sgd", "lr": 0.05, "momentum": 0.9, "weight_decay": 5e-4},
    "schedule": {"name": "cosine"},
    "augment": _CROP_AND_FLIP,
    "derive": (),
    "lookahead": False,
  },
  "rldd": _PLAIN
  | {"lookahead": False, "augment": _CROP_AND_FLIP}
  | methods.rldd("cifar10", 10).teacher,
}
TEACHERS["four_convnets"] = TEACHERS["convnet"] | {
  "models": {"b0": NET, "b1": NET, "i0": OTHER, "i1": OTHER}
}


def apply(config: ConfigDict, name: str) -> ConfigDict:
  """Puts a teacher of `TEACHERS` in the place of a config's; "" leaves it."""
  if name:
    values = TEACHERS[name] | {"splits": config.teacher.splits}
    config.teacher = values | {"num_steps": _number(values["num_steps"])}
    config.distil.teachers = None  # the preset's names are no more
    for source in config.label.sources.values():
      if "teachers" in source:
        source.teachers = None
  return config


def _number(value: int | None) -> Any:
  """An optional number that the command line may set."""
  return placeholder(int) if value is None else value
