"""Steps that make a teacher out of a trained one: `config.teacher.derive = ({"name": ...}, ...)`.

A step is `(teacher, training) -> teacher`, with the training set and how it was used. To add one,
write a factory with keyword arguments and put it into `DERIVE`.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from ltdd_jax.core import mesh as mesh_lib
from ltdd_jax.core import registry, rng
from ltdd_jax.core.registry import check_at_least
from ltdd_jax.core.types import ArrayData, LtddError, Teacher
from ltdd_jax.data import augment, feed
from ltdd_jax.data.specs import DatasetSpec
from ltdd_jax.training import loop, supervised


class Training(NamedTuple):
  """What a teacher was trained on."""

  data: ArrayData  # on the devices
  spec: DatasetSpec
  augment: tuple[Mapping[str, Any], ...]
  batch_size: int
  seed: int
  session: loop.Session


Step = Callable[[Teacher, Training], Teacher]


def recalibrate_bn(*, batch_size: int | None = None) -> Step:
  """Replaces running batch statistics by the mean of those of all batches of one pass.

  The images are augmented as in training and come in random order; the last batch is filled up
  with images of the next permutation. Every batch has the same weight, as with `momentum=None` in
  PyTorch.

  `batch_size` None is that of the training. The step raises LtddError for a network without batch
  norm.
  """
  if batch_size is not None:
    check_at_least("config.teacher.derive: recalibrate_bn: ", 1, batch_size=batch_size)

  def step(teacher: Teacher, training: Training) -> Teacher:
    if not teacher.variables.get("batch_stats"):
      raise LtddError(
        f"config.teacher.derive: 'recalibrate_bn' needs a network with batch norm, and teacher "
        f"{teacher.name!r} has none; leave the step out, or use norm='batch'"
      )
    size = training.batch_size if batch_size is None else batch_size
    return teacher._replace(variables=_recalibrated(teacher, training, size))

  return step


def _recalibrated(teacher: Teacher, training: Training, batch_size: int) -> dict[str, Any]:
  n, mesh = len(training.data.labels), training.session.mesh
  augment_fn = augment.compose(training.augment)
  network = teacher.model.clone(bn_momentum=0.0)  # running statistics are those of the last batch

  def step_fn(state: Any, consts: Any, x: Any) -> tuple[Any, dict[str, jax.Array]]:
    rows, t = x
    key = jax.random.fold_in(consts["key"], t)
    images, _ = supervised.image_batch(consts, rows, key, spec=training.spec, augment_fn=augment_fn)
    variables = {"params": consts["params"], "batch_stats": state}
    images = mesh_lib.split_batch(mesh, images)
    _, found = network.apply(variables, images, train=True, mutable=["batch_stats"])
    mean = lambda old, new: old + (new - old) / (t + 1)
    return jax.tree.map(mean, state, found["batch_stats"]), {}

  name = f"recalibrate/{teacher.name}"
  sampler = feed.BatchSampler(training.seed, name, n, batch_size)
  everywhere = mesh_lib.replicated(mesh)
  stats = loop.run(
    step_fn,
    mesh_lib.put(teacher.variables["batch_stats"], everywhere),
    {
      "data": training.data,
      "params": mesh_lib.put(teacher.variables["params"], everywhere),
      "key": rng.key_for(training.seed, name),
    },
    num_steps=feed.num_steps(n, batch_size, num_epochs=1),
    session=training.session,
    name=name,
    inputs=lambda t: (sampler(t), np.int32(t)),
  )
  return {**teacher.variables, "batch_stats": jax.device_get(stats)}


DERIVE: dict[str, Callable[..., Step]] = {"recalibrate_bn": recalibrate_bn}


def make_step(name: str, **kwargs: Any) -> Step:
  """Makes a step by its name; raises LtddError for an unknown name or argument."""
  return registry.make("step of config.teacher.derive", DERIVE, name, kwargs)
