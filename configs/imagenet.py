"""The methods' settings for ImageNet-1k at 224 pixels; what no paper or code has is marked "ours".

Teachers are ours everywhere: published ones are torchvision's networks, trained on all of ImageNet,
which a long-tailed training set must not see. They are trained here on the long-tailed set by
torchvision's reference recipe: 90 passes, SGD with batches of 256.
"""

from collections.abc import Callable
from typing import Any

from configs.methods import CLASS_MAJOR, FLIP, Published, crop

RESNET18 = {"name": "resnet18", "stem": "imagenet"}
# EDC's five networks in the order of their turns; G-VBSM's are the first four.
FIVE: dict[str, dict[str, Any]] = {
  "resnet18": RESNET18,
  "mobilenet_v2": {"name": "mobilenet_v2", "layout": "imagenet", "width": 1.0},
  "efficientnet_b0": {"name": "efficientnet_b0"},
  "shufflenet_v2": {"name": "shufflenet_v2", "stem": "imagenet"},
  "alexnet": {"name": "alexnet", "layout": "imagenet"},
}
LABELERS = ("resnet18", "mobilenet_v2", "shufflenet_v2", "alexnet")  # EDC's
ROLL = {"name": "random_roll", "low": 0, "high": 32, "shared": True}
TEACHER: dict[str, Any] = {
  "models": {"teacher": RESNET18},
  "num_epochs": 90,
  "batch_size": 256,
  "optimizer": {"name": "sgd", "lr": 0.1, "momentum": 0.9, "weight_decay": 1e-4},
  "schedule": {"name": "multistep", "milestones": (1 / 3, 2 / 3), "factor": 0.1},
  "augment": ({"name": "random_resized_crop"}, {"name": "random_flip"}),
}
SRE2L = {"num_steps": 4000, "lr": 0.25, "r_bn": 0.01, "first_bn_multiplier": 10.0}


def sre2l(ipc: int) -> Published:
  """The released constants."""
  method = {"name": "sre2l", **SRE2L, "augment": (crop(0.08), FLIP, ROLL)}
  return Published(method, "sre2l_kl", {}, TEACHER, RESNET18)


def cda(ipc: int) -> Published:
  """The released constants, which are SRe2L's; its crops are a curriculum, its batches of 128."""
  method = {"name": "cda", **SRE2L, "augment": (FLIP, ROLL)}
  return Published(method, "sre2l_kl", {}, TEACHER, RESNET18)


def gvbsm(ipc: int) -> Published:
  """Four networks; batches of 80, which the code splits over two GPUs."""
  four = {name: model for name, model in FIVE.items() if name != "alexnet"}
  method = {
    "name": "gvbsm", "num_steps": 4000, "lr": 0.1, "ema": 0.4, "conv_drop": 0.0,
    "augment": (crop(0.08), FLIP, ROLL),
  }  # fmt: skip
  distil = CLASS_MAJOR | {"batch_size": 80, "teachers": tuple(four)}
  return Published(method, "gvbsm_mse_gt", distil, TEACHER | {"models": four}, RESNET18)


def edc(ipc: int) -> Published:
  """Five networks, of which four label; the paper's 2,000 steps, and `r_stats` of the scripts."""
  start = {"name": "rded", "factor": 2, "images_per_class": 50}
  method = {
    "name": "edc", "num_steps": 2000, "lr": 0.05, "r_stats": 0.1, "init": start,
    "augment": (crop(0.5), FLIP),
  }  # fmt: skip
  distil = CLASS_MAJOR | {"batch_size": 80, "teachers": tuple(FIVE)}
  return Published(
    method, "edc_mse_gt", distil, TEACHER | {"models": FIVE}, RESNET18, labelers=LABELERS
  )


def edc_released(ipc: int) -> Published:
  """As `edc`, with the scripts' 1,000 steps; targets of batches of 256."""
  paper = edc(ipc)
  method = paper.method | {"name": "edc_released", "num_steps": 1000, "target_batch": 256}
  return paper._replace(method=method, recipe="edc_mse_gt:released")


def rldd(ipc: int) -> Published:
  """The paper's steps and students; one debiased ResNet-18 (ours) in place of two ResNeXt-50."""
  teacher = TEACHER | {
    "objective": {"name": "rldd"}, "views": 2, "derive": ({"name": "recalibrate_bn_by_class"},)
  }  # fmt: skip
  method = {
    "name": "rldd", "num_steps": 1000, "lr": 0.05, "r_stats": 0.1, "augment": (crop(0.5), FLIP)
  }  # fmt: skip
  distil = CLASS_MAJOR | {"batch_size": 80, "teachers": ("teacher",)}
  return Published(method, "rldd_mse_gt", distil, teacher, RESNET18)


def rded(ipc: int) -> Published:
  """Four patches an image."""
  method = {"name": "rded", "factor": 2, "num_crops": 5, "pool": 300}
  return Published(method, "rded_kl", {}, TEACHER, RESNET18)


METHODS: dict[str, Callable[[int], Published]] = {
  "sre2l": sre2l, "cda": cda, "gvbsm": gvbsm, "edc": edc, "edc_released": edc_released,
  "rldd": rldd, "rded": rded,
  "random": lambda ipc: Published({"name": "random"}, "sre2l_kl", {}, TEACHER, RESNET18),
}  # fmt: skip
