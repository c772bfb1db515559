"""Plots of classes, from head to tail: how many images they have, and matrices of them.

class_counts(results)                                        # the long tail
heat_maps({"plain": before, "adsa": after}, results)         # of `pipeline.matrices`
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from ltdd_jax.report import plots

_NAMED = 20  # classes whose names fit beside a matrix


def class_counts(results: Mapping[str, Any], *, width: float = plots.PAGE) -> Any:
  """Draws the training images of each class, on a logarithmic axis."""
  counts = np.sort(np.asarray(results["split"]["counts"]))[::-1]
  groups = plots.bins(results)
  figure = plots.new_figure(width, 2.2)
  axis = figure.subplots()
  ends = np.cumsum([0, *map(len, groups.members)])  # of bins, which bands are drawn in
  at = np.interp(np.arange(len(counts)) + 0.5, ends, np.arange(len(ends))) - 0.5
  top = counts.max() * 1.6
  plots.draw_bands(axis, groups, top)
  if len(counts) <= plots.MAX_BARS:
    axis.bar(at, counts, 0.84, color="#56b4e9")
    axis.set_xticks(at, [name.split("\n")[0] for name in groups.names], fontsize=8)
    long = sum(len(name) for name in groups.names) > 130
    axis.tick_params("x", rotation=45 if long else 0)
    axis.set_xlabel("class")
  else:
    axis.fill_between(at, counts, step="mid", color="#56b4e9")
    axis.set_xticks([at[0], at[-1]], ["1", f"{len(counts):,}"])
    axis.set_xlabel("class, by its number of training images")
  axis.set_yscale("log")
  axis.set_ylim(min(1, counts[counts > 0].min()) * 0.8, top)
  axis.set_ylabel("training images")
  axis.spines[["top", "right"]].set_visible(False)
  return figure


def heat_maps(
  panels: Mapping[str, np.ndarray],
  results: Mapping[str, Any],
  *,
  rows: str,
  columns: str,
  width: float = plots.PAGE,
) -> Any:
  """Draws matrices (b, b) of classes beside each other, up to four in a line, on one scale.

  Args:
    panels: {title: matrix}, classes sorted from head to tail; values from 0 to 1.
    results: of the run, for the names of classes.
    rows: what a row is.
    columns: what a column is.
    width: inches.
  """
  across = min(4, len(panels))
  down = -(-len(panels) // across)
  side = width / across
  figure = plots.new_figure(width, 0.5 + down * side)
  axes = figure.subplots(down, across, squeeze=False)
  names = [name.split("\n")[0] for name in plots.bins(results).names]
  top = max(float(np.nanmax(matrix, initial=0)) for matrix in panels.values()) or 1.0
  for axis, (title, matrix) in zip(axes.flat, panels.items(), strict=False):
    picture = axis.imshow(
      matrix, cmap="viridis", vmin=0, vmax=top, interpolation="nearest", aspect="equal"
    )
    axis.set_title(title, fontsize=8)
    axis.set_xticks([])
    axis.set_yticks([])
  for axis in axes.flat[len(panels) :]:
    axis.set_axis_off()
  for axis in axes[:, 0]:
    axis.set_ylabel(rows, fontsize=7)
    if len(names) == len(results["class_names"]) <= _NAMED:
      axis.set_yticks(range(len(names)), names, fontsize=6)
  for axis in axes.flat[max(0, len(panels) - across) : len(panels)]:
    axis.set_xlabel(columns, fontsize=7)
  bar = figure.colorbar(picture, ax=axes, shrink=0.6, pad=0.02)
  bar.ax.tick_params(labelsize=7)
  return figure
