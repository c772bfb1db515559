"""Recover: runs a method over the slots, batch by batch, and stores images as uint8."""

import functools
from typing import Any, NamedTuple

import jax
import numpy as np

from ltdd_jax.core import mesh as mesh_lib
from ltdd_jax.core import rng
from ltdd_jax.core.types import LtddError, Slots
from ltdd_jax.data import augment
from ltdd_jax.data import images as images_lib
from ltdd_jax.distil.base import Env, Feed, Method, check_feed
from ltdd_jax.training import loop


class Distilled(NamedTuple):
  """A distilled set as it is stored."""

  images: np.ndarray  # (n, h, w, c) uint8
  labels: np.ndarray  # (n,) int32
  notes: tuple[str, ...]  # what the report should say


def run_method(
  name: str,
  method: Method,
  env: Env,
  slots: Slots,
  feed: Feed,
  *,
  batch_size: int | None = 100,
  jpeg_quality: int | None = None,
  seed: int = 0,
  session: loop.Session | None = None,
) -> Distilled:
  """Fills all slots.

  A method that optimises does so for `batch_size` images at a time, so that memory does not grow
  with the number of slots; a published method's statistics are those of such a batch. Steps are
  counted on from batch to batch, so that teachers go on taking turns, and what `method.carry`
  names goes along. A method that only selects sees all slots at once. Each teacher's step is
  compiled once for each length of a batch: a second time if the last one is shorter.

  Args:
    name: of the image source, for messages, keys and checkpoints.
    method: see `distil.base`.
    env: the static facts that the method was made with.
    slots: the budget.
    feed: the arrays that the method needs.
    batch_size: images optimised together; None for all, as EDC on CIFAR-10, and then memory does
      grow with the number of slots.
    jpeg_quality: images come back from JPEG files of this quality, as the released code of SRe2L,
      CDA, RDED and partly EDC and G-VBSM has them (75, docs/methods.md); None leaves them alone.
    seed: the run's seed.
    session: devices, checkpoints, progress.

  Returns:
    Images as uint8 by truncation, as the published methods save them, in the order of the slots.

  Raises:
    LtddError: the feed lacks something, the optimisation diverged, or an option is none.
  """
  if batch_size is not None and batch_size < 1:
    raise LtddError(f"config.distil.batch_size is {batch_size}; expected 1 or more, or None")
  check_jpeg_quality(jpeg_quality)
  session = session or loop.Session()
  notes = check_feed(name, method, slots, feed, env)
  feed = Feed(*(_place(getattr(feed, f), f in method.needs, session) for f in Feed._fields))
  total = len(slots.labels)
  size = min(batch_size or total, total) if method.num_steps else total
  parts = _finished(name, session)
  if method.carry and parts:  # the state of the last one comes from its checkpoint
    parts.pop()
  compiled: dict[int, loop.Compiled] = {}
  last = None
  for number in range(len(parts), -(-total // size)):
    chunk = Slots(*(x[number * size : (number + 1) * size] for x in slots))
    part = f"distil/{name}/{number}"
    state = jax.jit(method.init)(rng.key_for(seed, f"recover/{name}/{number}", "init"), chunk, feed)
    if method.carry and last is not None:
      state = method.carry(state, last)
    last = _optimise(
      part,
      method,
      _spread(state, len(chunk.labels), session),
      {"key": rng.key_for(seed, f"recover/{name}/{number}", "step"), "feed": feed},
      session,
      first_turn=number * method.num_steps % method.turns,
      compiled=compiled.setdefault(len(chunk.labels), {}),
    )
    images = augment.denormalize(method.read(last).images, env.mean, env.std)
    parts.append(np.asarray(mesh_lib.get(images)))
    session.keep(part, {"images": parts[-1]})
    session.discard(f"distil/{name}/{number - 1}")
  stored = np.concatenate(parts)
  if jpeg_quality is not None:
    stored = images_lib.through_jpeg(stored, jpeg_quality)
  return Distilled(stored, np.asarray(slots.labels, np.int32), notes)


def _finished(name: str, session: loop.Session) -> list[np.ndarray]:
  """Images of the batches that a run that was stopped has finished."""
  parts: list[np.ndarray] = []
  while (found := session.kept(f"distil/{name}/{len(parts)}")) is not None:
    parts.append(found["images"])
  return parts


def check_jpeg_quality(quality: int | None) -> None:
  """Raises LtddError for a `config.distil.jpeg_quality` that Pillow would not do justice to."""
  if quality is not None and not 1 <= quality <= 95:
    raise LtddError(f"config.distil.jpeg_quality is {quality}; expected 1 to 95, or None")


def _place(value: object, needed: bool, session: loop.Session) -> object:
  if value is None or not needed:
    return None
  return mesh_lib.put(value, mesh_lib.replicated(session.mesh))


def _spread(state: Any, size: int, session: loop.Session) -> Any:
  """Splits what has one entry for each image over the devices, and copies the rest to each."""
  split, whole = mesh_lib.batch_sharding(session.mesh, size), mesh_lib.replicated(session.mesh)
  return jax.tree.map(
    lambda x: mesh_lib.put(x, split if x.ndim and x.shape[0] == size else whole), state
  )


def _optimise(
  name: str,
  method: Method,
  state: Any,
  consts: Any,
  session: loop.Session,
  *,
  first_turn: int,
  compiled: loop.Compiled,
) -> Any:
  """Runs the steps of one batch of images; returns the last state."""
  if not method.num_steps:
    return state

  def step_fn(state, consts, t, turn):
    key = jax.random.fold_in(consts["key"], t)
    return method.step(key, state, consts["feed"], turn=turn)

  return loop.run(
    [functools.partial(step_fn, turn=turn) for turn in range(method.turns)],
    state,
    consts,
    num_steps=method.num_steps,
    session=session,
    name=name,
    inputs=np.int32,
    first_turn=first_turn,
    compiled=compiled,
  )
