"""Steps of loops, compiled ahead of time and not run: what they take on each device.

with mesh.shapes_alone():
  step_fns, arguments, num_steps = loop_of(lambda session: train(..., session=session), mesh)
compiled = compile_step(step_fns[0], arguments)
"""

import dataclasses
import math
import re
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, NoReturn

import jax
import numpy as np

from ltdd_jax.core.types import LtddError
from ltdd_jax.training import loop

Arguments = tuple[Any, Any, Any]  # state, constants and inputs of a step

_KINDS = "all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute|collective-broadcast"
_COLLECTIVE = re.compile(rf"= (\(.*?\)|\S+) ({_KINDS})(-start)?\(")
_ARRAY = re.compile(r"\b(pred|[a-z]+(\d+)[a-z0-9]*)\[([\d,]*)\]")
_TOO_LARGE = re.compile(r"([\d.]+)([KMG])\b")


class Loop(NamedTuple):
  """What a loop was to run."""

  step_fns: Sequence[loop.StepFn]  # which take turns
  arguments: Arguments  # shapes, with shardings where they are known
  num_steps: int


class Compiled(NamedTuple):
  """A step of one device. Of a step that does not fit there is but the memory that it asks for."""

  memory: int  # bytes: arguments, temporaries, and outputs that take no argument's place
  flops: float
  moved: float  # bytes, read and written
  collectives: dict[str, tuple[int, int]]  # kind: number and bytes of results
  compile_seconds: float
  fits: bool = True


class _Planned(Exception):
  """Carries the first loop out of the function that was to run it."""


@dataclasses.dataclass(frozen=True)
class _Session(loop.Session):
  """Runs no step."""

  def steps_per_call(self) -> int:
    """Many, so that inputs are prepared within the step (`many.train`)."""
    return self.log_every

  def plan(
    self, step_fns: Sequence[loop.StepFn], state: Any, consts: Any, inputs: Any, num_steps: int
  ) -> NoReturn:
    """Stops before the loop."""
    raise _Planned(Loop(step_fns, jax.tree.map(_shape, (state, consts, inputs(0))), num_steps))


def _shape(x: Any) -> jax.ShapeDtypeStruct:
  if isinstance(x, jax.ShapeDtypeStruct):
    return x
  x = x if hasattr(x, "dtype") else np.asarray(x)
  return jax.ShapeDtypeStruct(x.shape, x.dtype)


def loop_of(fn: Callable[[loop.Session], Any], mesh: jax.sharding.Mesh) -> Loop:
  """Calls a function up to its first loop, within `mesh.shapes_alone`; returns that.

  Raises:
    LtddError: there is none.
  """
  try:
    fn(_Session(mesh=mesh, show_progress=False))
  except _Planned as planned:
    return planned.args[0]
  raise LtddError("there is no loop to compile; expected a function that calls training.loop.run")


def compile_step(
  step_fn: loop.StepFn, arguments: Arguments, known: dict[str, Compiled] | None = None
) -> Compiled:
  """Compiles one step as `loop.run` does, with its state donated, for the devices it lies on.

  `known` has steps of the same devices by their programs, and gets this one.
  """
  known = {} if known is None else known
  jitted: Any = loop.compile_step(step_fn, arguments[0])
  lowered = jitted.lower(*arguments)
  if (program := lowered.as_text()) not in known:
    known[program] = _compile(lowered)
  return known[program]


def _compile(lowered: Any) -> Compiled:
  start = time.perf_counter()
  try:
    done = lowered.compile()
  except jax.errors.JaxRuntimeError as error:
    if "RESOURCE_EXHAUSTED" not in str(error):
      raise
    wanted = [float(n) * 1024 ** "KMG".index(u) * 1024 for n, u in _TOO_LARGE.findall(str(error))]
    seconds = time.perf_counter() - start
    return Compiled(int(max(wanted, default=0)), 0.0, 0.0, {}, seconds, fits=False)
  seconds = time.perf_counter() - start
  sizes, costs = done.memory_analysis(), done.cost_analysis() or {}
  memory = sizes.argument_size_in_bytes + sizes.temp_size_in_bytes
  memory += sizes.output_size_in_bytes - sizes.alias_size_in_bytes
  flops, moved = costs.get("flops", 0.0), costs.get("bytes accessed", 0.0)
  return Compiled(memory, flops, moved, collectives(done.as_text()), seconds)


def collectives(hlo: str) -> dict[str, tuple[int, int]]:
  """Counts the collectives of a compiled program, and the bytes that each device gets by them.

  Example:
    >>> collectives("%a = f32[2,3]{1,0} all-reduce(%b), to_apply=%add")
    {'all-reduce': (1, 24)}
  """
  found: dict[str, tuple[int, int]] = {}
  for text, kind, start in _COLLECTIVE.findall(hlo):
    sizes = [_bytes(*array) for array in _ARRAY.findall(text)]
    whole = start and kind != "all-reduce"  # a pair of operand and result
    count, total = found.get(kind, (0, 0))
    found[kind] = count + 1, total + (max(sizes, default=0) if whole else sum(sizes))
  return found


def _bytes(dtype: str, bits: str, shape: str) -> int:
  return math.ceil(int(bits or 8) / 8) * math.prod(map(int, filter(None, shape.split(","))))
