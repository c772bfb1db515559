"""Sphinx: `pip install -e '.[docs]'`, then `sphinx-build -W docs build/site`.

Pages of methods, of the API and of errors are generated from the code, and notebooks are copied
(`generate.py`).
"""

import pathlib
import re
import sys

HERE = pathlib.Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import generate  # noqa: E402

project = "ltdd_jax"
author = "the authors of ltdd_jax"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.mathjax"]
root_doc = "index"
exclude_patterns = ["README.md"]
html_theme = "furo"
html_title = "ltdd_jax"
nb_execution_mode = "off"  # notebooks are run by tests and keep their outputs
myst_heading_anchors = 4
myst_enable_extensions = ["dollarmath"]
autodoc_typehints = "none"
autodoc_member_order = "bysource"
autodoc_mock_imports = ["torch", "datasets"]
napoleon_use_rtype = False
napoleon_use_param = False
napoleon_use_ivar = True


def shorten_links(app, docname, source):
  """Links to files outside of `docs` become their names: the site does not hold these."""
  if docname.startswith("_generated/notebooks/"):  # JSON; `generate.py` has mended its links
    return
  page = HERE / f"{docname}.md"

  def replace(match):
    text, target = match.groups()
    place = (page.parent / target.partition("#")[0]).resolve()
    inside = "://" in target or target.startswith("#") or HERE in place.parents
    return match[0] if inside and place.name != "README.md" else _outside(text, place, page)

  source[0] = re.sub(r"(?<!!)\[([^\]]+)\]\(([^)\s]+)\)", replace, source[0])


def _outside(text, place, page):
  if place == HERE / "README.md":
    up = "../" * (len(page.relative_to(HERE).parts) - 1)
    return f"[{text}]({up}index.md)"
  return f"[{text}]({place.name})" if place.parent == page.parent else text


def from_markdown(app, what, name, obj, options, lines):
  """Docstrings as reStructuredText wants them, before napoleon reads their sections.

  Indented lines outside of Args and the like are code; single backquotes become two.
  """
  out, section, block = [], False, False
  for line in lines:
    if line and not line.startswith(" "):
      section = (
        re.fullmatch(r"(Args|Returns|Raises|Yields|Attributes|Examples?):", line) is not None
      )
    inside = not section and (line.startswith(" ") or (block and not line))
    if inside != block:
      out += ["", "::", ""] if inside else [""]
    block = inside
    out.append(line if inside else generate.escape(line))
  lines[:] = out


def skip_fields(app, what, name, obj, skip, options):
  """Fields of NamedTuples have no docstrings: comments in the code say their shapes."""
  return True if type(obj).__name__ == "_tuplegetter" else None


def setup(app):
  app.connect("builder-inited", lambda app: generate.write(HERE / "_generated"))
  app.connect("source-read", shorten_links)
  app.connect("autodoc-skip-member", skip_fields)
  app.connect("autodoc-process-docstring", from_markdown, priority=100)
