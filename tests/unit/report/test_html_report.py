"""HTML reports: whole, self-contained, safe against any name, and honest about what is missing."""

import base64
import html.parser
import io
import json
import re
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from ltdd_jax.core.types import LtddError
from ltdd_jax.interop import distilled_sets
from ltdd_jax.report import html as html_lib
from ltdd_jax.report import page, pictures, run_folder
from tests import small_run

VOID = {"meta", "link", "img", "br"}


class Parsed(html.parser.HTMLParser):
  """Elements with attributes, and text by the element that holds it; fails if tags do not match."""

  def __init__(self, text):
    super().__init__()
    self.elements, self.texts, self.open = [], [], []
    self.feed(text)
    assert not self.open

  def handle_starttag(self, tag, attrs):
    self.elements.append((tag, dict(attrs)))
    if tag not in VOID:
      self.open.append(tag)

  def handle_startendtag(self, tag, attrs):
    self.elements.append((tag, dict(attrs)))

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, data):
    if data.strip():
      self.texts.append((self.open[-1] if self.open else "", data.strip()))

  def all(self, tag):
    return [attrs for name, attrs in self.elements if name == tag]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("run")
  results = small_run.write(workdir)
  return workdir, results, page.write([workdir]).read_text()


def test_a_page_is_whole_and_needs_nothing_else(written):
  workdir, _, text = written
  parsed = Parsed(text)
  assert text.startswith("<!DOCTYPE html>")
  assert not parsed.all("script")
  links = [v for _, a in parsed.elements for k, v in a.items() if k in ("src", "href")]
  assert all(link.startswith(("#", "data:")) for link in links)
  assert not re.search(r"url\((?!#)", text)
  assert {m["name"] for m in parsed.all("meta") if "name" in m} == {"viewport"}
  assert sorted(p.name for p in (workdir / "report").iterdir()) == [
    "index.csv", "index.html", "index.md", "index.tex", "matrices.npz", "results.json"
  ]  # fmt: skip


def test_sections_figures_and_pictures_are_there(written):
  parsed = Parsed(written[2])
  ids = [a["id"] for _, a in parsed.elements if "id" in a]
  assert len(ids) == len(set(ids))
  assert {a["href"][1:] for a in parsed.all("a")} <= set(ids)
  sections = [a["id"] for a in parsed.all("section")]
  assert sections == [
    "results", "repeat", "split", "classes", "labels", "images", "confusion", "training", "cost",
    "config", "machine",
  ]  # fmt: skip
  figures = parsed.all("figure")
  assert len(figures) == len(parsed.all("svg")) == 7
  assert all(len(a["aria-label"]) > 20 for a in figures)
  for svg in re.findall(r"<svg.*?</svg>", written[2], re.S):  # none is empty
    assert svg.count("<path") + svg.count("<image") + svg.count("<use") > 10
    assert svg.count("<text") > 3
  pictures_ = [a for a in parsed.all("img") if "xlink:href" not in a]
  assert len(pictures_) == 8
  assert all(a["alt"].startswith("2 distilled images of class") for a in pictures_)


def test_names_are_text_and_never_markup_or_formulas(written):
  parsed = Parsed(written[2])
  seen = {text for _, text in parsed.texts}
  assert {"<script>alert(1)</script>", "a|b", "new\\nline", "$x^2$", "&amp;", "été"} <= seen
  in_plots = {text for tag, text in parsed.texts if tag == "text"}
  assert {"a|b", "new\\nline", "$x^2$", "&amp;"} <= in_plots
  assert "<b>note</b>" not in written[2]
  assert "<i>small</i>" not in written[2]


def test_numbers_of_the_page_are_those_of_the_results(written):
  _, results, text = written
  cells = [t for tag, t in Parsed(text).texts if tag == "td"]
  for row in results["rows"]:
    assert f"{row['top1']['mean']:.1f} ± {row['top1']['std']:.1f}" in cells


def test_the_command_and_what_it_changed_are_shown(tmp_path):
  small_run.write(tmp_path)
  start = {
    "command": "python -m launch.main --config configs/x.py:ipc=2 --config.data.name='a b'",
    "code": {"revision": "f" * 40, "dirty": True},
    "changed": {"data.name": ["digits", "a b"], "data.counts": ["(absent)", [9, 1]]},
  }
  (tmp_path / "runs.jsonl").write_text(json.dumps(start) + "\n")
  text = page.write([tmp_path]).read_text()
  assert "--config configs/x.py:ipc=2" in text
  assert "with changes that were not committed" in text
  table = text[text.index("Values other than those") : text.index("All 2 values")]
  assert re.findall(r'<th scope="row">(.*?)</th>', table) == ["data.name", "data.counts"]
  cells = ["&#34;digits&#34;", "&#34;a b&#34;", "-", "[9, 1]"]
  assert re.findall(r"<td[^>]*>(.*?)</td>", table) == cells


def test_scores_and_neighbours_are_shown_where_they_were_made(tmp_path):
  small_run.write(tmp_path)
  leaks = {"distance": 1.0, "test_distance": 2.0, "membership": 0.25, "auc": 0.75}
  leaks |= {"nearer_to_train": 0.625, "nearer_expected": 0.375}
  score = {key: {"mean": 0.125, "std": None} for key in ("hlr", "ior", "lrs", "ars")}
  rows = [{"labels": "plain", "classes": "all", "scores": score}]
  found = {"images": "edc", "accuracy": "last step", "rows": rows, "leakage": {"edc": leaks}}
  (tmp_path / "scores" / "report").mkdir(parents=True)
  (tmp_path / "scores" / "report" / "scores.json").write_text(json.dumps(found))
  near = np.zeros((16, 8, 8, 3), np.uint8)
  stored = run_folder.read(tmp_path).images["edc"]
  of = distilled_sets.content_sha256(stored["images"], stored["labels"])
  np.savez(tmp_path / "report" / "neighbours-edc.npz", images=near, of=of)
  text = page.write([tmp_path]).read_text()
  scores = text[text.index('<section id="scores"') : text.index('<section id="confusion"')]
  assert scores.count("<td>0.125</td>") == 4
  assert {"<td>0.250</td>", "<td>0.750</td>", "<td>0.625</td>"} <= set(
    re.findall("<td>.*?</td>", scores)
  )
  assert text.count('alt="The nearest training images of 2 distilled images of class') == 8
  np.savez(tmp_path / "report" / "neighbours-edc.npz", images=near, of="of other images")
  assert "The nearest training images of" not in page.write([tmp_path]).read_text()


def test_one_seed_has_no_deviation_and_the_page_says_so(tmp_path):
  small_run.write(tmp_path, seeds=1)
  assert "Rows of one seed have no standard deviation." in page.write([tmp_path]).read_text()


def test_published_numbers_stand_beside_ours(tmp_path):
  results = small_run.results_of(10, dataset="cifar10")
  for row in results["rows"]:
    row["images_per_class"] = [10] * 10
  small_run.write(tmp_path, 10)
  (tmp_path / "report" / "results.json").write_text(json.dumps(results))
  cells = [t for tag, t in Parsed(page.write([tmp_path]).read_text()).texts if tag == "td"]
  assert "53.2 ± 0.5 (ConvNet-3), 50.9 (not stated)" in cells
  assert cells.count("68.7 (EDC+ADSA)") == 3
  results["rows"][0]["images_per_class"] = [50] * 10  # another cell of the table
  small_run.write(tmp_path / "b", 10)
  (tmp_path / "b" / "report" / "results.json").write_text(json.dumps(results))
  cells = [t for tag, t in Parsed(page.write([tmp_path / "b"]).read_text()).texts if tag == "td"]
  assert (cells.count("68.7 (EDC+ADSA)"), cells.count("74.8 (EDC+ADSA)")) == (2, 1)


def test_what_is_missing_or_damaged_is_said_and_the_rest_is_shown(tmp_path):
  small_run.write(tmp_path)
  (tmp_path / "runs.jsonl").unlink()
  (tmp_path / "report" / "matrices.npz").write_bytes(b"PK")
  (tmp_path / "distil" / "edc" / "images.npy").write_bytes(b"x")
  text = page.write([tmp_path]).read_text()
  missing = text[text.index('id="missing"') :]
  for what in (
    "runs.jsonl is not there",
    "report/matrices.npz cannot be read",
    "images.npy is damaged",
  ):
    assert what in missing
  assert "Training images of each class" in text


@pytest.mark.parametrize(
  ("file", "content", "said"),
  [
    ("config.json", "[]", "config.json cannot be read: it holds no JSON object"),
    ("report/results.json", "[]", "report/results.json cannot be read: it holds no JSON object"),
    ("report/results.json", '{"schema": 3, "rows": []}', "it has no rows"),
    ("report/results.json", '{"schema": 3, "rows": [{}]}', "it has a row without &#39;images&#39;"),
    ("report/matrices.npz", "", "report/matrices.npz cannot be read"),
    ("scores/report/scores.json", "{}", "the section &#39;Scores&#39; cannot be made"),
    ("runs.jsonl", '{"changed": [1]}\n', "cannot be made: AttributeError"),
    (
      "metrics/student/edc/hard/seed0/metrics.jsonl",
      '{"step": 1, "loss": null}\n',
      "metrics/student",
    ),
  ],
)
def test_damaged_files_leave_the_rest_of_the_page(tmp_path, file, content, said):
  small_run.write(tmp_path)
  (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
  (tmp_path / file).write_text(content)
  text = page.write([tmp_path]).read_text()
  assert said in text[text.index('id="missing"') :]
  assert "2 distilled images of class" in text


def test_seeds_that_train_at_once_have_curves(tmp_path):
  small_run.write(tmp_path)
  folder = tmp_path / "metrics" / "student" / "edc" / "hard"
  (folder / "seed0").rename(folder / "seed0+2")
  text = page.write([tmp_path]).read_text()
  assert "Loss of stage student by step; of several seeds, the first." in text
  assert ">edc/hard</text>" in text


def test_runs_inside_a_work_directory_are_not_its_stages(tmp_path):
  small_run.write(tmp_path)
  small_run.write(tmp_path / "scores" / "real")
  assert list(run_folder.read(tmp_path).stages) == ["distil/edc"]


def test_an_unfinished_run_has_a_page(tmp_path):
  small_run.write(tmp_path)
  (tmp_path / "report" / "results.json").unlink()
  text = page.write([tmp_path]).read_text()
  assert "not finished: 1 stages are there" in text
  assert "The run has no results yet." in text
  assert "2 distilled images of class" in text


def test_results_of_another_version_are_refused(tmp_path):
  results = small_run.write(tmp_path)
  (tmp_path / "report" / "results.json").write_text(json.dumps(results | {"schema": 1}))
  assert "it has schema 1, not 3" in page.write([tmp_path]).read_text()


def test_no_work_directory(tmp_path):
  with pytest.raises(LtddError, match="there is no such folder"):
    page.write([tmp_path / "none"])
  with pytest.raises(LtddError, match="no work directory of a run"):
    page.write([tmp_path])
  with pytest.raises(LtddError, match=r"2 work directories and no file .* --out=FILE.html"):
    page.write([tmp_path, tmp_path])
  small_run.write(tmp_path / "a")
  with pytest.raises(LtddError, match=r"expected a name that ends in \.html"):
    page.write([tmp_path / "a"], tmp_path / "a.pdf")


def test_several_runs_are_compared(tmp_path):
  for parent in ("x", "y"):
    small_run.write(tmp_path / parent / "run")
  config = tmp_path / "y" / "run" / "config.json"
  config.write_text(config.read_text().replace('"seed": 3', '"seed": 4'))
  text = page.write(
    [tmp_path / "x" / "run", tmp_path / "y" / "run"], tmp_path / "c.html"
  ).read_text()
  parsed = Parsed(text)
  rows = [t for tag, t in parsed.texts if tag == "th" and t in ("x/run", "y/run")]
  assert rows.count("x/run") == rows.count("y/run") == 4  # three rows, and a column
  assert "Top-1 against bytes of labels." in text
  differences = text[text.index('id="config"') :]
  assert re.findall(r'<th scope="row">(.*?)</th>', differences) == ["seed"]
  assert (tmp_path / "c.csv").read_text().startswith("run,data set,IF,IPC,images,labels,calibrator")


def test_cells_of_one_name_in_two_sweeps_are_told_apart(tmp_path):
  names = ("one/cells/a", "two/cells/a", "two/cells/b")
  for name in names:
    small_run.write(tmp_path / name)
  page.write([tmp_path / name for name in names], tmp_path / "c.html")
  rows = (tmp_path / "c.csv").read_text().splitlines()[1:]
  assert [*dict.fromkeys(row.split(",")[0] for row in rows)] == ["one/cells/a", "two/cells/a", "b"]


def test_best_is_of_one_setting(tmp_path):
  small_run.write(tmp_path / "a")
  small_run.write(tmp_path / "b", dataset="other")
  text = page.write([tmp_path / "a", tmp_path / "b"], tmp_path / "c.html").read_text()
  rows = re.findall(r'<tr><th scope="row">([ab])</th>(.*?)</tr>', text, re.S)
  best = [name for name, cells in rows if 'class="best"' in cells]
  assert set(best) == {"a", "b"}
  assert "other IF 100: edc / adsa" in text


def test_many_classes_are_put_together(tmp_path):
  small_run.write(tmp_path, 300, per_class=3, side=32)
  text = page.write([tmp_path]).read_text()
  assert len(text) < 5e6
  assert "each bar is the mean of 15 classes" in text
  assert Parsed(text).all("img")[0]["alt"].startswith("3 distilled images")


@pytest.mark.parametrize("theme", [0, 1])
def test_text_has_contrast_in_light_and_dark(written, theme):
  def light(colour):
    digits = colour.lstrip("#")
    digits = "".join(2 * c for c in digits) if len(digits) == 3 else digits
    rgb = np.array([int(digits[i : i + 2], 16) for i in (0, 2, 4)]) / 255
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4) @ [
      0.2126,
      0.7152,
      0.0722,
    ]

  found = re.findall(r":root \{([^}]*)\}", written[2])[theme]
  colours = dict(re.findall(r"--(\w+): (#\w+);", found))
  pairs = [("text", b) for b in ("back", "panel", "best", "second")]
  pairs += [("soft", "back"), ("link", "back")]
  for front, back in pairs:
    low, high = sorted((light(colours[front]), light(colours[back])))
    assert (high + 0.05) / (low + 0.05) >= 4.5, (front, back)


def test_strips_of_images():
  def shown(images, **options):
    uri = pictures.strip(
      images, pictures.Plan(**{"each": 1, "side": 8, "lossless": True} | options)
    )
    kind, _, data = uri.partition(";base64,")
    with Image.open(io.BytesIO(base64.b64decode(data))) as picture:
      return kind, picture.size, np.asarray(picture)

  grey = np.arange(32, dtype=np.uint8).reshape(2, 4, 4, 1)
  kind, size, pixels = shown(grey)
  assert (kind, size) == ("data:image/png", (9, 4))
  np.testing.assert_array_equal(pixels[:, 5:], grey[1, ..., 0])
  kind, size, pixels = shown(np.full((3, 16, 16, 3), 1.5), lossless=False)
  assert (kind, size) == ("data:image/jpeg", (25, 8))
  assert pixels[0, 0].tolist() == [255, 255, 255]


@pytest.mark.parametrize(
  ("shape", "classes", "sources", "want", "sentence"),
  [
    ((32, 32, 3), 10, 2, (10, 32, True), ""),
    ((64, 64, 3), 200, 1, (4, 64, False), "stored as JPEG"),
    ((64, 64, 3), 1000, 2, (1, 44, False), "reduced to 44 pixels and stored as JPEG"),
  ],
)
def test_what_fits_on_a_page(shape, classes, sources, want, sentence):
  plan = pictures.plan(shape, classes, sources)
  assert plan == want
  assert plan.sentence(shape) == sentence


def test_the_command(tmp_path):
  small_run.write(tmp_path / "run")
  command = [sys.executable, "-m", "launch.report", str(tmp_path / "run")]
  done = subprocess.run(command, capture_output=True, text=True, check=True)
  assert done.stdout == f"wrote {tmp_path / 'run' / 'report' / 'index.html'}\n"
  done = subprocess.run([*command, str(tmp_path)], capture_output=True, text=True)
  assert done.returncode == 2
  assert done.stderr.startswith("error: 2 work directories and no file to write")


def test_without_jinja(monkeypatch, tmp_path):
  small_run.write(tmp_path)
  monkeypatch.setitem(sys.modules, "jinja2", None)
  assert not html_lib.available()
  with pytest.raises(LtddError, match=r"Jinja2\. Install it: pip install -e '\.\[report\]'"):
    page.write([tmp_path])


def test_curves_skip_what_is_not_finite(tmp_path):
  small_run.write(tmp_path)
  assert run_folder.read(tmp_path).curves == {
    "student/edc/hard/seed0": ([1, 2, 3], [1, 0.5, 1 / 3])
  }
