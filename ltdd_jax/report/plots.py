"""Plots of the results of a run, from `results.json` alone: each function makes a figure.

  results = tables.read_results("runs/digits")
  save(confidences(results), "confidences.png")     # what ADSA does to the soft labels
  save(accuracies(results), "accuracies.png")       # what students make of them, class by class
  save(calibration(report, counts, (before, after)), "curve.png")    # one calibration, by itself

One panel for each image source, classes from head to tail. Widths are in inches: `COLUMN` and
`PAGE` for papers of two columns. `save` writes .png, .pdf and .svg. They need matplotlib, an
optional package (`pip install -e '.[report]'`), which is imported when a plot is drawn; pyplot and
its global state are not used.
"""

import importlib.util
import io
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath

from ltdd_jax.core import files
from ltdd_jax.core.types import LtddError
from ltdd_jax.data import longtail
from ltdd_jax.report import tables

COLUMN, PAGE = 3.4, 7.0  # inches
MAX_BARS = 20  # more classes than that are averaged in bins of neighbours

# Okabe and Ito's colours, which colour-blind readers can tell apart; by kind of label.
_COLOURS = {None: "#999999", "none": "#56b4e9", "fixed": "#e69f00", "adsa": "#009e73"}
_OTHERS = ("#cc79a7", "#0072b2", "#d55e00", "#000000")

PALETTE = ("#0072b2", "#009e73", "#d55e00", "#cc79a7", "#56b4e9", "#e69f00", "#000000", "#999999")
_BANDS = {"head": "#80808026", "mid": "#80808000", "tail": "#80808026"}
_METADATA = {".png": {"Software": None}, ".pdf": {"CreationDate": None}, ".svg": {"Date": None}}
_LONGEST = 24  # characters of a class name in a plot

Rows = Sequence[Mapping[str, Any]]


class Bins(NamedTuple):
  """Classes in the order of the plot, in bins of one class or of several neighbours."""

  members: tuple[np.ndarray, ...]
  names: tuple[str, ...]
  axis: str  # label of the axis
  bands: Mapping[str, tuple[float, float]] = {}  # head, mid, tail: where they begin and end

  def means(self, values: Any) -> np.ndarray:
    """Averages over each bin the values that are there, None or NaN where not; NaN where none."""
    numbers = np.asarray(values, np.float64)  # None becomes NaN
    parts = [numbers[m] for m in self.members]
    return np.array([np.mean(p[np.isfinite(p)]) if np.isfinite(p).any() else np.nan for p in parts])


class Series(NamedTuple):
  """One bar of each group."""

  name: str
  colour: str
  values: Sequence[float | None]  # (k,)
  low: Sequence[float | None] | None = None  # (k,) ends of its interval, drawn if classes are not
  high: Sequence[float | None] | None = None  # binned


def available() -> bool:
  """Whether matplotlib is installed; asks without importing it."""
  return importlib.util.find_spec("matplotlib") is not None


def write_plots(results: Mapping[str, Any], folder: epath.Path) -> None:
  """Writes the plots that a run has the numbers for; none if matplotlib is not installed."""
  if not available():
    return
  save(accuracies(results), folder / "accuracies.png")
  if any(map(has_confidences, results["rows"])):
    save(confidences(results), folder / "confidences.png")


def confidences(results: Mapping[str, Any], *, width: float | None = None) -> Any:
  """Draws the class confidences of plain and of calibrated soft labels.

  The confidence of a class is the mean probability that the labels of its distilled images give to
  it, on the views (or images) that the calibration was fitted on.

  Raises:
    LtddError: matplotlib is missing, or no row has a calibration that reports confidences.
  """
  by_source = _by_source(filter(has_confidences, results["rows"]))
  if not by_source:
    raise LtddError(
      "no row of the results has class confidences, which calibrators that are fitted report; add "
      "{'name': 'adsa'} to config.calibrate.calibrators"
    )
  panels = {}
  for source, rows in by_source.items():
    before: dict[str, Any] = {}  # of each label source
    for r in rows:
      before.setdefault(r["labels"], r["calibration"]["confidence_before"])
    shades = iter(colours([*({"calibrator_name": "none"} for _ in before), *rows]))
    name = "{} plain" if len(before) > 1 else "plain soft labels"
    plain = [Series(name.format(labels), next(shades), x) for labels, x in before.items()]
    after = [
      Series(_fitted_name(r), next(shades), r["calibration"]["confidence_after"]) for r in rows
    ]
    panels[source] = [*plain, *after]
  return bars(panels, bins(results), "mean confidence", top=1.0, width=width)


def accuracies(results: Mapping[str, Any], *, width: float | None = None) -> Any:
  """Draws the accuracy of each class (mean over seeds) for each kind of label."""
  panels = {}
  for source, rows in _by_source(results["rows"]).items():
    pairs = zip(rows, colours(rows), strict=True)
    panels[source] = [Series(tables.short(r), colour, r["per_class"]) for r, colour in pairs]
  return bars(panels, bins(results), "accuracy, %", top=100.0, width=width)


def calibration(report: Mapping[str, Any], class_counts: Any, confidence: tuple[Any, Any]) -> Any:
  """Draws what one calibration did.

  Args:
    report: of the calibrator; with a "curve" its objective is drawn too, with "tau_interval" (or
      "free_tau_interval") the interval of tau, with "head_curve" the confidences of head and tail.
    class_counts: (k,) training images of each class.
    confidence: class confidences (k,) before and after.
  """
  counts = [int(c) if float(c).is_integer() else round(float(c), 3) for c in class_counts]
  names = [str(c) for c in range(len(counts))]
  groups = bins({"split": {"counts": counts}, "class_names": names})
  when = ("before", f"after, tau = {report['tau']:.2f}")
  colours = (_COLOURS["none"], _COLOURS["adsa"])
  series = [Series(*x) for x in zip(when, colours, confidence, strict=True)]
  figure = bars({"distilled": series}, groups, "mean confidence", top=1.0)
  if report.get("curve"):
    figure.set_size_inches(7.2, 5.4)
    upper, lower = figure.add_gridspec(2, 1)
    figure.axes[0].set_subplotspec(lower)
    draw_objective(figure.add_subplot(upper), report)
  return figure


def draw_objective(axis: Any, report: Mapping[str, Any]) -> None:
  """Draws the "curve" of a calibrator's report: objective along tau, choice, interval."""
  axis.plot(*np.transpose(report["curve"]), color="#0072b2")
  axis.axvline(report["tau"], color="#000000", linestyle=":", label=f"tau = {report['tau']:.3f}")
  for key, label in (
    ("tau_interval", "95 % interval"), ("free_tau_interval", "95 % interval without the bound")
  ):  # fmt: skip
    if report.get(key):
      axis.axvspan(*report[key], color="#e69f00", alpha=0.3, label=label)
      break
  axis.set_xlabel("tau")
  axis.set_ylabel(f"objective ({report.get('criterion', 'confidence')})")
  if report.get("head_curve"):
    taus, _, head, tail = np.transpose(report["head_curve"])
    levels = axis.twinx()
    levels.set(ylabel="mean confidence", ylim=(0, 1))
    for name, values, colour in (("head", head, "#009e73"), ("tail", tail, "#cc79a7")):
      levels.plot(taus, values, color=colour, linestyle="--")
      axis.plot([], [], color=colour, linestyle="--", label=name)  # for the legend
  axis.legend(fontsize=8)


def has_confidences(row: Mapping[str, Any]) -> bool:
  after = row.get("calibration", {}).get("confidence_after", ())
  return any(value is not None for value in after)


def _fitted_name(row: Mapping[str, Any]) -> str:
  flat = ", objective flat" if row["calibration"].get("flat") else ""
  return f"{tables.short(row)}, tau = {row['calibration']['tau']:.2f}{flat}"


def _by_source(rows: Any) -> dict[str, list[Mapping[str, Any]]]:
  out: dict[str, list[Mapping[str, Any]]] = {}
  for row in rows:
    out.setdefault(row["images"], []).append(row)
  return out


def colours(rows: Rows) -> list[str]:
  """The colour of each row's kind of label; a kind that was seen already gets another."""
  others, used, out = iter(_OTHERS * len(rows)), set(), []
  for row in rows:
    colour = _COLOURS.get(row["calibrator_name"])
    out.append(next(others) if colour is None or colour in used else colour)
    used.add(colour)
  return out


def bins(results: Mapping[str, Any]) -> Bins:
  """Classes by descending number of training images, cut into `MAX_BARS` bins if there are more."""
  counts, names = np.asarray(results["split"]["counts"]), results["class_names"]
  members = longtail.bins(counts, MAX_BARS)
  if len(members) == len(counts):
    labels = tuple(f"{class_name(names[c])}\n{counts[c]:,}" for (c,) in members)
    return Bins(
      members, labels, "class and its number of training images", _bands(results, members)
    )
  labels = tuple(f"{counts[m].mean():,.0f}" for m in members)
  axis = f"mean number of training images; each bar is the mean of {_sizes(members)} classes"
  return Bins(members, labels, axis, _bands(results, members))


def class_name(name: str) -> str:
  """A class name as plots show it: in one line, not too long, no formula."""
  short = name if len(name) <= _LONGEST else name[: _LONGEST - 1] + "…"
  return tables.printable(short).replace("$", r"\$")


def _bands(
  results: Mapping[str, Any], members: Sequence[np.ndarray]
) -> dict[str, tuple[float, float]]:
  """Where head, mid and tail begin and end, in bins; nothing if the results name no groups.

  From the first to the last class with test images: groups of the results lack the others.
  """
  rows = results.get("rows")
  if not rows or "groups" not in rows[0]:
    return {}
  place, ends = np.argsort(np.concatenate(members)), np.cumsum([0, *map(len, members)])
  found = {}
  for name, group in rows[0]["groups"].items():
    own = place[group["classes"]]
    low, high = np.interp((own.min(), own.max() + 1), ends, np.arange(len(ends))) - 0.5
    found[name] = (float(low), float(high))
  return found


def _sizes(members: Sequence[np.ndarray]) -> str:
  sizes = sorted({len(m) for m in members})
  return " or ".join(map(str, sizes))


def bars(
  panels: Mapping[str, list[Series]],
  groups: Bins,
  ylabel: str,
  *,
  top: float,
  width: float | None = None,
) -> Any:
  """Draws one panel of grouped bars for each image source, one below the other."""
  beside = any(map(_is_long, panels.values()))
  figure = new_figure(width or (9.2 if beside else 7.2), 0.6 + 2.3 * len(panels))
  axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
  x = np.arange(len(groups.names))
  for axis, (source, series) in zip(axes, panels.items(), strict=True):
    draw_bands(axis, groups, 1.09 * top)
    share = 0.84 / len(series)
    for i, one in enumerate(series):
      at = x + (i - (len(series) - 1) / 2) * share
      axis.bar(at, groups.means(one.values), share, label=one.name, color=one.colour)
      if one.low is not None and all(len(m) == 1 for m in groups.members):
        ends = [groups.means(one.low), groups.means(one.high)]
        axis.vlines(at, *ends, colors="#333333", linewidth=0.8)
    axis.set_ylim(0, 1.1 * top if groups.bands else top)
    axis.set_yticks(np.linspace(0, top, 6))
    axis.set_ylabel(ylabel)
    axis.set_title(f"{source} images", loc="left", fontsize=10)
    axis.legend(
      loc="upper left" if beside else "lower right", bbox_to_anchor=(1, 1), frameon=False,
      ncols=1 if beside else len(series), fontsize=8, borderaxespad=0.2, columnspacing=1.2,
      handlelength=1.0,
    )  # fmt: skip
    axis.spines[["top", "right"]].set_visible(False)
  long = sum(max(map(len, name.split("\n"))) for name in groups.names) > 100
  axes[-1].set_xticks(x, groups.names, fontsize=8, rotation=45 if long else 0)
  axes[-1].set_xlabel(groups.axis)
  return figure


def draw_bands(axis: Any, groups: Bins, top: float) -> None:
  """Shades head and tail, and names the groups at the height `top`."""
  for name, (start, stop) in groups.bands.items():
    axis.axvspan(start, stop, color=_BANDS[name], linewidth=0, zorder=0)
    at = (start + stop) / 2
    axis.annotate(name, (at, top), ha="center", va="top", fontsize=7, annotation_clip=False)


def _is_long(series: Sequence[Series]) -> bool:
  """Whether a legend in one line would reach the panel's title."""
  return sum(len(one.name) + 5 for one in series) > 70


# ---- matplotlib ----


def check_available() -> None:
  """Imports matplotlib, or raises LtddError that says how to install it."""
  try:
    import matplotlib.figure  # noqa: F401
  except ImportError as error:
    raise LtddError(
      f"plots need matplotlib, which cannot be imported ({error}). Install it: "
      "pip install -e '.[report]', or pip install matplotlib"
    ) from error


def new_figure(width: float, height: float) -> Any:
  """An empty figure drawn by Agg, known to no global state."""
  check_available()
  from matplotlib.backends.backend_agg import FigureCanvasAgg
  from matplotlib.figure import Figure

  figure = Figure(figsize=(width, height), layout="constrained")
  FigureCanvasAgg(figure)
  return figure


def save(figure: Any, path: files.Pathlike) -> None:
  """Writes a figure as .png, .pdf or .svg, on the first process of a pod.

  Raises:
    LtddError: another extension, a full disk, or a folder that cannot be written.
  """
  kind = files.path(path).suffix.lower()
  if kind not in _METADATA:
    raise LtddError(f"plot {path}: expected a name that ends in {', '.join(_METADATA)}")
  if jax.process_index() == 0:
    content = io.BytesIO()
    figure.savefig(content, format=kind[1:], dpi=150, metadata=_METADATA[kind])
    files.write_bytes(path, content.getvalue(), what="plot")
