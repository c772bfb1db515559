r"""Tables of results as Markdown, CSV and LaTeX, with the best and second best cells marked.

  header, rows = results_table(results)
  as_csv(header, rows), as_latex(header, rows, marks(header, rows))

The best of a column is bold and the second underlined; CSV has numbers alone. In LaTeX `booktabs`
draws the lines.
"""

import csv
import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

from ltdd_jax.report import tables

BEST, SECOND = "best", "second"
Marks = Mapping[tuple[int, int], str]

_LATEX = {
  "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
  "±": r"$\pm$", **{c: "\\" + c for c in "&%$#_{}"},
}  # fmt: skip


def results_table(results: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
  """The rows of a run: images, labels, calibrator, tau, accuracies in percent, seeds."""
  groups = tables.present_groups(results["rows"])
  header = ["images", "labels", "calibrator", "tau", "top-1", *groups, "worst class", "seeds"]
  rows = [
    [
      row["images"],
      row["labels"],
      row["calibrator"] or "-",
      tables.or_dash(row["tau"], ".2f"),
      tables.plus_minus(row["top1"]),
      *tables.group_cells(row, groups),
      f"{row['worst_class']['mean']:.1f}",
      str(row["seeds"]),
    ]
    for row in results["rows"]
  ]
  return header, rows


def marks(
  header: Sequence[str],
  rows: Sequence[Sequence[str]],
  columns: Sequence[str] = ("top-1", *tables.GROUPS, "worst class"),
) -> dict[tuple[int, int], str]:
  """Says which cells (row, column) of accuracies are best and second, as they are printed.

  Cells that print the same number share a place. A column of one number has none.
  """
  found: dict[tuple[int, int], str] = {}
  for j in (j for j, name in enumerate(header) if name in columns):
    values = {i: float(m[0]) for i, r in enumerate(rows) if (m := re.match(r"[\d.]+", r[j]))}
    ranked = sorted(set(values.values()), reverse=True)[:2]
    if len(ranked) == 2:
      found |= {(i, j): (BEST, SECOND)[ranked.index(x)] for i, x in values.items() if x in ranked}
  return found


def as_markdown(header: Sequence[str], rows: Sequence[Sequence[str]], marked: Marks) -> str:
  """A Markdown table."""
  return tables.table(header, _marked(rows, marked, {BEST: "**%s**", SECOND: "<u>%s</u>"})) + "\n"


def _marked(
  rows: Sequence[Sequence[str]], marked: Marks, wrap: Mapping[str, str]
) -> list[list[str]]:
  """Cells with what a mark puts around them."""
  return [
    [wrap[marked[i, j]] % cell if (i, j) in marked else cell for j, cell in enumerate(row)]
    for i, row in enumerate(rows)
  ]


def as_csv(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
  """Comma-separated values."""
  text = io.StringIO()
  csv.writer(text, lineterminator="\n").writerows([header, *rows])
  return text.getvalue()


def as_latex(header: Sequence[str], rows: Sequence[Sequence[str]], marked: Marks) -> str:
  """A `tabular`; needs the package `booktabs`."""
  escaped = [[escape_latex(cell) for cell in row] for row in rows]
  cells = _marked(escaped, marked, {BEST: r"\textbf{%s}", SECOND: r"\underline{%s}"})
  line = lambda row: "  " + " & ".join(row) + r" \\"
  body = [r"  \toprule", line([escape_latex(x) for x in header]), r"  \midrule"]
  body += [*map(line, cells), r"  \bottomrule"]
  columns = "".join(
    "l" if name in ("images", "labels", "calibrator", "run") else "r" for name in header
  )
  return "\n".join([rf"\begin{{tabular}}{{{columns}}}", *body, r"\end{tabular}"]) + "\n"


def escape_latex(text: str) -> str:
  """Text with the characters escaped that LaTeX would read as commands."""
  return "".join(_LATEX.get(c, c) for c in tables.printable(text))
