"""Small data, networks and recipes that many tests share."""

import functools
import pathlib
from typing import Any

import jax
import numpy as np

from ltdd_jax import distil, models
from ltdd_jax.core.types import ArrayData, Slots, Teacher
from ltdd_jax.data import augment
from ltdd_jax.data.specs import DatasetSpec
from ltdd_jax.models import taps
from ltdd_jax.models.flat import flat_params
from ltdd_jax.teachers import statistics

K, SIDE = 3, 8
COUNTS = np.array([7, 3, 1])
SPEC = DatasetSpec(
  name="small",
  num_classes=K,
  image_shape=(SIDE, SIDE, 1),
  mean=(0.4,),
  std=(0.3,),
  num_train=int(COUNTS.sum()),
  num_test=9,
  class_names=("a", "b", "c"),
)
NET = {"name": "convnet", "depth": 1, "width": 4}


def images(n: int, seed: int = 0) -> np.ndarray:
  """Random uint8 images (n, 8, 8, 1)."""
  return np.random.RandomState(seed).randint(0, 256, (n, SIDE, SIDE, 1)).astype(np.uint8)


def train_data(counts=COUNTS) -> ArrayData:
  labels = np.repeat(np.arange(len(counts)), counts).astype(np.int32)
  return ArrayData(images(len(labels)), labels)


def held_out(per_class: int = 3) -> ArrayData:
  labels = np.tile(np.arange(K), per_class).astype(np.int32)
  return ArrayData(images(len(labels), 1), labels)


@functools.cache
def teacher(seed: int = 0) -> Teacher:
  """An untrained network with batch norm; one object, so nothing recompiles."""
  model = models.make_model(num_classes=K, image_shape=SPEC.image_shape, norm="batch", **NET)
  variables = models.init_variables(model, jax.random.key(seed), SPEC.image_shape)
  return Teacher("a", model, jax.device_get(variables))


def env(teachers: int = 1) -> distil.Env:
  t = teacher()
  networks = (distil.Network(t.name, t.model),) * teachers
  return distil.Env(SPEC.image_shape, K, SPEC.mean, SPEC.std, networks, expert=expert)


@functools.cache
def expert() -> Any:
  """The network of the trajectories below."""
  return models.make_model(num_classes=K, image_shape=SPEC.image_shape, **NET)


@functools.cache
def trajectories(experts: int = 2, epochs: int = 3) -> np.ndarray:
  """Vectors that move a little in each epoch: no network was trained."""
  keys = jax.random.split(jax.random.key(0), experts)
  flat = flat_params(expert(), SPEC.image_shape)
  init = lambda key: flat.ravel(models.init_variables(expert(), key, SPEC.image_shape)["params"])
  first = np.stack([init(key) for key in keys])[:, None]
  moves = np.random.RandomState(0).normal(0, 0.01, (experts, epochs, first.shape[-1]))
  return np.concatenate([first, first + moves.cumsum(1)], 1).astype(np.float32)


@functools.cache
def classifiers(epochs: int = 3) -> np.ndarray:
  """Vectors of classifiers that move a little from where the experts above end."""
  first = trajectories()[:, -1:, flat_params(expert(), SPEC.image_shape).num_features :]
  moves = np.random.RandomState(1).normal(0, 0.01, (len(first), epochs, first.shape[-1]))
  return np.concatenate([first, first + moves.cumsum(1)], 1).astype(np.float32)


@functools.cache
def teacher_statistics(counts: tuple[int, ...] = tuple(COUNTS)) -> statistics.Statistics:
  """Statistics of the teacher on the training images as they are."""
  t, data = teacher(), train_data(counts)

  @jax.jit
  def collect(variables, images, labels):
    x = augment.normalize(images, SPEC.mean, SPEC.std)
    _, inputs = taps.apply_with_inputs(t.model, variables, x, statistics.LAYERS)
    return statistics.of_batch(inputs, jax.nn.one_hot(labels, K), tile=4)

  return jax.device_get(collect(t.variables, *data))


def resources(counts=COUNTS, teachers: int = 1) -> dict:
  """All that a method may need, as `distil.base.Resources`."""
  data = train_data(counts)
  stats = teacher_statistics(tuple(int(n) for n in counts))
  return {
    "teachers": (teacher().variables,) * teachers,
    "initial_teachers": (teacher(1).variables,) * teachers,
    "images": data.images,
    "labels": data.labels,
    "statistics": (stats,) * teachers,
    "trajectories": trajectories(),
    "experts": trajectories()[:, -1],
    "classifiers": classifiers(),
    "classifier_experts": trajectories()[:, -1],
    "key": jax.random.key(0),
    "init_set": {"images": images(9, 2), "labels": np.tile(np.arange(K, dtype=np.int32), 3)},
    "file": {"images": images(5, 2), "labels": np.array([0, 1, 2, 0, 2], np.int32)},
  }


def slots(*per_class: int, order: str = "interleaved") -> Slots:
  """So many slots of each class."""
  return distil.make_slots(len(per_class), slots_per_class=per_class, order=order)


def run_config(
  folder: pathlib.Path,
  methods: dict[str, Any],
  calibrators: dict[str, Any] | None = None,
  counts=COUNTS,
) -> dict[str, Any]:
  """The config of a run on `train_data` and `held_out`, from a file in `folder`; two slots a class.

  Views are the images as they are. `pipeline.check.check` fills in what is left out.
  """
  train, test, file = train_data(counts), held_out(), folder / "small.npz"
  folder.mkdir(parents=True, exist_ok=True)
  np.savez(file, x_train=train.images, y_train=train.labels, x_test=test.images, y_test=test.labels)
  training = {"num_epochs": 2, "batch_size": 4, "schedule": {"name": "constant"}}
  training["optimizer"] = {"name": "sgd", "lr": 0.05}
  return {
    "seed": 0,
    "data": {"name": f"npz:{file}", "rule": "as_is", "mean": SPEC.mean, "std": SPEC.std},
    "teacher": training
    | {"models": {"a": NET | {"norm": "batch"}}, "objective": {"name": "cross_entropy"}},
    "distil": {"methods": methods, "images_per_class": 2},
    "label": {"num_epochs": 2, "views": {"crop_scale": None, "flip": False, "mix": None}},
    "calibrate": {"calibrators": calibrators or {}},
    "student": training
    | {"model": NET | {"norm": "batch"}, "loss": {"name": "kl"}, "num_seeds": 1, "evaluations": 1},
  }
