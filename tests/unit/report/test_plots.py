"""Plots: what is drawn is what the results say, from head to tail; matplotlib may be missing."""

import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image

from ltdd_jax.core.types import LtddError
from ltdd_jax.data import longtail
from ltdd_jax.report import class_plots, images, plots, run_plots, tables

ROOT = pathlib.Path(__file__).parents[3]


def row(images, calibrator, name, per_class, **calibration):
  labels = "hard" if calibrator is None else "teacher"
  out = {"images": images, "labels": labels, "calibrator": calibrator, "calibrator_name": name}
  out["per_class"] = per_class
  return out | ({"calibration": calibration} if calibration else {})


def results_of(k=3, counts=(2, 50, 9), sources=("sre2l", "random")):
  per_class = [10.0 * (c % 10) for c in range(k)]
  rows = []
  for source in sources:
    rows += [
      row(source, None, None, per_class),
      row(source, "plain", "none", per_class, tau=0.0),
      row(source, "tau1", "fixed", per_class, tau=1.0),
      row(
        source, "adsa", "adsa", per_class, tau=0.625, flat=False,
        confidence_before=[0.25] * k, confidence_after=[0.5, None, *[0.75] * (k - 2)],
      ),
    ]  # fmt: skip
  return {
    "class_names": [f"class{c}" for c in range(k)],
    "split": {"counts": list(counts)},
    "rows": rows,
  }


def heights(axis):
  """Heights of the bars of each series of a panel."""
  return {c.get_label(): [bar.get_height() for bar in c.patches] for c in axis.containers}


def test_confidences_show_before_and_after_from_head_to_tail():
  figure = plots.confidences(results_of())
  assert [a.get_title(loc="left") for a in figure.axes] == ["sre2l images", "random images"]
  for axis in figure.axes:
    bars = heights(axis)
    assert list(bars) == ["plain soft labels", "adsa, tau = 0.62"]
    np.testing.assert_array_equal(bars["plain soft labels"], [0.25] * 3)
    np.testing.assert_array_equal(bars["adsa, tau = 0.62"], [np.nan, 0.75, 0.5])
  ticks = [t.get_text() for t in figure.axes[-1].get_xticklabels()]
  assert ticks == ["class1\n50", "class2\n9", "class0\n2"]


def test_a_flat_objective_is_said():
  results = results_of(sources=("sre2l",))
  results["rows"][-1]["calibration"]["flat"] = True
  figure = plots.confidences(results)
  assert "adsa, tau = 0.62, objective flat" in heights(figure.axes[0])


def test_accuracies_show_every_kind_of_label_in_its_own_colour():
  axis = plots.accuracies(results_of(sources=("random",))).axes[0]
  bars = heights(axis)
  assert list(bars) == ["hard", "plain", "tau1", "adsa"]
  for values in bars.values():
    np.testing.assert_array_equal(values, [10.0, 20.0, 0.0])
  assert len({c.patches[0].get_facecolor() for c in axis.containers}) == 4


def test_two_calibrations_of_one_kind_differ_in_colour():
  results = results_of(sources=("random",))
  results["rows"].append(results["rows"][-1] | {"calibrator": "adsa_wide"})
  axis = plots.accuracies(results).axes[0]
  assert len({c.patches[0].get_facecolor() for c in axis.containers}) == 5


def test_a_label_source_is_named_where_it_is_not_the_teacher():
  results = results_of(sources=("random",))
  results["rows"] += [r | {"labels": "learned"} for r in results["rows"][-1:]]
  axis = plots.accuracies(results).axes[0]
  assert list(heights(axis)) == ["hard", "plain", "tau1", "adsa", "learned adsa"]


def test_each_label_source_has_its_own_confidences_before():
  results = results_of(sources=("random",))
  found = results["rows"][-1]["calibration"] | {"confidence_before": [0.125] * 3}
  results["rows"] += [results["rows"][-1] | {"labels": "learned", "calibration": found}]
  (axis,) = plots.confidences(results).axes
  bars = heights(axis)
  assert list(bars) == [
    "teacher plain", "learned plain", "adsa, tau = 0.62", "learned adsa, tau = 0.62"
  ]  # fmt: skip
  assert (bars["teacher plain"][0], bars["learned plain"][0]) == (0.25, 0.125)
  assert len({c.patches[0].get_facecolor() for c in axis.containers}) == 4


def test_many_classes_are_averaged_in_bins():
  results = results_of(k=50, counts=range(50, 0, -1), sources=("random",))
  figure = plots.accuracies(results)
  values = heights(figure.axes[0])["plain"]
  assert len(values) == plots.MAX_BARS
  assert values[0] == pytest.approx(10.0)  # classes 0, 1 and 2
  assert "mean of 2 or 3 classes" in figure.axes[0].get_xlabel()


def test_bands_are_where_the_groups_are_whose_classes_have_test_images():
  counts, total = [30, 70, 60, 50, 40, 90], np.array([5, 5, 5, 5, 5, 0])
  scores = tables.scores(np.ones((1, 1, 6)) * (total > 0), total, longtail.groups(counts))
  results = {"class_names": list("abcdef"), "split": {"counts": counts}, "rows": [scores]}
  bands = {"head": (0.5, 1.5), "mid": (1.5, 3.5), "tail": (3.5, 5.5)}  # the largest has none
  assert plots.bins(results).bands == bands


def test_every_class_of_the_long_tail_has_a_place_of_its_own():
  k = 100
  results = {"class_names": [str(c) for c in range(k)], "split": {"counts": list(range(k, 0, -1))}}
  (drawn,) = class_plots.class_counts(results).axes[0].collections
  x = np.unique(drawn.get_paths()[0].vertices[:, 0].round(6))  # where the steps are
  assert len(x) == k + 1
  np.testing.assert_allclose(np.diff(x)[1:-1], 0.2, atol=1e-5)  # half of it at the ends


def test_equal_accuracies_of_one_seed_and_of_several_are_drawn():
  points = [("plain", 8.0, 10.0, 0.0), ("plain", 8.0, 10.0, None), ("plain", 2.0, 9.0, None)]
  (axis,) = run_plots.trade_off(points, "bytes").axes
  np.testing.assert_array_equal(axis.lines[0].get_xydata(), [[2, 9], [8, 10], [8, 10]])


def test_files_are_written_and_are_pictures(tmp_path):
  plots.write_plots(results_of(), tmp_path / "report")
  written = sorted((tmp_path / "report").iterdir())
  assert [p.name for p in written] == ["accuracies.png", "confidences.png"]
  for path in written:
    with Image.open(path) as picture:
      assert picture.format == "PNG"
      assert picture.width > 800
      assert len(picture.getcolors(maxcolors=1 << 20)) > 2


def test_results_without_confidences(tmp_path):
  results = results_of()
  results["rows"] = [r for r in results["rows"] if r["calibrator"] != "adsa"]
  with pytest.raises(LtddError, match=r"no row .* add \{'name': 'adsa'\}"):
    plots.confidences(results)
  plots.write_plots(results, tmp_path)
  assert [p.name for p in tmp_path.iterdir()] == ["accuracies.png"]


def test_a_place_that_cannot_be_written_is_named(tmp_path):
  (tmp_path / "file").write_text("")
  with pytest.raises(LtddError, match=r"plot .*accuracies\.png: could not be written"):
    plots.save(plots.accuracies(results_of()), tmp_path / "file" / "accuracies.png")


def test_pictures_are_whole_or_not_there(monkeypatch, tmp_path):
  def killed(*args):
    raise KeyboardInterrupt

  path, grid = tmp_path / "accuracies.png", np.zeros((2, 4, 4, 3), np.uint8)
  path.write_bytes(b"old")
  monkeypatch.setattr(os, "replace", killed)
  for draw in (
    lambda: plots.save(plots.accuracies(results_of()), path),
    lambda: images.write_grid(path, grid, np.array([0, 1])),
  ):
    with pytest.raises(KeyboardInterrupt):
      draw()
  assert [p.read_bytes() for p in tmp_path.iterdir()] == [b"old"]


def test_only_the_first_process_writes_pictures(monkeypatch, tmp_path):
  monkeypatch.setattr(jax, "process_index", lambda: 1)
  plots.write_plots(results_of(), tmp_path)
  images.write_grid(tmp_path / "x.png", np.zeros((2, 4, 4, 3), np.uint8), np.array([0, 1]))
  assert list(tmp_path.iterdir()) == []


def test_a_plot_in_the_home_folder(monkeypatch, tmp_path):
  monkeypatch.setenv("HOME", str(tmp_path))
  plots.save(plots.accuracies(results_of()), "~/new/accuracies.png")
  assert (tmp_path / "new" / "accuracies.png").exists()


def test_without_matplotlib(monkeypatch, tmp_path):
  for name in ("matplotlib", "matplotlib.figure", "matplotlib.backends.backend_agg"):
    monkeypatch.setitem(sys.modules, name, None)
  assert not plots.available()
  plots.write_plots(results_of(), tmp_path)
  assert list(tmp_path.iterdir()) == []
  with pytest.raises(LtddError, match=r"matplotlib.* pip install -e '\.\[report\]'"):
    plots.confidences(results_of())


def test_importing_plots_imports_no_matplotlib_and_drawing_no_pyplot():
  code = (
    "import sys\n"
    "from ltdd_jax.report import images, plots\n"
    "assert 'matplotlib' not in sys.modules\n"
    "plots.accuracies({'class_names': ['a'], 'split': {'counts': [1]}, 'rows': [\n"
    "  {'images': 'x', 'labels': 'hard', 'calibrator': None, 'calibrator_name': None,\n"
    "   'per_class': [50.0]}]})\n"
    "assert 'matplotlib.figure' in sys.modules\n"
    "assert 'matplotlib.pyplot' not in sys.modules\n"
  )
  subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_one_calibration_by_itself(tmp_path):
  report = {"tau": 0.5, "curve": [[0.0, 0.3], [0.5, 0.1], [1.0, 0.2]], "tau_interval": [0.4, 0.7]}
  confidence = [0.9, 0.2, np.nan], [0.5, 0.6, np.nan]
  figure = plots.calibration(report, [50.0, 5.0, 4.0], confidence)
  bars, curve = figure.axes
  values = heights(bars)
  np.testing.assert_array_equal(values["before"], confidence[0])
  np.testing.assert_array_equal(values["after, tau = 0.50"], confidence[1])
  assert bars.get_xticklabels()[0].get_text() == "0\n50"
  np.testing.assert_array_equal(curve.lines[0].get_xydata(), report["curve"])
  assert [t.get_text() for t in curve.get_legend().get_texts()] == ["tau = 0.500", "95 % interval"]
  trade = report | {"head_curve": [[0.0, 0.3, 0.9, 0.2], [1.0, 0.2, 0.5, 0.6]]}
  *_, curve, levels = plots.calibration(trade, [50.0, 5.0, 4.0], confidence).axes
  assert [list(line.get_ydata()) for line in levels.lines] == [[0.9, 0.5], [0.2, 0.6]]
  assert [t.get_text() for t in curve.get_legend().get_texts()][-2:] == ["head", "tail"]
  bound = trade | {"tau_interval": None, "free_tau_interval": [0.6, 0.9]}
  curve = plots.calibration(bound, [50.0, 5.0, 4.0], confidence).axes[1]
  assert curve.get_legend().get_texts()[1].get_text() == "95 % interval without the bound"
  figure = plots.calibration({"tau": 0.0}, [3, 2, 1], confidence)  # without a curve
  plots.save(figure, tmp_path / "c.png")
  with Image.open(tmp_path / "c.png") as picture:
    assert picture.format == "PNG"
