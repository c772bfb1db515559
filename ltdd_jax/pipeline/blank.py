"""A run without images and artefacts, whose stages can be called up to their first loop."""

import dataclasses
import types
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from ltdd_jax.core.types import LtddError, Teacher
from ltdd_jax.data import images as images_lib
from ltdd_jax.data.specs import SPECS, DatasetSpec, DataSource
from ltdd_jax.labels import encoding
from ltdd_jax.pipeline import check
from ltdd_jax.pipeline.check import blank
from ltdd_jax.pipeline.context import Context, Row
from ltdd_jax.teachers import statistics as statistics_lib

_TEST_IMAGES = 50  # of a class, of a data set that is not there


@dataclasses.dataclass(eq=False)
class BlankContext(Context):
  """A run in which images and artefacts are zeros that take no memory; shapes are true."""

  given: np.ndarray | None = None  # training images of each class, of a data set that is not there

  def open(self) -> DataSource:
    found = super().open() if self.given is None else _stand_in(self.config["data"], self.given)
    zero, shape = np.uint8(0), found.spec.image_shape
    read = lambda split, indices: np.broadcast_to(zero, (len(indices), *shape))
    return found._replace(read=read, stored=None)

  def teachers(self, names: Sequence[str] | None = None) -> tuple[Teacher, ...]:
    names = sorted(self.networks) if names is None else names
    return tuple(map(Teacher, names, map(self.networks.get, names), self.initial_teachers(names)))

  def initial_teachers(self, names: Sequence[str]) -> tuple[Any, ...]:
    return blank(tuple(self.variable_shapes(self.networks[name]) for name in names))

  def statistics(self, names: Sequence[str]) -> tuple[statistics_lib.Statistics, ...]:
    return blank(self.statistics_shapes(names))

  def trajectories(self, split: str | None) -> np.ndarray:
    return blank(self.trajectory_shapes())

  def classifiers(self, split: str | None) -> np.ndarray:
    return blank(self.classifier_shapes())

  def distilled(self, images: str) -> Mapping[str, np.ndarray]:
    labels, dtype = self.slots(images).labels, self.config["distil"]["dtype"]
    shape = len(labels), *self.source.spec.image_shape
    file = self.file(images)
    found = file.arrays["images"].dtype if file else self.method(images).dtype
    pixels = jax.ShapeDtypeStruct(shape, dtype or found)
    return {"images": blank(pixels), "labels": labels, "student_lr": np.float32(0.1)}

  def store(self, row: Row) -> Any:
    made, config = self.label_source(row.labels), self.config["label"]
    stored, epochs = encoding.Encoding("float32"), 1
    if made.kind == "teacher":
      stored, epochs = encoding.from_config(config), config["num_epochs"]
    n, k = len(self.slots(row.images).labels), self.source.spec.num_classes
    layout = stored.layout(k).items()
    read = lambda: blank({x: jax.ShapeDtypeStruct((epochs, n, m), d) for x, (m, d) in layout})
    return types.SimpleNamespace(encoding=stored, shape=(epochs, n, k), read=read)


def blank_context(config: Any, counts: np.ndarray | None = None) -> BlankContext:
  """Checks a config; `counts` (k,) are in the place of a training set that is not there."""
  config = check.check(config)
  if counts is not None:
    counts = np.asarray(counts)
    if counts.ndim != 1 or counts.dtype.kind not in "iu" or counts.min(initial=1) < 1:
      raise LtddError(
        f"counts are {counts.dtype} of shape {counts.shape}, the least {counts.min(initial=1)}; "
        "expected whole numbers (k,) above 0, the training images of each class"
      )
    rule = {"rule": "as_is", "imbalance_factor": 1, "counts": None}
    config = config | {"data": config["data"] | rule}
  return BlankContext(config, given=counts)


def _stand_in(data: Mapping[str, Any], counts: np.ndarray) -> DataSource:
  """A data set of these sizes; what is known of the one in its place is taken over."""
  k, known = len(counts), SPECS.get(data["name"].split(":")[0])
  size = images_lib.image_shape(data["image_size"]) or (known and known.image_shape[:2])
  if size is None:
    raise LtddError(
      f"config.data.image_size is None, and of data source {data['name']!r} there are class counts "
      "alone; expected a side or (height, width), such as --config.data.image_size=224"
    )
  mean = data["mean"] or (known.mean if known else (0.5,) * 3)
  std = data["std"] or (known.std if known else (0.5,) * 3)
  train, test = np.repeat(np.arange(k), counts), np.repeat(np.arange(k), _TEST_IMAGES)
  names = tuple(map(str, range(k)))
  spec = DatasetSpec(
    data["name"], k, (*size, len(mean)), tuple(mean), tuple(std), len(train), len(test), names
  )
  return DataSource(
    spec, train.astype(np.int32), test.astype(np.int32), lambda split, indices: indices, names
  )
