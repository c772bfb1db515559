"""Run a method over the slots, batch by batch, and store its images."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from ltdd_jax.core import mesh as mesh_lib
from ltdd_jax.core import rng
from ltdd_jax.core.registry import check_at_least, check_choice
from ltdd_jax.core.types import Distilled, LtddError, Slots
from ltdd_jax.data import augment
from ltdd_jax.data import images as images_lib
from ltdd_jax.distil.base import Env, Method, check_resources
from ltdd_jax.training import loop

DTYPES = ("uint8", "float32")
_REMARKS = "remarks"  # of a finished batch of images, beside its arrays


class StoredSet(NamedTuple):
  """A distilled set as it is stored."""

  images: np.ndarray  # (n, h, w, c) uint8, or float32 pixels where 0 to 1 is black to white
  labels: np.ndarray  # (n,) int32
  soft_labels: np.ndarray | None  # (n, k) float32 logits
  student_lr: np.ndarray | None  # [] float32
  notes: tuple[str, ...]  # what the report should say

  @property
  def arrays(self) -> dict[str, np.ndarray]:
    """What is there, by name."""
    return _arrays(Distilled(*self[:4]))


def run_method(
  name: str,
  method: Method,
  env: Env,
  slots: Slots,
  res: Mapping[str, Any],
  *,
  batch_size: int | None = 100,
  jpeg_quality: int | None = None,
  dtype: str | None = None,
  on_host: tuple[str, ...] = (),
  seed: int = 0,
  session: loop.Session | None = None,
) -> StoredSet:
  """Fills all slots; returns the set in their order.

  A method with `batching="batches"` optimises `batch_size` images at a time, so that memory does
  not grow with the number of slots; a published method's statistics are those of such a batch.
  Steps are counted on from batch to batch, so that teachers go on taking turns, and what
  `method.carry` names goes along. Other methods see all slots at once. Each turn's step is compiled
  once for each length of a batch.

  Args:
    name: of the image source, for messages, keys and checkpoints.
    method: see `distil.base`.
    env: the static facts that the method was made with.
    slots: the budget.
    res: the resources that the method needs.
    batch_size: images optimised together; None for all, as EDC on CIFAR-10.
    jpeg_quality: images come back from JPEG files of this quality, 75 in the released code of some
      (docs/reference/methods.md); None for none.
    dtype: "uint8" by truncation, as the published methods save images, or "float32"; None for the
      method's own.
    on_host: resources that stay on the host, for `method.inputs` alone.
    seed: the run's seed.
    session: devices, checkpoints, progress.

  Raises:
    LtddError: a resource is missing, the optimisation diverged, or an option is invalid.
  """
  check_options(method, batch_size=batch_size, jpeg_quality=jpeg_quality, dtype=dtype)
  session = session or loop.Session()
  notes = check_resources(name, method, slots, res, env)
  host = {k: res[k] for k in method.needs}
  device = {k: v for k, v in host.items() if k not in on_host}
  device = mesh_lib.put(device, mesh_lib.replicated(session.mesh))
  total = len(slots.labels)
  size = min(batch_size or total, total) if method.batching == "batches" else total
  compiled: dict[int, loop.Compiled] = {}
  parts, remarks = _finished(name, method, session)
  goes_on = method.batching == "select"  # by rank, in an order that is drawn once
  earlier, last = 0 if goes_on else _earlier(slots), None
  for number in range(len(parts), -(-total // size)):
    path = f"distil/{name}/{number}"
    chunk = Slots(*(x[number * size : (number + 1) * size] for x in slots))
    draws = f"{path}/after {earlier}" if earlier else path  # not those of the earlier images
    keys = functools.partial(rng.key_for, seed, draws)
    state = mesh_lib.call(jax.jit(method.init), keys("init"), chunk, device)
    if method.carry and last is not None:
      state = method.carry(state, last)
    last = _optimise(
      path,
      method,
      spread(state, len(chunk.labels), session),
      {"key": keys("step"), "res": device},
      session,
      len(chunk.labels),
      inputs=functools.partial(_inputs, method, seed, draws, host),
      first_turn=number * method.num_steps % method.turns,
      compiled=compiled.setdefault(len(chunk.labels), {}),
    )
    parts.append(_stored(method.read(last), env, dtype or method.dtype))
    said = method.remarks(mesh_lib.get(last)) if method.remarks else ()
    remarks += said
    session.keep(path, _arrays(parts[-1]) | ({_REMARKS: np.array(said)} if said else {}))
    session.discard(f"distil/{name}/{number - 1}")
  together = jax.tree.map(lambda *x: np.concatenate(x) if x[0].ndim else x[-1], *parts)
  images = together.images
  if jpeg_quality is not None:
    images = images_lib.through_jpeg(images, jpeg_quality)
  learned = together.soft_labels, together.student_lr
  return StoredSet(images, np.asarray(slots.labels, np.int32), *learned, (*notes, *remarks))


def _earlier(slots: Slots) -> int:
  """Slots of earlier ranks that another set has filled, which this one goes on from; 0 for none."""
  labels, rank = map(np.asarray, slots)
  return sum(int(rank[labels == c].min()) for c in np.unique(labels))


def check_options(
  method: Method, *, batch_size: int | None, jpeg_quality: int | None, dtype: str | None
) -> None:
  """Raises LtddError for an option of `run_method` that is out of range."""
  check_at_least("config.distil.", 1, batch_size=1 if batch_size is None else batch_size)
  check_choice("config.distil.dtype", dtype, (None, *DTYPES))
  if jpeg_quality is None:
    return
  if not 1 <= jpeg_quality <= 95:
    raise LtddError(f"config.distil.jpeg_quality is {jpeg_quality}; expected 1 to 95, or None")
  if (dtype or method.dtype) != "uint8":
    raise LtddError(
      f"config.distil.jpeg_quality is {jpeg_quality}, but images are stored as float32; expected "
      "None, or config.distil.dtype='uint8'"
    )


def _finished(
  name: str, method: Method, session: loop.Session
) -> tuple[list[Distilled], tuple[str, ...]]:
  """The batches of images that a run that was stopped has finished, with remarks on them."""
  parts: list[tuple[Distilled, list[str]]] = []
  while (found := session.kept(f"distil/{name}/{len(parts)}")) is not None:
    remarks = found.pop(_REMARKS, np.array([])).tolist()
    parts.append((Distilled(**found), remarks))
  if method.carry:  # what goes on is in the last one's checkpoint
    parts = parts[:-1]
  return [part for part, _ in parts], tuple(text for _, remarks in parts for text in remarks)


def _arrays(found: Distilled) -> dict[str, np.ndarray]:
  return {k: v for k, v in found._asdict().items() if v is not None}


def _stored(found: Distilled, env: Env, dtype: str) -> Distilled:
  """The arrays of a batch on the host, with images as they are stored."""
  if dtype == "uint8":
    images = augment.denormalize(found.images, env.mean, env.std)
  else:
    images = augment.denormalize_pixels(found.images, env.mean, env.std)
  return jax.tree.map(np.asarray, mesh_lib.get(found._replace(images=images)))


def _rows(fn: Callable[[Any], Any], state: Any, size: int) -> Any:
  """Maps a function over the leaves that have one entry for each image."""
  return jax.tree.map(lambda x: fn(x) if x.ndim and x.shape[0] == size else x, state)


def spread(state: Any, size: int, session: loop.Session) -> Any:
  """Splits what has one entry for each image over the devices, and copies the rest to each."""
  state = mesh_lib.put(state, mesh_lib.replicated(session.mesh))
  split = mesh_lib.at_rest(session.mesh, size)
  return _rows(functools.partial(mesh_lib.put, sharding=split), state, size)


def _inputs(
  method: Method, seed: int, name: str, host: Mapping[str, Any], t: int
) -> tuple[np.int32, Any]:
  """The number of a step and the host arrays that the method wants for it."""
  if method.inputs is None:
    return np.int32(t), None
  return np.int32(t), method.inputs(rng.np_rng(seed, name, "inputs", t), t, host)


def _optimise(
  name: str,
  method: Method,
  state: Any,
  consts: Any,
  session: loop.Session,
  size: int,
  **kwargs: Any,
) -> Any:
  """Runs the steps of one batch of images; returns the last state."""
  if not method.num_steps:
    return state

  def step_fn(state, consts, inputs, turn):
    t, x = inputs
    state = _rows(functools.partial(mesh_lib.split_batch, session.mesh), state, size)
    key = jax.random.fold_in(consts["key"], t)
    return method.step(key, state, consts["res"], x, turn=turn)

  steps = [functools.partial(step_fn, turn=turn) for turn in range(method.turns)]
  return loop.run(
    steps,
    state,
    consts,
    num_steps=method.num_steps,
    session=session,
    name=name,
    advice="lower the learning rates of the method",
    positive=("student_lr",),
    **kwargs,
  )
