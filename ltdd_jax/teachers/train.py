"""Teachers: networks trained on the long-tailed set. Methods distil from them, and they label."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from ltdd_jax import models
from ltdd_jax.core import mesh as mesh_lib
from ltdd_jax.core import rng
from ltdd_jax.core.registry import check_at_least, check_choice
from ltdd_jax.core.types import ArrayData, LtddError, Teacher
from ltdd_jax.data import augment as augment_lib
from ltdd_jax.data import feed, stream
from ltdd_jax.data.specs import DatasetSpec
from ltdd_jax.models import computing_in
from ltdd_jax.teachers import objectives, recalibrate
from ltdd_jax.training import loop, many, metrics, optimizers, supervised


def build_models(
  spec: DatasetSpec, model_configs: Mapping[str, Mapping[str, Any]]
) -> dict[str, nn.Module]:
  """Makes the networks of a config group: one for each key, from {name, **kwargs}."""
  return {
    key: models.make_model(num_classes=spec.num_classes, image_shape=spec.image_shape, **config)
    for key, config in model_configs.items()
  }


def train_teachers(
  data: ArrayData,
  spec: DatasetSpec,
  class_counts: np.ndarray,
  *,
  models: Mapping[str, Mapping[str, Any]],
  num_epochs: int,
  num_steps: int | None = None,
  batch_size: int,
  optimizer: Mapping[str, Any],
  schedule: Mapping[str, Any],
  objective: Mapping[str, Any],
  augment: Sequence[Mapping[str, Any]] = (),
  views: int = 1,
  derive: Sequence[Mapping[str, Any]] = (),
  lookahead: bool = False,
  parallel: str = "auto",
  compute_dtype: str = "float32",
  seed: int = 0,
  session: loop.Session | None = None,
) -> tuple[Teacher, ...]:
  """Trains one teacher for each entry of `models` on the long-tailed set; the last step counts.

  Args:
    data: the long-tailed set, images (n,h,w,c) uint8 and labels (n,), on the device or host. Of
      images that are streamed (`data.stream`), a random resized crop that comes first in `augment`
      is cut on the host, of the image as it is stored, unless there are several views.
    spec: facts of the data set (classes, shape, mean, std).
    class_counts: (k,) training images of each class, for the objectives that need them.
    models: {key: {name, **kwargs}} for `models.make_model`.
    num_epochs: passes over the data.
    num_steps: optimiser steps in their place, or None; a long-tailed set has few in a pass.
    batch_size: images in a step, over all devices.
    optimizer: see `optimizers.make_optimizer`, as for the schedule.
    schedule: moves at every step.
    objective: {name, **kwargs} for `objectives.make_objective`.
    augment: specs for `data.augment.compose`.
    views: augmented views of each image in a step.
    derive: {name, **kwargs} of the steps that make a teacher out of a trained network, in order;
      see `recalibrate.DERIVE`.
    lookahead: see `supervised.look_ahead`.
    parallel: how teachers of one architecture are trained; see `many.train`.
    compute_dtype: of training steps; see `models.computing_in`.
    seed: of initialisation, order and augmentation.
    session: devices, checkpoints, progress.

  Returns:
    The teachers, in the order of the sorted keys.

  Raises:
    LtddError: a bad argument, or training that diverged.
  """
  session = (session or loop.Session()).reading(data.images)
  check_at_least("config.teacher.", 1, num_epochs=num_epochs, batch_size=batch_size, views=views)
  check_choice("config.teacher.parallel", parallel, many.PARALLEL)
  steps = [recalibrate.make_step(**step) for step in derive]
  n, size = len(data.labels), min(batch_size, len(data.labels))
  if num_steps is None:
    num_steps = feed.num_steps(n, batch_size, num_epochs=num_epochs)
  check_at_least("config.teacher.", 1, num_steps=num_steps)
  if lookahead and num_steps < supervised.LOOKAHEAD_STEPS:
    raise LtddError(
      f"config.teacher.lookahead is True with {num_steps} steps in all; expected "
      f"{supervised.LOOKAHEAD_STEPS} or more, before which nothing is kept. Raise "
      "config.teacher.num_steps, or set lookahead to False"
    )
  tx = optimizers.make_optimizer(optimizer, schedule, num_steps, batch_size=size * views)
  aim = objectives.make_objective(class_counts, views=views, **objective)
  scale, rest = (None, augment) if views > 1 else stream.split_augment(data.images, augment)
  batch_fn = functools.partial(
    supervised.image_batch,
    spec=spec,
    augment_fn=augment_lib.compose(rest, spec.mean),
    views=views,
    partners=aim.partners,
  )
  step = functools.partial(
    supervised.train_step,
    tx=tx,
    batch_fn=batch_fn,
    objective=aim.loss,
    num_steps=num_steps,
    lookahead=lookahead,
  )
  inputs_of = functools.partial(
    stream.batches, data.images, num_steps=num_steps, seed=seed, mesh=session.mesh, scale=scale
  )
  data = mesh_lib.put(data, mesh_lib.replicated(session.mesh))
  networks, found = build_models(spec, models), {}
  for keys in alike(networks):
    model = networks[keys[0]]
    whole = aim.network(model)
    is_finite = jax.jit(functools.partial(_is_finite, model, spec))
    init = functools.partial(
      supervised.init_on_images,
      images_of=lambda consts: consts["data"].images,
      model=whole,
      tx=tx,
      spec=spec,
      lookahead=lookahead,
    )
    trained = many.train(
      [_network(key, n, batch_size, seed, inputs_of) for key in keys],
      init,
      functools.partial(step, apply_fn=computing_in(whole, compute_dtype).apply),
      {"data": data},
      num_steps=num_steps,
      session=session,
      parallel=parallel,
    )
    for i, key in enumerate(keys):
      variables = many.member(trained.state.variables, i)
      params = {k: v for k, v in variables["params"].items() if k not in aim.own}
      found[key] = Teacher(key, model, variables | {"params": params})
      if not is_finite(found[key].variables, data.images[:batch_size]):
        raise LtddError(
          f"teacher/{key}: its parameters or logits of training images hold NaN or infinity after "
          "the last step, expected finite numbers; lower config.teacher.optimizer.lr."
        )
  training = recalibrate.Training(data, spec, tuple(rest), batch_size, seed, session, scale)
  for earlier, derive_step in enumerate(steps):
    training = training._replace(earlier=earlier)
    found = {key: derive_step(found[key], training) for key in sorted(found)}
  return tuple(found[key] for key in sorted(found))


def initial_variables(
  data: ArrayData,
  spec: DatasetSpec,
  class_counts: np.ndarray,
  *,
  networks: Mapping[str, nn.Module],
  objective: Mapping[str, Any],
  views: int = 1,
  seed: int = 0,
) -> dict[str, Any]:
  """Draws the variables that teachers start their training with, by name; see `train_teachers`."""
  aim = objectives.make_objective(class_counts, views=views, **objective)
  found = {}
  for name, model in networks.items():
    state = supervised.init_on_images(
      rng.key_for(seed, f"teacher/{name}", "init"),
      data,
      images_of=lambda data: data.images,
      model=aim.network(model),
      tx=optax.identity(),
      spec=spec,
    )
    params = {k: v for k, v in state.params.items() if k not in aim.own}
    found[name] = state.variables | {"params": params}
  return found


def alike(networks: Mapping[str, nn.Module]) -> list[list[str]]:
  """Groups the sorted keys of networks by architecture."""
  groups: dict[nn.Module, list[str]] = {}
  for key in sorted(networks):
    groups.setdefault(networks[key], []).append(key)
  return [*groups.values()]


def _is_finite(model: nn.Module, spec: DatasetSpec, variables: Any, images: jax.Array) -> jax.Array:
  logits: Any = model.apply(
    variables, augment_lib.normalize(images, spec.mean, spec.std), train=False
  )
  floats = jax.tree.leaves((logits, variables))
  return jnp.stack([jnp.isfinite(x).all() for x in floats]).all()


def _network(
  teacher: str,
  num_images: int,
  batch_size: int,
  seed: int,
  inputs_of: Callable[..., Callable[[int], Any]],
) -> many.Network:
  """A teacher's keys and inputs; `inputs_of` makes `stream.batches` of the rows of a step."""
  path = f"teacher/{teacher}"
  key = functools.partial(rng.key_for, seed, path)
  sampler = feed.BatchSampler(seed, path, num_images, batch_size)
  rows_of = lambda step: (sampler(step), sampler.epoch(step))
  return many.Network(path, key("init"), key("step"), inputs_of(rows_of=rows_of, path=path))


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
  score = metrics.make_evaluate(
    teacher.model.apply, spec.mean, spec.std, spec.num_classes, mesh=mesh
  )
  test, variables = mesh_lib.put((test, teacher.variables), mesh_lib.replicated(mesh))
  return score(variables, test.images, test.labels, batch_size)
