"""The report of the study of networks: from `report/networks.json` alone."""

from collections.abc import Mapping
from typing import Any

from ltdd_jax.report import tables


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
