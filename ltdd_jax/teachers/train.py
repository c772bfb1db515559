"""Teachers: networks trained on the long-tailed set. Methods distil from them, and they label."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ltdd_jax import models
from ltdd_jax.core import mesh as mesh_lib
from ltdd_jax.core import rng
from ltdd_jax.core.types import ArrayData, Leaf, LtddError, Teacher, TrainState
from ltdd_jax.data import augment, feed
from ltdd_jax.data.specs import DatasetSpec
from ltdd_jax.training import loop, losses, metrics, supervised

PARALLEL = ("auto", "vmap", "loop")


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


def train_teachers(
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
  parallel: str = "auto",
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
    parallel: how teachers of one architecture are trained: "vmap" (all in one program), "loop" (one
      after another) or "auto": vmap on accelerators; loop on CPU, whose compiler is slow on the
      grouped convolutions that vmap makes. Equal within rounding.
    seed: seed of initialisation, order and augmentation.
    session: devices, checkpoints, progress.

  Returns:
    The trained teachers, in the order of the sorted keys.

  Raises:
    LtddError: a bad argument, or training that diverged.
  """
  session = session or loop.Session()
  if parallel not in PARALLEL:
    options = ", ".join(map(repr, PARALLEL))
    raise LtddError(f"config.teacher.parallel is {parallel!r}; expected one of {options}")
  if parallel == "auto":
    parallel = "loop" if session.mesh.devices.flat[0].platform == "cpu" else "vmap"
  recipe = Recipe(
    num_epochs, batch_size, dict(optimizer), dict(schedule), dict(loss), tuple(augment)
  )
  networks = build_models(spec, models)
  data = mesh_lib.put(data, mesh_lib.replicated(session.mesh))
  job = _Job(data, spec, class_counts, recipe, seed, session)
  train_group = _train_at_once if parallel == "vmap" else _train_in_turn
  trained = [t for keys in alike(networks) for t in train_group(keys, networks[keys[0]], job)]
  return tuple(sorted(trained, key=lambda t: t.name))


def alike(networks: Mapping[str, nn.Module]) -> list[list[str]]:
  """Groups the sorted keys of networks by architecture."""
  groups: dict[nn.Module, list[str]] = {}
  for key in sorted(networks):
    groups.setdefault(networks[key], []).append(key)
  return [*groups.values()]


class Recipe(NamedTuple):
  """How a teacher is trained."""

  num_epochs: int
  batch_size: int
  optimizer: dict[str, Any]
  schedule: dict[str, Any]
  loss: dict[str, Any]
  augment: tuple[Mapping[str, Any], ...]


class _Job(NamedTuple):
  """What the trainings of all teachers share."""

  data: ArrayData
  spec: DatasetSpec
  class_counts: np.ndarray
  recipe: Recipe
  seed: int
  session: loop.Session

  @property
  def num_steps(self) -> int:
    recipe = self.recipe
    return feed.num_steps(len(self.data.labels), recipe.batch_size, num_epochs=recipe.num_epochs)

  def functions(self, model: nn.Module) -> tuple[Callable[..., Any], loop.StepFn]:
    """The initialisation `key -> state` and the step of a network."""
    recipe, spec = self.recipe, self.spec
    tx = supervised.make_tx(recipe.optimizer, recipe.schedule, self.num_steps)
    augment_fn = augment.compose(recipe.augment)
    step_fn = functools.partial(
      supervised.train_step,
      apply_fn=model.apply,
      tx=tx,
      batch_fn=functools.partial(image_batch, spec=spec, augment_fn=augment_fn),
      loss_fn=losses.make_supervised_loss(class_counts=self.class_counts, **recipe.loss),
      mesh=self.session.mesh,
    )
    return functools.partial(
      supervised.init_state, model, tx, image_shape=spec.image_shape
    ), step_fn

  def key(self, teacher: str, purpose: str) -> jax.Array:
    return rng.key_for(self.seed, f"squeeze/{teacher}", purpose)

  def sampler(self, teacher: str) -> feed.BatchSampler:
    n = len(self.data.labels)
    return feed.BatchSampler(self.seed, f"squeeze/{teacher}", n, self.recipe.batch_size)

  def run(self, step_fn: loop.StepFn, state: Any, key: jax.Array, **kwargs: Any) -> TrainState:
    """Trains from a state and returns the last one."""
    state = mesh_lib.put(state, mesh_lib.replicated(self.session.mesh))
    consts = {"data": self.data, "key": key}
    return loop.run(
      step_fn, state, consts, num_steps=self.num_steps, session=self.session, **kwargs
    )


def _train_in_turn(keys: Sequence[str], model: nn.Module, job: _Job) -> list[Teacher]:
  """Trains teachers of one architecture one after another; the step is compiled once."""
  init, step_fn = job.functions(model)
  compiled: dict[Any, Any] = {}
  teachers = []
  for key in keys:
    state = job.run(
      step_fn,
      init(job.key(key, "init")),
      job.key(key, "step"),
      name=f"teacher/{key}",
      inputs=job.sampler(key),
      compiled=compiled,
    )
    teachers.append(Teacher(key, model, jax.device_get(state.variables)))
  return teachers


def _train_at_once(keys: Sequence[str], model: nn.Module, job: _Job) -> list[Teacher]:
  """Trains teachers of one architecture in one program, each with its own keys and batches."""
  if len(keys) == 1:
    return _train_in_turn(keys, model, job)
  init, step_fn = job.functions(model)
  samplers = [job.sampler(key) for key in keys]

  def step(state: TrainState, consts: Any, x: Any) -> tuple[TrainState, dict[str, jax.Array]]:
    axes = (0, {"data": None, "key": 0}, 0)
    state, metrics = jax.vmap(step_fn, in_axes=axes)(state, consts, x)
    return state, jax.tree.map(jnp.mean, metrics)

  draws = {p: jnp.stack([job.key(key, p) for key in keys]) for p in ("init", "step")}
  state = job.run(
    step,
    jax.jit(jax.vmap(init))(draws["init"]),
    draws["step"],
    name=f"teacher/{keys[0]}+{len(keys) - 1}",
    inputs=lambda t: np.stack([sampler(t) for sampler in samplers]),
  )
  variables = jax.device_get(state.variables)
  one = lambda i: jax.tree.map(lambda x: x[i], variables)
  return [Teacher(key, model, one(i)) for i, key in enumerate(keys)]


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
