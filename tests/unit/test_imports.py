"""Imports run one way, and heavy or optional packages are imported in one place."""

import ast
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
FILES = sorted((ROOT / "ltdd_jax").rglob("*.py"))

# A folder may import those of lower rank, and itself.
RANK = {
  "adsa": 0, "core": 0,
  "artefacts": 1, "data": 1, "models": 1,
  "calibrate": 2, "training": 2,
  "teachers": 3,
  "distil": 4, "labels": 4,
  "interop": 5, "students": 5,
  "report": 6,
  "pipeline": 7,
  "studies": 8,
  "sweeps": 9,
}  # fmt: skip


def imports(path):
  """Names of modules of the package that a file imports, as first parts below `ltdd_jax`."""
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.ImportFrom) and node.module == "ltdd_jax":
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("ltdd_jax."):
      yield node.module.split(".")[1]


def typing_only(path):
  """Imports under `if TYPE_CHECKING` do not happen."""
  return {
    name
    for node in ast.walk(ast.parse(path.read_text()))
    if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING"
    for inner in ast.walk(node)
    if isinstance(inner, ast.ImportFrom)
    for name in [inner.module.split(".")[1]]
  }


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_run_one_way(path):
  here = path.relative_to(ROOT / "ltdd_jax").parts[0].removesuffix(".py")
  if here == "__init__":
    return
  for name in set(imports(path)) - typing_only(path) - {here}:
    assert RANK[name] < RANK[here], f"{here} imports {name}"


def test_only_sources_imports_tensorflow_datasets():
  users = [p for p in FILES if "tensorflow_datasets" in imported_packages(p)]
  assert users == [ROOT / "ltdd_jax" / "data" / "sources.py"]


def test_only_exports_import_torch_and_datasets():
  users = [p.name for p in FILES if {"torch", "datasets", "pyarrow"} & set(imported_packages(p))]
  assert users == ["huggingface.py", "torch_files.py"]


def imported_packages(path):
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      yield from (alias.name.split(".")[0] for alias in node.names)
    elif isinstance(node, ast.ImportFrom) and node.module:
      yield node.module.split(".")[0]


def test_adsa_stands_alone():
  packages = set(imported_packages(ROOT / "ltdd_jax" / "adsa.py"))
  assert packages <= {"jax", "numpy", "collections", "typing", "functools", "math", "dataclasses"}


def test_configs_are_read_by_config_py_only():
  """`config.get("typo")` returns None in silence, so only checked dicts may be read that way."""
  for path in FILES:
    for line in path.read_text().splitlines():
      assert "config.get(" not in line, f"{path.name}: {line.strip()}"


def test_importing_the_package_starts_no_backend():
  code = (
    "import sys, ltdd_jax, ltdd_jax.core.startup; "
    "assert 'jax' not in sys.modules and 'numpy' not in sys.modules"
  )
  subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_no_file_is_long():
  for path in FILES:
    limit = 600 if path.name == "adsa.py" else 400  # adsa.py is one file that is usable alone
    assert len(path.read_text().splitlines()) <= limit, path
