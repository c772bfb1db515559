"""Several networks of one architecture: trained one after another, or all in one program.

  trained = train(networks, init, step, consts, num_steps=1000, session=session, name="teacher")

Networks differ in their keys and inputs. All states have a leading axis of networks.
"""

import functools
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from ltdd_jax.core import mesh as mesh_lib
from ltdd_jax.core.types import TrainState
from ltdd_jax.training import loop

PARALLEL = ("auto", "vmap", "loop")
Prepare = Callable[[Any, Any], Any]
Watch = Callable[[Sequence["Network"], TrainState], None]
MeshFn = Callable[..., Any]  # a function with the keyword `mesh`: devices to split a batch over


class Network(NamedTuple):
  """What one network has for itself."""

  name: str  # of its loop
  init_key: jax.Array  # or what else `init` starts from
  step_key: jax.Array
  inputs: Callable[[int], Any]  # step -> host arrays


class Scoring(NamedTuple):
  """Evaluations on the way. The record of them is part of the state, so checkpoints hold it."""

  steps: tuple[int, ...]  # after which networks are scored, increasing
  num_classes: int
  score: Callable[[Any], jax.Array]  # variables with a leading axis -> confusion (s, k, k)


class Trained(NamedTuple):
  """Networks after their last step, on the host."""

  state: TrainState  # with a leading axis s
  correct: np.ndarray | None  # (s, m, k) int32 at each of m evaluations
  confusion: np.ndarray | None  # (s, k, k) int32 at the last: class, predicted class


def over_networks(
  fn: MeshFn, in_axes: Sequence[int | None], mesh: jax.sharding.Mesh, spread: bool = True
) -> MeshFn:
  """Maps a function over a leading axis of networks, of any length.

  On one device this is `vmap`. On several, XLA does not split the grouped convolutions that `vmap`
  makes, so that every device would do all of the work: networks are split over the devices if
  their number divides, and otherwise go one after another, with each batch split.

  Args:
    fn: its keyword `mesh` is None where no batch may be split.
    in_axes: 0 for arguments with that axis, None for shared ones; the first has it.
    mesh: the devices.
    spread: whether networks may be split over devices, each of which then holds all that is shared.
  """

  def alone(*args: Any) -> Any:
    both = zip(args, in_axes, strict=True)
    first = [a if axis is None else _unfused(member(a, 0)) for a, axis in both]
    return jax.tree.map(lambda x: x[None], _unfused(fn(*first, mesh=mesh)))

  def in_turn(*args: Any) -> Any:
    own = [a for a, axis in zip(args, in_axes, strict=True) if axis == 0]

    def one(members: list[Any]) -> Any:
      rest = iter(members)
      both = [a if axis is None else next(rest) for a, axis in zip(args, in_axes, strict=True)]
      return fn(*both, mesh=mesh)

    return jax.lax.map(one, own)

  at_once = jax.vmap(lambda *args: fn(*args, mesh=None), in_axes=in_axes)
  own, shared = PartitionSpec(mesh_lib.AXIS), PartitionSpec()
  specs = tuple(shared if axis is None else own for axis in in_axes)
  apart = jax.shard_map(at_once, mesh=mesh, in_specs=specs, out_specs=own, check_vma=False)

  def mapped(*args: Any) -> Any:
    count = len(jax.tree.leaves(args[0])[0])
    if count == 1:
      return alone(*args)
    if mesh.size == 1:
      return at_once(*args)
    return apart(*args) if spread and count % mesh.size == 0 else in_turn(*args)

  return mapped


def member(tree: Any, i: int) -> Any:
  """Takes network i out of a tree with a leading axis of networks."""
  return jax.tree.map(lambda x: x[i], tree)


def _unfused(tree: Any) -> Any:
  """Keeps XLA from fusing slices into the step of one network, which would move its rounding."""
  is_key = lambda x: jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
  return jax.tree.map(lambda x: x if is_key(x) else jax.lax.optimization_barrier(x), tree)


def train(
  networks: Sequence[Network],
  init: Callable[[jax.Array, Mapping[str, Any]], TrainState],
  step: MeshFn,
  consts: Mapping[str, Any],
  *,
  num_steps: int,
  session: loop.Session,
  parallel: str = "auto",
  at_once: int | None = None,
  scoring: Scoring | None = None,
  watch: Mapping[int, Watch] = types.MappingProxyType({}),
  prepare: Prepare | None = None,
) -> Trained:
  """Trains networks of one architecture.

  Args:
    networks: one or more.
    init: `init_key` of a network, consts -> state.
    step: `(state, consts, x, *, mesh) -> (state, metrics)`, see `supervised.train_step`.
    consts: what all share; "key" is added, that of each network.
    num_steps: steps of each.
    session: devices, checkpoints, progress.
    parallel: "vmap" (all in one program), "loop" (one after another) or "auto": as they were
      trained until a run was stopped, else as is `fastest`. Equal within rounding.
    at_once: most networks of one program under vmap, or None for all.
    scoring: evaluations on the way, or None.
    watch: `watch[t](networks, state)` is called with those of one program after t steps, 0 too,
      before a checkpoint holds step t; after a restart it may be called again, with the same state.
    prepare: `(x, consts) -> x` comes before the step and sees no network. On one CPU device it is a
      program of its own, so that steps that differ in the rest alone share its compilation.
  """
  at_once = min(at_once or len(networks), len(networks))
  spread = not mesh_lib.lies_split(consts)
  if parallel == "auto":
    parallel = _begun(networks[:at_once], session) or fastest(at_once, session.mesh, spread)
  size = at_once if parallel == "vmap" else 1
  groups = [networks[i : i + size] for i in range(0, len(networks), size)]
  compiled: dict[int, loop.Compiled] = {}  # by the size of the group, which says where states lie
  prepared = None
  if prepare and session.steps_per_call() == 1 and session.mesh.size == 1:
    prepared, prepare = jax.jit(_over_inputs(prepare)), None
  over = functools.partial(over_networks, mesh=session.mesh, spread=spread)
  step_fn = _step_fn(step, over, prepare)
  first = jax.jit(over(lambda key, shared, mesh: init(key, shared), (0, None)))
  parts = []
  for group in groups:
    state = {
      "train": mesh_lib.call(first, jnp.stack([n.init_key for n in group]), dict(consts)),
      **_blank_scores(scoring, len(group)),
    }
    if 0 in watch and not mesh_lib.has_shapes_alone():
      watch[0](group, state["train"])
    state = loop.run(
      step_fn,
      mesh_lib.put(state, mesh_lib.at_rest(session.mesh, len(group))),
      {"shared": dict(consts), "key": jnp.stack([n.step_key for n in group])},
      num_steps=num_steps,
      session=session,
      name=_name(group),
      inputs=functools.partial(_inputs, group, prepared, consts),
      hooks=_hooks(group, scoring, watch),
      compiled=compiled.setdefault(len(group), {}),
    )
    parts.append(mesh_lib.get(state))
  joined = jax.tree.map(lambda *x: np.concatenate(x), *parts)
  return Trained(joined["train"], joined["correct"], joined["confusion"])


def _name(group: Sequence[Network]) -> str:
  """The name of a group's loop."""
  return group[0].name + (f"+{len(group) - 1}" if len(group) > 1 else "")


def _begun(first: Sequence[Network], session: loop.Session) -> str | None:
  """How networks were trained that have checkpoints, maybe on other devices; None without any."""
  ways = {"vmap": _name(first), "loop": first[0].name}
  return next((way for way, name in ways.items() if session.has_begun(name)), None)


def fastest(count: int, mesh: jax.sharding.Mesh, spread: bool) -> str:
  """How to train so many networks: "vmap" on accelerators, if each has the same number of them.

  A CPU is slow on grouped convolutions. Networks that go in turn within a program have their states
  copied out of a stack and into it in each step.
  """
  if mesh.devices.flat[0].platform == "cpu":
    return "loop"
  return "vmap" if mesh.size == 1 or (spread and count % mesh.size == 0) else "loop"


def _blank_scores(scoring: Scoring | None, size: int) -> dict[str, np.ndarray | None]:
  """The record of the scores of a group, which is a part of its state."""
  if scoring is None:
    return {"correct": None, "confusion": None}
  m, k = len(scoring.steps), scoring.num_classes
  shapes = {"correct": (size, m, k), "confusion": (size, k, k)}
  return {name: np.zeros(shape, np.int32) for name, shape in shapes.items()}


def _hooks(
  group: Sequence[Network], scoring: Scoring | None, watch: Mapping[int, Watch]
) -> dict[int, Callable[[dict[str, Any]], dict[str, Any]]]:
  """What is done with the state of a group after some of its steps."""
  numbers = {} if scoring is None else {t: i for i, t in enumerate(scoring.steps)}

  def hook(t: int, state: dict[str, Any]) -> dict[str, Any]:
    if t in watch:
      watch[t](group, state["train"])
    return state if scoring is None or t not in numbers else _score(scoring, numbers[t], state)

  return {t: functools.partial(hook, t) for t in {*numbers, *watch}}


def _inputs(group: Sequence[Network], prepared: Prepare | None, consts: Any, t: int) -> Any:
  """The arrays of a step, with a leading axis of networks."""
  x = loop.stack([network.inputs(t) for network in group])
  return prepared(x, consts) if prepared else x


def _over_inputs(prepare: Prepare) -> Prepare:
  """Maps over networks, of which one is not mapped."""

  def mapped(x: Any, consts: Any) -> Any:
    if len(jax.tree.leaves(x)[0]) == 1:
      return jax.tree.map(lambda y: y[None], prepare(member(x, 0), consts))
    return jax.vmap(prepare, (0, None))(x, consts)

  return mapped


def _step_fn(
  step: MeshFn, over: Callable[..., MeshFn], prepare: Prepare | None = None
) -> loop.StepFn:
  """The step of a group; metrics are means over it, and the record of scores stays."""

  def one(state: Any, key: Any, x: Any, shared: Any, *, mesh: Any) -> Any:
    x = prepare(x, shared) if prepare else x
    return step(state, shared | {"key": key}, x, mesh=mesh)

  mapped = over(one, (0, 0, 0, None))

  def step_fn(state: Any, consts: Any, x: Any) -> tuple[Any, dict[str, jax.Array]]:
    new, metrics = mapped(state["train"], consts["key"], x, consts["shared"])
    return state | {"train": new}, jax.tree.map(jnp.mean, metrics)

  return step_fn


def _score(scoring: Scoring, i: int, state: dict[str, Any]) -> dict[str, Any]:
  """Puts the scores of evaluation i into the record of them."""
  confusion = scoring.score(state["train"].scored).astype(jnp.int32)
  correct = state["correct"].at[:, i].set(jnp.diagonal(confusion, axis1=1, axis2=2))
  return state | {"correct": correct, "confusion": confusion}
