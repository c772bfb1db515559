"""The one loop that teachers, distillation and students run in.

  state = run(step_fn, state, consts, num_steps=1000, session=session, name="teacher/a")

`step_fn(state, consts, x) -> (state, metrics)` is a pure function; the loop compiles it once,
donates the state, writes metrics, saves checkpoints by time, stops cleanly on a signal and refuses
to go on after a loss that is not finite. On an accelerator many steps go in one dispatch
(`lax.scan`); on CPU they do not, since a weight-gradient convolution inside a loop is there some
thirty times slower than outside.

Several step functions take turns: step t is `step_fns[(first_turn + t) % len(step_fns)]`. Each is
compiled once; where many steps go in one dispatch they are the branches of one `lax.switch`.
"""

import collections
import dataclasses
import io
import math
import time
import types
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from etils import epath

from ltdd_jax.artefacts import checkpoint
from ltdd_jax.core import files
from ltdd_jax.core import mesh as mesh_lib
from ltdd_jax.core import progress as progress_lib
from ltdd_jax.core.types import LtddError
from ltdd_jax.data import stream

_AHEAD = 4  # dispatches that may wait for the device

StepFn = Callable[[Any, Any, Any], tuple[Any, dict[str, jax.Array]]]
Compiled = dict[tuple[int, int], StepFn]  # by steps in one dispatch, and turn if that is one step


@dataclasses.dataclass(frozen=True)
class Session:
  """Where a loop runs and what it leaves behind. The default leaves nothing."""

  mesh: jax.sharding.Mesh = dataclasses.field(default_factory=mesh_lib.make_mesh)
  scratch: epath.Path | None = None  # folder for work in progress: checkpoints, finished parts
  metrics: epath.Path | None = None  # folder for JSON lines and TensorBoard events
  checkpoint_seconds: float = 30.0  # least time between two checkpoints of one loop
  scan: bool = True  # whether many steps may go in one dispatch, which holds all inputs
  log_every: int = 50  # steps between two readings of the metrics
  show_progress: bool = True  # a bar on a terminal, else a line a minute

  def steps_per_call(self) -> int:
    """Steps in one dispatch: 1 on CPU or without `scan`, `log_every` elsewhere."""
    on_cpu = self.mesh.devices.flat[0].platform == "cpu"
    return 1 if on_cpu or not self.scan else self.log_every

  def reading(self, images: Any) -> "Session":
    """This session; without `scan`, if a step's images are read for it (`data.stream`)."""
    streamed = isinstance(images, stream.HostImages)
    return dataclasses.replace(self, scan=False) if streamed else self

  def plan(
    self, step_fns: Sequence[StepFn], state: Any, consts: Any, inputs: Any, num_steps: int
  ) -> None:
    """Is shown the arguments of each loop before it runs, and does nothing with them."""

  def keep(self, name: str, arrays: Mapping[str, Any]) -> None:
    """Stores the result of a finished part of a stage, whole or not at all.

    Then `discard(name)` may remove the checkpoints of its loop, which are many times as large.
    """
    if self.scratch is not None and jax.process_index() == 0:
      content = io.BytesIO()
      np.savez(content, **arrays)
      files.write_bytes(_part(self.scratch, name), content.getvalue(), what="finished part")
    mesh_lib.barrier("part kept")

  def kept(self, name: str) -> dict[str, np.ndarray] | None:
    """What `keep` stored, so that a resumed run does not make that part again; None if nothing."""
    if self.scratch is None or not (path := _part(self.scratch, name)).exists():
      return None
    try:
      with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as found:
        return dict(found)
    except Exception as error:  # damaged headers raise anything
      logging.warning("%s is damaged (%s); it is made anew", path, error)
      return None

  def has_begun(self, name: str) -> bool:
    """Whether the loop `name` has left checkpoints."""
    return self.scratch is not None and (self.scratch / name).exists()

  def discard(self, name: str) -> None:
    """Removes the checkpoints of the loop `name`."""
    if self.scratch is not None:
      checkpoint.discard(self.scratch / name)


def _part(scratch: files.Pathlike, name: str) -> epath.Path:
  return files.path(scratch) / "finished" / f"{name}.npz"


class _Monitor:
  """Reads metrics as they come, stops on one that is not finite, and writes their means."""

  def __init__(
    self,
    session: Session,
    name: str,
    num_steps: int,
    first: int,
    advice: str,
    positive: Collection[str],
  ):
    self.name = name
    self.advice = advice
    self.positive = positive
    self.waiting: list[tuple[int, dict[str, jax.Array]]] = []  # not read from the device yet
    self.rows: list[dict[str, float]] = []  # read, and not written yet
    self.last = first  # step of the last row
    folder = session.metrics and session.metrics / name
    self.writer = progress_lib.MetricWriter(folder, first_step=first) if folder else None
    self.bar = (
      progress_lib.ProgressBar(num_steps, name, initial=first) if session.show_progress else None
    )

  def add(self, step: int, metrics: dict[str, jax.Array]) -> None:
    """Takes the metrics of the steps up to `step`, without waiting for them."""
    self.waiting.append((step, metrics))

  def read(self) -> None:
    """Waits for the steps so far; raises LtddError at the first metric that is not finite."""
    for step, metrics in jax.device_get(self.waiting):
      columns = {k: np.atleast_1d(v) for k, v in metrics.items()}
      count = max((len(v) for v in columns.values()), default=0)
      for i in range(count):
        row = {k: float(np.mean(v[i])) for k, v in columns.items()}
        self._check(at := step - count + 1 + i, row)
        self.rows.append(row)
        self.last = at
      if self.bar and count:
        self.bar.update(step, **row)
    self.waiting.clear()

  def write(self, step: int) -> None:
    """Writes the means since the last time."""
    if self.writer and self.rows:
      self.writer.write(step, {k: np.mean([r[k] for r in self.rows]) for k in self.rows[0]})
    self.rows.clear()

  def _check(self, step: int, row: dict[str, float]) -> None:
    for key, value in row.items():
      if math.isfinite(value) and (value > 0 or key not in self.positive):
        continue
      wanted = "positive" if key in self.positive else "finite"
      raise LtddError(
        f"{self.name}: {key} is {value:g} at step {step}, expected a {wanted} number; "
        f"{self.advice}. The last good checkpoint is kept."
      )

  def close(self) -> None:
    """Ends; what was read and not written, because the loop stopped before its time, is written."""
    self.write(self.last)
    if self.writer:
      self.writer.close()
    if self.bar:
      self.bar.close()


def compile_step(step_fn: StepFn, state: Any, steps_per_call: int = 1) -> StepFn:
  """Compiles a step, or a scan over `steps_per_call` of them; the state is donated.

  The new state lies where the old one lay, so that the second call does not compile again.
  """

  def scan(state, consts, xs):
    return jax.lax.scan(lambda s, x: step_fn(s, consts, x), state, xs, length=steps_per_call)

  places = jax.tree.map(lambda x: x.sharding, state)
  return jax.jit(
    step_fn if steps_per_call == 1 else scan, donate_argnums=0, out_shardings=(places, None)
  )


def in_turn(step_fns: Sequence[StepFn]) -> StepFn:
  """Makes one step of several; its input is a pair of their input and the turn, [] int32."""

  def step_fn(state, consts, x):
    inputs, turn = x
    return jax.lax.switch(turn, step_fns, state, consts, inputs)

  return step_fn


@dataclasses.dataclass(frozen=True)
class _Steps:
  """Compiles the steps of a loop when they are first called, and calls them."""

  step_fns: Sequence[StepFn]
  inputs: Callable[[int], Any]
  first_turn: int
  compiled: Compiled

  def __call__(self, t: int, count: int, state: Any, consts: Any) -> tuple[Any, dict[str, Any]]:
    """Runs steps t, ..., t + count - 1 in one dispatch."""
    turns = [(self.first_turn + t + i) % len(self.step_fns) for i in range(count)]
    slot = (count, turns[0] if count == 1 else 0)
    if slot not in self.compiled:
      step_fn = self.step_fns[turns[0]] if count == 1 else in_turn(self.step_fns)
      self.compiled[slot] = compile_step(step_fn, state, count)
    if count == 1:
      return self.compiled[slot](state, consts, self.inputs(t))
    x = stack([self.inputs(t + i) for i in range(count)]), np.array(turns, np.int32)
    return self.compiled[slot](state, consts, x)


def run(
  step_fn: StepFn | Sequence[StepFn],
  state: Any,
  consts: Any,
  *,
  num_steps: int,
  session: Session,
  name: str,
  inputs: Callable[[int], Any] = lambda step: None,
  hooks: Mapping[int, Callable[[Any], Any]] = types.MappingProxyType({}),
  compiled: Compiled | None = None,
  first_turn: int = 0,
  advice: str = "lower the learning rate of this stage",
  positive: Collection[str] = (),
) -> Any:
  """Runs `num_steps` steps from the newest checkpoint, or from `state`.

  Args:
    step_fn: pure step; `metrics` are scalars. Several take turns; they agree in state and metrics.
    state: a pytree of arrays, donated.
    consts: a pytree of arrays that do not change (data, teachers).
    num_steps: total steps, counted from 0.
    session: where to run and what to leave behind.
    name: of the stage and the loop, for messages, checkpoints and metrics.
    inputs: `inputs(t)` gives the host arrays of step t (None for none).
    hooks: `hooks[t](state) -> state` is called after t steps.
    compiled: steps compiled earlier: loops of the same step functions and shapes share them.
    first_turn: turn of step 0, for a loop that goes on where another one ended.
    advice: what to do when a number is not finite, for the error message.
    positive: names of metrics that have to be above 0.

  Returns:
    The last state.

  Raises:
    LtddError: a metric is not finite, or not positive.
    checkpoint.Interrupted: a signal asked to stop; the state is saved.
  """
  step_fns = (step_fn,) if callable(step_fn) else tuple(step_fn)
  session.plan(step_fns, state, consts, inputs, num_steps)
  steps = _Steps(step_fns, inputs, first_turn, {} if compiled is None else compiled)
  progress, first = None, 0
  if session.scratch is not None:
    progress = checkpoint.Progress(session.scratch / name, every_seconds=session.checkpoint_seconds)
    first, state = progress.restore(state) or (0, state)
  monitor = _Monitor(session, name, num_steps, first, advice, positive)
  per_call, t = session.steps_per_call(), first
  if len(step_fns) > 1:  # no remainder, so that no step is compiled in the scan and alone
    per_call = math.gcd(per_call, num_steps)
  due = time.monotonic() + 1.0
  ahead: collections.deque[Any] = collections.deque(maxlen=_AHEAD)
  try:
    while t < num_steps:
      stop_at = min(
        [num_steps, t - t % session.log_every + session.log_every, *(h for h in hooks if h > t)]
      )
      count = per_call if stop_at - t >= per_call else 1
      if len(ahead) == _AHEAD:  # a stop waits for what is under way
        jax.block_until_ready(ahead[0])
      state, metrics = steps(t, count, state, consts)
      ahead.append(metrics or jax.block_until_ready(state))  # which is donated: wait for it now
      t += count
      monitor.add(t, metrics)
      if t in hooks:
        state = hooks[t](state)
      stopping, overdue = _wishes(progress, t == stop_at)
      if stopping or t == stop_at or time.monotonic() > due:
        monitor.read()
        if t == stop_at:
          monitor.write(t)
        due = time.monotonic() + 1.0
        if progress and (stopping or t == num_steps or overdue):
          _check_finite(name, t, state, advice)
          progress.save(t, state)
        if stopping:
          raise checkpoint.Interrupted(f"{name}: stopped after step {t} of {num_steps}")
  finally:
    monitor.close()
    if progress:
      progress.close()
  return state


def _wishes(progress: checkpoint.Progress | None, agree: bool) -> tuple[bool, bool]:
  """Whether to stop, and whether to save. Processes of a pod do both together: they agree first.

  That costs a message, so that between two readings of the metrics none of them wishes anything.
  """
  if jax.process_count() > 1 and not agree:
    return False, False
  due = progress is not None and progress.due()
  stopping, overdue = mesh_lib.any_process(checkpoint.stop_requested(), due)
  return stopping, overdue


def _check_finite(name: str, step: int, state: Any, advice: str) -> None:
  """Refuses to save a state that holds NaN or infinity: it would replace a good checkpoint."""
  floats = [x for x in jax.tree.leaves(state) if jnp.issubdtype(x.dtype, jnp.floating)]
  if not _all_finite(floats):
    raise LtddError(
      f"{name}: the state after step {step} holds NaN or infinity; {advice}. "
      "The last good checkpoint is kept."
    )


@jax.jit
def _all_finite(arrays: list[jax.Array]) -> jax.Array:
  return jnp.all(jnp.stack([jnp.all(jnp.isfinite(x)) for x in arrays]))


def stack(items: Sequence[Any]) -> Any:
  """Stacks trees of host arrays, or of arrays that several processes hold together."""

  def joined(*x: Any) -> Any:
    if isinstance(x[0], jax.ShapeDtypeStruct):
      return mesh_lib.stacked_shape(x[0], len(x))
    return (jnp.stack if isinstance(x[0], jax.Array) else np.stack)(x)

  return jax.tree.map(joined, *items)
