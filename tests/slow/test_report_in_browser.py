"""The HTML report in a browser; needs `pip install playwright` and a chromium on the path.

pytest -m slow -n 0 tests/slow/test_report_in_browser.py
"""

import shutil

import pytest

from ltdd_jax.report import page as page_lib
from tests import small_run

pytestmark = pytest.mark.slow
playwright = pytest.importorskip("playwright.sync_api")
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.fixture(scope="module")
def browser():
  if BROWSER is None:
    pytest.skip("there is no chromium on the path")
  with playwright.sync_playwright() as p:
    yield p.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])


@pytest.fixture(scope="module")
def address(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("run")
  small_run.write(workdir)
  return page_lib.write([workdir]).as_uri()


def opened(browser, address, **options):
  """A page, and all that it wrote to the console or asked of a network."""
  context = browser.new_context(**options)
  page, said = context.new_page(), []
  page.on("console", lambda message: said.append(message.text))
  page.on("pageerror", lambda error: said.append(str(error)))
  page.on(
    "request", lambda r: said.append(r.url) if not r.url.startswith(("file:", "data:")) else 0
  )
  page.goto(address)
  return page, said


@pytest.mark.parametrize("width", [360, 1200])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_it_shows_everything_and_says_nothing(browser, address, width, theme):
  size = {"width": width, "height": 800}
  page, said = opened(browser, address, viewport=size, color_scheme=theme)
  for figure in page.locator("figure svg").all():
    box = figure.bounding_box()
    assert box["width"] >= min(width, 500)
    assert box["height"] > 100
  for picture in page.locator("img").all():
    assert picture.evaluate("i => i.complete && i.naturalWidth > 0")
    assert picture.get_attribute("alt")
  assert page.evaluate("document.documentElement.scrollWidth") <= width
  red = page.evaluate("+getComputedStyle(document.body).backgroundColor.match(/[0-9]+/)[0]")
  assert (red > 128) == (theme == "light")
  colour = lambda name: page.locator(name).first.evaluate("e => getComputedStyle(e).fill")
  assert colour("figure svg text") == page.evaluate("getComputedStyle(document.body).color")
  assert said == []


def test_the_keyboard_reaches_links_and_opens_classes(browser, address):
  page, _ = opened(browser, address)
  page.keyboard.press("Tab")
  assert page.evaluate("document.activeElement.getAttribute('href')") == "#results"
  closed = page.locator("details.strip:not([open])").count()
  height = page.locator("details.strip img").first.bounding_box()["height"]
  page.locator("details.strip summary").first.focus()
  page.keyboard.press("Enter")
  assert page.locator("details.strip:not([open])").count() == closed - 1
  assert page.locator("details.strip img").first.bounding_box()["height"] > 2 * height


def test_names_run_no_script(browser, address):
  page, said = opened(browser, address)
  assert page.evaluate("document.scripts.length") == 0
  assert page.get_by_text("<script>alert(1)</script>").count() > 0
  assert said == []
