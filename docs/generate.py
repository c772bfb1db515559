"""Pages of the site that are made from the code: methods, API, errors; and the notebooks."""

import ast
import csv
import importlib
import inspect
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
  return found | api | {"errors": errors_page()}


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
