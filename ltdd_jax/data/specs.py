"""Facts about data sets: one table, no code path that depends on a name.

  spec = SPECS["cifar10"]
  spec.mean, spec.num_classes

A folder, an npz file or a TFDS set that is not listed here gets its facts measured when it is
opened (`sources.open_source`). `mean` and `std` are per channel, for pixels in [0, 1].
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np


class DatasetSpec(NamedTuple):
  """What is known of a data set before any image is read."""

  name: str
  num_classes: int
  image_shape: tuple[int, int, int]  # h, w, c
  mean: tuple[float, ...]  # (c,) pixels in [0, 1]
  std: Any  # (c,) floats; or a `data.whitening.Whitening` in their place
  num_train: int
  num_test: int
  class_names: tuple[str, ...] | None = None  # None: taken from the source when it is opened


class DataSource(NamedTuple):
  """An opened data set: labels in memory, images read on demand."""

  spec: DatasetSpec  # facts, corrected by what was found when the source was opened
  train_labels: np.ndarray  # (N,) int32
  test_labels: np.ndarray  # (M,) int32
  read: Callable[[str, np.ndarray], np.ndarray]  # ("train" | "test", indices) -> uint8 (n, h, w, c)
  class_names: tuple[str, ...]  # (k,)
  stored: Callable[[str, int], tuple[str, bytes]] | None = None  # name and content of a file
  notes: tuple[str, ...] = ()  # what the user should be told, e.g. images that were skipped


_FASHION_CLASSES = (
  "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat",
  "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip

# The CIFAR constants are those that the published recipes use, not a new measurement: SRe2L's for
# CIFAR-10, G-VBSM's and EDC's for CIFAR-100. Those of digits were measured on the 1,140 training
# images of `sources` (0.30556330, 0.37561139).
_FACTS: dict[str, tuple[Any, ...]] = {  # in the order of the fields of `DatasetSpec`
  "digits": (10, (8, 8, 1), (0.3056,), (0.3756,), 1140, 600),
  "cifar10": (
    10, (32, 32, 3), (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010), 50_000, 10_000,
  ),
  "cifar100": (
    100, (32, 32, 3), (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761), 50_000, 10_000,
  ),
  "mnist": (10, (28, 28, 1), (0.1307,), (0.3081,), 60_000, 10_000),
  "fashion_mnist": (10, (28, 28, 1), (0.2860,), (0.3530,), 60_000, 10_000, _FASHION_CLASSES),
  "svhn_cropped": (
    10, (32, 32, 3), (0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970), 73_257, 26_032,
  ),
  "imagenet2012": (
    1000, (224, 224, 3), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 1_281_167, 50_000,
  ),
}  # fmt: skip
SPECS = {name: DatasetSpec(name, *facts) for name, facts in _FACTS.items()}
