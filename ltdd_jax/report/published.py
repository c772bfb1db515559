"""Results as data: rows of finished runs in a CSV file, and tables of them beside published ones.

  add(["runs/edc", "runs/rded"], "docs/results/ours.csv")
  write_tables(".")  # of README.md and docs/results/*.md, between markers:

  <!-- results: NAME -->
  <!-- end -->

`docs/results/published.csv` holds the published numbers and is edited by hand; what was not
published is empty. An entry of `COUNTERPARTS` adds a method, and one of `TABLES` a table.
"""

import csv
import io
import itertools
import pathlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from ltdd_jax.core import files
from ltdd_jax.core.types import LtddError
from ltdd_jax.report import tables

_ROOT = pathlib.Path(__file__).parents[2]  # of a checkout
OURS, PUBLISHED = "docs/results/ours.csv", "docs/results/published.csv"
CELL = ("dataset", "imbalance_factor", "ipc")
KEY = (*CELL, "method", "labels", "calibrator", "teacher", "recipe", "student", "split", "sha256")
HEADER = (*KEY, "seeds", "mean", "std", "hardware", "seconds", "commit")
PUBLISHED_HEADER = (*CELL, "method", "student", "mean", "std", "source", "note")

COUNTERPARTS: dict[str, tuple[str, str, str]] = {  # published name: (images, labels, calibrator)
  "Random": ("random", "hard", ""),
  "Random+teacher": ("random", "teacher", "plain"),
  "Random+ADSA": ("random", "teacher", "adsa"),
  "K-Center": ("k_center", "hard", ""),
  "SRe2L": ("sre2l", "teacher", "plain"),
  "SRe2L+ADSA": ("sre2l", "teacher", "adsa"),
  "G-VBSM": ("gvbsm", "teacher", "plain"),
  "G-VBSM+ADSA": ("gvbsm", "teacher", "adsa"),
  "RDED": ("rded", "teacher", "plain"),
  "RDED+ADSA": ("rded", "teacher", "adsa"),
  "EDC": ("edc", "teacher", "plain"),
  "EDC+ADSA": ("edc", "teacher", "adsa"),
  "EDC+probe": ("edc", "teacher", "probe"),
  "RLDD": ("rldd", "teacher", "plain"),
  "RLDD+ADSA": ("rldd", "teacher", "adsa"),
}
MATCHING = {  # likewise, of methods that no table has yet
  "DC": ("dc", "hard", ""),
  "IDM": ("idm", "hard", ""),
  "DREAM": ("dream", "hard", ""),
  "DREAM+ADSA": ("dream", "teacher", "adsa"),
  "MTT": ("mtt", "hard", ""),
  "MTT+soft label": ("mtt", "teacher", "plain"),
  "MTT+ADSA": ("mtt", "teacher", "adsa"),
  "TESLA": ("tesla", "hard", ""),
  "DATM": ("datm", "learned", "plain"),
  "DAMED": ("damed", "learned", "plain"),
}
NETWORKS = {"alexnet": "AlexNet", "resnet18": "ResNet-18", "vgg11": "VGG-11"}  # published names
_SHOWN = ("norm", "stem", "width")  # arguments of a network that say which one it is

Row = dict[str, str]


class Table(NamedTuple):
  """Which results a table has: those of one data set and one kind of student."""

  dataset: str  # of our rows
  published: str  # the data set in published.csv
  students: tuple[str, ...]  # published names; the first is that of our students
  cells: tuple[tuple[str, str], ...]  # (imbalance factor, images per class)
  methods: tuple[str, ...] = tuple(COUNTERPARTS)
  teacher: str = ""  # of our rows, in a table with a line for each cell


_NINE = tuple(itertools.product(("10", "50", "100"), ("10", "20", "50")))
_SMALL = "ConvNet-3 (norm={}, width=64)"
_FOUR = " + ".join(map(_SMALL.format, ("batch", "batch", "instance", "instance")))
_CIFAR10 = "cifar10", "CIFAR-10-LT"
TABLES = {
  "cifar10_convnet3": Table(*_CIFAR10, ("ConvNet-3",), _NINE),
  "cifar10_resnet18": Table(
    *_CIFAR10, ("ResNet-18", "not stated"), (("50", "50"), ("100", "10"), ("100", "50")),
    ("SRe2L", "SRe2L+ADSA", "G-VBSM", "G-VBSM+ADSA", "EDC", "EDC+ADSA"),
  ),
  "cifar10_vgg11": Table(*_CIFAR10, ("VGG-11",), (("100", "10"),)),
  "cifar10_alexnet": Table(*_CIFAR10, ("AlexNet",), (("100", "10"),)),
  "cifar10_edc": Table(
    *_CIFAR10, ("ConvNet-3",), _NINE, ("EDC", "EDC+ADSA", "EDC+probe"),
    f"{_FOUR}, cross_entropy, 30 epochs",
  ),
}  # fmt: skip


# ---- rows of runs ----


def add(workdirs: Iterable[files.Pathlike], target: files.Pathlike = OURS) -> str:
  """Adds the rows of finished runs to a CSV file, sorted; a row of the same `KEY` is replaced.

  Returns:
    What was done, with the old and the new figures of replaced rows.

  Raises:
    LtddError: a run is unfinished or of an older version, two of them give one row, a row has no
      hash of its split, or the file has another header.
  """
  path, new = files.path(target), {}
  known = {_key(row): row for row in read_rows(path, HEADER)} if path.exists() else {}
  for workdir in workdirs:
    for row in rows_of(workdir):
      if _key(row) in new:
        raise LtddError(
          f"{workdir}: an earlier run of this command has the row {', '.join(_key(row))} too. One "
          "experiment has one row; name only one of the two runs."
        )
      new[_key(row)] = row
  replaced = [
    f"{', '.join(key)}: {_accuracy(known[key])} -> {_accuracy(row)}"
    for key, row in new.items()
    if key in known
  ]
  _write_rows(path, known | new)
  done = f"{path}: {len(new) - len(replaced)} added, {len(replaced)} replaced"
  return "\n".join([done, *replaced])


def rows_of(workdir: files.Pathlike) -> list[Row]:
  """Reads the rows of a finished run, with the columns of `HEADER`; accuracies have four decimals.

  Raises:
    LtddError: the run is unfinished or of an older version, or its split has no hash.
  """
  again = "Run its command again: finished stages are skipped and the report is renewed."
  try:
    results = tables.read_results(workdir)
  except (OSError, ValueError) as error:
    raise LtddError(
      f"{workdir} has no readable report/results.json, so it is no finished run. {again}"
    ) from error
  if results.get("schema") != tables.SCHEMA:
    raise LtddError(
      f"{workdir}/report/results.json has schema {results.get('schema')}; expected "
      f"{tables.SCHEMA}, which says what made each row. {again}"
    )
  shared = {
    "dataset": results["dataset"],
    "recipe": results["recipe"] or "",
    "student": network(results["student"]),
  }
  rows = [shared | figures for figures in _figures(results)]
  for row in rows:
    _check(row, f"{workdir}/report/results.json")
  return rows


def _figures(results: Mapping[str, Any]) -> Iterator[Row]:
  for row in results["rows"]:
    std, slots = row["top1"]["std"], row["images_per_class"]
    split = row.get("split", results["split"])
    yield {
      "imbalance_factor": f"{split['imbalance_factor']:g}",
      "split": split["provenance"] or f"rule {split['rule']}",
      "sha256": split["sha256"],
      "ipc": f"{sum(slots) / len(slots):g}",
      "method": row["images"],
      "labels": row["labels"],
      "calibrator": row["calibrator"] or "",
      "teacher": row["teacher"] or "",
      "seeds": str(row["seeds"]),
      "mean": f"{row['top1']['mean']:.4f}",  # tables round it to one decimal: never twice
      "std": "" if std is None else f"{std:.4f}",
      "hardware": row["hardware"],
      "seconds": f"{row['seconds']:.0f}",
      "commit": row["commit"],
    }


def network(model: Mapping[str, Any]) -> str:
  """Names a network: "ConvNet-3 (norm=batch, width=64)"; `model` has all its arguments."""
  name = model["name"]
  name = f"ConvNet-{model['depth']}" if name == "convnet" else NETWORKS.get(name, name)
  about = ", ".join(f"{k}={model[k]}" for k in _SHOWN if k in model)
  return f"{name} ({about})" if about else name


# ---- the CSV files ----


def read_rows(path: files.Pathlike, header: Sequence[str]) -> list[Row]:
  """Reads `ours.csv` or `published.csv`, by its header.

  Raises:
    LtddError: no such file, another header, or a row that lacks something.
  """
  try:
    lines = list(csv.reader(io.StringIO(files.path(path).read_text())))
  except (OSError, UnicodeDecodeError) as error:
    raise LtddError(
      f"{path} cannot be read ({error}); expected a CSV file with the header {','.join(header)}. "
      "Run this at the root of the repository."
    ) from error
  if not lines or lines[0] != list(header):
    raise LtddError(
      f"{path} has the header {','.join(lines[0]) if lines else '(none)'}; expected "
      f"{','.join(header)}. Name another file, or mend this one."
    )
  rows: list[Row] = []
  for number, line in enumerate(lines[1:], 2):
    if len(line) != len(header):
      raise LtddError(f"{path}, row {number}: {len(line)} values; expected {len(header)}. Mend it.")
    row = dict(zip(header, line, strict=True))
    _check(row, f"{path}, row {number}")
    if "sha256" in row and _key(row) in map(_key, rows):
      raise LtddError(f"{path}, row {number}: an earlier row is of the same experiment. Keep one.")
    rows.append(row)
  return rows


def _check(row: Row, where: str) -> None:
  if "sha256" in row and not re.fullmatch("[0-9a-f]{64}", row["sha256"]):
    raise LtddError(
      f"{where}: sha256 is {row['sha256']!r}; expected the 64 hexadecimal digits of the split's "
      "hash, without which nobody can say which images it is of. Add the row from its run."
    )
  optional = {"std"} if "sha256" in row else {"std", "imbalance_factor"}  # not always published
  for name in ("imbalance_factor", "ipc", "mean", "std"):
    known = row[name] or name not in optional
    if known and not re.fullmatch(r"\d+(\.\d+)?", row[name]):
      raise LtddError(f"{where}: {name} is {row[name]!r}; expected a number, as 58.2. Mend it.")


def _key(row: Row) -> tuple[str, ...]:
  return tuple(row[name] for name in KEY)


def _write_rows(path: files.Pathlike, rows: Mapping[tuple[str, ...], Row]) -> None:
  order = lambda row: (row["dataset"], float(row["imbalance_factor"]), float(row["ipc"]), _key(row))
  text = io.StringIO()
  writer = csv.DictWriter(text, HEADER, lineterminator="\n")
  writer.writeheader()
  writer.writerows(sorted(rows.values(), key=order))
  files.write_text(path, text.getvalue())


# ---- the tables ----


def write_tables(root: files.Pathlike = ".") -> list[str]:
  """Renews the tables in README.md and docs/results/*.md; returns the pages that changed.

  Raises:
    LtddError: see `pages` and `read_rows`.
  """
  folder, changed = files.path(root), []
  for name, text in pages(root).items():
    if (folder / name).read_text() != text:
      files.write_text(folder / name, text)
      changed.append(name)
  return changed


def pages(root: files.Pathlike = ".") -> dict[str, str]:
  """Returns {page: text} of the pages with tables, as the CSV files want them.

  Raises:
    LtddError: a table that is not known, or one without an end.
  """
  folder = files.path(root)
  ours = read_rows(folder / OURS, HEADER)
  published = read_rows(folder / PUBLISHED, PUBLISHED_HEADER)
  found = {}
  for path in (folder / "README.md", *sorted((folder / "docs" / "results").glob("*.md"))):
    text = path.read_text() if path.exists() else ""
    if "<!-- results:" in text:
      found[path.relative_to(folder).as_posix()] = fill(text, ours, published, path)
  return found


def fill(text: str, ours: Sequence[Row], published: Sequence[Row], where: Any = "page") -> str:
  """Replaces what stands between the markers of a page."""

  def table(match: re.Match[str]) -> str:
    if (name := match[1]) not in TABLES:
      raise LtddError(f"{where}: table {name!r} is not known. Tables: {', '.join(TABLES)}.")
    make = by_cell if TABLES[name].teacher else beside
    return f"<!-- results: {name} -->\n{make(TABLES[name], ours, published)}\n<!-- end -->"

  out, count = re.subn(
    r"<!-- results: *(\S*) *-->(?:(?!<!-- results:).)*?<!-- end -->", table, text, flags=re.S
  )
  if count != text.count("<!-- results:"):
    raise LtddError(f"{where}: a table begins and does not end; write <!-- end --> after it.")
  return out


def beside(table: Table, ours: Sequence[Row], published: Sequence[Row]) -> str:
  """Our results beside the best published ones of the same method, and of any method.

  Nothing is selected among our rows: each recipe and split has a line.
  """
  header = ["IF", "IPC", "method", "teacher", "student", "recipe", "split", "seeds", "ours"]
  header += ["published", "best published"]
  lines = []
  for imbalance, ipc in table.cells:
    cell = {"imbalance_factor": imbalance, "ipc": ipc}
    known = _those(published, dataset=table.published, **cell)
    known = [row for row in known if row["student"] in table.students]
    best = _best(known, named=True)
    for name in table.methods:
      mine = [*map(_cells, _mine(table, ours, cell, name))]
      same = _best(_those(known, method=name))
      if not mine and same != "-":
        mine = [["-"] * 6]
      lines += [[imbalance, ipc, name, *row, same, best] for row in mine]
  return tables.table(header, lines)


def by_cell(table: Table, ours: Sequence[Row], published: Sequence[Row]) -> str:
  """A line for each cell: the best published result, and all of ours by one teacher."""
  header = ["IF", "IPC", "best published"]
  header += [f"{name}, {whose}" for name in table.methods for whose in ("published", "ours")]
  lines = []
  for imbalance, ipc in table.cells:
    cell = {"imbalance_factor": imbalance, "ipc": ipc}
    known = _those(published, dataset=table.published, student=table.students[0], **cell)
    line = [imbalance, ipc, _best(known, named=True)]
    for name in table.methods:
      mine = _those(_mine(table, ours, cell, name), teacher=table.teacher)
      line += [_best(_those(known, method=name)), ", ".join(map(_accuracy, mine)) or "-"]
    lines.append(line)
  empty = {i for i in range(len(header)) if all(line[i] == "-" for line in lines)}
  keep = lambda line: [x for i, x in enumerate(line) if i not in empty]
  return tables.table(keep(header), [*map(keep, lines)])


def _mine(table: Table, ours: Sequence[Row], cell: Row, method: str) -> list[Row]:
  """Our rows of a cell and a published method, by students of the table's kind."""
  want = dict(zip(("method", "labels", "calibrator"), COUNTERPARTS[method], strict=True))
  found = _those(ours, dataset=table.dataset, **cell, **want)
  return [row for row in found if row["student"].split(" ")[0] == table.students[0]]


def beside_run(results: Mapping[str, Any], root: files.Pathlike = _ROOT) -> list[tuple[str, str]]:
  """The published numbers beside the rows of a run.

  Returns:
    For each row, "58.2 ± 0.2 (ConvNet-3)" of the same method and "-" if there is none, and the best
    of any method with its name. Networks may differ from ours. Empty if nothing was published for
    this data set, imbalance factor and number of images, or the list is not at hand.
  """
  path = files.path(root) / PUBLISHED
  name = {table.dataset: table.published for table in TABLES.values()}.get(results["dataset"])
  if not path.exists() or name is None or not results["rows"]:
    return []
  listed = _those(read_rows(path, PUBLISHED_HEADER), dataset=name)
  names = {counterpart: name for name, counterpart in (COUNTERPARTS | MATCHING).items()}
  found = []
  for row in _figures(results):
    known = _those(listed, ipc=row["ipc"], imbalance_factor=row["imbalance_factor"])
    key = row["method"], row["labels"], row["calibrator"]
    same = _those(known, method=names.get(key, ""))
    found.append((_with_students(same), _best(known, named=True)))
  return found if any(best != "-" for _, best in found) else []


def _with_students(rows: Sequence[Row]) -> str:
  return ", ".join(f"{_accuracy(row)} ({row['student']})" for row in rows) or "-"


def _those(rows: Iterable[Row], **values: str) -> list[Row]:
  return [row for row in rows if all(row[k] == v for k, v in values.items())]


def _cells(row: Row) -> list[str]:
  recipe, comma, _ = row["recipe"].partition(",")
  recipe = f"{recipe}, changed" if comma else recipe or "-"
  networks, *training = row["teacher"].rsplit(", ", 2)  # see `pipeline.results`
  if (many := networks.count(" + ") + 1) > 3:
    networks = f"{many} networks"
  teacher = ", ".join([networks, *training]) or "-"
  return [teacher, row["student"], recipe, row["split"], row["seeds"], _accuracy(row)]


def _accuracy(row: Row) -> str:
  return tables.plus_minus({k: float(row[k]) if row[k] else None for k in ("mean", "std")})


def _best(rows: Sequence[Row], named: bool = False) -> str:
  if not rows:
    return "-"
  row = max(rows, key=lambda r: float(r["mean"]))
  return _accuracy(row) + (f" ({row['method']})" if named else "")
