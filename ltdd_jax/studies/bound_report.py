"""The report of the study of the bound: tables and a figure, from `report/bound.json` alone."""

from collections.abc import Mapping
from typing import Any

from ltdd_jax.report import plots, tables

_MARGINALS = ("gaussian_images", "gaussian_views", "knn_images", "knn_views")


def render(results: Mapping[str, Any]) -> str:
  """The report as Markdown."""
  study = results["study"]
  parts = [
    f"# {results['dataset']}: the terms of the bound",
    "In nats. The reference is a teacher trained on all images of the source, balanced, with "
    f"another seed (top-1 {results['reference_top1']:.1f} %): at imbalance factor 1 the divergence "
    "is what two balanced teachers differ by. ± is the standard error over images.",
    "## The conditional term: KL(p_te(y|x) || p_dd(y|x))",
    "*KL test*: labels as a function of x, that is the calibrated teacher, against the reference, "
    "on test images. *log-loss*: the same on held-out classes, KL + H(y|x). *KL views*: labels "
    f"against the reference on views of the distilled images, {study['view_epochs']} each at most.",
    conditional_table(results),
    "## KL test by class",
    class_table(results),
    "## The marginal term: KL(p_te(x) || p_dd(x))",
    f"In {study['dims']} principal directions of the reference's penultimate features: a lower "
    "bound of the divergence of images. Gaussian with Ledoit and Wolf's shrinkage (its share in "
    f"brackets, of the distilled sample), and nearest neighbours, k = {study['neighbours']}, for "
    "distilled images as they are and for their views. *real*: as many real images of each class "
    "from the balanced set, where the truth is about 0; mean ± standard deviation of draws.",
    marginal_table(results),
    f"{results['seconds']:.0f} s in all stages of the runs.",
  ]
  return "\n\n".join(parts) + "\n"


def conditional_table(results: Mapping[str, Any]) -> str:
  """A line for each imbalance factor, image source and kind of label."""
  header = ["IF", "images", "labels", "tau", "KL test", "log-loss", "KL views", "student top-1"]
  header += tables.SIZES
  rows = [
    [
      f"{r['imbalance']:g}",
      r["images"],
      r["labels"],
      tables.or_dash(r["tau"], ".3f"),
      *(_with_error(r[name]) for name in ("kl_test", "log_loss", "kl_views")),
      "-" if r["top1"] is None else tables.plus_minus(r["top1"]),
      *tables.size_cells(r),
    ]
    for r in results["conditional"]
  ]
  return tables.table(header, rows)


def _with_error(term: Mapping[str, Any]) -> str:
  return f"{term['total']:.3f} ± {term['standard_error'] or 0:.3f}"


def class_table(results: Mapping[str, Any]) -> str:
  """KL on test images by class; plain labels once for each factor, since images do not matter."""
  header = ["IF", "images", "labels", *results["class_names"][: plots.MAX_BARS]]
  rows, seen = [], set()
  for r in results["conditional"]:
    plain = r["labels"] == results["plain"]
    key = (r["imbalance"], "-" if plain else r["images"], r["labels"])
    if key not in seen:
      seen.add(key)
      cells = [tables.or_dash(x, ".2f") for x in r["kl_test"]["per_class"][: plots.MAX_BARS]]
      rows.append([f"{key[0]:g}", *key[1:], *cells])
  return tables.table(header, rows)


def marginal_table(results: Mapping[str, Any]) -> str:
  """A line for each imbalance factor and image source."""
  header = ["IF", "images", "Gaussian, images", "Gaussian, views", "kNN, images", "kNN, views"]
  rows = [
    [f"{r['imbalance']:g}", r["images"], *(_marginal(r[name]) for name in _MARGINALS)]
    for r in results["marginal"]
  ]
  base = results["baseline"]
  cells = [
    f"{base[n]['mean']:.2f} ± {base[n]['std']:.2f}" if n in base else "-" for n in _MARGINALS
  ]
  return tables.table(header, [["-", "real", *cells], *rows])


def _marginal(term: Mapping[str, Any]) -> str:
  share = term["shrinkage"]
  return f"{term['value']:.2f}" + (f" ({share:.2f})" if share else "")


# ---- figures ----


def figure(results: Mapping[str, Any]) -> Any:
  """How each term moves with the imbalance factor: lines for calibrators and image sources."""
  out = plots.new_figure(11.0, 6.4)
  axes = out.subplots(2, 2).ravel()
  factors = sorted({r["imbalance"] for r in results["marginal"]})
  titles = ("conditional: KL test", "conditional: log-loss", "marginal, views", "students, top-1 %")
  for axis, title in zip(axes, titles, strict=True):
    axis.set_title(title, loc="left", fontsize=10)
    axis.set_xscale("log")
    axis.set_xticks(factors, [f"{f:g}" for f in factors])
    axis.minorticks_off()
    axis.set_xlabel("imbalance factor")
    axis.spines[["top", "right"]].set_visible(False)
  for (source, labels), rows in _lines(results).items():
    x, style = [r["imbalance"] for r in rows], _style(source, labels, results)
    for axis, key in zip(axes, ("kl_test", "log_loss"), strict=False):
      axis.plot(x, [r[key]["total"] for r in rows], marker="o", ms=3, **style)
    if rows[0]["top1"] is not None:
      axes[3].plot(x, [r["top1"]["mean"] for r in rows], marker="o", ms=3, **style)
  for source in _sources(results):
    rows = [r for r in results["marginal"] if r["images"] == source]
    x = [r["imbalance"] for r in rows]
    for key, line in (("gaussian_views", "-"), ("knn_views", "--")):
      label = f"{source}, {'Gaussian' if line == '-' else 'kNN'}"
      axes[2].plot(x, [r[key]["value"] for r in rows], line, marker="o", ms=3, label=label)
  axes[2].legend(fontsize=7, frameon=False)
  axes[3].set_visible(bool(axes[3].lines))  # there may be no students
  handles, names = axes[0].get_legend_handles_labels()
  out.legend(handles, names, loc="outside right upper", fontsize=7, frameon=False)
  return out


def calibrators_figure(results: Mapping[str, Any]) -> Any:
  """The conditional term by calibrator at the largest imbalance factor, least KL views on top."""
  last = max(r["imbalance"] for r in results["conditional"])
  rows = {(r["images"], r["labels"]): r for r in results["conditional"] if r["imbalance"] == last}
  sources = list(dict.fromkeys(source for source, _ in rows))  # those with labels
  order = sorted(_labels(results), key=lambda name: -rows[sources[0], name]["kl_views"]["total"])
  out = plots.new_figure(7.0, 1.2 + 0.28 * len(order))
  axis = out.subplots()
  for number, source in enumerate(sources):
    color = f"C{number % 10}"
    for key, title, fill in (("kl_test", "KL test", color), ("kl_views", "KL views", "none")):
      x = [rows[source, name][key]["total"] for name in order]
      error = [rows[source, name][key]["standard_error"] or 0 for name in order]
      axis.errorbar(
        x, range(len(order)), xerr=error, fmt="o", color=color, mfc=fill, ms=5, lw=1,
        label=f"{title}, {source}",
      )  # fmt: skip
  axis.set_yticks(range(len(order)), order)
  axis.set_xlim(left=0)
  axis.set_xlabel(f"nats, at imbalance factor {last:g}")
  axis.grid(axis="x", lw=0.3)
  axis.spines[["top", "right"]].set_visible(False)
  out.legend(loc="outside upper center", ncols=2 * len(sources), fontsize=7, frameon=False)
  return out


def _sources(results: Mapping[str, Any]) -> list[str]:
  return list(dict.fromkeys(r["images"] for r in results["marginal"]))


def _labels(results: Mapping[str, Any]) -> list[str]:
  return list(dict.fromkeys(r["labels"] for r in results["conditional"]))


def _lines(results: Mapping[str, Any]) -> dict[tuple[str, str], list[Mapping[str, Any]]]:
  """Rows by image source and kind of label."""
  out: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
  for r in results["conditional"]:
    out.setdefault((r["images"], r["labels"]), []).append(r)
  return out


def _style(source: str, labels: str, results: Mapping[str, Any]) -> dict[str, Any]:
  number, lines = _labels(results).index(labels), ("-", "--", ":", "-.")
  dash = lines[_sources(results).index(source) % len(lines)]
  shade = {"color": f"C{number % 10}", "alpha": 1 if number < 10 else 0.5}  # ten colours, twice
  return shade | {"linestyle": dash, "label": f"{labels}, {source}"}


FIGURES = {"bound.png": figure, "bound_calibrators.png": calibrators_figure}
