"""The docs: links lead somewhere, pages stay short, and every command of the README is tested."""

import importlib
import pathlib
import pkgutil
import re
import subprocess

import pytest

from configs import methods
from ltdd_jax import calibrate, interop
from tests import readme_commands

ROOT = pathlib.Path(__file__).parents[2]
DOCS = sorted(p.relative_to(ROOT) for p in (ROOT / "docs").rglob("*.md"))
DOCS = [p for p in DOCS if p.parts[1] not in ("_generated", "index.md")]  # these are of the site
PAGES = [*(p.relative_to(ROOT) for p in ROOT.glob("*.md")), pathlib.Path("benchmarks/README.md")]
PAGES = sorted({*PAGES, *DOCS})
NOTEBOOKS = sorted(p.relative_to(ROOT) for p in (ROOT / "notebooks").glob("*.ipynb"))
KINDS = ("tutorials", "how-to", "reference", "explanation", "results")


def without_code(text):
  return re.sub(r"^ *```.*?^ *```", "", text, flags=re.S | re.M)


def without_tables(text):
  """Without the tables that `launch.results` writes."""
  return re.sub(r"<!-- results:.*?<!-- end -->", "", text, flags=re.S)


def links(page):
  """What a page links to, outside its code."""
  text = re.sub(r"`[^`]*`", "", without_code((ROOT / page).read_text()))
  return re.findall(r"\]\(([^)\s]+)\)", text)


def anchors(path):
  """The names that GitHub gives to headings."""
  found = re.findall(r"^#+ +(.+?) *$", without_code(path.read_text()), re.M)
  return [re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in found]


@pytest.mark.parametrize("page", [*PAGES, *NOTEBOOKS], ids=str)
def test_links_lead_somewhere(page):
  for link in links(page):
    if "://" in link:
      continue
    name, _, anchor = link.partition("#")
    target = ROOT / page.parent / name if name else ROOT / page
    assert target.exists(), f"{page}: {link}: there is no such file"
    if anchor:
      assert anchor in anchors(target), f"{page}: {link}: there is no such heading"


def test_calibrator_arguments_pass_a_shell():
  text = (ROOT / "docs/how-to/calibrate_logits.md").read_text()
  found = re.findall(r"`(?:--calibrator=(\w+) )?(--calibrator_args=[^`]+)`", text)
  assert len(found) == 2
  for name, flag in found:
    word = subprocess.run(
      ["bash", "-c", f"echo {flag}"], capture_output=True, check=True, text=True
    )
    args = interop.parse_args(word.stdout.strip().partition("=")[2])
    assert calibrate.make_calibrator(name or "adsa", **args)


def test_a_heading_is_found_once():
  for page in PAGES:
    found = anchors(ROOT / page)
    assert len(found) == len(set(found)) or page.name == "CHANGELOG.md", page


def test_every_page_is_in_the_index():
  index = {link.partition("#")[0] for link in links("docs/README.md")}
  results = {f"results/{link.partition('#')[0]}" for link in links("docs/results/README.md")}
  pages = {str(p.relative_to("docs")) for p in DOCS} - {"README.md"}
  assert pages <= index | results
  assert {pathlib.Path(p).parts[0] for p in pages} == set(KINDS)


def test_the_front_door_is_short():
  assert len(readme_commands.README.read_text().splitlines()) <= 150


def test_the_docs_are_short():
  words = sum(len(without_tables((ROOT / page).read_text()).split()) for page in DOCS)
  assert words < 20_000


def test_every_command_of_the_readme_is_run():
  assert set(readme_commands.commands()) == set(readme_commands.COMMANDS)


# Paths that docs and docstrings name, such as docs/how-to/add_a_method.md.
NAMED = re.compile(r"\b((?:docs|configs|tests|ltdd_jax|launch|benchmarks)/[\w/.-]*\w\.(?:md|py))\b")


def test_files_that_docs_name_are_there():
  for page in PAGES:
    if page.name == "CHANGELOG.md":
      continue
    for name in NAMED.findall((ROOT / page).read_text()):
      assert (ROOT / name).exists(), f"{page} names {name}"


# Files by the end of their paths, as `models/taps.py`; a run writes the file of the second part.
PATH = re.compile(r"`([\w/.-]+\.(?:md|py))`(?<!report\.md`)")
PACKAGES = "|".join(p.name for p in (ROOT / "ltdd_jax").glob("[a-z]*") if p.is_dir())
# Names in modules, as `ltdd_jax.adsa` anywhere, or `teachers.train.train_teachers` in backquotes.
FULL = r"\bltdd_jax\.(\w+(?:\.\w+)*)"
SHORT = rf"`((?:{PACKAGES})(?:\.(?!npy|npz|pt|zarr)\w+)+)`"


def test_names_that_docs_use_are_there():
  folders = ("ltdd_jax", "configs", "launch", "tests", "docs", "benchmarks")
  paths = [f"/{p.relative_to(ROOT).as_posix()}" for f in folders for p in (ROOT / f).rglob("*.*")]
  for page in set(PAGES) - {pathlib.Path("CHANGELOG.md")}:
    text = (ROOT / page).read_text()
    for name in PATH.findall(text):
      assert (ROOT / name).exists() or any(p.endswith(f"/{name}") for p in paths), (page, name)
    for name in re.findall(FULL, text) + re.findall(SHORT, text):
      pkgutil.resolve_name(f"ltdd_jax.{name}")


def test_pages_that_the_code_names_are_there():
  for folder in ("ltdd_jax", "configs", "launch", "benchmarks", "tests"):
    for path in (ROOT / folder).rglob("*.py"):
      for name in re.findall(r"\bdocs/[\w/-]*\w\.md\b", path.read_text()):
        assert (ROOT / name).exists(), f"{path.relative_to(ROOT)} names {name}"


def test_python_snippets_compile():
  for page in PAGES:
    for block in re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(), re.S | re.M):
      compile(block, str(page), "exec")


def test_pages_of_the_site_are_made_from_the_code(monkeypatch):
  monkeypatch.syspath_prepend(ROOT / "docs")
  pages = importlib.import_module("generate").pages()
  assert {f"methods/{name}" for name in methods.METHODS} <= pages.keys()
  assert {"api/adsa", "api/pipeline", "errors"} <= pages.keys()
  assert "recipe: `edc_mse_gt`" in pages["methods/edc"]
  assert "67.38" in pages["methods/edc"]
  cell = pages["published"].partition("## CIFAR-10-LT, IF 50, IPC 10")[2].partition("\n## ")[0]
  assert "62.9 ± 0.2" in cell
  assert "67.38 (4 teachers)" not in cell.partition("EDC+ADSA")[0]
  assert "method=mtt,recipe=mtt_eval,imbalance=50,ipc=10" in cell
  assert "there is no such folder; expected the work directory of a run" in pages["errors"]


def test_the_site_has_the_notebooks(monkeypatch):
  monkeypatch.syspath_prepend(ROOT / "docs")
  found = importlib.import_module("generate").notebooks()
  assert list(found) == [path.as_posix() for path in NOTEBOOKS]
  listed = (ROOT / "docs" / "index.md").read_text()
  for name, text in found.items():
    assert f"\n_generated/{name.removesuffix('.ipynb')}\n" in listed
    for link in re.findall(r"\]\(([^)\s#]+)", text):
      assert (ROOT / "docs" / "_generated" / "notebooks" / link).resolve() in {
        *(ROOT / page for page in DOCS),
        *(ROOT / "docs" / "_generated" / other for other in found),
      }


def test_docstrings_become_restructured_text(monkeypatch):
  monkeypatch.syspath_prepend(ROOT / "docs")
  escape = importlib.import_module("generate").escape
  assert escape("`a * b` of *x* or |y|") == r"``a * b`` of \*x\* or \|y\|"
