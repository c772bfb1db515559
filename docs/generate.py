"""Pages of the site that are made from the code: methods, API, errors; and the notebooks."""

import ast
import csv
import importlib
import inspect
import itertools
import json
import pathlib
import pkgutil
import re
import shutil
from typing import Any

from configs import methods as settings
from ltdd_jax import distil
from ltdd_jax.report import published, tables

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / "ltdd_jax"
NOTEBOOKS = ROOT / "notebooks"


def write(folder: pathlib.Path) -> None:
  """Writes all generated pages anew."""
  shutil.rmtree(folder, ignore_errors=True)
  for name, text in ({f"{k}.md": v for k, v in pages().items()} | notebooks()).items():
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def pages() -> dict[str, str]:
  """Returns {name: MyST text}."""
  found = {f"methods/{name}": method_page(name) for name in sorted(settings.METHODS)}
  found["methods/index"] = _index("Methods", found)
  api = {f"api/{name}": api_page(name) for name in packages()}
  api["api/index"] = _index("API", api)
  return found | api | {"errors": errors_page(), "published": published_page()}


def notebooks() -> dict[str, str]:
  """Returns {file: JSON} of the notebooks, with links to docs as they are two folders below."""
  return {
    f"notebooks/{path.name}": path.read_text().replace("](../docs/", "](../../")
    for path in sorted(NOTEBOOKS.glob("*.ipynb"))
  }


def _index(title: str, names: dict[str, str]) -> str:
  entries = "\n".join(name.partition("/")[2] for name in names)
  return f"# {title}\n\n```{{toctree}}\n:maxdepth: 1\n\n{entries}\n```\n"


def packages() -> list[str]:
  """Folders of the library, and the modules beside them."""
  return [m.name for m in pkgutil.iter_modules([str(PACKAGE)])]


def api_page(name: str) -> str:
  """The docstrings of a folder of the library."""
  module = importlib.import_module(f"ltdd_jax.{name}")
  inside = [m.name for m in pkgutil.iter_modules(getattr(module, "__path__", []))]
  blocks = [f"# ltdd_jax.{name}"]
  for path in (f"ltdd_jax.{name}", *(f"ltdd_jax.{name}.{x}" for x in inside)):
    options = "" if path.count(".") == 1 and inside else "   :members:\n"
    heading = "" if path.count(".") == 1 else f"## {path.rpartition('.')[2]}\n\n"
    blocks.append(f"{heading}```{{eval-rst}}\n.. automodule:: {path}\n{options}```")
  return "\n\n".join(blocks) + "\n"


# ---- methods ----


def method_page(name: str) -> str:
  """What a method is, its published settings on CIFAR-10, and what was measured with it."""
  paper = settings.published(name, "cifar10", 10, 100.0)
  factory: Any = distil.METHODS[paper.method["name"]]
  module: Any = inspect.getmodule(factory)
  values = {k: v for k, v in paper.method.items() if k != "name"}
  about = inspect.getdoc(getattr(settings, name, factory)) or ""
  parts = [
    f"# {name}",
    f"```{{eval-rst}}\n.. autofunction:: {module.__name__}.{factory.__name__}\n   :no-index:\n```",
    f"Settings for CIFAR-10, 10 images per class, imbalance factor 100. {paragraph(about)}",
    f"```json\n{json.dumps(values, indent=1, default=str)}\n```",
    f"Students' recipe: `{paper.recipe}`.",
    f"    python -m launch.main --config configs/cifar10_lt.py:method={name} --workdir runs/{name}",
    "## Measured",
    measured(name),
  ]
  return "\n\n".join(parts) + "\n"


def measured(name: str) -> str:
  """The rows of docs/results/ours.csv with images of a method."""
  with (ROOT / published.OURS).open() as file:
    rows = [row for row in csv.DictReader(file) if row["method"] == name]
  columns = ("dataset", "imbalance_factor", "ipc", "labels", "calibrator", "student", "mean", "std")
  if not rows:
    return "No row in `docs/results/ours.csv`; see [results](../../results/README.md)."
  return tables.table(columns, [[row[c] for c in columns] for row in rows])


def paragraph(text: str) -> str:
  return " ".join(text.split())


# ---- published numbers ----

_CONFIGS = {
  "CIFAR-10-LT": "cifar10",
  "CIFAR-100-LT": "cifar100",
  "Tiny-ImageNet-LT": "tiny_imagenet",
}
_NETWORK = "{'name': 'convnet', 'depth': 3, 'width': 128, 'norm': 'instance'}"  # of RLDD's tables


def published_page() -> str:
  """Each published number with the command for its setting, and our number if there is one."""
  with (ROOT / published.OURS).open() as file:
    ours = list(csv.DictReader(file))
  with (ROOT / published.PUBLISHED).open() as file:
    rows = list(csv.DictReader(file))
  blocks = [
    "# Published numbers",
    "Every published number that is known to us, its source, and the command for its setting. The "
    "column *ours* has runs on the published split; a dash was not run. What the papers leave "
    "unsaid is in [beside published numbers](../results/beside_published.md).",
  ]
  place = lambda row: (row["dataset"], float(row["imbalance_factor"] or 0), int(row["ipc"]))
  for (dataset, factor, ipc), cell in itertools.groupby(sorted(rows, key=place), place):
    lines = [_published_row(row, ours) for row in cell]
    header = ("method", "student", "published", "ours", "source", "command")
    blocks += [
      f"## {dataset}, {f'IF {factor:g}' if factor else 'IF not stated'}, IPC {ipc}",
      tables.table(header, lines),
    ]
  return "\n\n".join(blocks) + "\n"


def _published_row(row: dict[str, str], ours: list[dict[str, str]]) -> list[str]:
  images, labels, calibrator = (published.COUNTERPARTS | published.MATCHING).get(
    row["method"], ("", "", "")
  )
  dataset = _CONFIGS.get(row["dataset"], "")
  want = {"dataset": dataset, "imbalance_factor": row["imbalance_factor"], "ipc": row["ipc"]}
  want |= {"split": "published split", "method": images, "labels": labels, "calibrator": calibrator}
  found = [
    x for x in ours
    if all(x[k] == v for k, v in want.items()) and x["student"].startswith(row["student"])
  ]  # fmt: skip
  values = "; ".join(f"{x['mean']} ({x['teacher'].count(' + ') + 1} teachers)" for x in found)
  given = f"{row['mean']} ± {row['std']}" if row["std"] else row["mean"]
  return [
    row["method"],
    row["student"],
    given,
    values or "-",
    row["source"],
    _command(row, dataset, images),
  ]


def _command(row: dict[str, str], dataset: str, images: str) -> str:
  if not dataset or images not in settings.METHODS or not row["imbalance_factor"]:
    return "-"
  recipe = settings.published(
    images, dataset, int(row["ipc"]), float(row["imbalance_factor"])
  ).recipe
  text = f"python -m launch.main --config configs/{dataset}_lt.py:method={images},recipe={recipe},"
  text += f"imbalance={row['imbalance_factor']},ipc={row['ipc']},calibrators=plain+adsa"
  text += f" --workdir runs/{images}"
  if row["student"] == "ConvNet-3":
    text += f' "--config.student.model={_NETWORK}"'
  return f"`{text}`"


# ---- errors ----


def errors_page() -> str:
  """Every message that the library raises, by file: what to search for when one is seen."""
  blocks = [
    "# Errors",
    "Messages of the library by the file that raises them; `...` stands for a value. Search this "
    "page for a part of the message that you have. It says what was expected and what to do.",
  ]
  for path in sorted(PACKAGE.rglob("*.py")):
    found = dict.fromkeys(messages(ast.parse(path.read_text())))
    if found:
      lines = "\n".join(f"* {paragraph(text)}" for text in found)
      blocks += [f"## {path.relative_to(ROOT).as_posix()}", f"```text\n{lines}\n```"]
  return "\n\n".join(blocks) + "\n"


def messages(tree: ast.AST) -> list[str]:
  """The texts of `raise LtddError(...)`, with ... in place of values."""
  found = []
  for node in ast.walk(tree):
    if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and node.exc.args:
      name = node.exc.func
      if isinstance(name, ast.Name) and name.id == "LtddError":
        text = _text(node.exc.args[0])
        if len(text.replace("...", "").strip()) > 10:
          found.append(text)
  return found


def _text(node: ast.AST) -> str:
  if isinstance(node, ast.Constant):
    return str(node.value)
  if isinstance(node, ast.JoinedStr):
    return "".join(_text(part) for part in node.values)
  if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
    return _text(node.left) + _text(node.right)
  return "..."


def escape(line: str) -> str:
  """A line of a docstring: code between two backquotes, and no other markup."""
  line = re.sub(r"(?<![`:])`([^`]+)`(?![`_])", r"``\1``", line)
  parts = re.split(r"(``[^`]+``)", line)
  return "".join(p if p.startswith("``") else re.sub(r"([*|])", r"\\\1", p) for p in parts)
