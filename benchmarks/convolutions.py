"""3x3 convolutions by form: XLA's own, and on CPU those of `ltdd_jax/models/convolution.py`.

    python -m benchmarks.convolutions              # about two minutes on two cores
    python -m benchmarks.convolutions --devices 2  # each core a device, the batch split
    python -m benchmarks.convolutions --dtype bfloat16  # on an accelerator, against float32

Forms take turns; figures are medians over rounds. `all` is the result and both gradients in one
program. The table in `convolution._cpu_form` follows from this one.
"""

import argparse
import functools
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import timing
from ltdd_jax.core import mesh as mesh_lib
from ltdd_jax.core import startup
from ltdd_jax.models import convolution

NAMES = ("NHWC", "HWIO", "NHWC")
SHAPES = (  # side, channels in and out, stride: of ConvNet-3 and ResNet-18 at 32 pixels
  (32, 64, 64, 1), (16, 64, 64, 1), (8, 64, 64, 1), (32, 128, 128, 1), (16, 128, 128, 1),
  (8, 256, 256, 1), (4, 512, 512, 1), (32, 64, 128, 2), (16, 128, 256, 2), (8, 256, 512, 2),
)  # fmt: skip


def programs(stride: int):
  """{form: jitted (x, kernel, dy) -> result and gradients}."""
  ways = {"window_strides": (stride,) * 2, "padding": [(1, 1)] * 2, "dimension_numbers": NAMES}

  def everything(fn, x, kernel, dy):
    y, transpose = jax.vjp(functools.partial(fn, **ways), x, kernel)
    return y, *transpose(dy)

  forms = {"XLA": jax.lax.conv_general_dilated, "ltdd_jax": convolution.convolve}
  return {name: jax.jit(functools.partial(everything, fn)) for name, fn in forms.items()}


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--batch", type=int, default=128)
  parser.add_argument("--rounds", type=int, default=9)
  parser.add_argument("--devices", type=int)
  parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
  args = parser.parse_args()
  print(startup.setup_jax(args.devices, cache_dir=None))
  mesh, draw, rows = mesh_lib.make_mesh(), np.random.default_rng(0), []
  for side, c, d, stride in SHAPES:
    make = lambda *shape: draw.standard_normal(shape).astype(args.dtype)
    x, dy = make(args.batch, side, side, c), make(args.batch, side // stride, side // stride, d)
    split = [mesh_lib.put(a, mesh_lib.at_rest(mesh, args.batch)) for a in (x, dy)]
    kernel = mesh_lib.put(make(3, 3, c, d) / 20, mesh_lib.replicated(mesh))
    forms, times, found = programs(stride), {}, {}
    for name, program in forms.items():
      found[name] = jax.device_get(program(split[0], kernel, split[1]))
    for _ in range(args.rounds):
      for name, program in forms.items():
        start = time.perf_counter()
        jax.block_until_ready(program(split[0], kernel, split[1]))
        times.setdefault(name, []).append(1e3 * (time.perf_counter() - start))
    pairs = zip(found["ltdd_jax"], found["XLA"], strict=True)
    error = max(float(jnp.abs(a - b).max() / jnp.abs(b).max()) for a, b in pairs)
    medians = {name: statistics.median(each) for name, each in times.items()}
    gflop = 3 * 2 * 9 * c * d * dy[..., 0].size / 1e9
    rows.append([
      f"{side}, {c} -> {d}" + (f", stride {stride}" if stride > 1 else ""),
      *(f"{value:.1f}" for value in medians.values()),
      f"{medians['XLA'] / medians['ltdd_jax']:.2f}",
      f"{1e3 * gflop / medians['ltdd_jax']:.0f}",
      f"{error:.0e}",
    ])  # fmt: skip
  header = ["side, channels", "XLA, ms", "ltdd_jax, ms", "ratio", "GFLOP/s", "error"]
  print(timing.markdown(header, rows))


if __name__ == "__main__":
  startup.tune_host()
  main()
