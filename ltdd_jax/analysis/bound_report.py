"""The report of the study of the bound: tables and a figure, from `report/bound.json` alone."""

import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

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
  share = term["shrinkage"][1]
  return f"{term['value']:.2f}" + (f" ({share:.2f})" if share else "")


# ---- the figure ----


def write_plots(results: Mapping[str, Any], folder: pathlib.Path) -> tuple[pathlib.Path, ...]:
  """Writes `bound.png`; nothing if matplotlib is not installed."""
  if not plots.available():
    return ()
  path = folder / "bound.png"
  plots.save(figure(results), path)
  return (path,)


def figure(results: Mapping[str, Any]) -> Any:
  """How each term moves with the imbalance factor: lines for calibrators and image sources."""
  out = plots.new_figure(9.0, 6.4)
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
  for name, rows in _lines(results["conditional"], results["plain"]).items():
    x = [r["imbalance"] for r in rows]
    style = _style(name, results)
    if name[1] is not None or name[0] == _sources(results)[0]:
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
  for axis in axes[1:3]:
    axis.legend(fontsize=7, frameon=False)
  return out


def _sources(results: Mapping[str, Any]) -> list[str]:
  return list(dict.fromkeys(r["images"] for r in results["marginal"]))


def _lines(rows: Any, plain: str) -> dict[tuple[str, str | None], list[Mapping[str, Any]]]:
  """Rows by image source and kind of label, None for plain."""
  out: dict[tuple[str, str | None], list[Mapping[str, Any]]] = {}
  for r in rows:
    out.setdefault((r["images"], None if r["labels"] == plain else r["labels"]), []).append(r)
  return out


def _style(name: tuple[str, str | None], results: Mapping[str, Any]) -> dict[str, Any]:
  source, regime = name
  regimes = list(dict.fromkeys(r["labels"] for r in results["conditional"]))
  number = regimes.index(results["plain"] if regime is None else regime)
  lines = ("-", "--", ":", "-.")
  dash = lines[_sources(results).index(source) % len(lines)]
  label = results["plain"] if regime is None else f"{regime}, {source}"
  return {"color": f"C{np.mod(number, 10)}", "linestyle": dash, "label": label}
