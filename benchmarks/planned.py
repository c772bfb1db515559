"""What `launch.plan` says of steps on this machine's CPU, against steps that run.

  python -m benchmarks.planned

The teacher's and the student's step of `configs/cifar10_lt.py:preset=cpu`, with class counts in the
place of CIFAR-10. Each is compiled as the plan does, called on constant arrays, and timed. Measured
memory is the growth of the process since before its arrays were made, at most: in the first step,
and in all, since the allocator keeps pages.
"""

import ctypes
import gc
import pathlib
import time
from typing import Any

from benchmarks import timing
from ltdd_jax.core import startup

CONFIG = "configs/cifar10_lt.py:preset=cpu"
HEADER = (
  "step", "MiB planned", "first step", "all steps", "first / planned", "ms planned", "measured",
  "measured / planned",
)  # fmt: skip


def main() -> None:
  p = timing.parser(__doc__)
  p.add_argument("--steps", type=int, default=20, help="timed steps of each")
  options = p.parse_args()
  startup.tune_host()
  startup.setup_jax(1, None)
  from benchmarks import recipes
  from ltdd_jax.core import command_line, hardware
  from ltdd_jax.core import mesh as mesh_lib
  from ltdd_jax.pipeline import ahead_of_time, blank, programs
  from ltdd_jax.training import ahead

  ctx = blank.blank_context(command_line.read_config(CONFIG), recipes.long_tail())
  target, rows = hardware.local(), []
  found = programs.of_run(ctx, ("teacher", "student"))
  for program in (found[0], found[-1]):
    (record,) = ahead_of_time.compiled([program], target)
    with mesh_lib.shapes_alone():
      step = ahead.loop_of(program.call, target.mesh)
    seconds, memory = run(step.step_fns[0], step.arguments, options.steps)
    mib = [f"{size / 2**20:.0f}" for size in (record.step.memory, *memory)]
    ratio = f"{memory[0] / record.step.memory:.2f}"
    times = f"{record.seconds * 1e3:.1f}", f"{seconds * 1e3:.1f}"
    rows.append((record.name, *mib, ratio, *times, f"{seconds / record.seconds:.2f}"))
  print(target)
  print(timing.markdown(HEADER, rows))


def run(step_fn: Any, arguments: Any, steps: int) -> tuple[float, tuple[int, int]]:
  """Seconds of a step, the median, and bytes in the first step and in all."""
  import jax
  import jax.numpy as jnp
  import numpy as np

  from ltdd_jax.training import loop

  def array(x: Any) -> Any:
    if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
      return jax.random.split(jax.random.key(0), x.shape)
    return jnp.full(x.shape, 0.01, x.dtype)

  call: Any = loop.compile_step(step_fn, arguments[0])
  call = call.lower(*arguments).compile()
  gc.collect()
  ctypes.CDLL("libc.so.6").malloc_trim(0)
  before = status("VmRSS")
  pathlib.Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins anew
  state, consts, x = jax.tree.map(array, arguments)
  times, sizes = [], []
  for _ in range(steps + 2):
    start = time.perf_counter()
    state, _ = jax.block_until_ready(call(state, consts, x))
    times.append(time.perf_counter() - start)
    sizes.append(status("VmHWM") - before)
  return float(np.median(times[2:])), (sizes[0], sizes[-1])


def status(name: str) -> int:
  """A size of this process, in bytes."""
  lines = pathlib.Path("/proc/self/status").read_text().splitlines()
  return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


if __name__ == "__main__":
  main()
