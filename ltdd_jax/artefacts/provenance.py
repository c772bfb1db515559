"""Where results come from: versions of packages, revision of the code, devices, process."""

import collections
import datetime
import functools
import importlib.metadata
import os
import pathlib
import platform
import re
import shlex
import socket
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import jax

PACKAGES = ("ltdd-jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
_DECISIVE = ("jax", "jaxlib")  # other versions of these may round otherwise


def versions() -> dict[str, str]:
  """Versions of Python and of the packages that results depend on."""
  out = {"python": platform.python_version()}
  for name in PACKAGES:
    try:
      out[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:  # the source tree without an installation
      out[name] = "unknown"
  return out


def difference(recorded: Mapping[str, str]) -> str:
  """ "jax 0.10.1 (now 0.10.2)" for packages that decide on rounding, or an empty string."""
  now = versions()
  return ", ".join(
    f"{name} {recorded.get(name)} (now {now[name]})"
    for name in _DECISIVE
    if recorded.get(name) != now[name]
  )


def this_process() -> dict[str, Any]:
  """Who holds a lock."""
  return {"pid": os.getpid(), "host": socket.gethostname(), "since": _now()}


def run_info() -> dict[str, Any]:
  """Facts about this start of a run, a line of `runs.jsonl`."""
  return {
    **this_process(),
    "command": _command(),
    "versions": versions(),
    "code": code_revision(),
    "devices": [f"{d.platform}: {d.device_kind}" for d in jax.devices()],
    "processes": jax.process_count(),
  }


def _command() -> str:
  """The command of this process, as one types it."""
  program, *rest = sys.orig_argv
  return shlex.join([pathlib.Path(program).name, *rest])


def hardware() -> str:
  """Devices by number and kind, as "1 NVIDIA H100 80GB HBM3", or "2 cores AMD EPYC" of a CPU."""
  if jax.default_backend() == "cpu":
    return f"{os.cpu_count()} cores {_processor()}"
  kinds = collections.Counter(d.device_kind for d in jax.devices())
  return " + ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))


def _processor() -> str:
  """The name of the CPU as Linux gives it, else what Python knows of it."""
  try:
    text = pathlib.Path("/proc/cpuinfo").read_text()
  except OSError:
    text = ""
  found = re.search(r"^model name\s*: (.+)$", text, re.MULTILINE)
  return found[1].strip() if found else platform.processor() or platform.machine()


@functools.cache
def code_revision() -> dict[str, Any] | None:
  """Revision of the source tree and whether it has changes; None outside a git checkout."""
  folder = pathlib.Path(__file__).parent

  def git(*args: str) -> str:
    done = subprocess.run(
      ["git", "-C", str(folder), *args], capture_output=True, text=True, timeout=10, check=True
    )
    return done.stdout.strip()

  try:
    git("ls-files", "--error-unmatch", "provenance.py")  # an installed copy is not tracked
    return {"revision": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain"))}
  except (OSError, subprocess.SubprocessError):
    return None


def _now() -> str:
  return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
