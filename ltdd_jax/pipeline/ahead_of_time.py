"""The steps of a run, compiled ahead of time: memory, FLOPs, collectives and an estimate.

  found = programs.of_run(blank.blank_context(config))
  print(table([*compiled(found, target)], target))     # target = hardware.of_topology("v5e:4x4")

Stages are called as in a run, with zeros for images and artefacts, up to their first loop. The
plan of `--dry_run`, in `plan.py`, compiles nothing.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from absl import logging

from ltdd_jax.core import hardware
from ltdd_jax.core import mesh as mesh_lib
from ltdd_jax.core.types import LtddError
from ltdd_jax.pipeline.programs import Program
from ltdd_jax.report import tables
from ltdd_jax.training import ahead


class Record(NamedTuple):
  """One step of a program."""

  name: str
  steps: int  # in the whole run
  step: ahead.Compiled
  by_flops: float  # seconds of a step, at a part of the peak
  by_bytes: float  # seconds of a step, by the bytes that its operations read and write

  @property
  def seconds(self) -> float:
    """The longer of both."""
    return max(self.by_flops, self.by_bytes)


def compiled(programs: Sequence[Program], target: hardware.Target) -> Iterator[Record]:
  """Compiles a step of each turn of each program; equal ones once.

  Raises:
    LtddError: a batch smaller than the number of devices.
  """
  devices = target.mesh.size
  for program in programs:
    if program.batch < devices:
      raise LtddError(
        f"{program.name}: a batch of {program.batch} images ({program.where}) on the {devices} "
        f"devices of {target.name}, of which some would have none; expected {devices} or more. "
        "Raise it, take fewer devices, or leave the stage out with --stages"
      )
  known: dict[str, ahead.Compiled] = {}
  for program in programs:
    with mesh_lib.shapes_alone():
      found = ahead.loop_of(program.call, target.mesh)
      turns, total = len(found.step_fns), program.total(found)
      for turn, step_fn in enumerate(found.step_fns):
        step = ahead.compile_step(step_fn, found.arguments, known)
        seconds = step.flops / target.flops / hardware.SHARE, step.moved / target.bandwidth
        name = program.name + (f", turn {turn}" if turns > 1 else "")
        logging.info("%s, %s: compiled in %.1f s", target.name, name, step.compile_seconds)
        yield Record(name, (total + turns - 1 - turn) // turns, step, *seconds)


def table(records: Sequence[Record], target: hardware.Target) -> str:
  """A line for each step, and what all take by FLOPs and by bytes."""
  header = (
    "step", "times", "GiB per device", "of its memory", "GFLOP per device", "ms by FLOPs",
    "ms by bytes", "collectives", "compiled in",
  )  # fmt: skip
  rows = [_row(record, target) for record in records]
  fit = [r for r in records if r.step.fits]
  lost = f", without {len(records) - len(fit)} that do not fit" * (len(fit) < len(records))
  compiling = sum({id(r.step): r.step.compile_seconds for r in records}.values())
  return tables.table(header, rows) + (
    f"\nIn all{lost}: {_time(sum(r.steps * r.by_flops for r in fit))} by FLOPs at "
    f"{hardware.SHARE:g} of the peak, {_time(sum(r.steps * r.by_bytes for r in fit))} by bytes, "
    "those within a chip too. Not in it: input, evaluations, the start of each stage, and stages "
    f"without a line. Compiling took {compiling:.0f} s."
  )


def scaling_table(programs: Sequence[Program], targets: Sequence[hardware.Target]) -> str:
  """Memory per device, collectives of a step and time of all steps, by the size of the slice."""
  found = [[*compiled(programs, target)] for target in targets]
  cells: dict[str, Callable[[Record], str]] = {
    "GiB per device": lambda r: _gib(r.step.memory) + (" > memory" * (not r.step.fits)),
    "collectives in a step": lambda r: str(sum(n for n, _ in r.step.collectives.values())),
    "all steps, by FLOPs": lambda r: _time(r.steps * r.by_flops) if r.step.fits else "-",
  }
  out = []
  for title, cell in cells.items():
    rows = [[records[0].name, *map(cell, records)] for records in zip(*found, strict=True)]
    out.append(tables.table([title, *(target.name for target in targets)], rows))
  return "\n\n".join(out)


def _row(record: Record, target: hardware.Target) -> list[str]:
  step = record.step
  share = f"{step.memory / target.memory:.0%}" if step.fits else "does not fit"
  several = [f"{n} {kind} {size / 1e6:.3g} MB" for kind, (n, size) in step.collectives.items()]
  return [
    record.name, f"{record.steps:,}", _gib(step.memory), share, f"{step.flops / 1e9:.3g}",
    f"{record.by_flops * 1e3:.3g}", f"{record.by_bytes * 1e3:.3g}", ", ".join(several) or "none",
    f"{step.compile_seconds:.1f} s",
  ]  # fmt: skip


def _gib(size: float) -> str:
  return f"{size / 2**30:.3f}"


def _time(seconds: float) -> str:
  return f"{seconds:.3g} s" if seconds < 120 else f"{seconds / 60:,.1f} min"
