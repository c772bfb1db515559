"""Recover: runs a method over the slots, batch by batch, and stores images as uint8."""

from typing import NamedTuple

import jax
import numpy as np

from ltdd_jax import loop, rng
from ltdd_jax import mesh as mesh_lib
from ltdd_jax.data import augment
from ltdd_jax.distil.base import Env, Feed, Method, check_feed
from ltdd_jax.types import LtddError, Slots


class Distilled(NamedTuple):
  """A distilled set as it is stored."""

  images: np.ndarray  # (n, h, w, c) uint8
  labels: np.ndarray  # (n,) int32
  notes: tuple[str, ...]  # what the report should say


def recover(
  name: str,
  method: Method,
  env: Env,
  slots: Slots,
  feed: Feed,
  *,
  batch_size: int = 100,
  seed: int = 0,
  session: loop.Session | None = None,
) -> Distilled:
  """Fills all slots.

  A method that optimises does so for `batch_size` images at a time, so that memory does not grow
  with the number of slots; a published method's statistics are those of such a batch. A method
  that only selects sees all slots at once.

  Args:
    name: of the image source, for messages, keys and checkpoints.
    method: see `distil.base`.
    env: the static facts that the method was made with.
    slots: the budget.
    feed: the arrays that the method needs.
    batch_size: images optimised together.
    seed: the run's seed.
    session: devices, checkpoints, progress.

  Returns:
    Images as uint8 by truncation, as the published methods save them, in the order of the slots.

  Raises:
    LtddError: the feed lacks something, or the optimisation diverged.
  """
  if batch_size < 1:
    raise LtddError(f"config.recover.batch_size is {batch_size}; expected 1 or more")
  session = session or loop.Session()
  notes = check_feed(name, method, slots, feed, env)
  feed = Feed(*(_place(getattr(feed, f), f in method.needs, session) for f in Feed._fields))
  total = len(slots.labels)
  size = min(batch_size, total) if method.num_steps else total
  starts = range(0, total, size)
  shared: dict[int, dict[int, loop.StepFn]] = {}
  parts = []
  for number, start in enumerate(starts):
    chunk = Slots(*(x[start : start + size] for x in slots))
    compiled = shared.setdefault(len(chunk.labels), {})
    parts.append(
      _recover_chunk(f"recover/{name}/{number}", method, env, chunk, feed, seed, session, compiled)
    )
  return Distilled(np.concatenate(parts), np.asarray(slots.labels, np.int32), notes)


def _place(value: object, needed: bool, session: loop.Session) -> object:
  if value is None or not needed:
    return None
  return mesh_lib.put(value, mesh_lib.replicated(session.mesh))


def _recover_chunk(
  name: str,
  method: Method,
  env: Env,
  slots: Slots,
  feed: Feed,
  seed: int,
  session: loop.Session,
  compiled: dict[int, loop.StepFn],
) -> np.ndarray:
  size = len(slots.labels)
  state = jax.jit(method.init)(rng.key_for(seed, name, "init"), slots, feed)
  state = jax.tree.map(
    lambda x: mesh_lib.put(
      x,
      mesh_lib.batch_sharding(session.mesh, size)
      if x.ndim and x.shape[0] == size
      else mesh_lib.replicated(session.mesh),
    ),
    state,
  )
  consts = {"key": rng.key_for(seed, name, "step"), "feed": feed}

  def step_fn(state, consts, t):
    return method.step(jax.random.fold_in(consts["key"], t), state, consts["feed"])

  if method.num_steps:
    state = loop.run(
      step_fn,
      state,
      consts,
      num_steps=method.num_steps,
      session=session,
      name=name,
      inputs=np.int32,
      compiled=compiled,
    )
  images = method.read(state).images
  return np.asarray(jax.device_get(augment.denormalize(images, env.mean, env.std)))
