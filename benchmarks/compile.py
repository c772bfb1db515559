"""Compile time of each stage, cold and from the persistent compilation cache.

  python -m benchmarks.compile --rounds 2

Each measurement is a fresh process that runs one stage, as short as it goes, and adds up the time
that JAX traces, lowers and compiles, all programs of the stage together. A cold process starts with
an empty cache in a temporary folder; a second one finds there what the first has left.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

from benchmarks import recipes, timing
from ltdd_jax.core import startup


def arguments() -> argparse.Namespace:
  p = timing.parser(__doc__)
  p.add_argument("--rounds", type=int, default=2, help="pairs of a cold and a cached process")
  p.add_argument("--stages", nargs="+", default=list(STAGES), choices=list(STAGES), metavar="STAGE",
                 help=f"any of {', '.join(STAGES)}")  # fmt: skip
  p.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
  return p.parse_args()


# ---- what the fresh process does ----


def train_teachers(net: str) -> Any:
  """One call of the training step, and the evaluation of the teacher."""
  from ltdd_jax.core.types import ArrayData
  from ltdd_jax.data import specs
  from ltdd_jax.teachers import train as teacher_training
  from ltdd_jax.training import loop

  case, session = recipes.CASES[f"teacher/{net}"], loop.Session(show_progress=False)
  data, spec = ArrayData(*recipes.random_images(case["batch"])), specs.SPECS["cifar10"]
  (trained,) = teacher_training.train_teachers(
    data,
    spec,
    recipes.long_tail(),
    models={"a": case["model"]},
    num_epochs=session.steps_per_call(),
    batch_size=case["batch"],
    optimizer=case["optimizer"],
    schedule={"name": "cosine"},
    objective={"name": "cross_entropy"},
    augment=case["augment"],
    session=session,
  )
  return teacher_training.evaluate(trained, data, spec, batch_size=case["batch"], mesh=session.mesh)


def untrained(net: str) -> Any:
  """A teacher for the stages that need one; its initialisation is not counted."""
  from ltdd_jax import models
  from ltdd_jax.core import rng
  from ltdd_jax.core.types import Teacher

  model = models.make_model(
    num_classes=recipes.CLASSES,
    image_shape=recipes.IMAGE_SHAPE,
    **recipes.CASES[f"teacher/{net}"]["model"],
  )
  return Teacher("a", model, models.init_variables(model, rng.key_for(0), recipes.IMAGE_SHAPE))


def run_method(net: str, teacher: Any) -> Any:
  """One call of SRe2L's step."""

  from ltdd_jax import distil
  from ltdd_jax.data import specs
  from ltdd_jax.distil import run as stage
  from ltdd_jax.training import loop

  spec, session = specs.SPECS["cifar10"], loop.Session(show_progress=False)
  teachers = (distil.Network(teacher.name, teacher.model),)
  env = distil.Env(spec.image_shape, spec.num_classes, spec.mean, spec.std, teachers)
  method = distil.make_method(env, "sre2l", num_steps=session.steps_per_call())
  size = recipes.CASES[f"distil/{net}"]["batch"]
  slots = distil.make_slots(recipes.CLASSES, images_per_class=size // recipes.CLASSES)
  fed = {"teachers": (teacher.variables,)}
  return stage.recover("sre2l", method, env, slots, fed, batch_size=size, session=session)


def label_images(net: str, teacher: Any) -> Any:
  """One call of the labelling step, and the labels of the plain images."""
  from ltdd_jax.data import specs
  from ltdd_jax.labels import label as label_lib
  from ltdd_jax.training import loop

  session, case = loop.Session(show_progress=False), recipes.CASES["student/convnet"]
  images, targets = recipes.random_images(500)
  return label_lib.label_images(
    "sre2l",
    images,
    targets,
    (teacher,),
    specs.SPECS["cifar10"],
    num_epochs=session.steps_per_call(),
    views=case["views"],
    session=session,
  )


def calibrate() -> Any:
  """The fit of ADSA's tau."""
  import numpy as np

  from ltdd_jax import calibrate as stage
  from ltdd_jax.data import longtail

  calibrator = stage.make_calibrator("adsa")
  labels = np.arange(100, dtype=np.int32) % recipes.CLASSES
  logits = recipes.random_logits(100, 100)
  return calibrator.fit(logits, labels, longtail.log_prior(recipes.long_tail()))


def student() -> Any:
  """A call of the training step of one student, and its evaluation."""
  from benchmarks import students
  from ltdd_jax.training import loop

  steps = 2 * loop.Session().steps_per_call()
  return students.make_training(1, steps)[0]("loop")


STAGES: dict[str, tuple[Callable[..., Any], str | None, bool]] = {  # stage, network, needs teacher
  "teacher/convnet": (train_teachers, "convnet", False),
  "teacher/resnet18": (train_teachers, "resnet18", False),
  "distil/convnet": (run_method, "convnet", True),
  "distil/resnet18": (run_method, "resnet18", True),
  "label/convnet": (label_images, "convnet", True),
  "calibrate/adsa": (calibrate, None, False),
  "student/convnet": (student, None, False),
}


def handle(message: dict[str, Any]) -> dict[str, Any]:
  """Runs one stage with a cache in the folder that the message names."""
  startup.tune_host()
  startup.setup_jax(cache_dir=message["cache"])
  import jax

  run, net, needs_teacher = STAGES[message["stage"]]
  given = [net] if net else []
  if needs_teacher:
    given.append(untrained(net))
  with timing.CompileClock() as clock:
    start = time.perf_counter()
    jax.block_until_ready(run(*given))
    seconds = time.perf_counter() - start
  return {
    "compile_seconds": clock.seconds,
    "xla_seconds": clock.xla_seconds,
    "total_seconds": seconds,
    "device": jax.devices()[0].device_kind,
  }


# ---- what the command does ----


def fresh(stage: str, cache: str, device: str) -> dict[str, Any]:
  """Asks a new process."""
  env = timing.choose_device(device)
  with timing.Worker(sys.executable, "benchmarks.compile", "--worker", env=env) as worker:
    return worker.ask(stage=stage, cache=cache)


def measure(stage: str, rounds: int, device: str) -> dict[str, list[dict[str, Any]]]:
  """Runs pairs of a cold and a cached process."""
  answers: dict[str, list[dict[str, Any]]] = {"cold": [], "cached": []}
  for number in range(rounds):
    with tempfile.TemporaryDirectory() as cache:
      for kind, list_of_kind in answers.items():
        timing.note(f"{stage}: round {number + 1} of {rounds}: {kind}")
        list_of_kind.append(fresh(stage, cache, device))
  return answers


def row(stage: str, answers: dict[str, list[dict[str, Any]]]) -> tuple[str, ...]:
  columns = {
    (kind, key): [answer[key] for answer in answers[kind]]
    for kind in ("cold", "cached")
    for key in ("compile_seconds", "xla_seconds")
  }
  cold, cached = columns["cold", "compile_seconds"], columns["cached", "compile_seconds"]
  return (
    stage,
    timing.spread(cold, 1),
    f"{statistics.median(columns['cold', 'xla_seconds']):.1f}",
    timing.spread(cached, 1),
    f"{statistics.median(columns['cached', 'xla_seconds']):.1f}",
    f"{timing.median_ratio(cold, cached):.1f}",
  )


def main() -> None:
  args = arguments()
  if args.worker:
    timing.serve(handle)
    return
  results = {stage: measure(stage, args.rounds, args.device) for stage in args.stages}
  device = next(iter(results.values()))["cold"][0]["device"]
  line = timing.hardware(device, ("jax", "jaxlib", "flax"))
  headers = (
    "stage", "cold, s", "of that XLA", "with the cache, s", "of that reading it", "cold / cached",
  )  # fmt: skip
  rows = [row(stage, answers) for stage, answers in results.items()]
  timing.finish(line, headers, rows, results, args.out)


if __name__ == "__main__":
  main()
