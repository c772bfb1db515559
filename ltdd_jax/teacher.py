"""Squeeze: teachers trained on the long-tailed set. They observe (recover) and label (relabel)."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np

from ltdd_jax import loop, losses, metrics, models, rng, train
from ltdd_jax import mesh as mesh_lib
from ltdd_jax.data import augment, feed
from ltdd_jax.data.specs import DatasetSpec
from ltdd_jax.types import ArrayData, Leaf, Teacher, TrainState


def build_models(
  spec: DatasetSpec, model_configs: Mapping[str, Mapping[str, Any]]
) -> dict[str, nn.Module]:
  """Makes the networks of a config group: one for each key, from {name, **kwargs}."""
  return {
    key: models.make_model(num_classes=spec.num_classes, image_shape=spec.image_shape, **config)
    for key, config in model_configs.items()
  }


def image_batch(
  consts: dict[str, Any], indices: Leaf, key: jax.Array, *, spec: DatasetSpec, augment_fn: Any
) -> tuple[jax.Array, jax.Array]:
  """Takes rows of a uint8 set on the device, augments pixels in [0, 1], then normalises.

  The order is that of the field's PIL pipelines, so that padding is black and not the mean colour.
  """
  images = consts["data"].images[indices].astype("float32") / 255.0
  images = augment_fn(key, images)
  return augment.normalize_pixels(images, spec.mean, spec.std), consts["data"].labels[indices]


def squeeze(
  data: ArrayData,
  spec: DatasetSpec,
  class_counts: np.ndarray,
  *,
  models: Mapping[str, Mapping[str, Any]],
  num_epochs: int,
  batch_size: int,
  optimizer: Mapping[str, Any],
  schedule: Mapping[str, Any],
  loss: Mapping[str, Any],
  augment: Sequence[Mapping[str, Any]] = (),
  seed: int = 0,
  session: loop.Session | None = None,
) -> tuple[Teacher, ...]:
  """Trains one teacher for each entry of `models` on the long-tailed set; the last step counts.

  Args:
    data: the long-tailed set, images (n,h,w,c) uint8 and labels (n,), on the device or host.
    spec: facts of the data set (classes, shape, mean, std).
    class_counts: (k,) training images of each class, for the losses that need them.
    models: {key: {name, **kwargs}} for `models.make_model`.
    num_epochs: passes over the data.
    batch_size: images in a step, over all devices.
    optimizer: {name, lr, **kwargs} for `schedules.make_optimizer`.
    schedule: {name, **kwargs} for `schedules.make_schedule`.
    loss: {name, **kwargs} for `losses.make_supervised_loss`.
    augment: specs for `data.augment.compose`.
    seed: seed of initialisation, order and augmentation.
    session: devices, checkpoints, progress.

  Returns:
    The trained teachers, in the order of the sorted keys.
  """
  session = session or loop.Session()
  recipe = Recipe(
    num_epochs, batch_size, dict(optimizer), dict(schedule), dict(loss), tuple(augment)
  )
  networks = build_models(spec, models)
  everywhere = mesh_lib.replicated(session.mesh)
  data = mesh_lib.put(data, everywhere)
  return tuple(
    _train_one(key, networks[key], data, spec, class_counts, recipe, seed, session)
    for key in sorted(networks)
  )


class Recipe(NamedTuple):
  """How a teacher is trained."""

  num_epochs: int
  batch_size: int
  optimizer: dict[str, Any]
  schedule: dict[str, Any]
  loss: dict[str, Any]
  augment: tuple[Mapping[str, Any], ...]


def _train_one(
  key: str,
  model: nn.Module,
  data: ArrayData,
  spec: DatasetSpec,
  class_counts: np.ndarray,
  recipe: Recipe,
  seed: int,
  session: loop.Session,
) -> Teacher:
  name = f"squeeze/{key}"
  n = len(data.labels)
  num_steps = feed.num_steps(n, recipe.batch_size, num_epochs=recipe.num_epochs)
  tx = train.make_tx(recipe.optimizer, recipe.schedule, num_steps)
  step_fn = functools.partial(
    train.train_step,
    apply_fn=model.apply,
    tx=tx,
    batch_fn=functools.partial(image_batch, spec=spec, augment_fn=augment.compose(recipe.augment)),
    loss_fn=losses.make_supervised_loss(class_counts=class_counts, **recipe.loss),
    mesh=session.mesh,
  )
  everywhere = mesh_lib.replicated(session.mesh)
  init = functools.partial(train.init_state, model, tx, image_shape=spec.image_shape)
  state = mesh_lib.put(init(rng.key_for(seed, name, "init")), everywhere)
  consts = {"data": data, "key": rng.key_for(seed, name, "step")}
  sampler = feed.BatchSampler(seed, name, n, recipe.batch_size)
  state: TrainState = loop.run(
    step_fn, state, consts, num_steps=num_steps, session=session, name=name, inputs=sampler
  )
  variables = jax.device_get(state.variables)
  return Teacher(key, model, variables)


def evaluate(
  teacher: Teacher,
  test: ArrayData,
  spec: DatasetSpec,
  *,
  batch_size: int = 500,
  mesh: jax.sharding.Mesh | None = None,
) -> metrics.ClassCounts:
  """Counts the correct predictions of each class on a test set, every image once."""
  mesh = mesh or mesh_lib.make_mesh()
  step = metrics.make_eval_step(
    teacher.model.apply, spec.mean, spec.std, spec.num_classes, mesh=mesh
  )
  test, variables = mesh_lib.put((test, teacher.variables), mesh_lib.replicated(mesh))
  return metrics.run_eval(step, variables, test.images, test.labels, batch_size)
