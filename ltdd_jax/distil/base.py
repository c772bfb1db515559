"""What a distillation method is, after `optax.GradientTransformation`.

A method is a NamedTuple of pure functions made by a factory:

  method = sre2l(env, num_steps=1000, lr=0.25)
  state = method.init(key, slots, feed)
  for t in range(method.num_steps):
    state, metrics = method.step(jax.random.fold_in(key, t), state, feed, turn=t % method.turns)
  synth = method.read(state)

The factory binds numbers and static functions (`env`). Arrays are never bound: a teacher closed
over by a jitted function would become a constant of the program. They arrive as arguments, in
`feed`. `slots.labels` is the budget; nothing here knows "images per class".
"""

from collections.abc import Callable, Collection
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

from ltdd_jax.core.types import Leaf, LtddError, Slots, SynthSet


class Network(NamedTuple):
  """The static half of a teacher: `feed.teachers` brings its arrays, in the same order."""

  name: str
  model: Any  # a Linen module; equal modules of one run are one object, so nothing recompiles


class Env(NamedTuple):
  """Static facts that a method is built with."""

  image_shape: tuple[int, int, int]  # (h, w, c)
  num_classes: int
  mean: tuple[float, ...]  # (c,), of pixels in [0, 1]
  std: tuple[float, ...]  # (c,)
  teachers: tuple[Network, ...] = ()


class Feed(NamedTuple):
  """Arrays that a method may ask for; those it does not need may be None."""

  teachers: Leaf = None  # tuple of variable collections, one for each teacher
  images: Leaf = None  # (N, h, w, c) uint8, the long-tailed training set
  labels: Leaf = None  # (N,) int32
  statistics: Leaf = None  # tuple of `statistics.Statistics`, one for each teacher


class StepFn(Protocol):
  """One step. `turn` is static: each turn is a program of its own."""

  def __call__(
    self, key: jax.Array, state: Any, feed: Feed, *, turn: int = 0
  ) -> tuple[Any, dict[str, jax.Array]]: ...


# Training images and slots of each class, both (k,), to sentences for the report.
Notes = Callable[[np.ndarray, np.ndarray], tuple[str, ...]]


def repeats(have: np.ndarray, want: np.ndarray) -> tuple[str, ...]:
  """Notes of a method that repeats images of a class with fewer of them than slots."""
  return tuple(
    f"class {c}: {want[c]} slots but {have[c]} training images; images are repeated"
    for c in np.flatnonzero(have < want)
  )


class Method(NamedTuple):
  """A distillation method.

  Step t of a distil stage, counted on over its batches of images, is called with
  `turn = t % turns`: teachers that take turns are programs of their own, and none is compiled
  twice. `carry(fresh, last)` makes the state with which a batch of images starts from its own
  initial state and the last state of the batch before: it takes over what goes on, such as running
  means of statistics.
  """

  init: Callable[[jax.Array, Slots, Feed], Any]
  step: StepFn
  read: Callable[[Any], SynthSet]
  needs: tuple[str, ...]  # fields of `Feed` that must be there
  num_steps: int
  real_images: bool = False  # whether every class with a slot needs a training image
  turns: int = 1
  carry: Callable[[Any, Any], Any] | None = None  # (fresh, last) -> state
  notes: Notes = repeats  # what `check_feed` says of short classes; may refuse a budget


def still(
  init: Callable[[jax.Array, Slots, Feed], SynthSet],
  needs: tuple[str, ...],
  notes: Notes = repeats,
) -> Method:
  """Makes a method that takes its images from real ones at once, and optimises nothing."""

  def step(
    key: jax.Array, state: SynthSet, feed: Feed, *, turn: int = 0
  ) -> tuple[SynthSet, dict[str, jax.Array]]:
    del key, feed, turn
    return state, {}

  read = lambda state: state
  return Method(init, step, read, needs, num_steps=0, real_images=True, notes=notes)


def make_slots(slots_per_class: np.ndarray, order: str = "interleaved") -> Slots:
  """Lays out the budget.

  Args:
    slots_per_class: (k,) slots of each class, which may differ and may be 0.
    order: "interleaved" (first image of every class, second of every class, ... as SRe2L does, so
      that a batch is diverse) or "class_major" (as G-VBSM and EDC do).

  Returns:
    Slots of int32 NumPy arrays.

  Raises:
    LtddError: no slots, negative counts or an unknown order.
  """
  counts = np.asarray(slots_per_class)
  if counts.ndim != 1 or counts.min(initial=0) < 0 or counts.sum() < 1:
    raise LtddError(
      f"slots_per_class is {counts.tolist()}; expected one count >= 0 for each class and at least "
      "one slot in all. Set config.distil.images_per_class to 1 or more."
    )
  labels = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
  rank = np.concatenate([np.arange(n, dtype=np.int32) for n in counts])
  if order == "interleaved":
    keep = np.lexsort((labels, rank))
    labels, rank = labels[keep], rank[keep]
  elif order != "class_major":
    raise LtddError(f"order is {order!r}; expected 'interleaved' or 'class_major'")
  return Slots(labels, rank)


def check_choice(name: str, what: str, value: str, known: Collection[str]) -> None:
  """Raises LtddError for an option of method `name` that is none of those known."""
  if value not in known:
    raise LtddError(f"method {name!r}: {what} is {value!r}; expected one of {', '.join(known)}")


def check_feed(name: str, method: Method, slots: Slots, feed: Feed, env: Env) -> tuple[str, ...]:
  """Checks on the host, before any work, that a method can fill the slots from the feed.

  Returns:
    Notes for the report, such as classes with fewer training images than slots.

  Raises:
    LtddError: something that the method needs is missing, or it cannot fill so many slots.
  """
  for field in method.needs:
    if getattr(feed, field) is None:
      raise LtddError(
        f"method {name!r} needs feed.{field}, which is None. It needs {', '.join(method.needs)}; "
        "pass them in Feed(...), or run the stage that makes them."
      )
  for field, what in (("teachers", "teachers' variables"), ("statistics", "teachers' statistics")):
    if field in method.needs and len(getattr(feed, field)) != len(env.teachers):
      raise LtddError(
        f"method {name!r} got {len(getattr(feed, field))} {what} for {len(env.teachers)} "
        "teachers; expected one for each, in the same order"
      )
  if not method.real_images:
    return ()
  have = np.bincount(np.asarray(feed.labels), minlength=env.num_classes)
  want = np.bincount(np.asarray(slots.labels), minlength=env.num_classes)
  empty = np.flatnonzero((want > 0) & (have == 0))
  if len(empty):
    raise LtddError(
      f"method {name!r} copies real images, but classes {empty.tolist()} have slots and no "
      "training image. Give them no slots, or use a method that needs none, such as 'sre2l'."
    )
  return method.notes(have, want)
