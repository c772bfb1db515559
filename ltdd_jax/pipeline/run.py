"""The whole run, from data to report, in stages of which some are there for some methods alone:

    data teacher (statistics) (trajectories) distil label (probe) calibrate student report

Read this file first. `graph.py` lists the stages that a config needs, and `stages.py` says what
each computes. Each stage writes one artefact under `workdir/<stage>/`; a stage whose
artefact is there, made with the same config from the same inputs, is skipped.
"""

import datetime
import json
import time
from typing import Any

from absl import logging

from ltdd_jax.artefacts import checkpoint
from ltdd_jax.artefacts import workdir as workdir_lib
from ltdd_jax.core import config as config_lib
from ltdd_jax.core import files
from ltdd_jax.core import mesh as mesh_lib
from ltdd_jax.core import progress as progress_lib
from ltdd_jax.core.registry import check_at_least
from ltdd_jax.core.types import LtddError
from ltdd_jax.pipeline import check, graph, results
from ltdd_jax.pipeline.context import Context
from ltdd_jax.pipeline.graph import Stage
from ltdd_jax.pipeline.stages import KINDS
from ltdd_jax.training import loop


def run(
  config: Any,
  workdir: files.Pathlike,
  *,
  cache: files.Pathlike | None = None,
  stage: str | None = None,
  dry_run: bool = False,
  checkpoint_seconds: float = 30.0,
  show_progress: bool = True,
  defaults: Any = None,
) -> dict[str, Any] | None:
  """Runs a config in a work directory, from where an earlier run with it stopped.

  Args:
    config: an `ml_collections.ConfigDict` or a dict; see `configs/`.
    workdir: folder of the artefacts; made if it is not there.
    cache: folder of artefacts that several work directories share, by fingerprint.
    stage: run up to this stage ("distil"), or only it ("only:distil"); None for all.
    dry_run: print the plan and do nothing.
    checkpoint_seconds: least time between two checkpoints of work in progress.
    show_progress: whether to show bars.
    defaults: a config, or None; the HTML report lists the values that differ from it.

  Returns:
    The results as written to `report/results.json`, or None if the report was not reached.

  Raises:
    LtddError: anything wrong with the config, the data or the work directory.
    checkpoint.Interrupted: a signal asked to stop; the work is saved.
  """
  check_at_least("", 0, checkpoint_seconds=checkpoint_seconds)
  changed = None if defaults is None else config_lib.diff(defaults, config)
  config, kinds = check.check(config), selected(stage)
  ctx, work = Context(config), workdir_lib.Workdir(workdir, cache=cache)
  far = [x for x in (work.path, work.cache) if x is not None and not files.is_local(x)]
  with files.explained("run", folder=(far or [work.path])[0], errors=()):
    return _run(
      ctx, work, kinds, changed, dry_run,
      checkpoint_seconds=checkpoint_seconds, show_progress=show_progress,
    )  # fmt: skip


def _run(
  ctx: Context,
  work: workdir_lib.Workdir,
  kinds: tuple[str, ...],
  changed: dict[str, Any] | None,
  dry_run: bool,
  **options: Any,
) -> dict[str, Any] | None:
  """Plans or runs the stages of these kinds."""
  config = ctx.config
  no_place = config | {"data": config["data"] | {"data_dir": None}}
  mesh_lib.check_same("a config", json.dumps(config_lib.canonical(no_place)))
  stages = graph.make_stages(ctx)
  mesh_lib.check_same("data", repr([s.fingerprint for s in stages]))
  read = [s for s in stages if KINDS.index(s.kind) <= KINDS.index(kinds[-1])]
  work.check((s.name, s.config, s.inputs) for s in read)
  status = {s.name: work.status(s.name, s.config, s.inputs) for s in read}
  todo = [s for s in read if s.kind in kinds]
  check.check_with_data(ctx, [s.name for s in todo if status[s.name] == "missing"])
  if dry_run:
    for s in todo:
      print(f"{s.name:<28} {status[s.name]:<8} {s.plan(ctx)}")
    return None
  with work, checkpoint.interruptible():
    ctx.workdir = work
    for s in read:  # brings from the cache also what `only:` reads and does not run
      work.status(s.name, s.config, s.inputs)
    work.write_run_info(config, changed)
    skipped = {}
    for s in todo:
      skipped[s.name] = run_stage(s, ctx, **options)
      (stopping,) = mesh_lib.any_process(checkpoint.stop_requested())
      if stopping:
        raise checkpoint.Interrupted(f"stopped after {s.name}")
    if "report" not in kinds:
      return None
    return results.write_report(ctx, stages, skipped)


def selected(stage: str | None) -> tuple[str, ...]:
  """Kinds of stages that `--stage` asks for."""
  if stage is None:
    return KINDS
  only, _, name = stage.rpartition(":")
  if name not in KINDS or only not in ("", "only"):
    hint = config_lib.suggest(name, KINDS)
    raise LtddError(
      f"--stage is {stage!r}; expected one of {', '.join(KINDS)} (run up to and including it), or "
      f"'only:' before one of them (run it alone, from artefacts that are there). {hint}".rstrip()
    )
  return (name,) if only else KINDS[: KINDS.index(name) + 1]


def run_stage(s: Stage, ctx: Context, *, checkpoint_seconds: float, show_progress: bool) -> bool:
  """Runs one stage, or skips it if its artefact is ready; returns whether it was skipped."""
  if skipped := _is_ready(s, ctx.workdir):
    return skipped
  with ctx.workdir.making(s.name, s.config, s.inputs):
    if not (skipped := _is_ready(s, ctx.workdir)):  # another run may have made it meanwhile
      _make(s, ctx, checkpoint_seconds=checkpoint_seconds, show_progress=show_progress)
  return skipped


def _is_ready(s: Stage, work: workdir_lib.Workdir) -> bool:
  if ready := work.status(s.name, s.config, s.inputs) == "ready":
    logging.info("%s: ready, skipped", s.name)
  return ready


def _make(s: Stage, ctx: Context, *, checkpoint_seconds: float, show_progress: bool) -> None:
  """Makes the artefact of a stage."""
  work = ctx.workdir
  for name in s.inputs:
    if not work.exists(name):
      raise LtddError(f"stage {s.name} reads {name}, which is missing; run --stage={s.kind} first")
  scratch = work.scratch(s.name, s.config, s.inputs)
  resumed = scratch.is_dir() and any(scratch.iterdir())  # an object store has no empty folders
  session = loop.Session(
    scratch=scratch,
    metrics=work.path / "metrics",
    checkpoint_seconds=checkpoint_seconds,
    show_progress=show_progress,
  )
  progress_lib.reset_peak()
  start = time.monotonic()
  product = s.build(ctx, session)
  seconds, peak = time.monotonic() - start, progress_lib.peak_bytes()
  notes = list(product.extra.get("notes", ()))
  if resumed:
    notes.append("resumed; its time and memory are those of the last process")
  work.commit(
    s.name,
    config=s.config,
    inputs=s.inputs,
    **product._replace(extra=product.extra | {"notes": notes})._asdict(),
    class_names=list(ctx.source.class_names),
    split_sha256=ctx.split().sha256,
    seconds=seconds,
    peak_bytes=peak,
  )
  took = datetime.timedelta(seconds=round(seconds))
  logging.info("%s: done in %s, peak memory %.2f GB", s.name, took, peak / 1e9)
