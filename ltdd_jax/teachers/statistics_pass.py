"""Collect: one pass of the training set through each teacher, for its statistics.

  (statistics,) = collect(data, spec, teachers, augment=augment, tile=4)
  statistics.layers[0].channels.mean               # (k, c) of the pixels, class by class

The images are those that the teacher was trained on: augmented as in its training, black where a
crop reaches over the edge, then normalised. Each counts once. Sums are merged batch by batch, so
the activations of one batch are all that is held.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from ltdd_jax.core import mesh as mesh_lib
from ltdd_jax.core import rng
from ltdd_jax.core.types import ArrayData, LtddError, Teacher
from ltdd_jax.data import augment as augment_lib
from ltdd_jax.data import stream
from ltdd_jax.data.specs import DatasetSpec
from ltdd_jax.teachers import statistics
from ltdd_jax.training import forward, loop, supervised


def collect(
  data: ArrayData,
  spec: DatasetSpec,
  teachers: Sequence[Teacher],
  *,
  augment: Sequence[Mapping[str, Any]] = (),
  tile: int = 4,
  batch_size: int = 256,
  seed: int = 0,
  session: loop.Session | None = None,
) -> tuple[statistics.Statistics, ...]:
  """Computes the statistics of the inputs of batch norms and convolutions, class by class.

  Without augmentation they depend on the batch size by rounding only; with it, on the seed too. All
  teachers see the same draws. In what we differ from the released code of G-VBSM and EDC: variances
  are exact and not means over batches; global and class statistics are one pass.

  Args:
    data: the long-tailed set, images (n,h,w,c) uint8 and labels (n,), on the device or host.
    spec: facts of the data set (classes, shape, mean, std).
    teachers: trained networks, run in eval mode.
    augment: specs for `data.augment.compose`, the teachers' own; () for the plain images.
    tile: side of the tiles of convolutions' inputs: 4 for images of 32 and 64 pixels, 16 for 224.
    batch_size: images in a step, over all devices.
    seed: of the augmentation.
    session: devices, checkpoints, progress.

  Returns:
    Statistics of NumPy arrays, one for each teacher.

  Raises:
    LtddError: a teacher without batch norms and convolutions, or activations that are not finite.
  """
  session = (session or loop.Session()).reading(data.images)
  everywhere = mesh_lib.replicated(session.mesh)
  data = mesh_lib.put(data, everywhere)
  n, size = len(data.labels), min(batch_size, len(data.labels))
  scale, rest = stream.split_augment(data.images, augment)
  batch_fn = functools.partial(
    supervised.image_batch, spec=spec, augment_fn=augment_lib.compose(rest, spec.mean)
  )
  num_steps, batch_of = forward.num_batches(n, size), functools.partial(forward.batch_of, n, size)

  def inputs() -> Callable[[int], Any]:
    read = stream.batches(
      data.images, lambda t: (batch_of(t)[0], None), num_steps, seed=seed, path="statistics",
      mesh=session.mesh, scale=scale,
    )  # fmt: skip
    return lambda t: ((read(t), batch_of(t)[1]), np.int32(t))

  compiled: dict[Any, loop.Compiled] = {}  # teachers of one architecture share their program

  def one(teacher: Teacher) -> statistics.Statistics:
    empty = _empty(teacher, spec, tile)
    consts = {
      "data": data,
      "variables": mesh_lib.put(teacher.variables, everywhere),
      "key": rng.key_for(seed, "statistics", "step"),
    }
    state = loop.run(
      functools.partial(_step, model=teacher.model, batch_fn=batch_fn, mesh=session.mesh),
      mesh_lib.put(empty, everywhere),
      consts,
      num_steps=num_steps,
      session=session,
      name=f"statistics/{teacher.name}",
      inputs=inputs(),
      compiled=compiled.setdefault(teacher.model, {}),
      advice="the teacher's activations are too large; train it with a lower learning rate",
    )
    return jax.device_get(state)

  return tuple(map(one, teachers))


def _empty(teacher: Teacher, spec: DatasetSpec, tile: int) -> statistics.Statistics:
  """Zeros in the shapes of a teacher's statistics."""
  found = statistics.shapes(
    teacher.model, teacher.variables, spec.image_shape, spec.num_classes, tile
  )
  if not found.layers:
    raise LtddError(
      f"teacher {teacher.name!r} has neither batch norms nor convolutions, so it has no "
      "statistics to match. Give config.teacher.models a network that has, such as 'convnet'."
    )
  return jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), found)


def _step(
  state: statistics.Statistics, consts: Any, x: Any, *, model: Any, batch_fn: Any, mesh: Any
) -> tuple[statistics.Statistics, dict[str, jax.Array]]:
  """Adds one batch to the statistics."""
  (rows, counts), t = x
  key = jax.random.fold_in(consts["key"], t)
  images, labels = mesh_lib.split_batch(mesh, batch_fn(consts, rows, key))
  member = jax.nn.one_hot(labels, len(state.counts)) * counts[:, None]
  found = statistics.of_images(model, consts["variables"], images, member, state.tile)
  state = statistics.merge(state, found)
  return state, {"images": state.counts.sum()}
