"""Links between the pages of the docs."""

import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[2]
PAGES = sorted(p.relative_to(ROOT) for p in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")))


def without_code(text):
  return re.sub(r"^ *```.*?^ *```", "", text, flags=re.S | re.M)


def anchors(path):
  """The names that GitHub gives to headings."""
  found = re.findall(r"^#+ +(.+?) *$", without_code(path.read_text()), re.M)
  return [re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in found]


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_links_lead_somewhere(page):
  links = re.findall(r"\]\(([^)\s]+)\)", without_code((ROOT / page).read_text()))
  for link in links:
    if "://" in link:
      continue
    name, _, anchor = link.partition("#")
    target = ROOT / page.parent / name if name else ROOT / page
    assert target.exists(), f"{page}: {link}: there is no such file"
    if anchor:
      assert anchor in anchors(target), f"{page}: {link}: there is no such heading"


def test_a_heading_is_found_once():
  for page in PAGES:
    found = anchors(ROOT / page)
    assert len(found) == len(set(found)) or page.name == "CHANGELOG.md", page
