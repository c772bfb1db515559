"""The perturbation study as runs: two of them, each labelling its own images and the other's.

`workdir/balanced` and `workdir/imbalanced` are ordinary work directories. Both have the image
sources `balanced` and `imbalanced`, named after the data that they were distilled from: one is the
run's own, the other is imported from the other run. Views are drawn from the name of the source and
the seed, so that the two teachers label the same views of the same images, and students of one
source see the same views whoever labels them. The noise that images start from differs between the
sources, so that these are independent samples.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath

from ltdd_jax.core.types import LtddError
from ltdd_jax.data import longtail
from ltdd_jax.interop import distilled_sets
from ltdd_jax.pipeline import check, stages
from ltdd_jax.report import tables
from ltdd_jax.studies import perturbation, perturbation_report, runs

SIDES = ("balanced", "imbalanced")  # of images and of teachers
SCHEMA = 1


def options(*, matched: bool = True, num_bootstrap: int = 2000) -> None:
  """Schema of `config.study`, beside its name.

  Args:
    matched: whether the balanced set has as many images as the imbalanced one in all (or fewer, by
      less than one a class, so that every class has the same number), and not all images of the
      source.
    num_bootstrap: bootstrap samples.
  """


def run(
  config: Mapping[str, Any], study: Mapping[str, Any], runner: runs.Runner
) -> dict[str, Any] | None:
  """Runs the study; see `analysis.run`. Returns the contents of `report/perturbation.json`."""
  config = check.check(config)
  perturbation.check_bootstrap("config.study.num_bootstrap", study["num_bootstrap"])
  alone = {side: side_config(config, side, study["matched"]) for side in SIDES}
  for side in SIDES:
    runner(side, alone[side], stage="distil")
  both = {side: crossed(alone[side], side, runner.workdir) for side in SIDES}
  if runner.dry_run:
    print("then each run labels the images of both, and trains students on them")
    return None
  for side in SIDES:
    runner(side, both[side])
  contexts = {side: runner.context(side, both[side]) for side in SIDES}
  results = collect(contexts, study)
  folder = runner.write_report("perturbation", results, perturbation_report.render(results))
  perturbation_report.write_plots(results, folder)
  return results


# ---- configs of the two runs ----


def side_config(config: Mapping[str, Any], side: str, matched: bool) -> dict[str, Any]:
  """The config of a run that distils its own images only.

  Calibrators that follow the prior (adsa, tau1, ...) are for the imbalanced teacher: for the
  uniform prior of the balanced one they are the identity. Hard labels need no teacher and are
  trained once, in the balanced run.
  """
  methods = config["distil"]["methods"]
  if len(methods) != 1 or any(distilled_sets.is_imported(m) for m in methods.values()):
    raise LtddError(
      f"config.distil.methods has {', '.join(methods) or 'nothing'}; the perturbation study "
      "crosses the images of one method: leave one entry, such as {'sre2l': {'name': 'sre2l'}}"
    )
  (method,) = methods.values()
  config = {**config, "distil": {**config["distil"], "methods": {side: dict(method)}}}
  if side == "imbalanced":
    return runs.with_plain(config | {"student": {**config["student"], "hard_labels": False}})
  return runs.without_prior(config | {"data": balanced_data(config, matched)})


def balanced_data(config: Mapping[str, Any], matched: bool) -> dict[str, Any]:
  """`config.data` of the balanced run."""
  if not matched:
    return {**config["data"], "rule": "ltdd", "imbalance_factor": 1.0, "counts": None}
  counts = stages.Context(config).counts
  each = int(counts.sum()) // len(counts)
  part = {"rule": "counts", "imbalance_factor": 1.0, "counts": (each,) * len(counts)}
  return {**config["data"], **part}


def crossed(config: Mapping[str, Any], side: str, workdir: epath.Path) -> dict[str, Any]:
  """The config of a run with the other's images beside its own."""
  (other,) = set(SIDES) - {side}
  there = {"name": distilled_sets.NAME, "path": str(workdir / other / "distil" / other)}
  methods = dict(config["distil"]["methods"]) | {other: there}
  return {**config, "distil": {**config["distil"], "methods": methods}}


# ---- results ----


def collect(contexts: Mapping[str, stages.Context], study: Mapping[str, Any]) -> dict[str, Any]:
  """Gathers the analysis and the students' scores of both runs into plain values."""
  ctx = contexts["imbalanced"]
  rule = ctx.config["report"]["groups"]
  groups = longtail.groups(ctx.counts, rule)
  plain = runs.plain_name(ctx.config)
  methods = contexts["balanced"].config["distil"]["methods"]
  labels = {
    regime: decomposition(contexts, regime, study["num_bootstrap"])
    for regime in stages.regimes(ctx.config)
  }
  results = {
    "schema": SCHEMA,
    "study": dict(study),
    "dataset": ctx.source.spec.name,
    "class_names": list(ctx.source.class_names),
    "counts": {side: contexts[side].counts for side in SIDES},
    "method": methods["balanced"],
    "images": {side: len(contexts["balanced"].images(side)[1]) for side in SIDES},
    "label_epochs": ctx.config["label"]["num_epochs"],
    "groups": groups,
    "group_rule": rule,
    "plain": plain,
    "teachers": [
      row | {"name": side} for side in SIDES for row in tables.teacher_rows(contexts[side], groups)
    ],
    "labels": labels,
    "students": [
      tables.student_row(contexts[side], images, regime, groups) | {"teacher": side}
      for images in SIDES
      for side in SIDES
      for regime in stages.regimes(contexts[side].config)
    ],
    "seconds": sum(map(runs.seconds, contexts.values())),
  }
  return runs.jsonable(results)


def decomposition(
  contexts: Mapping[str, stages.Context], regime: str, num_bootstrap: int
) -> dict[str, Any]:
  """The analysis of one kind of label: plain where the run of a teacher has no such calibrator."""
  plain = runs.plain_name(contexts["balanced"].config)
  of_side = {
    side: regime if regime in stages.regimes(ctx.config) else plain
    for side, ctx in contexts.items()
  }
  soft = {
    images[0] + teacher[0]: perturbation.mean_soft_labels(
      runs.label_chunks(contexts[teacher], images, of_side[teacher])
    )
    for images in SIDES
    for teacher in SIDES
  }
  classes = {f"labels_{s[0]}": np.asarray(contexts["balanced"].images(s)[1]) for s in SIDES}
  ctx = contexts["imbalanced"]
  found = perturbation.decompose(
    perturbation.Cells(**soft, **classes),
    ctx.source.spec.num_classes,
    num_bootstrap=num_bootstrap,
    seed=ctx.config["seed"],
  )
  taus = {
    s: ctx.workdir.load(f"calibrate/{s}/{regime}").meta["extra"]["report"].get("tau") for s in SIDES
  }
  return found._asdict() | {"tau": taus}
