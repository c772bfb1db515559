"""Small data, networks and recipes that many tests share."""

import functools

import jax
import numpy as np

from ltdd_jax import distil, models
from ltdd_jax.core.types import ArrayData, Teacher
from ltdd_jax.data import augment
from ltdd_jax.data.specs import DatasetSpec
from ltdd_jax.models import taps
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
  tfds_name=None,
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
  return distil.Env(
    SPEC.image_shape, K, SPEC.mean, SPEC.std, (distil.Network(t.name, t.model),) * teachers
  )


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


def feed(counts=COUNTS, teachers: int = 1):
  data = train_data(counts)
  stats = teacher_statistics(tuple(int(n) for n in counts))
  return {
    "teachers": (teacher().variables,) * teachers,
    "images": data.images,
    "labels": data.labels,
    "statistics": (stats,) * teachers,
  }
