"""What a distillation method is, after `optax.GradientTransformation`.

A method is a NamedTuple of pure functions made by a factory:

  method = sre2l(env, num_steps=1000, lr=0.25)
  state = method.init(key, slots, res)
  for t in range(method.num_steps):
    state, metrics = method.step(fold_in(key, t), state, res, None, turn=t % method.turns)
  distilled = method.read(state)

The factory binds numbers and static functions (`env`). Arrays arrive as arguments, since a teacher
closed over by a jitted function would become a constant of the program: `res` holds the resources
that the method's `needs` name, and `x` what `inputs` makes for this step. `slots.labels` is the
budget; nothing here knows "images per class".
"""

from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from ltdd_jax.core.registry import check_at_least, check_choice
from ltdd_jax.core.types import Distilled, LtddError, Slots
from ltdd_jax.data import longtail
from ltdd_jax.data.whitening import Whitening


class Network(NamedTuple):
  """The static half of a teacher: `res["teachers"]` has its arrays, in the same order."""

  name: str
  model: Any  # a Linen module; equal modules of one run are one object, so nothing recompiles


class Env(NamedTuple):
  """Static facts that a method is built with."""

  image_shape: tuple[int, int, int]  # (h, w, c)
  num_classes: int
  mean: tuple[float, ...]  # (c,), of pixels in [0, 1]
  std: tuple[float, ...] | Whitening  # (c,)
  teachers: tuple[Network, ...] = ()
  compute_dtype: str = "float32"  # of other networks that a method makes; see `models.computing_in`
  expert: Callable[[], Any] | None = None  # makes the Linen module of the expert trajectories


# Arrays by the names in `Method.needs`; `pipeline.resources.RESOURCES` says what each is.
Resources = Mapping[str, Any]

# A generator of this step's own, the step, and resources on the host -> `x` of the step.
Inputs = Callable[[np.random.Generator, int, Mapping[str, Any]], Any]


# key, state, resources, x -> state, metrics; a static `turn`: each turn is a program of its own.
StepFn = Callable[..., tuple[Any, dict[str, jax.Array]]]

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

  Attributes:
    init: key, slots, resources -> state.
    step: see `StepFn`. Step t, counted on over the batches of images, has `turn = t % turns`, and
      no turn is compiled twice.
    read: state -> `Distilled`.
    needs: names of resources.
    num_steps: steps for each batch of images.
    batching: "batches" (`config.distil.batch_size` images at a time), "joint" (all slots at once)
      or "select" (no steps: real images, in an order of slots of their own).
    inputs: host arrays of a step, a pure function of the step, so that a killed run goes on where
      it was; None for none.
    real_images: whether every class with a slot needs a training image.
    turns: programs that take turns.
    carry: (fresh, last) -> state of the next batch of images: what goes on, such as running means.
    notes: what `check_resources` says of classes with few training images. It may raise `LtddError`
      if the method cannot fill the budget.
    dtype: how images are stored unless `config.distil.dtype` says otherwise: "uint8" or "float32".
    parts: f, if each image holds f x f small ones, of which a view shows one at full size: see
      `data.views.view_fn`.
    remarks: last state, on the host -> further sentences for the report: what is known after the
      steps alone.
    memory: slots in a step -> bytes that one takes on the device, roughly, for `--dry_run`; for
      methods of which that may be much.
  """

  init: Callable[[jax.Array, Slots, Resources], Any]
  step: StepFn
  read: Callable[[Any], Distilled]
  needs: tuple[str, ...]
  num_steps: int
  batching: str = "batches"
  inputs: Inputs | None = None
  real_images: bool = False
  turns: int = 1
  carry: Callable[[Any, Any], Any] | None = None
  notes: Notes = repeats
  dtype: str = "uint8"
  parts: int = 1
  remarks: Callable[[Any], tuple[str, ...]] | None = None
  memory: Callable[[int], int] | None = None


def select(
  init: Callable[[jax.Array, Slots, Resources], Distilled],
  needs: tuple[str, ...],
  notes: Notes = repeats,
  real_images: bool = True,
) -> Method:
  """Makes a method that takes its images from what is there, and optimises nothing."""

  def step(key, state, res, x, *, turn=0):
    del key, res, x, turn
    return state, {}

  read = lambda state: state
  return Method(init, step, read, needs, 0, "select", real_images=real_images, notes=notes)


def check_not_whitened(what: str, env: Env) -> None:
  """Raises LtddError if images are whitened, of which parts are not those of the pixels."""
  if isinstance(env.std, Whitening):
    raise LtddError(
      f"{what} makes images of parts of others, which whitened ones cannot give: expected "
      "config.data.whiten=None, or another method"
    )


def make_slots(
  num_classes: int,
  *,
  images_per_class: int = 1,
  slots_per_class: Collection[int] | None = None,
  order: str = "interleaved",
) -> Slots:
  """Lays out the budget, as int32 NumPy arrays.

  Args:
    num_classes: k.
    images_per_class: slots of each class.
    slots_per_class: (k,) slots of each class in its place, which may differ and may be 0.
    order: "interleaved" (first image of every class, second of every class, ... as SRe2L does, so
      that a batch is diverse) or "class_major" (as G-VBSM and EDC do).

  Raises:
    LtddError: no slots, negative counts, not one for each class, or an unknown order.
  """
  if slots_per_class is None:
    check_at_least("config.distil.", 1, images_per_class=images_per_class)
    slots_per_class = [images_per_class] * num_classes
  counts = np.asarray(slots_per_class)
  if counts.shape != (num_classes,) or counts.min(initial=0) < 0 or counts.sum() < 1:
    raise LtddError(
      f"config.distil.slots_per_class is {counts.tolist()}; expected {num_classes} counts, one for "
      "each class, 0 or more, and at least one slot in all"
    )
  check_choice("config.distil.order", order, ("interleaved", "class_major"))
  labels = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
  rank = np.concatenate([np.arange(n, dtype=np.int32) for n in counts])
  if order == "interleaved":
    keep = np.lexsort((labels, rank))
    labels, rank = labels[keep], rank[keep]
  return Slots(labels, rank)


def check_resources(
  name: str, method: Method, slots: Slots, res: Resources, env: Env
) -> tuple[str, ...]:
  """Checks before any work that a method can fill the slots; returns notes for the report.

  Raises:
    LtddError: something that the method needs is missing, or it cannot fill so many slots.
  """
  for need in method.needs:
    if res.get(need) is None:
      raise LtddError(
        f"method {name!r} needs the resource {need!r}, which is missing. It needs "
        f"{', '.join(method.needs)}; pass them, or run the stage that makes them"
      )
  for need in set(method.needs) & {"teachers", "initial_teachers", "statistics"}:
    if len(res[need]) != len(env.teachers):
      raise LtddError(
        f"method {name!r} got {need} of {len(res[need])} networks for {len(env.teachers)} "
        "teachers; expected those of each, in the same order"
      )
  if not method.real_images:
    return ()
  have = np.bincount(np.asarray(res["labels"]), minlength=env.num_classes)
  want = np.zeros(env.num_classes, int)  # a set that goes on has earlier slots too
  np.maximum.at(want, np.asarray(slots.labels), np.asarray(slots.rank) + 1)
  empty = np.flatnonzero((want > 0) & (have == 0))
  if len(empty):
    raise LtddError(
      f"method {name!r} copies real images, but classes {empty.tolist()} have slots and no "
      f"training image. {longtail.WHY_EMPTY} Mend that, give the classes no slots, or use a method "
      "that needs no real image, such as 'sre2l'."
    )
  return method.notes(have, want)
