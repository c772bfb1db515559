"""The config of a run and what its stages share: data, networks, artefacts, each loaded once."""

import contextlib
import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from ltdd_jax import calibrate, distil, models
from ltdd_jax.artefacts import workdir as workdir_lib
from ltdd_jax.core import config as config_lib
from ltdd_jax.core import files, registry
from ltdd_jax.core.types import ArrayData, LtddError, Slots, Teacher
from ltdd_jax.data import identity as identity_lib
from ltdd_jax.data import longtail, sources, stream, whitening
from ltdd_jax.interop import distilled_sets, view_labels
from ltdd_jax.labels import label as label_lib
from ltdd_jax.labels import sources as label_sources
from ltdd_jax.labels import store as label_store
from ltdd_jax.models.flat import Flat
from ltdd_jax.pipeline.rows import HARD, Row
from ltdd_jax.students import recipes
from ltdd_jax.students.recipes import changes
from ltdd_jax.teachers import aggregate as aggregate_lib
from ltdd_jax.teachers import statistics as statistics_lib
from ltdd_jax.teachers import train as teacher_training
from ltdd_jax.teachers import trajectories as trajectories_lib


@dataclasses.dataclass(eq=False)
class Context:
  """The config of a run and its artefacts, loaded when first asked for."""

  config: dict[str, Any]
  workdir: workdir_lib.Workdir = None  # type: ignore[assignment] # before a run opens it

  # ---- data ----

  @functools.cached_property
  def source(self) -> sources.DataSource:
    """The data source; with `config.data.whiten` its images are whitened, not normalised."""
    found = self.open()
    if self.config["data"]["whiten"] is None:
      return found
    std = whitening.Whitening(found.spec.std, self._whitening)
    return found._replace(spec=found.spec._replace(std=std))

  def open(self) -> sources.DataSource:
    """Opens the data set as it is."""
    data = self.config["data"]
    return sources.open_source(data["name"], **arguments_of(sources.open_source, data))

  def _whitening(self) -> whitening.Arrays:
    """What the data stage has found; zeros before it has run, for shapes."""
    if self.workdir is None or not self.workdir.exists("data"):
      return whitening.blank(self.source.spec.image_shape)
    return self._fitted_whitening

  @functools.cached_property
  def _fitted_whitening(self) -> whitening.Arrays:
    arrays = self.workdir.load("data").arrays
    return whitening.Arrays(
      *(np.asarray(arrays[f"whitening_{k}"]) for k in whitening.Arrays._fields)
    )

  @functools.cache  # noqa: B019 (a context lives as long as its run)
  def split(self, name: str | None = None) -> longtail.Split:
    """A split of the training data: one of `config.data.splits`, or the run's own for None."""
    rule = dict(self.config["data"] if name is None else self.config["data"]["splits"][name])
    if rule.get("rule") == "matched":  # balanced, with as many images as the run's own split has
      each = int(self.counts.sum()) // len(self.counts)
      rule |= {"rule": "counts", "counts": (each,) * len(self.counts)}
    own = arguments_of(longtail.make_split, rule)
    where = f"config.data.splits.{name}"
    with contextlib.nullcontext() if name is None else registry.within(where):
      return longtail.make_split(self.source.train_labels, self.source.spec.num_classes, **own)

  @functools.cached_property
  def identity(self) -> dict[str, Any]:
    """What the data set is: every stage depends on it, so other data make other fingerprints."""
    data = self.config["data"]
    splits = {name: self.split(name) for name in data["splits"]}
    return identity_lib.of(self.source, self.split(), splits, data["num_test"])

  @property
  def counts(self) -> np.ndarray:
    """Training images of each class (k,) in the run's own split."""
    return np.asarray(self.split().counts)

  @functools.cache  # noqa: B019
  def train_data(self, split: str | None = None) -> ArrayData:
    """The training images of a split."""
    found = self.split(split)
    return self._data("train", found.indices, found.labels)

  @functools.cached_property
  def test_data(self) -> ArrayData:
    """The test set."""
    indices = sources.test_indices(self.source, self.config["data"]["num_test"])
    return self._data("test", indices, self.source.test_labels[indices])

  def _data(self, split: str, indices: np.ndarray, labels: np.ndarray) -> ArrayData:
    workers, source = self.config["data"]["stream_workers"], self.source
    if isinstance(std := source.spec.std, whitening.Whitening):  # workers get none of this run
      source = source._replace(spec=source.spec._replace(std=std.channels))
    return ArrayData(stream.images_of(source, split, indices, workers), labels)

  # ---- teachers ----

  @functools.cached_property
  def networks(self) -> dict[str, Any]:
    """The models of the teachers, by name."""
    return teacher_training.build_models(self.source.spec, self.config["teacher"]["models"])

  def teacher_split(self, name: str) -> str | None:
    """The split that a teacher is trained on."""
    return self.config["teacher"]["splits"].get(name)

  def by_split(self, names: Iterable[str]) -> dict[str | None, list[str]]:
    """Teachers by the split that they are trained on."""
    found: dict[str | None, list[str]] = {}
    for name in names:
      found.setdefault(self.teacher_split(name), []).append(name)
    return {split: found[split] for split in sorted(found, key=str)}

  def teachers(self, names: Sequence[str] | None = None) -> tuple[Teacher, ...]:
    """Trained teachers, all in the order of their names by default."""
    artefact = self.workdir.load("teacher")
    names = sorted(self.networks) if names is None else names
    return tuple(Teacher(name, self.networks[name], artefact.tree(name)) for name in names)

  def initial_teachers(self, names: Sequence[str]) -> tuple[Any, ...]:
    """The variables of these teachers as they were before their training, drawn again."""
    config: Any = self.config["teacher"]
    found: dict[str, Any] = {}
    for split, own in self.by_split(names).items():
      found |= teacher_training.initial_variables(
        self.train_data(split),
        self.source.spec,
        np.asarray(self.split(split).counts),
        networks={name: self.networks[name] for name in own},
        objective=config["objective"],
        views=config["views"],
        seed=self.config["seed"],
      )
    return tuple(found[name] for name in names)

  def _chosen(self, where: str, chosen: Sequence[str] | None, split: str | None) -> tuple[str, ...]:
    """The teachers that are named, or all of a split."""
    if chosen is None:
      chosen = sorted(name for name in self.networks if self.teacher_split(name) == split)
      if not chosen:
        raise LtddError(
          f"{where} is None, for all teachers of the same training images, and none is trained on "
          f"{f'split {split!r}' if split else 'those of the run itself'}; expected one or more in "
          f"config.teacher.splits, which is {self.config['teacher']['splits']}, or their names"
        )
    return aggregate_lib.members(where, chosen, self.networks)

  @functools.cache  # noqa: B019
  def variable_shapes(self, model: Any) -> Any:
    """Shapes of the variables of a network for the images of this run."""
    init = functools.partial(model.init, train=False)
    image = jax.ShapeDtypeStruct((1, *self.source.spec.image_shape), np.float32)
    return jax.eval_shape(init, jax.random.key(0), image)

  def statistics(self, names: Sequence[str]) -> tuple[statistics_lib.Statistics, ...]:
    """Statistics of the training set in each of these teachers."""
    artefact, tile = self.workdir.load("statistics"), self.config["statistics"]["tile"]
    layers = artefact.meta["extra"]["layers"]
    return tuple(statistics_lib.from_tree(artefact.tree(t), layers[t], tile) for t in names)

  def statistics_shapes(self, names: Sequence[str]) -> tuple[statistics_lib.Statistics, ...]:
    """The shapes of what `statistics` loads, before it is there."""
    spec, tile = self.source.spec, self.config["statistics"]["tile"]
    shapes = lambda m: statistics_lib.shapes(
      m, self.variable_shapes(m), spec.image_shape, spec.num_classes, tile
    )
    return tuple(shapes(self.networks[name]) for name in names)

  # ---- expert trajectories ----

  @functools.cached_property
  def expert_network(self) -> tuple[Any, Flat]:
    """The network of the experts, and how its parameters lie in a vector."""
    return trajectories_lib.make_network(self.source.spec, self.config["trajectories"]["network"])

  def trajectories(self, split: str | None) -> np.ndarray:
    """The trajectories of the experts that were trained on a split, memory-mapped."""
    return self.workdir.load("trajectories").arrays[experts_of(split)]

  def trajectory_shapes(self) -> jax.ShapeDtypeStruct:
    """The shape of what `trajectories` loads, before it is there."""
    config, (_, flat) = self.config["trajectories"], self.expert_network
    shape = (config["num_experts"], config["num_epochs"] + 1, flat.size)
    return jax.ShapeDtypeStruct(shape, np.float32)

  def classifiers(self, split: str | None) -> np.ndarray:
    """The classifiers of these experts, trained further on balanced batches, memory-mapped."""
    return self.workdir.load("trajectories").arrays[classifiers_of(split)]

  def classifier_shapes(self) -> jax.ShapeDtypeStruct:
    """The shape of what `classifiers` loads, before it is there."""
    config, (_, flat) = self.config["trajectories"], self.expert_network
    if not config["classifier_epochs"]:
      raise LtddError(
        "config.trajectories.classifier_epochs is 0, but a method needs classifier experts, whose "
        "classifiers are trained on balanced batches; expected 1 or more: 10 as published"
      )
    shape = config["num_experts"], config["classifier_epochs"] + 1, flat.size - flat.num_features
    return jax.ShapeDtypeStruct(shape, np.float32)

  # ---- image sources ----

  def split_name(self, images: str) -> str | None:
    """The split that an image source is distilled from."""
    return self.config["distil"]["methods"][images].get("split")

  def teacher_names(self, images: str) -> tuple[str, ...]:
    """The teachers of an image source, in the order in which they take turns."""
    part = self.config["distil"]
    own = part["methods"][images].get("teachers")
    named = own is not None  # an empty tuple is refused, and does not mean all
    where = f"config.distil.methods.{images}.teachers" if named else "config.distil.teachers"
    return self._chosen(where, own if named else part["teachers"], self.split_name(images))

  def env(self, images: str) -> distil.Env:
    """The static facts that a method is made with."""
    spec, dtype = self.source.spec, self.config["distil"]["compute_dtype"]
    networks = tuple(
      distil.Network(name, models.computing_in(self.networks[name], dtype))
      for name in self.teacher_names(images)
    )
    expert = lambda: models.computing_in(self.expert_network[0], dtype)
    facts = spec.image_shape, spec.num_classes, spec.mean, spec.std
    return distil.Env(*facts, networks, dtype, expert)

  def method(self, images: str) -> distil.Method:
    """The method of an image source."""
    entry = self.config["distil"]["methods"][images]
    kwargs = {k: v for k, v in entry.items() if k not in ("split", "teachers", "on_top_of")}
    return distil.make_method(self.env(images), **kwargs)

  def slots(self, images: str | None = None) -> Slots:
    """The budget, in the order in which an image source fills it.

    Methods that select have one order, so that their sets do not depend on what else a run makes.
    A set from a file brings its own slots.
    """
    budget = arguments_of(distil.make_slots, self.config["distil"])
    if images is not None and (file := self.file(images)):
      return Slots(file.labels, np.arange(len(file.labels), dtype=np.int32))
    if images is not None and self.method(images).batching == "select":
      budget["order"] = "interleaved"
    return distil.make_slots(self.source.spec.num_classes, **budget)

  @functools.cache  # noqa: B019
  def file(self, images: str) -> distilled_sets.Imported | None:
    """The distilled set that an image source takes from a file; None if a method makes it."""
    if "file" not in self.method(images).needs:
      return None
    entry = self.config["distil"]["methods"][images]
    return self.set_at(f"config.distil.methods.{images}", entry["path"])

  @functools.cache  # noqa: B019
  def set_at(self, where: str, path: str) -> distilled_sets.Imported:
    """A distilled set that exists; `where` the config names it is for messages."""
    return distilled_sets.read(where, path, self.source.spec, self.source.class_names)

  def parts(self, images: str) -> int:
    """f, if each image holds f x f small ones, of which a view shows one."""
    file = self.file(images)
    return file.parts if file else self.method(images).parts

  def distilled(self, images: str) -> Mapping[str, np.ndarray]:
    """The arrays of a distilled set: images, labels, and what its method has learned."""
    artefact = self.workdir.load(f"distil/{images}")
    workdir_lib.check_same_classes(artefact, self.workdir.load("data"))
    return artefact.arrays

  # ---- labels ----

  def views(self, images: str) -> dict[str, Any]:
    """Arguments of `data.views.view_fn`: views of multi-formed images show one part of them."""
    parts = self.parts(images)
    return {**self.config["label"]["views"]} | ({"parts": parts} if parts > 1 else {})

  def label_source(self, labels: str) -> label_sources.LabelSource:
    """A label source, with the teachers that it asks."""
    entry = self.config["label"]["sources"][labels]
    kwargs = {k: v for k, v in entry.items() if k not in ("calibrators", "images")}
    made = registry.make("label source", label_sources.SOURCES, kwargs.pop("name"), kwargs)
    if made.kind != "teacher":
      return made
    where = f"config.label.sources.{labels}.teachers"
    return made._replace(teachers=self._chosen(where, made.teachers, None))

  @functools.cache  # noqa: B019 (labels are those whose hash a fingerprint has)
  def file_logits(self, labels: str) -> np.ndarray:
    """The logits (n, k) that a label source takes from a file."""
    path = self.config["label"]["sources"][labels]["path"]
    return distilled_sets.read_logits(f"config.label.sources.{labels}", path)

  def store(self, row: Row) -> label_store.LabelStore:
    """The label store of a row; refuses one of another class map."""
    folder = self.workdir.load(row.stage("label")).folder(label_lib.STORE)
    return label_store.open_store(folder, class_names=self.source.class_names)

  @functools.cache  # noqa: B019
  def folder_logits(self, labels: str) -> view_labels.ViewLabels | None:
    """The logits of views that a label source takes from a folder; None for one without."""
    if labels == HARD:
      return None
    entry, spec = self.config["label"]["sources"][labels], self.source.spec
    if (path := entry.get("path")) is None or not files.path(path).is_dir():
      return None
    where = f"config.label.sources.{labels}"
    return view_labels.open_folder(where, path, spec, self.source.class_names)

  def label_split(self, row: Row) -> str | None:
    """The split that the labels of a row are biased by: that of their teachers, or of their images.

    It is the run's own where the teachers are of several.
    """
    found = self.label_source(row.labels)
    if found.kind == "learned":
      return self.split_name(row.images)
    splits = {self.teacher_split(name) for name in found.teachers or ()}
    return splits.pop() if len(splits) == 1 else None

  def log_prior(self, row: Row) -> np.ndarray:
    """Log frequencies (k,) of the classes in `label_split`."""
    return longtail.log_prior(np.asarray(self.split(self.label_split(row)).counts))

  def calibrator(self, row: Row) -> calibrate.Calibrator:
    """The calibrator of a row."""
    return calibrate.make_calibrator(**self.config["calibrate"]["calibrators"][row.calibrator])

  # ---- students ----

  @functools.cached_property
  def student_model(self) -> Any:
    """The students' network."""
    return models.make_model(
      num_classes=self.source.spec.num_classes,
      image_shape=self.source.spec.image_shape,
      **self.config["student"]["model"],
    )

  @property
  def recipe(self) -> str | None:
    """The recipe that the config names, and what it changed of it; None if it names none."""
    return changes.sentence_of(self.config, len(self.slots().labels), len(self.counts))

  @functools.cached_property
  def recipe_lr(self) -> float | None:
    """The named recipe's rate, of the config's optimiser, for images without; None if none."""
    student = self.config["student"]
    if student["recipe"] is None:
      return None
    settings = recipes.resolve(
      student["recipe"],
      dataset=self.config["data"]["name"],
      ipc=len(self.slots().labels) / len(self.counts),
      model=student["model"],
    )
    optimizer = settings["student"]["optimizer"]
    if optimizer["name"] != student["optimizer"]["name"]:
      return None
    recipe = recipes.RECIPES[recipes.parse(student["recipe"]).name]
    return recipe.lr if optimizer["lr"] is None else optimizer["lr"]

  @property
  def own_lr(self) -> bool:
    """Whether the config has no rate: students take the learned one, or else `recipe_lr`."""
    return self.config["student"]["optimizer"]["lr"] is None


def experts_of(split: str | None) -> str:
  """The name of the experts of a split."""
  return "experts" if split is None else f"experts-{split}"


def classifiers_of(split: str | None) -> str:
  """The name of the classifier experts of a split."""
  return "classifiers" if split is None else f"classifiers-{split}"


def arguments_of(function: Any, config: Mapping[str, Any]) -> dict[str, Any]:
  """The part of a config group that a function takes."""
  return {k: config[k] for k in config_lib.parameters(function) if k in config}
