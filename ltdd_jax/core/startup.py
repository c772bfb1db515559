"""What has to happen before JAX starts: the allocator, virtual CPU devices, the compilation cache.

  from ltdd_jax.core import startup
  startup.tune_host()                # before `import jax`
  startup.stop_in_one_line()
  facts = startup.setup_jax()        # before the first array

This module imports neither JAX nor NumPy, so that `tune_host` can come first.
"""

import ctypes
import os
import signal
import socket
import sys
import time
from typing import Any, NamedTuple

DEFAULT_CACHE = "~/.cache/ltdd_jax/xla"
THREADS_PER_DEVICE = 16  # of an old jaxlib
_COORDINATOR_SECONDS = 300.0  # as long as JAX waits for other processes
_SOUND = (0, 12)  # the least jaxlib on which virtual CPU devices were never seen to hang

# Numbers of glibc's malloc.h with the values to set.
_MALLOPT = {
  "M_MMAP_MAX": (-4, 0),  # large buffers come from the heap too
  "M_TRIM_THRESHOLD": (-1, 2**31 - 1),  # and are not given back after every step
  "M_TOP_PAD": (-2, 1 << 26),
  "M_ARENA_MAX": (-8, 1),
}


class Facts(NamedTuple):
  """What was set, for the log."""

  num_cpu_devices: int | None  # None: left as it was
  cache_dir: str | None  # None: no persistent compilation cache
  distributed: bool

  def __str__(self) -> str:
    devices = "default" if self.num_cpu_devices is None else str(self.num_cpu_devices)
    return (
      f"CPU devices: {devices}; compilation cache: {self.cache_dir or 'none'}; "
      f"distributed: {'yes' if self.distributed else 'no'}"
    )


def tune_host() -> bool:
  """Keeps glibc from giving large buffers back to the system at every step.

  XLA on CPU allocates and frees buffers of many megabytes in each step, and every fresh page is a
  page fault; training is about 1.2 times as fast without. Call it before JAX is imported.

  Returns:
    Whether it was done; False where the C library is not glibc.
  """
  if not sys.platform.startswith("linux"):
    return False
  try:
    libc = ctypes.CDLL("libc.so.6")
    libc.gnu_get_libc_version  # noqa: B018 (raises where it is another library)
  except (OSError, AttributeError):
    return False
  return [libc.mallopt(*pair) for pair in _MALLOPT.values()] == [1] * len(_MALLOPT)


def stop_in_one_line() -> None:
  """Makes Ctrl-C and SIGTERM one line and exit code 130, whatever the program is doing."""
  signal.signal(signal.SIGTERM, signal.default_int_handler)  # stops like Ctrl-C, and cleans up
  sys.excepthook = _say_stop
  sys.unraisablehook = raise_again


def _say_stop(kind: type[BaseException], *error: Any) -> None:
  if not issubclass(kind, KeyboardInterrupt):
    sys.__excepthook__(kind, *error)
    return
  print("error: stopped before the end; no file is half written.", file=sys.stderr)
  sys.exit(130)


def raise_again(unraisable: Any) -> None:
  """Raises a stop again that fell into a callback of the garbage collector (JAX has one).

  Python drops what is raised there, and the program would go on to its end as if nobody had asked.
  """
  if not issubclass(unraisable.exc_type, KeyboardInterrupt):
    sys.__unraisablehook__(unraisable)
    return
  signal.signal(signal.SIGALRM, signal.default_int_handler)
  signal.setitimer(signal.ITIMER_REAL, 0.05)  # when the callback has returned


def setup_jax(
  num_cpu_devices: int | None = None,
  cache_dir: str | os.PathLike[str] | None = DEFAULT_CACHE,
  distributed: bool = False,
) -> Facts:
  """Sets up JAX for a run; call it before the first array is made.

  XLA leaves much of a program to one thread, but each virtual CPU device has a thread of its own:
  with two on two cores large steps take 0.75 of the time, and small ones up to twice as long; so
  one is the default. With jaxlib 0.10.2 several can hang on a busy machine: each all-reduce blocks
  a thread of one pool, of as many threads as there are cores, and one in three runs stopped for
  good. There `num_cpu_devices` makes the pool larger (the variable `NPROC`): no hang was seen then,
  but nothing is gained either. From 0.12 on no run did hang.

  Args:
    num_cpu_devices: virtual CPU devices; None leaves the number to JAX and the environment
      (`JAX_NUM_CPU_DEVICES`), which is one by default.
    cache_dir: of the persistent compilation cache; None for none. `JAX_COMPILATION_CACHE_DIR`
      takes the place of the default.
    distributed: whether to join the other processes of a pod or cluster first. JAX finds them by
      itself on Cloud TPU, Slurm, MPI and Kubernetes; elsewhere set `JAX_COORDINATOR_ADDRESS`
      (host:port of process 0), `JAX_NUM_PROCESSES` and `JAX_PROCESS_ID`.

  Returns:
    What was set.

  Raises:
    LtddError: fewer than one device, or other processes that are not found.
  """
  import jax

  from ltdd_jax.core.registry import check_at_least
  from ltdd_jax.core.types import LtddError

  if num_cpu_devices is not None:
    check_at_least("", 1, cpu_devices=num_cpu_devices)
  if distributed:
    _check_coordinator()
    names = ("num_processes", "process_id")
    values = {k: os.environ.get(f"JAX_{k.upper()}") for k in names}
    try:
      there: dict[str, Any] = {k: int(v) for k, v in values.items() if v}
      jax.distributed.initialize(**there)
    except (ValueError, RuntimeError) as error:
      raise LtddError(
        f"distributed: the other processes were not found: {error} Outside Cloud TPU, Slurm, MPI "
        "and Kubernetes set JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID; for one "
        "process leave it out."
      ) from error
  return Facts(_set_cpu_devices(num_cpu_devices), _set_cache(cache_dir), distributed)


def _check_coordinator() -> None:
  """Waits for the coordinator that the environment names: JAX itself aborts if none answers."""
  from ltdd_jax.core.types import LtddError

  address = os.environ.get("JAX_COORDINATOR_ADDRESS")
  if not address or os.environ.get("JAX_PROCESS_ID") == "0":
    return
  host, _, port = address.rpartition(":")
  end = time.monotonic() + _COORDINATOR_SECONDS
  while True:
    try:
      socket.create_connection((host, int(port)), timeout=5).close()
      return
    except (OSError, ValueError) as error:
      if time.monotonic() > end or isinstance(error, ValueError):
        raise LtddError(
          f"distributed: no coordinator answers at {address} ({error}), for "
          f"{_COORDINATOR_SECONDS:g} s; expected host:port of process 0 in "
          "JAX_COORDINATOR_ADDRESS. Start process 0, or mend the address"
        ) from error
      time.sleep(0.5)


def _set_cpu_devices(count: int | None) -> int | None:
  if count is None:
    return None
  import jax
  from jaxlib import version

  if tuple(map(int, version.__version__.split(".")[:2])) < _SOUND:
    os.environ.setdefault("NPROC", str(THREADS_PER_DEVICE * count))
  try:
    jax.config.update("jax_num_cpu_devices", count)
  except RuntimeError:  # a backend runs already
    return None
  return count


def _set_cache(cache_dir: str | os.PathLike[str] | None) -> str | None:
  import jax

  from ltdd_jax.core import files  # which imports JAX

  if cache_dir is None:
    return None
  if str(cache_dir) == DEFAULT_CACHE:
    cache_dir = os.environ.get("JAX_COMPILATION_CACHE_DIR", cache_dir)
  folder = files.path(cache_dir)
  try:
    folder.mkdir(parents=True, exist_ok=True)
  except OSError:
    return None
  if files.is_local(folder) and not os.access(folder, os.W_OK):
    return None
  jax.config.update("jax_compilation_cache_dir", str(folder))
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)  # else small ones are not kept
  return str(folder)


def parse_flags(argv: list[str]) -> list[str]:
  """Parses a command line, flags before or after the rest; an error is one message, exit code 2."""
  from absl import flags

  flags.FLAGS.set_gnu_getopt()
  try:
    return flags.FLAGS(argv)
  except flags.Error as error:
    print(f"error: {str(error).strip()}", file=sys.stderr)
    sys.exit(2)
