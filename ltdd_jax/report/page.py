"""Writes reports: a page of one run, or of several runs beside each other.

page.write(["runs/digits"])                            # runs/digits/report/index.html
page.write(["runs/a", "runs/b"], "comparison.html")
"""

from collections.abc import Callable, Sequence

from etils import epath

from ltdd_jax.core import files
from ltdd_jax.core.types import LtddError
from ltdd_jax.report import comparison, formats, html, run_folder, sections
from ltdd_jax.report.run_folder import Run


def write(workdirs: Sequence[files.Pathlike], out: files.Pathlike | None = None) -> epath.Path:
  """Writes the report of work directories, and the table of results as .md, .csv and .tex.

  Args:
    workdirs: one or more; several are compared.
    out: the HTML file. `WORKDIR/report/index.html` for None, which goes with one work directory.

  Raises:
    LtddError: no work directory of a run, Jinja2 or matplotlib are missing, or nothing can be
      written.
  """
  if not workdirs or (out is None and len(workdirs) > 1):
    raise LtddError(
      f"{len(workdirs)} work directories and no file to write; expected one work directory, or "
      "several and --out=FILE.html"
    )
  target = files.path(workdirs[0]) / "report" / "index.html" if out is None else files.path(out)
  if len(workdirs) > 1:
    return compare(workdirs, target)
  return _write(target, of_run, [run_folder.read(workdirs[0])])


def compare(workdirs: Sequence[files.Pathlike], out: files.Pathlike) -> epath.Path:
  """Writes the report of several runs beside each other, likewise; there may be one."""
  runs = _named([run_folder.read(workdir) for workdir in workdirs])
  return _write(files.path(out), lambda *runs: of_runs(runs), runs)


def _write(target: epath.Path, render: Callable[..., str], runs: Sequence[Run]) -> epath.Path:
  html.check_available()
  if target.suffix != ".html":
    raise LtddError(f"{target}: expected a name that ends in .html")
  files.write_text(target, render(*runs), what="report")
  header, rows = comparison.results_table(runs)
  if rows:
    marked = comparison.marks(header, rows)
    files.write_text(target.with_suffix(".md"), formats.as_markdown(header, rows, marked))
    files.write_text(target.with_suffix(".csv"), formats.as_csv(header, rows))
    files.write_text(target.with_suffix(".tex"), formats.as_latex(header, rows, marked))
  return target


def of_run(run: Run) -> str:
  """The page of one run."""
  data = run.results or {}
  dataset = data.get("dataset") or run.name
  about = f"Work directory {run.name}"
  if run.results:
    ipc = sorted(
      {sum(row["images_per_class"]) / len(row["images_per_class"]) for row in data["rows"]}
    )
    factor = f"{data['split']['imbalance_factor']:g}"
    each = " and ".join(f"{x:g}" for x in ipc)
    about += f". Imbalance factor {factor}, {each} distilled images per class."
  else:
    about += f", not finished: {len(run.stages)} stages are there."
  return html.render(f"{dataset}, long-tailed", about, sections.of_run(run))


def of_runs(runs: Sequence[Run]) -> str:
  """The page of several runs beside each other."""
  return html.render(f"{len(runs)} runs", ", ".join(r.name for r in runs), comparison.of_runs(runs))


def _named(runs: Sequence[Run]) -> list[Run]:
  """Runs whose names differ: those of one name have as many folders before it as that takes."""
  paths, names = [run.path.resolve().parts for run in runs], [run.name for run in runs]
  for depth in range(2, max(map(len, paths))):
    again = {name for name in names if names.count(name) > 1}
    longer = ["/".join(path[-depth:]) for path in paths]
    names = [x if name in again else name for x, name in zip(longer, names, strict=True)]
  return [run._replace(name=name) for run, name in zip(runs, names, strict=True)]
