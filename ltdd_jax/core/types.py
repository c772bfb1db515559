"""The records that stages and plug-ins pass to each other.

Everything here is a pytree of arrays or a plain exception; nothing here computes. Shapes use the
letters of the whole code base: `n` synthetic images, `b` batch, `k` classes, `h w c` image axes.
"""

from typing import Any, NamedTuple

import flax.struct

# Pytree fields are built from arrays, ShapeDtypeStructs, shardings and None alike, so they are not
# annotated with array types: the comment beside each field states its shape.
Leaf = Any


class LtddError(ValueError):
  """An error meant for the user: it names the thing, its value, what was expected, what to do."""


class Slots(NamedTuple):
  """The budget: one entry for each synthetic image. Classes may have unequal numbers of slots."""

  labels: Leaf  # (n,) int32, the class of the slot
  rank: Leaf  # (n,) int32, its number within its class: 0, 1, ...


class Distilled(NamedTuple):
  """What a method distils: images, and what else it has learned for its students."""

  images: Leaf  # (n, h, w, c) float32, normalised
  labels: Leaf  # (n,) int32
  soft_labels: Leaf = None  # (n, k) float32 logits of the images as they are, or None
  student_lr: Leaf = None  # [] float32, learning rate of students, or None


class ArrayData(NamedTuple):
  """A data set that lives on the device."""

  images: Leaf  # (n, h, w, c) uint8
  labels: Leaf  # (n,) int32


class Teacher(NamedTuple):
  """A trained network: methods distil from it, and it labels distilled images."""

  name: str
  model: Any  # a Linen module, static; build it once, equal but new modules recompile
  variables: Any  # its collections, a pytree of arrays


@flax.struct.dataclass
class TrainState:
  """All that a supervised loop changes. No key, no optimiser, no apply function in it."""

  step: Leaf  # [] int32
  params: Any
  batch_stats: Any
  opt_state: Any
  ema: Any = None  # average of params over steps, or None
  slow: Any = None  # slow copy of the variables (`supervised.look_ahead`), or None

  @property
  def variables(self) -> dict[str, Any]:
    """The collections that `model.apply` takes."""
    return {"params": self.params, "batch_stats": self.batch_stats}

  @property
  def scored(self) -> dict[str, Any]:
    """The collections to evaluate: averaged parameters if there are any, live batch statistics."""
    params = self.params if self.ema is None else self.ema
    return {"params": params, "batch_stats": self.batch_stats}
