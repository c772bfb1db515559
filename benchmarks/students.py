"""Several students at once (`vmap`) against one after another, by `students.train.train_students`.

  python -m benchmarks.students --num-seeds 5 --steps 12 --rounds 3

Both train the same number of steps: network, batch and labels of `configs/cifar10_lt.py` with
`preset=cpu`, on noise. Time spent in compilation is taken apart: the first round compiles, later
ones read the compilation cache. The rest is initialisation, the steps and one small evaluation.
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


def arguments() -> argparse.Namespace:
  p = timing.parser(__doc__)
  p.add_argument("--num-seeds", type=int, default=5, help="students")
  p.add_argument("--steps", type=int, help="of each student; default 12, or 500 on an accelerator")
  p.add_argument("--rounds", type=int, default=3, help="turns of each way")
  return p.parse_args()


def make_training(num_seeds: int, steps: int | None) -> tuple[Callable[[str], Any], int]:
  """Returns the call to time, a function of the way, and the number of steps of a student."""
  from ltdd_jax.core.types import ArrayData
  from ltdd_jax.data import specs
  from ltdd_jax.labels import label as label_lib
  from ltdd_jax.students import train as student_training
  from ltdd_jax.training import loop

  case = recipes.CASES["student/convnet"]
  session = loop.Session(show_progress=False)
  steps = steps or (12 if session.steps_per_call() == 1 else 500)
  images, targets = recipes.random_images(case["images"])
  supervision = recipes.stored_labels(case["label_epochs"], case["images"])

  def train(way: str) -> student_training.StudentResult:
    return student_training.train_students(
      f"benchmark/{way}",
      images,
      targets,
      supervision,
      ArrayData(images, targets),
      specs.SPECS["cifar10"],
      model=case["model"],
      num_epochs=max(1, steps * case["batch"] // case["images"]),
      batch_size=case["batch"],
      optimizer=case["optimizer"],
      schedule={"name": "cosine"},
      loss=case["loss"],
      views=case["views"],
      view_key=label_lib.view_key(0, "sre2l"),
      num_seeds=num_seeds,
      evaluations=1,
      parallel=way,
      session=session,
    )

  return train, steps


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
    train, steps = make_training(args.num_seeds, args.steps)
    pairs = timing.interleave(
      {way: lambda way=way: measure(train, way) for way in WAYS}, args.rounds
    )
  timing.finish_ways("students", args.num_seeds, steps, pairs, args.out, digits=2)


if __name__ == "__main__":
  main()
