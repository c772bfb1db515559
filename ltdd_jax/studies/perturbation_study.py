"""The perturbation study: images of two splits crossed with teachers of both, in one run.

The config (`configs/perturbation.py`) has the image sources `balanced` and `imbalanced`, each
distilled from its split by teachers of its split, and label sources of the same names, the teachers
of each. Views are drawn from the name of the image source and the seed, so that both teachers label
the same views of the same images, and students see the same views whoever labels them. The noise
that images start from differs between the sources, so that these are independent samples.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from ltdd_jax.core.types import LtddError
from ltdd_jax.labels import by_class
from ltdd_jax.pipeline import check, graph, stages
from ltdd_jax.pipeline.context import Context, Row
from ltdd_jax.studies import perturbation, perturbation_report, runs

SIDES = ("balanced", "imbalanced")  # of images and of teachers


def run(
  config: Mapping[str, Any], runner: runs.Runner, *, num_bootstrap: int = 2000
) -> dict[str, Any] | None:
  """Runs the study.

  Args:
    config: of a run.
    runner: runs it.
    num_bootstrap: bootstrap samples.

  Returns:
    The contents of `report/perturbation.json`, or None after a dry run.
  """
  config = check.check(config)
  perturbation.check_bootstrap("config.study.num_bootstrap", num_bootstrap)
  groups = {
    "distil.methods": config["distil"]["methods"],
    "label.sources": config["label"]["sources"],
  }
  for group, names in groups.items():
    if sorted(names) != sorted(SIDES):
      raise LtddError(
        f"config.{group} has {', '.join(names) or 'nothing'}; the perturbation study crosses "
        "'balanced' and 'imbalanced': see configs/perturbation.py"
      )
  plain, rows = runs.plain_name(config), graph.rows(config)
  for cell in (Row(images, teacher, plain) for images in SIDES for teacher in SIDES):
    if cell not in rows:
      raise LtddError(
        f"config.label.sources.{cell.labels} gives {cell.images} images no labels {plain!r}, which "
        "the study takes apart; expected plain soft labels of both teachers for both. Add "
        "{'name': 'none'} to config.calibrate.calibrators, and let both sources have it"
      )
  runner("", config)
  if runner.dry_run:
    return None
  results = collect(runner.context("", config), num_bootstrap)
  text = perturbation_report.render(results)
  runner.write_report("perturbation", results, text, perturbation_report.FIGURES)
  return results


def collect(ctx: Context, num_bootstrap: int) -> dict[str, Any]:
  """Gathers the analysis into plain values; students are in the report of the run."""
  rows, named = graph.rows(ctx.config), ctx.config["calibrate"]["calibrators"]
  own = [str(r.calibrator) for r in rows if r[:2] == ("imbalanced", "imbalanced")]
  splits = {"balanced": "balanced", "imbalanced": None}
  results = {
    "study": {"num_bootstrap": num_bootstrap},
    "dataset": ctx.source.spec.name,
    "class_names": list(ctx.source.class_names),
    "counts": {side: ctx.split(split).counts for side, split in splits.items()},
    "method": ctx.config["distil"]["methods"]["imbalanced"],
    "images": {side: len(ctx.distilled(side)["labels"]) for side in SIDES},
    "label_epochs": ctx.config["label"]["num_epochs"],
    "plain": runs.plain_name(ctx.config),
    "labels": {
      name: decomposition(ctx, name, num_bootstrap) | {"calibrator_name": named[name]["name"]}
      for name in own
    },
    "seconds": runs.seconds(ctx),
  }
  return runs.jsonable(results)


def decomposition(ctx: Context, calibrator: str, num_bootstrap: int) -> dict[str, Any]:
  """The analysis of one calibrator: plain labels where a side's teachers have no such one."""
  plain, rows = runs.plain_name(ctx.config), graph.rows(ctx.config)
  soft = {}
  for images in SIDES:
    for teacher in SIDES:
      row = Row(images, teacher, calibrator)
      row = row if row in rows else row._replace(calibrator=plain)
      soft[images[0] + teacher[0]] = by_class.mean_soft_labels(stages.label_chunks(ctx, row))
  classes = {f"labels_{side[0]}": np.asarray(ctx.distilled(side)["labels"]) for side in SIDES}
  found = perturbation.decompose(
    perturbation.Cells(**soft, **classes),
    ctx.source.spec.num_classes,
    num_bootstrap=num_bootstrap,
    seed=ctx.config["seed"],
  )
  taus = {}
  for side in SIDES:
    artefact = ctx.workdir.load(Row(side, "imbalanced", calibrator).stage("calibrate"))
    taus[side] = artefact.meta["extra"]["report"].get("tau")
  return found._asdict() | {"tau": taus}
