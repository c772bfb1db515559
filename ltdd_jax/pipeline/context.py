"""The config of a run and what its stages share: data, networks, artefacts, each loaded once."""

import dataclasses
import functools
import hashlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from ltdd_jax import distil
from ltdd_jax.artefacts import workdir as workdir_lib
from ltdd_jax.core.types import ArrayData, LtddError, Teacher
from ltdd_jax.data import longtail, sources
from ltdd_jax.interop import distilled_sets
from ltdd_jax.teachers import aggregate as aggregate_lib
from ltdd_jax.teachers import statistics as statistics_lib
from ltdd_jax.teachers import train as teacher_training


@dataclasses.dataclass
class Context:
  """The config of a run and its artefacts, loaded when first asked for."""

  config: dict[str, Any]
  workdir: workdir_lib.Workdir | None = None

  @functools.cached_property
  def source(self) -> sources.Source:
    data = self.config["data"]
    keys = ("name", "data_dir", "image_size", "on_unreadable", "mean", "std")
    return sources.open_source(**{k: data[k] for k in keys})

  @functools.cached_property
  def split(self) -> longtail.Split:
    """The long-tailed split."""
    data = self.config["data"]
    return longtail.make_split(
      self.source.train_labels,
      self.source.spec.num_classes,
      rule=data["rule"],
      imbalance_factor=data["imbalance_factor"],
      counts=data["counts"],
    )

  @functools.cached_property
  def identity(self) -> dict[str, Any]:
    """What the data set is: every stage depends on it, so other data make other fingerprints."""
    spec = self.source.spec
    test = sources.test_indices(self.source, self.config["data"]["num_test"])
    return {
      "split": self.split.sha256,
      "classes": list(self.source.class_names),
      "mean": list(spec.mean),
      "std": list(spec.std),
      "train_pixels": self._sample("train", self.split.indices),
      "test_pixels": self._sample("test", test),
      "test_labels": hashlib.sha256(self.source.test_labels[test].tobytes()).hexdigest(),
    }

  def _sample(self, split: str, indices: np.ndarray, size: int = 256) -> str:
    """Hash of up to `size` images, evenly spaced: of all it would take seconds at each start."""
    rows = indices[np.linspace(0, len(indices) - 1, min(size, len(indices))).astype(int)]
    images = np.ascontiguousarray(self.source.read(split, rows))
    return hashlib.sha256(images.tobytes()).hexdigest()

  @property
  def counts(self) -> np.ndarray:
    return np.asarray(self.split.counts)

  @functools.cached_property
  def train_data(self) -> ArrayData:
    images = self.source.read("train", self.split.indices)
    return ArrayData(images, self.split.labels)

  @functools.cached_property
  def test_data(self) -> ArrayData:
    indices = sources.test_indices(self.source, self.config["data"]["num_test"])
    return ArrayData(self.source.read("test", indices), self.source.test_labels[indices])

  @functools.cached_property
  def networks(self) -> dict[str, Any]:
    return teacher_training.build_models(self.source.spec, self.config["teacher"]["models"])

  @functools.cached_property
  def teachers(self) -> tuple[Teacher, ...]:
    """All teachers, in the order of their keys."""
    return self._load(sorted(self.networks))

  @functools.cached_property
  def distil_teachers(self) -> tuple[Teacher, ...]:
    """The teachers that `env` has the static halves of."""
    return self._load(aggregate_lib.distil_teachers(self.config))

  @functools.cached_property
  def label_teachers(self) -> tuple[Teacher, ...]:
    """The teachers that label."""
    return self._load(aggregate_lib.label_teachers(self.config))

  def _load(self, keys: Sequence[str]) -> tuple[Teacher, ...]:
    artefact = self.workdir.load("teacher")
    return tuple(Teacher(key, self.networks[key], artefact.tree(key)) for key in keys)

  def variable_shapes(self, model: Any) -> Any:
    """Shapes of the variables of a network for the images of this run."""
    init = functools.partial(model.init, train=False)
    image = jax.ShapeDtypeStruct((1, *self.source.spec.image_shape), np.float32)
    return jax.eval_shape(init, jax.random.key(0), image)

  @functools.cached_property
  def statistics(self) -> tuple[statistics_lib.Statistics, ...]:
    """Statistics of the training set in each teacher."""
    artefact = self.workdir.load("statistics")
    layers = artefact.meta["extra"]["layers"]
    return tuple(
      statistics_lib.from_tree(artefact.tree(o.name), layers[o.name]) for o in self.env().teachers
    )

  def statistics_shapes(self) -> tuple[statistics_lib.Statistics, ...]:
    """The shapes of what `statistics` loads, before it is there."""
    spec, tile = self.source.spec, self.config["statistics"]["tile"]
    return tuple(
      statistics_lib.shapes(
        o.model, self.variable_shapes(o.model), spec.image_shape, spec.num_classes, tile
      )
      for o in self.env().teachers
    )

  def env(self) -> distil.Env:
    spec = self.source.spec
    keys = aggregate_lib.distil_teachers(self.config)
    teachers = tuple(distil.Network(key, self.networks[key]) for key in keys)
    return distil.Env(spec.image_shape, spec.num_classes, spec.mean, spec.std, teachers)

  def method(self, source: str) -> distil.Method:
    return distil.make_method(self.env(), **self.config["distil"]["methods"][source])

  def slots(self, source: str | None = None) -> Any:
    """The budget, in the order in which an image source fills it.

    Methods that select have one order, so that their sets do not depend on what else a run makes.
    """
    part = self.config["distil"]
    per_class = part["slots_per_class"]
    if per_class is None:
      per_class = [part["images_per_class"]] * self.source.spec.num_classes
    if len(per_class) != self.source.spec.num_classes:
      raise LtddError(
        f"config.distil.slots_per_class has {len(per_class)} entries for "
        f"{self.source.spec.num_classes} classes; expected one for each class"
      )
    selects = source is not None and part["methods"][source]["name"] in distil.SELECT
    order = "interleaved" if selects else part["order"]
    return distil.make_slots(np.asarray(per_class), order)

  @functools.cached_property
  def imported(self) -> dict[str, distilled_sets.Imported]:
    """Images that were made elsewhere, by image source: read and checked once."""
    return distilled_sets.read_all(self.config["distil"]["methods"], self.source)

  def slot_labels(self, source: str) -> np.ndarray:
    """Classes (n,) of the slots of an image source."""
    return self.imported[source].labels if source in self.imported else self.slots(source).labels

  def images(self, source: str) -> tuple[np.ndarray, np.ndarray]:
    """Distilled images (n,h,w,c) uint8 and labels (n,); refuses those of another class map."""
    artefact = self.workdir.load(f"distil/{source}")
    workdir_lib.check_same_classes(artefact, self.workdir.load("data"))
    return artefact.arrays["images"], artefact.arrays["labels"]
