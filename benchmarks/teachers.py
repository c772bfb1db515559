"""Several teachers of one architecture at once (`vmap`) against one after another.

  python -m benchmarks.teachers --num-teachers 4 --steps 60 --rounds 3

Both are `teachers.train.train_teachers`: small ConvNets (depth 2, width 16, batch norm), batches of
128 images of 32x32 pixels, random crops and flips, on noise. Time spent in compilation is taken
apart: the first round compiles, later ones read the compilation cache. The rest is initialisation
and the steps.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from typing import Any

from benchmarks import recipes, timing
from ltdd_jax.core import startup

WAYS = ("loop", "vmap")
BATCH, IMAGES = 128, 1280


def arguments() -> argparse.Namespace:
  p = timing.parser(__doc__)
  p.add_argument("--num-teachers", type=int, default=4)
  p.add_argument("--steps", type=int, help="of each; default 60, or 500 on an accelerator")
  p.add_argument("--rounds", type=int, default=3, help="turns of each way")
  p.add_argument("--width", type=int, default=16, help="channels of the ConvNets")
  p.add_argument("--depth", type=int, default=2, help="blocks of the ConvNets")
  return p.parse_args()


def make_training(args: argparse.Namespace) -> tuple[Callable[[str], Any], int]:
  """Returns the call to time, a function of the way, and the number of steps of a teacher."""
  import numpy as np

  from ltdd_jax.core.types import ArrayData
  from ltdd_jax.data import specs
  from ltdd_jax.teachers import train as teacher_training
  from ltdd_jax.training import loop

  session = loop.Session(show_progress=False)
  epochs = max(1, (args.steps or (60 if session.steps_per_call() == 1 else 500)) * BATCH // IMAGES)
  images, labels = recipes.random_images(IMAGES)
  net = {"name": "convnet", "depth": args.depth, "width": args.width, "norm": "batch"}

  def train(way: str) -> Any:
    return teacher_training.train_teachers(
      ArrayData(images, labels),
      specs.SPECS["cifar10"],
      np.bincount(labels, minlength=10),
      models={f"teacher{i}": net for i in range(args.num_teachers)},
      num_epochs=epochs,
      batch_size=BATCH,
      optimizer={"name": "sgd", "lr": 0.05, "momentum": 0.9, "weight_decay": 5e-4},
      schedule={"name": "cosine"},
      objective={"name": "cross_entropy"},
      augment=({"name": "random_crop", "padding": 4}, {"name": "random_flip"}),
      parallel=way,
      session=session,
    )

  return train, epochs * IMAGES // BATCH


def measure(train: Callable[[str], Any], way: str) -> tuple[float, float]:
  """Trains once; returns seconds of compilation and seconds of the rest."""
  with timing.CompileClock() as clock:
    start = time.perf_counter()
    train(way)
    total = time.perf_counter() - start
  return clock.seconds, total - clock.seconds


def main() -> None:
  args = arguments()
  os.environ.update(timing.choose_device(args.device))
  startup.tune_host()
  with tempfile.TemporaryDirectory() as cache:
    startup.setup_jax(cache_dir=cache)
    train, steps = make_training(args)
    pairs = timing.interleave(
      {way: lambda way=way: measure(train, way) for way in WAYS}, args.rounds
    )
  timing.finish_ways("teachers", args.num_teachers, steps, pairs, args.out, digits=1)


if __name__ == "__main__":
  main()
