"""Metrics on disk, progress in the log and on a terminal, memory."""

import json
import math
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ltdd_jax.core import files
from ltdd_jax.core import progress as progress_lib
from ltdd_jax.core.types import LtddError


def lines(folder):
  return [json.loads(x) for x in (folder / "metrics.jsonl").read_text().splitlines()]


def write(folder, steps, first_step=0, **kwargs):
  metrics = progress_lib.MetricWriter(folder, first_step=first_step, **kwargs)
  for step in steps:
    metrics.write(step, {"loss": step / 2})
  metrics.close()


def scalars(folder):
  """All scalars of the event files, by a reader that needs no TensorFlow."""
  from tensorboardX.proto import event_pb2

  found = []
  for path in sorted(folder.glob("events.out.tfevents.*")):
    data, at = path.read_bytes(), 0
    while at < len(data):  # length, its checksum, the event, its checksum
      size = int.from_bytes(data[at : at + 8], "little")
      event = event_pb2.Event.FromString(data[at + 12 : at + 12 + size])
      found += [(event.step, v.tag, v.simple_value) for v in event.summary.value]
      at += 12 + size + 4
  return found


def test_json_lines_and_events(tmp_path):
  metrics = progress_lib.MetricWriter(tmp_path / "teacher" / "a")
  metrics.write(1, {"loss": 0.5, "accuracy": 1})
  metrics.write(np.int64(2), {"loss": jnp.float32(0.25)})
  assert len(lines(tmp_path / "teacher" / "a")) == 2  # there before it is closed
  metrics.close()
  metrics.close()
  assert lines(tmp_path / "teacher" / "a") == [
    {"step": 1, "loss": 0.5, "accuracy": 1.0},
    {"step": 2, "loss": 0.25},
  ]
  assert scalars(tmp_path / "teacher" / "a") == [
    (1, "loss", 0.5),
    (1, "accuracy", 1.0),
    (2, "loss", 0.25),
  ]


def test_numbers_that_json_lacks(tmp_path, capfd):
  metrics = progress_lib.MetricWriter(tmp_path)
  metrics.write(1, {"a": math.nan, "b": math.inf, "c": -math.inf})
  metrics.close()
  (row,) = lines(tmp_path)
  assert row == {"step": 1, "a": "nan", "b": "inf", "c": "-inf"}
  assert math.isnan(float(row["a"]))
  assert float(row["c"]) == -math.inf
  assert scalars(tmp_path) == []
  assert capfd.readouterr() == ("", "")


def test_without_events(tmp_path):
  write(tmp_path, [1], tensorboard=False)
  assert [p.name for p in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_resume_drops_what_came_after_the_checkpoint(tmp_path):
  write(tmp_path, [1, 2, 3, 4])
  with open(tmp_path / "metrics.jsonl", "a") as file:
    file.write('{"step": 5, "lo')  # a killed run
  write(tmp_path, [3, 4, 5], first_step=2)
  assert [row["step"] for row in lines(tmp_path)] == [1, 2, 3, 4, 5]
  write(tmp_path, [1])
  assert [row["step"] for row in lines(tmp_path)] == [1]


def test_lines_in_an_object_store_are_there_when_the_loop_ends(tmp_path, monkeypatch):
  monkeypatch.setattr(files, "is_local", lambda name: False)
  write(tmp_path, [1, 2, 3], tensorboard=False)
  write(tmp_path, [3, 4], first_step=2, tensorboard=False)
  assert [row["step"] for row in lines(tmp_path)] == [1, 2, 3, 4]


def test_only_the_first_process_writes(tmp_path, monkeypatch):
  monkeypatch.setattr(jax, "process_index", lambda: 1)
  write(tmp_path, [1, 2])
  assert list(tmp_path.iterdir()) == []


def test_the_home_folder_is_expanded(tmp_path, monkeypatch):
  monkeypatch.setenv("HOME", str(tmp_path))
  write("~/metrics", [1])
  assert [row["step"] for row in lines(tmp_path / "metrics")] == [1]


def test_a_folder_that_cannot_be_written(tmp_path):
  (tmp_path / "file").write_text("")
  with pytest.raises(LtddError, match=r"metrics .*metrics\.jsonl: could not be written"):
    progress_lib.MetricWriter(tmp_path / "file" / "a")


# ---- progress ----


@pytest.fixture
def clock(monkeypatch):
  now = [1000.0]
  monkeypatch.setattr(progress_lib.time, "monotonic", lambda: now[0])
  return now


def test_a_line_a_minute_and_a_last_one(clock, caplog):
  with caplog.at_level("INFO", logger="absl"):
    bar = progress_lib.ProgressBar(1000, "teacher/a", initial=100)
    for step in range(110, 1001, 10):
      clock[0] += 2.0
      bar.update(step, loss=0.25)
    bar.close()
  assert [r.getMessage() for r in caplog.records] == [
    "teacher/a: 400/1000 steps, 5 steps/s, 0:02:00 left, loss 0.25",
    "teacher/a: 700/1000 steps, 5 steps/s, 0:01:00 left, loss 0.25",
    "teacher/a: 1000/1000 steps, 5 steps/s, 0:00:00 left, loss 0.25",
    "teacher/a: 1000/1000 steps, 5 steps/s, 0:00:00 left",
  ]


def test_a_short_loop_has_one_line(clock, caplog):
  with caplog.at_level("INFO", logger="absl"):
    bar = progress_lib.ProgressBar(20, "walk")
    for step in (10, 20):
      clock[0] += 1.0
      bar.update(step)
    bar.close()
    progress_lib.ProgressBar(20, "done before", initial=20).close()
  assert [r.getMessage() for r in caplog.records] == ["walk: 20/20 steps, 10 steps/s, 0:00:00 left"]


def test_a_bar_on_a_terminal(monkeypatch, capsys, caplog):
  monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
  with caplog.at_level("INFO", logger="absl"):
    bar = progress_lib.ProgressBar(20, "walk", initial=5)
    bar.update(20, loss=0.125)
    bar.close()
  shown = capsys.readouterr().err
  assert "walk: 100%" in shown
  assert "20/20" in shown
  assert "loss=0.125" in shown
  assert caplog.text == ""


# ---- memory ----


def test_peak_of_host_memory():
  progress_lib.reset_peak()
  before = progress_lib.peak_rss_bytes()
  block = np.ones(8_000_000)
  assert progress_lib.peak_rss_bytes() >= before
  assert progress_lib.peak_rss_bytes() >= block.nbytes


def test_peak_without_proc(monkeypatch):
  def refuse(*args, **kwargs):
    raise OSError("no such file")

  monkeypatch.setattr(progress_lib.pathlib.Path, "read_text", refuse)
  monkeypatch.setattr(progress_lib.pathlib.Path, "write_text", refuse)
  progress_lib.reset_peak()
  assert progress_lib.peak_rss_bytes() > 10_000_000


def test_an_accelerators_peak_comes_first(monkeypatch):
  class Device:
    platform = "gpu"

    def __init__(self, stats):
      self.stats = stats

    def memory_stats(self):
      return self.stats

  assert progress_lib.peak_device_bytes() is None
  assert progress_lib.peak_bytes() == pytest.approx(progress_lib.peak_rss_bytes(), rel=0.5)
  devices = [Device({"peak_bytes_in_use": n}) for n in (5, 9)] + [Device(None), Device({})]
  monkeypatch.setattr(jax, "local_devices", lambda: devices)
  assert progress_lib.peak_bytes() == 9


def test_an_object_store_gets_both_files_at_the_end(tmp_path, monkeypatch):
  monkeypatch.setattr(files, "is_local", lambda name: False)
  metrics = progress_lib.MetricWriter(tmp_path)
  metrics.write(1, {"loss": 0.5})
  assert lines(tmp_path) == []
  metrics.close()
  assert lines(tmp_path) == [{"step": 1, "loss": 0.5}]
  assert scalars(tmp_path) == [(1, "loss", 0.5)]


def test_metrics_that_an_object_store_refused_are_not_tried_again(tmp_path, monkeypatch):
  """When Python ends the connection is gone, and a second try would hang."""
  monkeypatch.setattr(files, "is_local", lambda name: False)
  metrics = progress_lib.MetricWriter(tmp_path, tensorboard=False)
  late, tried = metrics._file, []

  def refuse(*args, **kwargs):
    tried.append(args)
    raise LtddError("metrics could not be written")

  monkeypatch.setattr(files, "write_text", refuse)
  with pytest.raises(LtddError, match="metrics could not be written"):
    metrics.close()
  late.close()
  assert len(tried) == 1
