"""Students of several architectures on the same images and labels: one run for each network.

`workdir/<network>` is an ordinary work directory. The runs share all but their students through the
cache: images and labels are made once. Batch orders, views and seeds are the same for all networks.
"""

from collections.abc import Mapping
from typing import Any

from ltdd_jax import models
from ltdd_jax.core.types import LtddError
from ltdd_jax.data import longtail
from ltdd_jax.pipeline import check, graph, plan
from ltdd_jax.pipeline import results as results_lib
from ltdd_jax.pipeline.context import Context
from ltdd_jax.report import tables
from ltdd_jax.students import recipes
from ltdd_jax.students.recipes import changes
from ltdd_jax.studies import runs


def run(
  config: Mapping[str, Any], runner: runs.Runner, *, networks: Mapping[str, Any]
) -> dict[str, Any] | None:
  """Runs the study.

  Args:
    config: of a run.
    runner: runs it.
    networks: {name: {name, **kwargs} of `models.make_model`}; the table's columns, alphabetically.

  Returns:
    The contents of `report/networks.json`, or None after a dry run.
  """
  if not networks:
    raise LtddError("config.study.networks is empty; expected at least one, {name: {'name': ...}}")
  runs.check_names("config.study.networks", networks)
  config = check.check(config)
  parts = {name: with_network(config, model) for name, model in sorted(networks.items())}
  for part in parts.values():  # all of them, before the first is trained
    check.check_with_data(Context(part))
  for name, part in parts.items():
    runner(name, part)
  if runner.dry_run:
    return None
  results = collect({name: runner.context(name, part) for name, part in parts.items()})
  runner.write_report("networks", results, render(results))
  return results


def with_network(config: Mapping[str, Any], model: Mapping[str, Any]) -> dict[str, Any]:
  """The config of a run with another student.

  Values that the run has from its recipe, and that the recipe gives another network otherwise, as
  RDED's its learning rate, become those of the other network.
  """
  trained = dict(config["student"])
  if trained["recipe"] is not None:
    both = trained["model"], dict(model)
    old, new = ({"model": m} | _recipe(config, m)["student"] for m in both)
    changed = {k: new[k] for k in new if old[k] != new[k] and trained[k] == old[k]}
    return {**config, "student": trained | {"model": dict(model)} | changed}
  return {**config, "student": trained | {"model": dict(model)}}


def _recipe(config: Mapping[str, Any], model: Mapping[str, Any]) -> recipes.Settings:
  ctx = Context(dict(config))
  return recipes.resolve(
    config["student"]["recipe"],
    dataset=config["data"]["name"],
    ipc=len(ctx.slots().labels) / len(ctx.counts),
    model=model,
  )


def collect(contexts: Mapping[str, Context]) -> dict[str, Any]:
  """Gathers the scores of all runs into plain values."""
  ctx = next(iter(contexts.values()))
  groups = longtail.groups(ctx.counts, ctx.config["report"]["groups"])
  rows = []
  for row in graph.rows(ctx.config):
    by_network = {name: results_lib.student_row(c, row, groups) for name, c in contexts.items()}
    first = next(iter(by_network.values()))
    rows.append({"images": row.images, "labels": tables.short(first), "networks": by_network})
  results = {
    "dataset": ctx.source.spec.name,
    "imbalance_factor": ctx.split().imbalance_factor,
    "groups": groups,
    "networks": {name: _about(c) for name, c in contexts.items()},
    "rows": rows,
  }
  return runs.jsonable(results)


def _about(ctx: Context) -> dict[str, Any]:
  spec, trained = ctx.source.spec, ctx.config["student"]
  model = models.make_model(
    num_classes=spec.num_classes, image_shape=spec.image_shape, **trained["model"]
  )
  return {
    "model": trained["model"],
    "parameters": plan.parameters(ctx, model),
    "recipe": changes.sentence_of(ctx.config, len(ctx.slots().labels), spec.num_classes),
    "seeds": trained["num_seeds"],
  }


# ---- the report ----


def render(results: Mapping[str, Any]) -> str:
  """The report as Markdown."""
  parts = [
    f"# {results['dataset']}: students of {len(results['networks'])} networks",
    f"Imbalance factor {results['imbalance_factor']:g}. Accuracies in percent of the balanced test "
    "set, of the last step; ± is the standard deviation over seeds. Images and labels are the same "
    "for all networks, but for labels of `adsa_probe`, which asks a student of the same network.",
    "## Top-1",
    scores_table(results, lambda row: row["top1"]),
    *(part for group in tables.GROUPS for part in _group(results, group)),
    "## Networks",
    networks_table(results),
  ]
  return "\n\n".join(parts) + "\n"


def _group(results: Mapping[str, Any], group: str) -> list[str]:
  """The table of head, mid or tail, if it has classes."""
  if group not in results["groups"] or not results["groups"][group]:
    return []
  return [f"## {group.capitalize()}", scores_table(results, lambda row: row["groups"].get(group))]


def scores_table(results: Mapping[str, Any], score: Any) -> str:
  """A line for each image source and kind of label, a column for each network."""
  cell = lambda value: "-" if value is None else tables.plus_minus(value)
  rows = []
  for r in results["rows"]:
    of_networks = [*r["networks"].values()]
    sizes = tables.size_cells(of_networks[0])
    rows.append([r["images"], r["labels"], *(cell(score(x)) for x in of_networks), *sizes])
  return tables.table(["images", "labels", *results["networks"], *tables.SIZES], rows)


def networks_table(results: Mapping[str, Any]) -> str:
  """What each network is."""
  rows = [
    [
      name,
      f"{about['model']['name']}({', '.join(_arguments(about['model']))})",
      f"{about['parameters']:,}",
      about["recipe"] or "-",
      str(about["seeds"]),
    ]
    for name, about in results["networks"].items()
  ]
  return tables.table(["network", "model", "parameters", "recipe", "seeds"], rows)


def _arguments(model: Mapping[str, Any]) -> list[str]:
  return [f"{k}={v}" for k, v in model.items() if k != "name"]
