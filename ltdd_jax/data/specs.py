"""Facts about data sets: one table, no code path that depends on a name.

  spec = SPECS["cifar10"]
  spec.mean, spec.num_classes

A folder, an npz file or a TFDS set that is not listed here gets its facts measured when it is
opened (`sources.open_source`). `mean` and `std` are per channel, for pixels in [0, 1].
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np


class DatasetSpec(NamedTuple):
  """What is known of a data set before any image is read."""

  name: str
  num_classes: int
  image_shape: tuple[int, int, int]  # h, w, c
  mean: tuple[float, ...]  # (c,) pixels in [0, 1]
  std: tuple[float, ...]  # (c,)
  num_train: int
  num_test: int
  class_names: tuple[str, ...] | None = None  # None: taken from the source when it is opened
  tfds_name: str | None = None  # None: not read through TFDS


class DataSource(NamedTuple):
  """An opened data set: labels in memory, images read on demand."""

  spec: DatasetSpec  # facts, corrected by what was found when the source was opened
  train_labels: np.ndarray  # (N,) int32
  test_labels: np.ndarray  # (M,) int32
  read: Callable[[str, np.ndarray], np.ndarray]  # ("train" | "test", indices) -> uint8 (n, h, w, c)
  class_names: tuple[str, ...]  # (k,)
  notes: tuple[str, ...] = ()  # what the user should be told, e.g. images that were skipped


_CIFAR10_CLASSES = (
  "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip
_FASHION_CLASSES = (
  "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat",
  "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
_TEN_DIGITS = tuple("0123456789")

# The CIFAR constants are those that the published recipes use, not a new measurement: SRe2L's for
# CIFAR-10, G-VBSM's and EDC's for CIFAR-100. Those of digits were measured on the 1,140 training
# images of `sources` (0.30556330, 0.37561139).
SPECS: dict[str, DatasetSpec] = {
  spec.name: spec
  for spec in (
    DatasetSpec(
      name="digits",
      num_classes=10,
      image_shape=(8, 8, 1),
      mean=(0.3056,),
      std=(0.3756,),
      num_train=1140,
      num_test=600,
      class_names=_TEN_DIGITS,
    ),
    DatasetSpec(
      name="cifar10",
      num_classes=10,
      image_shape=(32, 32, 3),
      mean=(0.4914, 0.4822, 0.4465),
      std=(0.2023, 0.1994, 0.2010),
      num_train=50_000,
      num_test=10_000,
      class_names=_CIFAR10_CLASSES,
      tfds_name="cifar10",
    ),
    DatasetSpec(
      name="cifar100",
      num_classes=100,
      image_shape=(32, 32, 3),
      mean=(0.5071, 0.4867, 0.4408),
      std=(0.2675, 0.2565, 0.2761),
      num_train=50_000,
      num_test=10_000,
      tfds_name="cifar100",
    ),
    DatasetSpec(
      name="mnist",
      num_classes=10,
      image_shape=(28, 28, 1),
      mean=(0.1307,),
      std=(0.3081,),
      num_train=60_000,
      num_test=10_000,
      class_names=_TEN_DIGITS,
      tfds_name="mnist",
    ),
    DatasetSpec(
      name="fashion_mnist",
      num_classes=10,
      image_shape=(28, 28, 1),
      mean=(0.2860,),
      std=(0.3530,),
      num_train=60_000,
      num_test=10_000,
      class_names=_FASHION_CLASSES,
      tfds_name="fashion_mnist",
    ),
    DatasetSpec(
      name="svhn_cropped",
      num_classes=10,
      image_shape=(32, 32, 3),
      mean=(0.4377, 0.4438, 0.4728),
      std=(0.1980, 0.2010, 0.1970),
      num_train=73_257,
      num_test=26_032,
      class_names=_TEN_DIGITS,
      tfds_name="svhn_cropped",
    ),
    DatasetSpec(
      name="imagenet2012",
      num_classes=1000,
      image_shape=(224, 224, 3),
      mean=(0.485, 0.456, 0.406),
      std=(0.229, 0.224, 0.225),
      num_train=1_281_167,
      num_test=50_000,
      tfds_name="imagenet2012",
    ),
  )
}
