"""Steps that make a teacher out of a trained one: `config.teacher.derive = ({"name": ...}, ...)`.

A step is `(teacher, training) -> teacher`, with the training set and how it was used. To add one,
write a factory with keyword arguments and put it into `DERIVE`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from ltdd_jax.core import mesh as mesh_lib
from ltdd_jax.core import registry, rng
from ltdd_jax.core.registry import check_at_least
from ltdd_jax.core.types import ArrayData, LtddError, Teacher
from ltdd_jax.data import augment, feed, stream
from ltdd_jax.data.specs import DatasetSpec
from ltdd_jax.models import taps
from ltdd_jax.training import loop, supervised


class Training(NamedTuple):
  """What a teacher was trained on."""

  data: ArrayData  # on the devices
  spec: DatasetSpec
  augment: tuple[Mapping[str, Any], ...]
  batch_size: int
  seed: int
  session: loop.Session
  scale: tuple[float, float] | None = None  # of crops that reading takes over (`data.stream`)
  earlier: int = 0  # steps before this one, which have checkpoints of their own


Step = Callable[[Teacher, Training], Teacher]
# Rows (b,), how many of them count, and the batch's share of all batches up to it
Batch = tuple[np.ndarray, np.int32, np.float32]


def recalibrate_bn(*, batch_size: int | None = None) -> Step:
  """Replaces running batch statistics by the mean of those of all batches of one pass.

  The images are augmented as in training and come in random order; the last batch is filled up
  with images of the next permutation. Every batch has the same weight, as with `momentum=None` in
  PyTorch.

  `batch_size` None is that of the training. The step raises LtddError for a network without batch
  norm.
  """

  def batches(name: str, training: Training, size: int) -> list[Batch]:
    n = len(training.data.labels)
    sampler = feed.BatchSampler(training.seed, name, n, size)
    steps = range(feed.num_steps(n, size, num_epochs=1))
    return [(sampler(t), np.int32(size), np.float32(1 / (t + 1))) for t in steps]

  return _by("recalibrate_bn", batches, batch_size)


def recalibrate_bn_by_class(*, batch_size: int | None = None) -> Step:
  """Replaces running batch statistics by the mean over classes of those of each class's images.

  RLDD's (AAAI 2026): batches are of one class; within a class the momentum of a batch of B images
  after N others is `B / (N + B)`, so that every image has the same weight, and classes are then
  averaged alike. One pass, images augmented as in training; classes without an image do not count.

  `batch_size` and errors are as of `recalibrate_bn`. Variances are those within batches.
  """

  def batches(name: str, training: Training, size: int) -> list[Batch]:
    labels, generator = np.asarray(training.data.labels), rng.np_rng(training.seed, name)
    found, total = [], 0.0
    for c in np.unique(labels):
      rows = generator.permutation(np.flatnonzero(labels == c))
      for start in range(0, len(rows), size):
        part = rows[start : start + size]
        total += (weight := len(part) / len(rows))
        full = np.resize(part, size).astype(np.int32)
        found.append((full, np.int32(len(part)), np.float32(weight / total)))
    return found

  return _by("recalibrate_bn_by_class", batches, batch_size)


def _by(
  name: str, batches: Callable[[str, Training, int], list[Batch]], batch_size: int | None
) -> Step:
  if batch_size is not None:
    check_at_least(f"config.teacher.derive: {name}: ", 1, batch_size=batch_size)

  def step(teacher: Teacher, training: Training) -> Teacher:
    check_network(name, teacher.name, teacher.variables)
    size = training.batch_size if batch_size is None else batch_size
    path = f"recalibrate/{teacher.name}"
    variables = _recalibrated(teacher, training, path, batches(path, training, size))
    return teacher._replace(variables=variables)

  return step


def _recalibrated(
  teacher: Teacher, training: Training, name: str, batches: Sequence[Batch]
) -> dict[str, Any]:
  mesh, augment_fn = training.session.mesh, augment.compose(training.augment, training.spec.mean)
  read = stream.batches(
    training.data.images, lambda t: (batches[t][0], None), len(batches), seed=training.seed,
    path=name, mesh=mesh, scale=training.scale,
  )  # fmt: skip
  network = teacher.model.clone(bn_momentum=0.0)  # running statistics are those of the last batch

  def step_fn(state: Any, consts: Any, x: Any) -> tuple[Any, dict[str, jax.Array]]:
    (rows, count, share), t = x
    key = jax.random.fold_in(consts["key"], t)
    images, _ = supervised.image_batch(consts, rows, key, spec=training.spec, augment_fn=augment_fn)
    variables = {"params": consts["params"], "batch_stats": state}
    images = mesh_lib.split_batch(mesh, images)
    with nn.intercept_methods(taps.counting(jnp.arange(len(images)) < count)):
      _, found = network.apply(variables, images, train=True, mutable=["batch_stats"])
    mean = lambda old, new: old + (new - old) * share
    state = jax.tree.map(mean, state, found["batch_stats"])
    return state, {"norm": optax.tree.norm(state)}

  everywhere = mesh_lib.replicated(mesh)
  stats = loop.run(
    step_fn,
    mesh_lib.put(teacher.variables["batch_stats"], everywhere),
    {
      "data": training.data,
      "params": mesh_lib.put(teacher.variables["params"], everywhere),
      "key": rng.key_for(training.seed, name),
    },
    num_steps=len(batches),
    session=training.session,
    name=f"after {training.earlier}/{name}" if training.earlier else name,
    inputs=lambda t: ((read(t), *batches[t][1:]), np.int32(t)),
  )
  return {**teacher.variables, "batch_stats": jax.device_get(stats)}


DERIVE: dict[str, Callable[..., Step]] = {
  "recalibrate_bn": recalibrate_bn,
  "recalibrate_bn_by_class": recalibrate_bn_by_class,
}
_OF_BATCH_NORM = ("recalibrate_bn", "recalibrate_bn_by_class")


def check_network(step: str, teacher: str, variables: Mapping[str, Any]) -> None:
  """Raises LtddError for variables, or their shapes, that a step of that name cannot do with."""
  if step in _OF_BATCH_NORM and not variables.get("batch_stats"):
    raise LtddError(
      f"config.teacher.derive: {step!r} needs a network with batch norm, and teacher {teacher!r} "
      "has none; leave the step out, or use norm='batch'"
    )


def make_step(name: str, **kwargs: Any) -> Step:
  """Makes a step by its name; raises LtddError for an unknown name or argument."""
  return registry.make("step of config.teacher.derive", DERIVE, name, kwargs)
