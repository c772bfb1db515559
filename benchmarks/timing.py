"""What the benchmarks share: worker processes, interleaved rounds, medians, Markdown tables.

  with Worker(sys.executable, "benchmarks.jax_steps") as a, Worker(python, "...") as b:
    times = interleave({"a": lambda: a.ask(steps=5)["seconds"], "b": ...}, rounds=7)
  print(markdown(("side", "seconds"), [("a", spread(times["a"])), ("b", spread(times["b"]))]))

Only the standard library at import, so that an environment without JAX can use it too.
"""

import argparse
import contextlib
import importlib.metadata
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[1]
LIMIT = 900.0  # seconds until a process that does not answer is killed


class Worker:
  """Another process that answers questions, one JSON line each; see `serve`."""

  def __init__(self, python: str, module: str, *args: str, env: Mapping[str, str] | None = None):
    self.name = module
    self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed in `close`)
    self.process = subprocess.Popen(
      [python, "-m", module, *args],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      stderr=self.errors,
      text=True,
      cwd=ROOT,
      env={**os.environ, **(env or {})},
    )

  def ask(self, **message: Any) -> dict[str, Any]:
    """Sends a message and waits for the answer; RuntimeError if there is none."""
    watchdog = threading.Timer(LIMIT, self.process.kill)
    watchdog.start()
    try:
      self.process.stdin.write(json.dumps(message) + "\n")
      self.process.stdin.flush()
      answer = self.process.stdout.readline()
    except BrokenPipeError:
      answer = ""
    finally:
      watchdog.cancel()
    if not answer:
      self.process.wait()
      self.errors.seek(0)
      raise RuntimeError(f"{self.name} died at {message}:\n{self.errors.read()[-4000:]}")
    return json.loads(answer)

  def close(self) -> None:
    self.process.stdin.close()
    self.process.wait()
    self.process.stdout.close()
    self.errors.close()

  def __enter__(self) -> "Worker":
    return self

  def __exit__(self, *exc: object) -> None:
    self.close()


def serve(handle: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
  """Answers a `Worker` until it closes; whatever else the process prints goes to stderr."""
  with os.fdopen(os.dup(1), "w") as answers:
    os.dup2(2, 1)
    for line in sys.stdin:
      answers.write(json.dumps(handle(json.loads(line))) + "\n")
      answers.flush()


def interleave(
  sides: Mapping[str, Callable[[], Any]], rounds: int, pause: float = 0.2
) -> dict[str, list[Any]]:
  """Calls every side once a round, in turn (A B A B ...), and collects what they return.

  Whatever slows the machine down for a while then slows all sides down. The pause lets the threads
  of the side before go to sleep.
  """
  times: dict[str, list[Any]] = {name: [] for name in sides}
  for number in range(rounds):
    for name, measure in sides.items():
      note(f"round {number + 1} of {rounds}: {name}")
      time.sleep(pause)
      times[name].append(measure())
  return times


def against_torch(
  module: str, args: argparse.Namespace, ready: Mapping[str, Any], ask: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, list[Any]], str]:
  """Asks `{module}_jax` and, with `--torch-python`, `{module}_torch` in turn.

  Args:
    module: of this package, without its ending.
    args: with `device`, `rounds` and `torch_python`.
    ready: the first message to a side, before which nothing is measured; the answers are its facts:
      `params` (which must agree), `device`, and PyTorch's version.
    ask: the message of every measurement.

  Returns:
    facts and answers of each side, and a line about machine and versions.
  """
  ours = "ltdd_jax"
  sides = {ours: (sys.executable, f"benchmarks.{module}_jax", ())}
  if args.torch_python:
    flags = ("--tuned", *(("--cpu",) if args.device == "cpu" else ()))
    sides["PyTorch eager, tuned"] = (args.torch_python, f"benchmarks.{module}_torch", flags)
  facts, workers = {}, {}
  with contextlib.ExitStack() as stack:
    for name, (python, path, flags) in sides.items():
      note(f"{name}: compiles")
      worker = Worker(python, path, *flags, env=choose_device(args.device))
      workers[name] = stack.enter_context(worker)
      facts[name] = workers[name].ask(**ready)
    assert len({tuple(f["params"]) for f in facts.values()}) == 1, f"networks differ: {facts}"
    times = interleave(
      {name: lambda w=worker: w.ask(**ask) for name, worker in workers.items()}, args.rounds
    )
  versions = {f"torch {f['torch']}" for f in facts.values() if "torch" in f}
  line = hardware(facts[ours]["device"], ("jax", "jaxlib", "flax"), *versions)
  return facts, times, line


def median_ratio(numerators: Sequence[float], denominators: Sequence[float]) -> float:
  """The median over rounds of the ratio within a round."""
  return statistics.median(a / b for a, b in zip(numerators, denominators, strict=True))


def spread(values: Sequence[float], digits: int = 2) -> str:
  """Median, and least and largest in brackets."""
  middle, low, high = statistics.median(values), min(values), max(values)
  return f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def note(text: str) -> None:
  """Says on stderr what goes on."""
  print(f"  {text}", file=sys.stderr, flush=True)


def markdown(headers: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
  """A Markdown table, padded so that it reads well on a terminal."""
  cells = [list(map(str, headers)), *(list(map(str, row)) for row in rows)]
  widths = [max(len(row[i]) for row in cells) for i in range(len(headers))]
  lines = [
    "| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |" for row in cells
  ]
  lines.insert(1, "|" + "|".join("-" * (w + 2) for w in widths) + "|")
  return "\n".join(lines)


def cores() -> int:
  """Cores that this process may use: its affinity, and the limit of its container."""
  try:
    count = len(os.sched_getaffinity(0))
  except AttributeError:
    count = os.cpu_count() or 1
  try:
    quota, period = pathlib.Path("/sys/fs/cgroup/cpu.max").read_text().split()
    return min(count, max(1, int(quota) // int(period)))
  except (OSError, ValueError):  # no such file, or "max": no limit
    return count


def cpu_model() -> str:
  """Name of the processor."""
  try:
    for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
      if line.startswith("model name"):
        return line.split(":", 1)[1].strip()
  except OSError:
    pass
  return platform.processor() or platform.machine()


def hardware(device: str, packages: Sequence[str], *more: str) -> str:
  """One line: processor, cores, device, versions."""
  found = [f"{name} {importlib.metadata.version(name)}" for name in packages]
  python = f"Python {platform.python_version()}"
  return "; ".join(
    (cpu_model(), f"{cores()} cores", f"device {device}", ", ".join([python, *found, *more]))
  )


class CompileClock:
  """Measures how long JAX traces, lowers and compiles (or reads its cache) inside a `with`.

  Attributes:
    seconds: time in any of the three; nested events count once.
    xla_seconds: time in XLA, or in reading its cache.
  """

  _TRACE = "/jax/core/compile/jaxpr_trace_duration"
  _LOWER = "/jax/core/compile/jaxpr_to_mlir_module_duration"
  _XLA = "/jax/core/compile/backend_compile_duration"

  def __init__(self) -> None:
    self._spans: dict[str, list[tuple[float, float]]] = {
      self._TRACE: [], self._LOWER: [], self._XLA: []
    }  # fmt: skip

  def _listen(self, event: str, start: float, end: float, **_: Any) -> None:
    if event in self._spans:
      self._spans[event].append((start, end))

  def __enter__(self) -> "CompileClock":
    import jax

    jax.monitoring.register_event_time_span_listener(self._listen)
    return self

  def __exit__(self, *exc: object) -> None:
    import jax

    jax.monitoring.unregister_event_time_span_listener(self._listen)

  @property
  def seconds(self) -> float:
    return union([span for spans in self._spans.values() for span in spans])

  @property
  def xla_seconds(self) -> float:
    return union(self._spans[self._XLA])


def union(spans: Iterable[tuple[float, float]]) -> float:
  """Length of the union of intervals."""
  total, reached = 0.0, float("-inf")
  for start, end in sorted(spans):
    total += max(0.0, end - max(start, reached))
    reached = max(reached, end)
  return total


def parser(doc: str) -> argparse.ArgumentParser:
  """The arguments that all benchmarks take."""
  p = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
  p.add_argument(
    "--device", default="auto", choices=("auto", "cpu"), help="auto: an accelerator if there is one"
  )
  p.add_argument("--out", help="write all times to this JSON file")
  return p


def choose_device(device: str) -> dict[str, str]:
  """Environment variables that keep JAX on the device that was asked for."""
  return {"JAX_PLATFORMS": "cpu"} if device == "cpu" else {}


def finish(
  line: str, headers: Sequence[str], rows: Iterable[Sequence[Any]], record: Any, out: str | None
) -> None:
  """Prints the hardware line and the table, and writes the record if asked to."""
  print(f"{line}\n\n{markdown(headers, rows)}")
  if out:
    content = {"hardware": line, "results": record}
    pathlib.Path(out).write_text(json.dumps(content, indent=2) + "\n")


def finish_ways(
  what: str, count: int, steps: int, pairs: dict[str, Any], out: str | None, digits: int
) -> None:
  """Prints and writes the table of several networks trained by different ways, "loop" among them.

  Args:
    what: the networks, for the headers: "students".
    count: how many there are.
    steps: of each.
    pairs: by way, (seconds to compile, seconds of the steps) of every round.
    out: file for all times, or None.
    digits: of the steps a second.
  """
  import jax

  compiling = {way: [pair[0] for pair in rounds] for way, rounds in pairs.items()}
  running = {way: [pair[1] for pair in rounds] for way, rounds in pairs.items()}
  rows = [
    (
      f"{count} by {way}",
      spread(running[way]),
      f"{count * steps / statistics.median(running[way]):.{digits}f}",
      f"{median_ratio(running[way], running['loop']):.2f}",
      f"{compiling[way][0]:.1f}",
      f"{statistics.median(compiling[way][1:] or compiling[way]):.1f}",
    )
    for way in pairs
  ]
  line = hardware(jax.devices()[0].device_kind, ("jax", "jaxlib", "flax"))
  headers = (
    what, f"seconds for {steps} steps each", "steps a second, all together",
    "time / loop's", "compile, s", "from the cache, s",
  )  # fmt: skip
  record = {"steps": steps, "seconds": running, "compile_seconds": compiling}
  finish(line, headers, rows, record, out)
