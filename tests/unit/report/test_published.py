"""Results as data: runs into a CSV file and back, bad input, and the committed tables."""

import csv
import json
import pathlib
import subprocess
import sys

import pytest

from launch import results as command
from ltdd_jax.core.types import LtddError
from ltdd_jax.report import published, tables

ROOT = pathlib.Path(__file__).parents[3]
SHA = "6b" * 32
MODEL = {"name": "convnet", "depth": 3, "width": 64, "norm": "batch", "bn_momentum": 0.9}


def student(images, labels="hard", calibrator=None, mean=50.0, std: float | None = 1.0):
  teacher = None if labels == "hard" else "vgg11, cross_entropy, 30 epochs"
  made = {"teacher": teacher, "seconds": 12.4, "hardware": "2 cpu", "commit": "abc"}
  score = {"top1": {"mean": mean, "std": std}, "seeds": 3, "images_per_class": [10] * 10}
  return {"images": images, "labels": labels, "calibrator": calibrator} | score | made


ROWS = (student("random"), student("edc", "teacher", "adsa", 58.166, 0.249))


def write_run(folder, rows=ROWS, sha256=SHA, imbalance=100.0, recipe="rd3", **other):
  """A finished run that has nothing but its `results.json`."""
  split = {"rule": "ltdd", "imbalance_factor": imbalance, "provenance": "published split"}
  results = {"schema": tables.SCHEMA, "dataset": "cifar10", "recipe": recipe, "student": MODEL}
  results |= {"split": split | {"sha256": sha256}, "rows": rows} | other
  (folder / "report").mkdir(parents=True)
  (folder / "report" / "results.json").write_text(json.dumps(results))
  return folder


@pytest.fixture
def run(tmp_path):
  return write_run(tmp_path / "run")


def test_rows_of_a_run_by_hand(run, tmp_path):
  csv_file = tmp_path / "ours.csv"
  assert published.add([run], csv_file).endswith("ours.csv: 2 added, 0 replaced")
  assert csv_file.read_text().splitlines() == [
    "dataset,imbalance_factor,ipc,method,labels,calibrator,teacher,recipe,student,split,sha256,"
    "seeds,mean,std,hardware,seconds,commit",
    'cifar10,100,10,edc,teacher,adsa,"vgg11, cross_entropy, 30 epochs",rd3,'
    '"ConvNet-3 (norm=batch, width=64)",published split,'
    f"{SHA},3,58.1660,0.2490,2 cpu,12,abc",
    'cifar10,100,10,random,hard,,,rd3,"ConvNet-3 (norm=batch, width=64)",published split,'
    f"{SHA},3,50.0000,1.0000,2 cpu,12,abc",
  ]


def test_a_row_of_another_split_has_its_facts(tmp_path):
  split = {"rule": "counts", "imbalance_factor": 1.0, "provenance": "", "sha256": "ab" * 32}
  run = write_run(tmp_path / "run", [ROWS[0], ROWS[1] | {"split": split}])
  own, other = published.rows_of(run)
  assert (own["imbalance_factor"], own["split"], own["sha256"]) == ("100", "published split", SHA)
  assert [other[k] for k in ("imbalance_factor", "split", "sha256")] == [
    "1",
    "rule counts",
    "ab" * 32,
  ]


def test_what_is_written_is_read_again(run, tmp_path):
  csv_file = tmp_path / "ours.csv"
  published.add([run], csv_file)
  before = csv_file.read_bytes()
  rows = published.read_rows(csv_file, published.HEADER)
  assert sorted(r["method"] for r in rows) == ["edc", "random"]
  assert all(r in published.rows_of(run) for r in rows)
  assert "0 added, 2 replaced" in published.add([run], csv_file)
  assert csv_file.read_bytes() == before


def test_a_row_is_replaced_and_others_stay_sorted(run, tmp_path):
  csv_file = tmp_path / "ours.csv"
  later = write_run(tmp_path / "later", [student("random", mean=51.0, std=None)])
  small = write_run(tmp_path / "small", imbalance=20.0)
  published.add([run, small], csv_file)
  said = published.add([later], csv_file)
  assert "0 added, 1 replaced" in said
  assert said.endswith("50.0 ± 1.0 -> 51.0")
  rows = published.read_rows(csv_file, published.HEADER)
  found = [(r["imbalance_factor"], r["method"], r["mean"], r["std"]) for r in rows]
  assert found == [
    ("20", "edc", "58.1660", "0.2490"),
    ("20", "random", "50.0000", "1.0000"),
    ("100", "edc", "58.1660", "0.2490"),
    ("100", "random", "51.0000", ""),
  ]


@pytest.mark.parametrize(
  ("other", "message"),
  [
    ({"sha256": ""}, "sha256 is ''; expected the 64 hexadecimal digits"),
    ({"schema": 2}, "has schema 2; expected 3"),
    ({"rows": [ROWS[0], ROWS[0]]}, "has the row cifar10, 100, 10, random"),
  ],
)
def test_runs_that_are_refused(tmp_path, other, message):
  run = write_run(tmp_path / "run", **other)
  with pytest.raises(LtddError, match=message):
    published.add([run], tmp_path / "ours.csv")
  assert not (tmp_path / "ours.csv").exists()


@pytest.mark.parametrize("text", [None, "", "{"])
def test_an_unfinished_run_is_refused(tmp_path, text):
  if text is not None:
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "results.json").write_text(text)
  with pytest.raises(LtddError, match=r"no finished run\. Run its command again"):
    published.add([tmp_path], tmp_path / "ours.csv")


def edited(path, **values):
  """Writes over values of the first row."""
  rows = list(csv.DictReader(path.read_text().splitlines()))
  rows[0] |= values
  lines = [published.HEADER, *(tuple(row.values()) for row in rows)]
  with path.open("w", newline="") as file:
    csv.writer(file).writerows(lines)


@pytest.mark.parametrize(
  ("values", "message"),
  [
    ({"sha256": ""}, "row 2: sha256 is ''"),
    ({"sha256": SHA[:12]}, "row 2: sha256 is '6b6b6b6b6b6b'"),
    ({"mean": "high"}, "row 2: mean is 'high'; expected a number"),
    ({"mean": ""}, "row 2: mean is ''; expected a number"),
    ({"imbalance_factor": ""}, "row 2: imbalance_factor is ''; expected a number"),
    ({"commit": "a", "more": "b"}, "row 2: 18 values; expected 17"),
  ],
)
def test_a_damaged_csv_is_refused_and_kept(run, tmp_path, values, message):
  path = tmp_path / "ours.csv"
  published.add([run], path)
  edited(path, **values)
  before = path.read_bytes()
  with pytest.raises(LtddError, match=message):
    published.add([run], path)
  assert path.read_bytes() == before


def test_two_rows_of_one_experiment_are_refused(run, tmp_path):
  """As a merge of two branches may leave them."""
  path = tmp_path / "ours.csv"
  published.add([run], path)
  path.write_text(path.read_text() + path.read_text().splitlines()[-1] + "\n")
  with pytest.raises(LtddError, match=r"row 4: an earlier row is of the same experiment"):
    published.add([run], path)


@pytest.mark.parametrize("text", ["", "a,b\n1,2\n"])
def test_a_csv_of_another_kind_is_refused(run, tmp_path, text):
  (tmp_path / "ours.csv").write_text(text)
  with pytest.raises(LtddError, match=r"ours.csv has the header .*; expected dataset,imbalance"):
    published.add([run], tmp_path / "ours.csv")


# ---- tables ----


def theirs(method, mean, std="", student="ConvNet-3", ipc="10"):
  values = ("CIFAR-10-LT", "100", ipc, method, student, mean, std, "a paper", "")
  return dict(zip(published.PUBLISHED_HEADER, values, strict=True))


def test_a_table_by_hand(tmp_path):
  run = write_run(tmp_path / "run", recipe="rd3@1, changed: num_epochs 400 -> 3")
  known = [theirs("EDC", "53.2", "0.5"), theirs("EDC", "51"), theirs("RLDD", "62.7", "0.1")]
  known += [theirs("RLDD", "99", ipc="50"), theirs("RLDD", "98", student="VGG-11")]
  table = published.Table("cifar10", "CIFAR-10-LT", ("ConvNet-3",), (("100", "10"),))
  lines = published.beside(table, published.rows_of(run), known).splitlines()
  cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
  net, recipe = "ConvNet-3 (norm=batch, width=64)", "rd3@1, changed"
  shared, best = [net, recipe, "published split", "3"], "62.7 ± 0.1 (RLDD)"
  assert cells[0][-3:] == ["ours", "published", "best published"]
  assert cells[2:] == [
    ["100", "10", "Random", "-", *shared, "50.0 ± 1.0", "-", best],
    ["100", "10", "EDC", *["-"] * 6, "53.2 ± 0.5", best],
    ["100", "10", "EDC+ADSA", "vgg11, cross_entropy, 30 epochs", *shared, "58.2 ± 0.2", "-", best],
    ["100", "10", "RLDD", *["-"] * 6, "62.7 ± 0.1", best],
  ]


def test_a_line_for_each_cell_has_all_rows_of_its_teacher_and_students(tmp_path):
  rows = [
    row
    for name, change in {
      "a": {}, "b": {"recipe": "edc_mse_gt"}, "c": {"student": {"name": "resnet18"}},
    }.items()
    for row in published.rows_of(write_run(tmp_path / name, **change))
  ]  # fmt: skip
  teacher = "vgg11, cross_entropy, 30 epochs"
  table = published.TABLES["cifar10_edc"]._replace(teacher=teacher, cells=(("100", "10"),))
  known = [
    dict(zip(published.PUBLISHED_HEADER, x, strict=True))
    for x in (
      ("CIFAR-10-LT", "100", "10", "EDC", "ConvNet-3", "53.2", "0.5", "", ""),
      ("CIFAR-10-LT", "100", "10", "RLDD", "ConvNet-3", "62.7", "0.1", "", ""),
    )
  ]
  header, _, line = published.by_cell(table, rows, known).splitlines()
  cells = lambda text: [x.strip() for x in text.strip("|").split("|")]
  assert cells(header) == ["IF", "IPC", "best published", "EDC, published", "EDC+ADSA, ours"]
  both = "58.2 ± 0.2, 58.2 ± 0.2"
  assert cells(line) == ["100", "10", "62.7 ± 0.1 (RLDD)", "53.2 ± 0.5", both]
  other = published.by_cell(table._replace(teacher="another"), rows, known).splitlines()
  assert cells(other[0])[-1] == "EDC, published"


def test_many_teachers_are_counted(tmp_path):
  many = " + ".join(["ConvNet-3 (norm=batch, width=64)"] * 4)
  row = student("edc", "teacher", "adsa") | {"teacher": f"{many}, cross_entropy, 10 epochs"}
  (found,) = published.rows_of(write_run(tmp_path / "run", [row]))
  assert published._cells(found)[0] == "4 networks, cross_entropy, 10 epochs"


def test_every_recipe_has_a_line_and_other_networks_none(tmp_path):
  rows = [*published.rows_of(write_run(tmp_path / "a"))]
  rows += published.rows_of(write_run(tmp_path / "b", recipe=None))
  resnet = {"name": "resnet18", "stem": "cifar"}
  rows += published.rows_of(write_run(tmp_path / "c", student=resnet))
  lines = published.beside(published.TABLES["cifar10_convnet3"], rows, []).splitlines()
  assert len(lines) == 2 + 4
  assert published.network(resnet) == "ResNet-18 (stem=cifar)"
  assert published.network({"name": "wide_resnet"}) == "wide_resnet"


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ("<!-- results: other -->\n<!-- end -->", "'other' is not known. Tables: cifar10_convnet3"),
    ("<!-- results: cifar10_convnet3 -->\n| 1 |", "begins and does not end"),
    ("<!-- results: a -->\n<!-- results: cifar10_convnet3 -->\n<!-- end -->", "does not end"),
  ],
)
def test_markers_that_are_refused(text, message):
  with pytest.raises(LtddError, match=message):
    published.fill(text, [], [], "page.md")


def test_only_what_is_between_markers_changes(run, tmp_path):
  folder = tmp_path / "docs" / "results"
  published.add([run], folder / "ours.csv")
  (folder / "published.csv").write_bytes((ROOT / published.PUBLISHED).read_bytes())
  text = "# a\n\n<!-- results: cifar10_resnet18 -->\nold\n<!-- end -->\n\nend\n"
  (tmp_path / "README.md").write_text(text)
  (folder / "other.md").write_text("no table")
  assert published.write_tables(tmp_path) == ["README.md"]
  new = (tmp_path / "README.md").read_text()
  assert new.startswith(text.partition("old")[0])
  assert new.endswith(text.partition("old")[2])
  assert "76.4 (EDC+ADSA)" in new
  assert published.write_tables(tmp_path) == []
  (folder / "published.csv").unlink()
  with pytest.raises(LtddError, match=r"published.csv cannot be read .* root of the repository"):
    published.write_tables(tmp_path)


def test_committed_tables_are_those_of_the_csv_files():
  """Else: python -m launch.results tables."""
  for name, text in published.pages(ROOT).items():
    assert (ROOT / name).read_text() == text, name
  assert "docs/results/beside_published.md" in published.pages(ROOT)


def test_the_committed_csv_file_is_sorted(tmp_path):
  rows = published.read_rows(ROOT / published.OURS, published.HEADER)
  published._write_rows(tmp_path / "ours.csv", {published._key(row): row for row in rows})
  assert (tmp_path / "ours.csv").read_bytes() == (ROOT / published.OURS).read_bytes()


# ---- the command ----


def test_the_command(run, tmp_path):
  def call(*args):
    done = [sys.executable, "-m", "launch.results", *map(str, args)]
    return subprocess.run(done, cwd=ROOT, capture_output=True, text=True, timeout=60)

  done = call("add", run, f"--to={tmp_path / 'ours.csv'}")
  assert (done.returncode, done.stderr) == (0, "")
  assert "2 added, 0 replaced" in done.stdout
  done = call("add", tmp_path / "none", f"--to={tmp_path / 'ours.csv'}")
  assert done.returncode == 2
  assert done.stderr.startswith(f"error: {tmp_path / 'none'} has no readable report/results.json")
  assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("args", [[], ["add"], ["table"], ["tables", "x"]])
def test_wrong_arguments_are_one_message(args, capsys):
  assert command.main(["results", *args]) == 2
  assert "expected 'add RUNDIR...' or 'tables'" in capsys.readouterr().err
