"""What `edc.py` times: EDC's recover step on CIFAR-10 with its eight teachers, on noise.

The form is that of the released code, without flatness: statistics of the whole batch against those
of the training set and of its classes.
"""

from typing import Any

LR, R_STATS, FIRST, ALPHA, EMA, TILE = 0.05, 0.01, 10.0, 0.5, 0.8, 4
SCALE, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)
BATCH = 100  # all images at ten of each class, in class-major order


def _convnet(depth: int, width: int) -> dict[str, Any]:
  return {"name": "convnet", "depth": depth, "width": width, "norm": "instance"}


OBSERVERS: dict[str, dict[str, Any]] = {
  "resnet18": {"name": "resnet18", "stem": "cifar"},
  "convnet_w128": _convnet(3, 128),
  "mobilenet_v2": {"name": "mobilenet_v2"},
  "wrn_16_2": {"name": "wide_resnet"},
  "shufflenet_v2": {"name": "shufflenet_v2"},
  "convnet_d1": _convnet(1, 128),
  "convnet_d2": _convnet(2, 128),
  "convnet_w32": _convnet(3, 32),
}
