"""The report of one run, or of several beside each other, as one HTML file that needs nothing else.

  write(["runs/digits"], "report.html")

Figures are inline SVG and pictures are data; there is no script, and no text of a run is trusted.
Jinja2 and matplotlib are optional packages (`pip install -e '.[report]'`).
"""

import importlib.resources
import importlib.util
import io
import re
import warnings
import zlib
from collections.abc import Sequence
from typing import Any, NamedTuple

from ltdd_jax.core.types import LtddError
from ltdd_jax.report import formats, plots

TEMPLATE = "page.html.jinja"


class Text(NamedTuple):
  """A paragraph, or some in a list."""

  text: str
  entries: Sequence[str] = ()
  kind: str = "text"


class Table(NamedTuple):
  """A table; `marks` says which cells are best and second."""

  caption: str
  header: Sequence[str]
  rows: Sequence[Sequence[str]]
  marks: formats.Marks = {}  # noqa: RUF012 (never changed)
  folded: bool = False
  kind: str = "table"


class Code(NamedTuple):
  """A command, or a config."""

  caption: str
  text: str
  folded: bool = False
  kind: str = "code"


class Figure(NamedTuple):
  """A plot as SVG, with what it shows in words."""

  svg: str
  caption: str
  kind: str = "figure"


class Strip(NamedTuple):
  """Images of one class side by side, as a picture in data, and real ones beside them."""

  name: str
  alt: str
  picture: str
  text: str
  neighbours: str | None = None


class Strips(NamedTuple):
  """Strips of one image source."""

  caption: str
  strips: Sequence[Strip]
  kind: str = "strips"


Block = Text | Table | Code | Figure | Strips


class Section(NamedTuple):
  """A heading with what stands below it."""

  id: str
  title: str
  blocks: Sequence[Block]


def available() -> bool:
  """Whether Jinja2 and matplotlib are installed; asks without importing them."""
  return importlib.util.find_spec("jinja2") is not None and plots.available()


def check_available() -> None:
  """Raises LtddError that says how to install what is missing."""
  plots.check_available()
  if importlib.util.find_spec("jinja2") is None:
    raise LtddError("HTML reports need Jinja2. Install it: pip install -e '.[report]'")


def render(title: str, about: str, sections: Sequence[Section]) -> str:
  """Fills the template; all text is escaped, but for SVG, which matplotlib has escaped."""
  check_available()
  import jinja2

  environment = jinja2.Environment(
    autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
  )
  source = importlib.resources.files("ltdd_jax.report").joinpath(TEMPLATE).read_text("utf-8")
  shown = [section for section in sections if section.blocks]
  return environment.from_string(source).render(title=title, about=about, sections=shown)


def figure(drawn: Any, caption: str) -> Figure:
  """A Matplotlib figure as SVG that takes the colours and the fonts of the page.

  Args:
    drawn: the figure.
    caption: says what it shows, for readers who do not see it too.
  """
  import matplotlib as mpl

  with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": caption}):
    content = io.BytesIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with warnings.catch_warnings():
      warnings.filterwarnings("ignore", "Glyph")  # readers have fonts of their own
      drawn.savefig(content, format="svg", transparent=True, metadata=nothing)
  return Figure(_for_page(content.getvalue().decode("utf-8"), caption), caption)


def _for_page(svg: str, caption: str) -> str:
  """An SVG file as an element: black follows the page; names of parts are its own, if used."""
  own = f"f{zlib.crc32(caption.encode()):08x}-"
  svg = svg[svg.index("<svg") :]
  svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S)
  used = set(re.findall(r'(?:xlink:href="|url\()#([^")]+)', svg))
  svg = re.sub(r' id="([^"]*)"', lambda m: m[0] if m[1] in used else "", svg)
  svg = re.sub(r'(\bid="|xlink:href="#|url\(#)', lambda m: m[1] + own, svg)
  svg = re.sub(r"(stroke|fill): #(000000|333333|262626)\b", r"\1: currentColor", svg)
  svg = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font: \1 system-ui, sans-serif", svg)
  return svg.replace("<svg ", '<svg aria-hidden="true" focusable="false" ', 1)
