"""Plots of runs: the objective of a calibration, training curves, accuracy against a cost.

objectives(results)
training_curves({"student/edc/hard/seed0": (steps, losses)})
trade_off(rows, "label bytes")
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ltdd_jax.core.types import LtddError
from ltdd_jax.report import plots, tables

_MARKERS = "osD^vP*X"


def objectives(results: Mapping[str, Any], *, width: float = plots.PAGE) -> Any:
  """Draws the objective of each fitted calibration along tau, with its choice and its interval.

  Raises:
    LtddError: no row has a curve.
  """
  fitted = [row for row in results["rows"] if row.get("calibration", {}).get("curve")]
  if not fitted:
    raise LtddError(
      "no row of the results has an objective over tau; add {'name': 'adsa'} to "
      "config.calibrate.calibrators"
    )
  across = min(2, len(fitted))
  down = -(-len(fitted) // across)
  figure = plots.new_figure(width, 2.4 * down)
  axes = figure.subplots(down, across, squeeze=False)
  for axis, row in zip(axes.flat, fitted, strict=False):
    plots.draw_objective(axis, row["calibration"])
    axis.set_title(f"{row['images']} / {tables.short(row)}", fontsize=8, loc="left")
    axis.tick_params(labelsize=7)
    axis.xaxis.label.set_size(8)
    axis.yaxis.label.set_size(8)
  for axis in axes.flat[len(fitted) :]:
    axis.set_axis_off()
  return figure


def training_curves(
  curves: Mapping[str, tuple[Sequence[int], Sequence[float]]], *, width: float = plots.PAGE
) -> Any:
  """Draws losses {name: (steps, losses)} of training loops, on a logarithmic axis if positive."""
  figure = plots.new_figure(width, 2.8)
  axis = figure.subplots()
  for (name, (steps, losses)), i in zip(curves.items(), range(len(curves)), strict=True):
    colour = plots.PALETTE[i % len(plots.PALETTE)]
    style = ("-", "--", ":", "-.")[i // len(plots.PALETTE) % 4]
    axis.plot(steps, losses, style, color=colour, linewidth=1.2, label=name)
  if all(np.min(losses) > 0 for _, losses in curves.values()):
    axis.set_yscale("log")
  axis.set_xlabel("step")
  axis.set_ylabel("loss")
  axis.spines[["top", "right"]].set_visible(False)
  axis.legend(fontsize=7, frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
  return figure


def trade_off(
  points: Sequence[tuple[str, float, float, float | None]],
  xlabel: str,
  *,
  width: float = plots.PAGE,
) -> Any:
  """Draws accuracy against a cost.

  Args:
    points: (series, cost, accuracy in percent, its standard deviation or None).
    xlabel: what the cost is; the axis is logarithmic where costs are positive and differ tenfold.
    width: inches.
  """
  figure = plots.new_figure(width, 3.0)
  axis = figure.subplots()
  for i, series in enumerate(dict.fromkeys(name for name, *_ in points)):
    own = sorted((p[1:] for p in points if p[0] == series), key=lambda p: p[:2])  # std may be None
    x, y, std = zip(*own, strict=True)
    axis.errorbar(
      x, y, [s or 0.0 for s in std], label=series, capsize=2, markersize=4, linewidth=1,
      color=plots.PALETTE[i % len(plots.PALETTE)], marker=_MARKERS[i % len(_MARKERS)],
    )  # fmt: skip
  costs = [point[1] for point in points]
  if min(costs) > 0 and max(costs) >= 10 * min(costs):
    axis.set_xscale("log")
  axis.set_xlabel(xlabel)
  axis.set_ylabel("top-1, %")
  axis.spines[["top", "right"]].set_visible(False)
  axis.legend(fontsize=7, frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
  return figure
