"""The steps of a run, compiled ahead of time: memory, FLOPs, collectives and an estimate.

  ctx = blank_context(config)
  records = [*compiled(ctx, programs(ctx), hardware.of_topology("v5e:4x4"))]

Stages are called as in a run, with zeros for images and artefacts, up to their first loop. `plan.py`
is of `--dry_run`, which compiles nothing.
"""

import dataclasses
import functools
import types
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import logging

from ltdd_jax.core import hardware
from ltdd_jax.core import mesh as mesh_lib
from ltdd_jax.core.types import LtddError, Teacher
from ltdd_jax.data import images as images_lib
from ltdd_jax.data.specs import SPECS, DatasetSpec, DataSource
from ltdd_jax.labels import encoding
from ltdd_jax.labels import sources as label_sources
from ltdd_jax.pipeline import check, continued, graph, stages
from ltdd_jax.pipeline.context import HARD, Context, Row
from ltdd_jax.report import tables
from ltdd_jax.teachers import statistics as statistics_lib
from ltdd_jax.teachers import train as teacher_training
from ltdd_jax.training import ahead, loop

KINDS = ("teacher", "statistics", "distil", "label", "probe", "student")
_TEST_IMAGES = 50  # of a class, of a data set that is not there


# ---- a run without images and artefacts ----


@dataclasses.dataclass(eq=False)
class BlankContext(Context):
  """A run in which images and artefacts are zeros that take no memory; shapes are true."""

  given: np.ndarray | None = None  # training images of each class, of a data set that is not there

  def open(self) -> DataSource:
    found = super().open() if self.given is None else _stand_in(self.config["data"], self.given)
    zero, shape = np.uint8(0), found.spec.image_shape
    read = lambda split, indices: np.broadcast_to(zero, (len(indices), *shape))
    return found._replace(read=read, stored=None)

  def teachers(self, names: Sequence[str] | None = None) -> tuple[Teacher, ...]:
    names = sorted(self.networks) if names is None else names
    return tuple(map(Teacher, names, map(self.networks.get, names), self.initial_teachers(names)))

  def initial_teachers(self, names: Sequence[str]) -> tuple[Any, ...]:
    return _blank(tuple(self.variable_shapes(self.networks[name]) for name in names))

  def statistics(self, names: Sequence[str]) -> tuple[statistics_lib.Statistics, ...]:
    return _blank(self.statistics_shapes(names))

  def trajectories(self, split: str | None) -> np.ndarray:
    return _blank(self.trajectory_shapes())

  def classifiers(self, split: str | None) -> np.ndarray:
    return _blank(self.classifier_shapes())

  def distilled(self, images: str) -> Mapping[str, np.ndarray]:
    labels, dtype = self.slots(images).labels, self.config["distil"]["dtype"]
    shape = len(labels), *self.source.spec.image_shape
    file = self.file(images)
    found = file.arrays["images"].dtype if file else self.method(images).dtype
    pixels = jax.ShapeDtypeStruct(shape, dtype or found)
    return {"images": _blank(pixels), "labels": labels, "student_lr": np.float32(0.1)}

  def store(self, row: Row) -> Any:
    made, config = self.label_source(row.labels), self.config["label"]
    stored, epochs = encoding.Encoding("float32"), 1
    if made.kind == "teacher":
      stored, epochs = encoding.from_config(config), config["num_epochs"]
    n, k = len(self.slots(row.images).labels), self.source.spec.num_classes
    layout = stored.layout(k).items()
    read = lambda: _blank({x: jax.ShapeDtypeStruct((epochs, n, m), d) for x, (m, d) in layout})
    return types.SimpleNamespace(encoding=stored, shape=(epochs, n, k), read=read)


def _blank(tree: Any) -> Any:
  return jax.tree.map(check.blank, tree)


def blank_context(config: Any, counts: np.ndarray | None = None) -> BlankContext:
  """Checks a config; `counts` (k,) are in the place of a training set that is not there."""
  config = check.check(config)
  if counts is not None:
    counts = np.asarray(counts)
    if counts.ndim != 1 or counts.dtype.kind not in "iu" or counts.min(initial=1) < 1:
      raise LtddError(
        f"counts are {counts.dtype} of shape {counts.shape}, the least {counts.min(initial=1)}; "
        "expected whole numbers (k,) above 0, the training images of each class"
      )
    rule = {"rule": "as_is", "imbalance_factor": 1, "counts": None}
    config = config | {"data": config["data"] | rule}
  return BlankContext(config, given=counts)


def _stand_in(data: Mapping[str, Any], counts: np.ndarray) -> DataSource:
  """A data set of these sizes; what is known of the one in its place is taken over."""
  k, known = len(counts), SPECS.get(data["name"].split(":")[0])
  size = images_lib.image_shape(data["image_size"]) or (known and known.image_shape[:2])
  if size is None:
    raise LtddError(
      f"config.data.image_size is None, and of data source {data['name']!r} there are class counts "
      "alone; expected a side or (height, width), such as --config.data.image_size=224"
    )
  mean = data["mean"] or (known.mean if known else (0.5,) * 3)
  std = data["std"] or (known.std if known else (0.5,) * 3)
  train, test = np.repeat(np.arange(k), counts), np.repeat(np.arange(k), _TEST_IMAGES)
  names = tuple(map(str, range(k)))
  spec = DatasetSpec(
    data["name"], k, (*size, len(mean)), tuple(mean), tuple(std), len(train), len(test), names
  )
  return DataSource(
    spec, train.astype(np.int32), test.astype(np.int32), lambda split, indices: indices, names
  )


# ---- the programs of its stages ----


class Program(NamedTuple):
  """A loop of a run, or all that are alike."""

  name: str
  where: str  # the key of the config that has the size of a batch
  batch: int
  call: Callable[[loop.Session], Any]  # the stage, up to the loop
  total: Callable[[ahead.Loop], int]  # steps of all such loops


class Record(NamedTuple):
  """One step of a program."""

  name: str
  steps: int  # in the whole run
  step: ahead.Compiled
  seconds: float  # of a step: the compiler's, or by FLOPs

  @property
  def total(self) -> float:
    """Seconds of all steps."""
    return self.steps * self.seconds


def programs(ctx: Context, kinds: Collection[str] = KINDS) -> list[Program]:
  """Lists the programs of a run's stages, of these kinds."""
  found = []
  for stage in graph.make_stages(ctx):
    if stage.kind in kinds and stage.kind in KINDS:
      found += globals()[f"_{stage.kind}"](ctx, stage)
  return found


def _at_once(found: ahead.Loop) -> int:
  """Networks in a loop of `many.train`."""
  return jax.tree.leaves(found.arguments[0])[0].shape[0]


def _teacher(ctx: Context, stage: graph.Stage) -> Iterator[Program]:
  config = ctx.config["teacher"]
  for split, own in ctx.by_split(ctx.networks).items():
    size = min(config["batch_size"], len(ctx.split(split).labels))
    for names in teacher_training.alike({name: ctx.networks[name] for name in own}):
      part = config | {"models": {name: config["models"][name] for name in names}}
      alone = dataclasses.replace(ctx, config=ctx.config | {"teacher": part})
      call = functools.partial(stages.teacher_stage, alone)
      total = lambda x, names=names: x.num_steps * len(names) // _at_once(x)
      yield Program(f"teacher/{'+'.join(names)}", "config.teacher.batch_size", size, call, total)


def _statistics(ctx: Context, stage: graph.Stage) -> Iterator[Program]:
  networks = {name: ctx.networks[name] for name in stage.about["names"]}
  where, size = "config.statistics.batch_size", ctx.config["statistics"]["batch_size"]
  for names in teacher_training.alike(networks):
    call = functools.partial(stages.statistics_stage, ctx, names=names[:1])
    total = lambda x, names=names: x.num_steps * len(names)
    yield Program(f"statistics/{'+'.join(names)}", where, size, call, total)


def _distil(ctx: Context, stage: graph.Stage) -> Iterator[Program]:
  images = stage.about["images"]
  method, n = ctx.method(images), len(continued.new_slots(ctx, images).labels)
  if not method.num_steps:
    return
  where, size = "config.distil.images_per_class", n
  if method.batching == "batches" and ctx.config["distil"]["batch_size"]:
    where, size = "config.distil.batch_size", min(n, ctx.config["distil"]["batch_size"])
  yield Program(
    stage.name, where, size, functools.partial(stages.distil_stage, ctx, images=images),
    lambda x: x.num_steps * -(-n // size),
  )  # fmt: skip


def _label(ctx: Context, stage: graph.Stage) -> Iterator[Program]:
  row, config = stage.about["row"], ctx.config["label"]
  if ctx.label_source(row.labels).kind != "teacher":
    return
  n = config["num_epochs"] * len(ctx.slots(row.images).labels)
  size = min(config["batch_size"], n)
  yield Program(
    stage.name, "config.label.batch_size", size,
    functools.partial(stages.label_stage, ctx, row=row), lambda x: -(-n // size),
  )  # fmt: skip


def _student(ctx: Context, stage: graph.Stage) -> Iterator[Program]:
  row = stage.about["row"]
  rows = [r for r in graph.rows(ctx.config, row.images) if r.labels == row.labels]
  if row == rows[0]:  # calibrators differ in little
    others = f" and {len(rows) - 1} more" if len(rows) > 1 else ""
    yield _trained(ctx, stage.name + others, row, len(rows))


def _probe(ctx: Context, stage: graph.Stage) -> Iterator[Program]:
  one = ctx.config["student"] | {"num_seeds": 1, "evaluations": 1}
  alone = dataclasses.replace(ctx, config=ctx.config | {"student": one})
  yield _trained(alone, stage.name, stage.about["row"], 1)


def _trained(ctx: Context, name: str, row: Row, count: int) -> Program:
  config = ctx.config["student"]
  size = min(config["batch_size"], len(ctx.slots(row.images).labels))

  def call(session: loop.Session) -> None:
    supervision = label_sources.Supervision()
    if row.labels != HARD:
      calibrator, log_prior = ctx.calibrator(row), ctx.log_prior(row)
      params = _blank(jax.eval_shape(calibrator.init, log_prior))
      supervision = stages.calibrated(ctx, row, calibrator, params)
    stages.train_row(ctx, session, row, supervision)

  total = lambda x: x.num_steps * count * config["num_seeds"] // _at_once(x)
  return Program(name, "config.student.batch_size", size, call, total)


# ---- what they take ----


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
  known: dict[Any, ahead.Compiled] = {}
  for program in programs:
    with mesh_lib.shapes_alone():
      found = ahead.loop_of(program.call, target.mesh)
      turns, total = len(found.step_fns), program.total(found)
      for turn, step_fn in enumerate(found.step_fns):
        step = ahead.compile_step(step_fn, found.arguments, known)
        seconds = max(step.seconds or 0, step.flops / target.flops)
        if step.seconds is None:
          seconds /= hardware.SHARE
        name = program.name + (f", turn {turn}" if turns > 1 else "")
        logging.info("%s, %s: compiled in %.1f s", target.name, name, step.compile_seconds)
        yield Record(name, (total + turns - 1 - turn) // turns, step, seconds)


# ---- tables ----


def table(records: Sequence[Record], target: hardware.Target) -> str:
  """A line for each step, and what the whole run takes at least."""
  header = (
    "step", "times", "GiB", "arguments", "temporaries", "outputs", "memory", "GFLOP", "ms",
    "collectives", "compiled in",
  )  # fmt: skip
  rows = [_row(record, target) for record in records]
  known = [r for r in records if r.step.fits]
  seconds, compiling = (
    sum(r.total for r in known),
    sum(step.compile_seconds for step in {id(r.step): r.step for r in records}.values()),
  )
  by = (
    "the compiler's model"
    if any(r.step.seconds for r in known)
    else (f"FLOPs at {hardware.SHARE:g} of the peak")
  )
  lost = f", without {len(records) - len(known)} that do not fit" * (len(known) < len(records))
  return tables.table(header, rows) + (
    f"\nThe whole run{lost}: {_time(seconds)} or more by {by}. Not in it: input, evaluations, the "
    f"start of each stage, and all stages but {', '.join(KINDS)}. Compiling took {compiling:.0f} s."
  )


def scaling_table(programs: Sequence[Program], targets: Sequence[hardware.Target]) -> str:
  """Memory per device, collectives of a step and time of all steps, by the size of the slice."""
  found = [[*compiled(programs, target)] for target in targets]
  cells = {
    "GiB per device": lambda r: _gib(r.step.memory) + (" > memory" * (not r.step.fits)),
    "collectives in a step": lambda r: str(sum(n for n, _ in r.step.collectives.values())),
    "time of all steps": lambda r: _time(r.total) if r.step.fits else "-",
  }
  out = []
  for title, cell in cells.items():
    rows = [[records[0].name, *map(cell, records)] for records in zip(*found, strict=True)]
    if title.startswith("time"):
      rows.append(["in all", *(_time(sum(r.total for r in records)) for records in found)])
    out.append(tables.table([title, *(target.name for target in targets)], rows))
  return "\n\n".join(out)


def _row(record: Record, target: hardware.Target) -> list[str]:
  step = record.step
  share = f"{step.memory / target.memory:.0%}" if step.fits else "does not fit"
  sizes = [_gib(x) for x in (step.memory, step.arguments, step.temporaries, step.outputs)]
  several = [f"{n} {kind} {size / 1e6:.3g} MB" for kind, (n, size) in step.collectives.items()]
  return [
    record.name, f"{record.steps:,}", *sizes, share, f"{step.flops / 1e9:.3g}",
    f"{record.seconds * 1e3:.3g}", ", ".join(several) or "none", f"{step.compile_seconds:.1f} s",
  ]  # fmt: skip


def _gib(size: float) -> str:
  return f"{size / 2**30:.3f}"


def _time(seconds: float) -> str:
  return f"{seconds:.3g} s" if seconds < 120 else f"{seconds / 60:,.1f} min"
