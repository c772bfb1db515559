"""What a run says while it works: metrics on disk, progress on the terminal or in the log, memory.

  metrics = MetricWriter(folder, first_step=first)
  metrics.write(step, {"loss": 0.3})            # one line of metrics.jsonl, and TensorBoard events

A line of `metrics.jsonl` is `{"step": 10, "loss": 0.3}`. JSON has no NaN or infinity: such values
are the strings "nan", "inf" and "-inf", which `float` reads.
"""

import contextlib
import io
import json
import math
import pathlib
import resource
import sys
import tempfile
import time
from collections.abc import Mapping
from typing import Any, SupportsIndex

import jax
from absl import logging
from etils import epath

from ltdd_jax.core import files

LINE_SECONDS = 60.0  # between two lines of progress in a log


class MetricWriter:
  """Appends metrics of one loop to `folder/metrics.jsonl` and to event files of TensorBoard.

  Only the first process of a pod writes. In an object store, to which nothing can be appended, both
  are written when the loop ends.

  Args:
    folder: of this loop; made if it is not there.
    first_step: steps done before; what an earlier run wrote about later ones is dropped.
    tensorboard: whether to write event files too.

  Raises:
    LtddError: the disk is full or the folder cannot be written.
  """

  def __init__(self, folder: files.Pathlike, *, first_step: int = 0, tensorboard: bool = True):
    self.path = files.path(folder) / "metrics.jsonl"
    self._file, self._events = None, None
    if jax.process_index() != 0:
      return
    with self._explained():
      before = "".join(_lines_until(self.path, first_step))
      files.write_text(self.path, before, what="metrics")
      self._file = self.path.open("a") if files.is_local(self.path) else _Late(self.path, before)
      if tensorboard:
        self._events = _event_writer(self.path.parent, first_step)

  def write(self, step: SupportsIndex, metrics: Mapping[str, Any]) -> None:
    """Writes scalars, after `step` steps."""
    if self._file is None:
      return
    row = {name: float(value) for name, value in metrics.items()}
    with self._explained():
      text = {k: v if math.isfinite(v) else str(v) for k, v in row.items()}
      self._file.write(json.dumps({"step": int(step)} | text, allow_nan=False) + "\n")
      self._file.flush()
      for name, value in row.items():
        if self._events is not None and math.isfinite(value):
          self._events.add_scalar(name, value, int(step))

  def close(self) -> None:
    """Writes what is buffered."""
    open_ones = [x for x in (self._file, self._events) if x is not None]
    self._file, self._events = None, None
    with self._explained(), contextlib.ExitStack() as stack:
      for item in open_ones:
        stack.callback(item.close)  # both, even if one fails

  def _explained(self) -> Any:
    return files.explained(f"metrics {self.path}", folder=self.path.parent)


class _Late(io.StringIO):
  """A text file that is written as a whole when it is closed."""

  def __init__(self, path: epath.Path, text: str):
    super().__init__()
    self._path = path
    self.write(text)

  def close(self) -> None:
    if not self.closed:
      text = self.getvalue()
      super().close()  # first: what fails below is not to be tried again when Python ends
      files.write_text(self._path, text, what="metrics")


def _lines_until(path: epath.Path, last_step: int) -> list[str]:
  """Lines about steps up to `last_step`; a line that a killed run left half written is none."""
  if not path.exists():
    return []
  kept = []
  for line in path.read_text().splitlines():
    try:
      step = json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
      continue
    if step <= last_step:
      kept.append(line + "\n")
  return kept


def _event_writer(folder: epath.Path, first_step: int) -> Any:
  import tensorboardX

  earlier = any(folder.glob("events.out.tfevents.*"))
  purge_step = first_step + 1 if earlier else None
  if files.is_local(folder):
    return tensorboardX.SummaryWriter(str(folder), purge_step=purge_step)
  return _LateEvents(folder, purge_step)


class _LateEvents:
  """Event files that are written as a whole when they are closed.

  In a bucket tensorboardX would write on a thread of its own, and hang once that has failed.
  """

  def __init__(self, folder: epath.Path, purge_step: int | None):
    import tensorboardX

    self._folder, self._local = folder, tempfile.TemporaryDirectory(prefix="ltdd_jax-")
    self._writer = tensorboardX.SummaryWriter(self._local.name, purge_step=purge_step)
    self.add_scalar = self._writer.add_scalar

  def close(self) -> None:
    self._writer.close()
    with self._local as name:
      for file in sorted(pathlib.Path(name).iterdir()):
        files.write_bytes(self._folder / file.name, file.read_bytes(), what="metrics")


class ProgressBar:
  """Progress of one loop: a bar on a terminal, else a line a minute in the log, and a last one.

  Args:
    total: steps in all.
    desc: name of the loop.
    initial: steps done before.
  """

  def __init__(self, total: int, desc: str, initial: int = 0):
    self.total, self.desc = total, desc
    self._step = self._first = self._line_step = initial
    self._start = self._line_time = time.monotonic()
    self._bar = None
    self._quiet = jax.process_index() != 0
    if not self._quiet and sys.stderr.isatty():
      from tqdm import tqdm

      self._bar = tqdm(
        total=total, desc=desc, initial=initial, unit="step", dynamic_ncols=True, mininterval=0.5
      )

  def update(self, step: int, **metrics: float) -> None:
    """Tells how many steps are done in all, and what to show beside it."""
    done, self._step = step - self._step, step
    if self._bar is not None:
      self._bar.set_postfix({k: f"{v:.4g}" for k, v in metrics.items()}, refresh=False)
      self._bar.update(done)
    elif time.monotonic() - self._line_time >= LINE_SECONDS:
      self._log(self._line_step, self._line_time, metrics)
      self._line_step, self._line_time = step, time.monotonic()

  def _log(self, since_step: int, since_time: float, metrics: Mapping[str, float]) -> None:
    if self._quiet:
      return
    seconds = max(time.monotonic() - since_time, 1e-9)
    rate = (self._step - since_step) / seconds
    eta = _clock((self.total - self._step) / rate) if rate > 0 else "unknown"
    shown = "".join(f", {k} {v:.4g}" for k, v in metrics.items())
    logging.info(
      "%s: %d/%d steps, %.4g steps/s, %s left%s",
      self.desc,
      self._step,
      self.total,
      rate,
      eta,
      shown,
    )

  def close(self) -> None:
    """Ends the bar, or logs the last line with the rate of the whole loop."""
    if self._bar is not None:
      self._bar.close()
    elif self._step > self._first:
      self._log(self._first, self._start, {})


def _clock(seconds: float) -> str:
  minutes, seconds = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return f"{hours}:{minutes:02d}:{seconds:02d}"


# ---- memory ----


def reset_peak() -> None:
  """Starts a new peak of host memory, where the system allows it; device peaks go on."""
  with contextlib.suppress(OSError):
    pathlib.Path("/proc/self/clear_refs").write_text("5")


def peak_rss_bytes() -> int:
  """Peak host memory since `reset_peak`, or of the whole process where that is not possible."""
  try:
    for line in pathlib.Path("/proc/self/status").read_text().splitlines():
      if line.startswith("VmHWM:"):
        return int(line.split()[1]) * 1024
  except OSError:
    pass
  unit = 1 if sys.platform == "darwin" else 1024
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def peak_device_bytes() -> int | None:
  """Peak memory of the fullest local accelerator since the process began; None without one."""
  stats = [d.memory_stats() for d in jax.local_devices() if d.platform != "cpu"]
  peaks = [s["peak_bytes_in_use"] for s in stats if s and "peak_bytes_in_use" in s]
  return max(peaks, default=None)


def peak_bytes() -> int:
  """The peak that matters: of an accelerator if there is one, else of the host."""
  device = peak_device_bytes()
  return peak_rss_bytes() if device is None else device
