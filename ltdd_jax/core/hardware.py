"""What a program is planned for: slices of TPUs that need not be there, or the devices that are.

target = of_topology("v5e:4x4")      # needs libtpu (extra `tpu`), and no TPU
target = local()
"""

import importlib.util
import math
import os
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ltdd_jax.core import mesh as mesh_lib
from ltdd_jax.core.config import suggest
from ltdd_jax.core.types import LtddError

_GIB = 2**30
SHARE = 0.4  # of the peak that a step is taken to reach where no compiler says more


class Chip(NamedTuple):
  """A chip, by its vendor's page."""

  memory: int  # bytes
  flops: float  # a second, bfloat16 without sparsity
  bandwidth: float  # of its memory, bytes a second


# cloud.google.com/tpu/docs/v5e, v5p, v6e
CHIPS = {
  "v5e": Chip(16 * _GIB, 197e12, 819e9),
  "v5p": Chip(95 * _GIB, 459e12, 2765e9),
  "v6e": Chip(32 * _GIB, 918e12, 1640e9),
}

_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_CUBES = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8")
TOPOLOGIES = [
  f"{chip}:{size}"
  for chip, sizes in (("v5e", _FLAT), ("v6e", _FLAT), ("v5p", _CUBES))
  for size in sizes
]


class Target(NamedTuple):
  """Devices, and what each of them has."""

  name: str
  mesh: jax.sharding.Mesh
  memory: int  # bytes
  flops: float  # a second, at most
  bandwidth: float  # of its memory, bytes a second

  def __str__(self) -> str:
    kind = self.mesh.devices.flat[0].device_kind
    each = f"{self.memory / _GIB:.1f} GiB and {self.flops / 1e12:.3g} TFLOP/s"
    return f"{self.name}: {self.mesh.size} x {kind}, each of {each}"


def of_topology(name: str) -> Target:
  """A slice of TPUs, of which the compiler alone is needed.

  Raises:
    LtddError: a topology that does not exist, or libtpu is missing.
  """
  if name not in TOPOLOGIES:
    raise LtddError(
      f"topology {name!r} does not exist; expected one of {', '.join(TOPOLOGIES)}. "
      f"{suggest(name, TOPOLOGIES)}".rstrip(". ")
    )
  if importlib.util.find_spec("libtpu") is None:
    raise LtddError(
      f"topology {name}: the compiler for TPUs is missing; expected the package libtpu. "
      "pip install 'ltdd-jax[tpu]', or leave --topology out for the devices that are here"
    )
  from jax.experimental import topologies

  os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # it would ask the cloud which slice this is
  os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # no TPU is opened, so none is shared
  kind, size = name.split(":")
  one: dict[str, Any] = {"chips_per_host_bounds": (1, 1, 1)} if size == "1x1" else {}
  found = topologies.get_topology_desc(topology_name=name, platform="tpu", **one)
  return Target(name, mesh_lib.make_mesh(found.devices), *CHIPS[kind])


def slices(kind: str, counts: Sequence[str]) -> list[str]:
  """Topologies of so many chips of a kind.

  Raises:
    LtddError: there is none of a number of chips.
  """
  sizes = [name.partition(":")[2] for name in TOPOLOGIES if name.startswith(f"{kind}:")]
  known = {str(math.prod(map(int, size.split("x")))): f"{kind}:{size}" for size in sizes}
  for count in counts:
    if count not in known:
      numbers = ", ".join(known) or f"those of {', '.join(CHIPS)}"
      raise LtddError(f"--sweep has {count!r} chips of {kind}; expected numbers out of {numbers}")
  return [known[count] for count in counts]


def local() -> Target:
  """The devices of this process; what they do in a second is measured."""
  devices = jax.devices()
  first, name = devices[0], f"{devices[0].platform} (local)"
  shared = len(devices) if first.platform == "cpu" else 1  # virtual devices share the cores
  if first.platform == "cpu":
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
  else:
    memory = first.memory_stats()["bytes_limit"]
  x, y = jnp.ones((2048, 2048)), jnp.ones(2**26)
  flops = 2 * len(x) ** 3 / _seconds(jnp.matmul, x, x)
  bandwidth = 2 * y.nbytes / _seconds(jnp.add, y, 1)  # read and written
  mesh = mesh_lib.make_mesh(devices)
  return Target(name, mesh, memory // shared, flops / shared, bandwidth / shared)


def _seconds(fn: Callable[..., Any], *args: Any, repeats: int = 5) -> float:
  """The shortest time of a few calls, after one."""
  times = []
  for _ in range(repeats + 1):
    start = time.perf_counter()
    jax.block_until_ready(fn(*args))
    times.append(time.perf_counter() - start)
  return min(times[1:])
