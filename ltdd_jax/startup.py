"""What has to happen before JAX starts: the allocator, virtual CPU devices, the compilation cache.

  from ltdd_jax import startup
  startup.tune_host()                # before `import jax`
  facts = startup.setup_jax()        # before the first array

This module imports neither JAX nor NumPy, so that `tune_host` can come first.
"""

import ctypes
import glob
import os
import pathlib
import sys
from typing import NamedTuple

DEFAULT_CACHE = "~/.cache/ltdd_jax/xla"
MAX_CPU_DEVICES = 8

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


def setup_jax(
  num_cpu_devices: int | None = None,
  cache_dir: str | os.PathLike[str] | None = DEFAULT_CACHE,
  distributed: bool = False,
) -> Facts:
  """Sets up JAX for a run; call it before the first array is made.

  On a machine without an accelerator each core becomes a virtual device, because XLA leaves much
  of a training step on one thread. It is left alone if a backend runs already, or if the user chose
  a number (`JAX_NUM_CPU_DEVICES` or `XLA_FLAGS`).

  Args:
    num_cpu_devices: virtual CPU devices; None for one for each core, at most 8.
    cache_dir: of the persistent compilation cache; None for none. `JAX_COMPILATION_CACHE_DIR`
      takes the place of the default.
    distributed: whether to join the other processes of a pod or cluster first.

  Returns:
    What was set.
  """
  import jax

  if distributed:
    jax.distributed.initialize()
  return Facts(_set_cpu_devices(num_cpu_devices), _set_cache(cache_dir), distributed)


def available_cores() -> int:
  """Cores that this process may use: its affinity, and the limit of its container."""
  try:
    cores = len(os.sched_getaffinity(0))
  except AttributeError:
    cores = os.cpu_count() or 1
  try:
    quota, period = pathlib.Path("/sys/fs/cgroup/cpu.max").read_text().split()
    cores = min(cores, max(1, int(quota) // int(period)))
  except (OSError, ValueError):  # no such file, or "max": no limit
    pass
  return cores


def accelerator_visible() -> bool:
  """Whether JAX may find a GPU or TPU here, judged without starting it."""
  platforms = os.environ.get("JAX_PLATFORMS", "")
  if platforms:
    return platforms.split(",")[0].strip() != "cpu"
  patterns = ("/dev/nvidia[0-9]*", "/dev/accel*", "/dev/vfio/[0-9]*", "/dev/kfd", "/dev/dxg")
  return any(glob.glob(pattern) for pattern in patterns)


def _set_cpu_devices(count: int | None) -> int | None:
  import jax

  chosen = (
    "JAX_NUM_CPU_DEVICES" in os.environ
    or "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    or jax.config.jax_num_cpu_devices > 0
  )
  if count is None:
    if chosen or accelerator_visible():
      return None
    count = min(available_cores(), MAX_CPU_DEVICES)
  try:
    jax.config.update("jax_num_cpu_devices", count)
  except RuntimeError:  # a backend runs already
    return None
  return count


def _set_cache(cache_dir: str | os.PathLike[str] | None) -> str | None:
  import jax

  if cache_dir is None:
    return None
  if str(cache_dir) == DEFAULT_CACHE:
    cache_dir = os.environ.get("JAX_COMPILATION_CACHE_DIR", cache_dir)
  folder = pathlib.Path(cache_dir).expanduser()
  try:
    folder.mkdir(parents=True, exist_ok=True)
  except OSError:
    return None
  if not os.access(folder, os.W_OK):
    return None
  jax.config.update("jax_compilation_cache_dir", str(folder))
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)  # else small ones are not kept
  return str(folder)
