"""The programs of a run's stages: each loop, or all loops that are alike, with its stage's call."""

import dataclasses
import functools
from collections.abc import Callable, Collection, Iterator
from typing import Any, NamedTuple

import jax

from ltdd_jax.core.types import LtddError
from ltdd_jax.data import feed
from ltdd_jax.labels import sources as label_sources
from ltdd_jax.pipeline import continued, graph, stages
from ltdd_jax.pipeline.check import blank
from ltdd_jax.pipeline.context import HARD, Context, Row
from ltdd_jax.teachers import train as teacher_training
from ltdd_jax.training import ahead, loop


class Program(NamedTuple):
  """A loop of a run, or all that are alike."""

  name: str
  where: str  # the key of the config that has the size of a batch
  batch: int
  call: Callable[[loop.Session], Any]  # the stage, up to the loop
  total: Callable[[ahead.Loop], int]  # steps of all such loops


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


def _trajectories(ctx: Context, stage: graph.Stage) -> Iterator[Program]:
  """The experts; their classifiers' steps, where there are any, are smaller and few."""
  config, splits = ctx.config["trajectories"], stage.about["splits"]
  few = {"num_experts": min(config["at_once"], config["num_experts"]), "num_epochs": 1}
  alone = dataclasses.replace(ctx, config=ctx.config | {"trajectories": config | few})
  size, sizes = config["batch_size"], [len(ctx.split(split).labels) for split in splits]
  steps = sum(feed.num_steps(n, size, num_epochs=config["num_epochs"]) for n in sizes)
  yield Program(
    stage.name, "config.trajectories.batch_size", min(size, sizes[0]),
    functools.partial(stages.trajectories_stage, alone, splits=splits[:1]),
    lambda x: steps * -(-config["num_experts"] // _at_once(x)),
  )  # fmt: skip


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
  if ctx.folder_logits(row.labels):
    raise LtddError(
      f"{name}: its labels are logits of views from a folder, whose records are not there before "
      "the run; expected labels by teachers. Leave the stage out with --stages, or plan with the "
      "label source 'teacher'"
    )

  def call(session: loop.Session) -> None:
    supervision = label_sources.Supervision()
    if row.labels != HARD:
      calibrator, log_prior = ctx.calibrator(row), ctx.log_prior(row)
      params = blank(jax.eval_shape(calibrator.init, log_prior))
      supervision = stages.calibrated(ctx, row, calibrator, params)
    stages.train_row(ctx, session, row, supervision)

  total = lambda x: x.num_steps * count * config["num_seeds"] // _at_once(x)
  return Program(name, "config.student.batch_size", size, call, total)


_OF_KIND = {
  "teacher": _teacher,
  "statistics": _statistics,
  "trajectories": _trajectories,
  "distil": _distil,
  "label": _label,
  "probe": _probe,
  "student": _student,
}
KINDS = tuple(_OF_KIND)


def of_run(ctx: Context, kinds: Collection[str] = KINDS) -> list[Program]:
  """Lists the programs of a run's stages, of these kinds."""
  wanted = [stage for stage in graph.make_stages(ctx) if stage.kind in {*kinds} & {*KINDS}]
  return [program for stage in wanted for program in _OF_KIND[stage.kind](ctx, stage)]
