"""The library's side of `steps.py`: its own step functions in its own loop, set up as a run is.

A worker process; `steps.py` starts it. With `--untuned` the allocator is left alone; `--devices N`
splits the CPU into virtual devices; `--bfloat16` is the dtype of computation.
"""

import sys

from ltdd_jax.core import startup

if "--untuned" not in sys.argv:
  startup.tune_host()  # before jax is imported, as launch/main.py does
DTYPE = "bfloat16" if "--bfloat16" in sys.argv else "float32"
DEVICES = int(sys.argv[sys.argv.index("--devices") + 1]) if "--devices" in sys.argv else None
startup.setup_jax(num_cpu_devices=DEVICES, cache_dir=None)

import functools  # noqa: E402
import time  # noqa: E402
from collections.abc import Callable  # noqa: E402
from typing import Any, NamedTuple  # noqa: E402

import jax  # noqa: E402
import numpy as np  # noqa: E402

from benchmarks import recipes, timing  # noqa: E402
from ltdd_jax import distil, models  # noqa: E402
from ltdd_jax.core import mesh as mesh_lib  # noqa: E402
from ltdd_jax.core import rng  # noqa: E402
from ltdd_jax.core.types import ArrayData  # noqa: E402
from ltdd_jax.data import augment, feed, specs  # noqa: E402
from ltdd_jax.distil import run as distil_run  # noqa: E402
from ltdd_jax.labels import label as label_lib  # noqa: E402
from ltdd_jax.students import train as student_training  # noqa: E402
from ltdd_jax.teachers import objectives  # noqa: E402
from ltdd_jax.training import loop, losses, optimizers, supervised  # noqa: E402

SPEC = specs.SPECS["cifar10"]
FOREVER = 1_000_000  # steps of the schedules: their end is never reached


class Job(NamedTuple):
  """What `loop.run` takes."""

  step_fn: loop.StepFn
  state: Any
  consts: Any
  inputs: Callable[[int], Any]
  params: int


def make_model(case: dict[str, Any]) -> Any:
  model = models.make_model(
    num_classes=SPEC.num_classes, image_shape=SPEC.image_shape, **case["model"]
  )
  return models.computing_in(model, DTYPE)


def supervised_job(
  case: dict[str, Any],
  batch_fn: supervised.BatchFn,
  objective: supervised.Objective,
  session: loop.Session,
) -> tuple[loop.StepFn, Any, int]:
  """The step of a teacher or student, its state and the number of parameters."""
  model = make_model(case)
  tx = optimizers.make_optimizer(case["optimizer"], {"name": "cosine"}, FOREVER)
  state = jax.jit(lambda key: supervised.init_state(model, tx, key, SPEC.image_shape))(
    rng.key_for(0)
  )
  step_fn = functools.partial(
    supervised.train_step,
    apply_fn=model.apply,
    tx=tx,
    batch_fn=batch_fn,
    objective=objective,
    num_steps=FOREVER,
    mesh=session.mesh,
  )
  state = mesh_lib.put(state, mesh_lib.replicated(session.mesh))
  return step_fn, state, models.count_params(state.params)


def teacher_job(case: dict[str, Any], session: loop.Session) -> Job:
  batch_fn = functools.partial(
    supervised.image_batch, spec=SPEC, augment_fn=augment.compose(case["augment"])
  )
  objective = objectives.make_objective(recipes.long_tail(), name="cross_entropy").loss
  step_fn, state, params = supervised_job(case, batch_fn, objective, session)
  data = mesh_lib.put(
    ArrayData(*recipes.random_images(case["images"])), mesh_lib.replicated(session.mesh)
  )
  inputs = feed.BatchSampler(0, "teacher", case["images"], case["batch"])
  return Job(step_fn, state, {"data": data, "key": rng.key_for(1)}, inputs, params)


def student_job(case: dict[str, Any], session: loop.Session) -> Job:
  n = case["images"]
  supervision = recipes.stored_labels(case["label_epochs"], n)
  batch_fn = recipes.student_batch(case, SPEC, supervision)
  loss_fn = functools.partial(
    student_training.soft_loss, loss_fn=losses.make_soft_loss(**case["loss"])
  )
  objective = supervised.of_logits(loss_fn)
  step_fn, state, params = supervised_job(case, batch_fn, objective, session)
  images, targets = recipes.random_images(n)
  consts = {
    "images": images,
    "labels": targets,
    "logits": supervision.logits,
    "params": supervision.params,
    "log_prior": supervision.log_prior,
  }
  consts = mesh_lib.put(consts, mesh_lib.replicated(session.mesh))
  consts |= {"view_key": label_lib.view_key(0, "sre2l"), "key": rng.key_for(1)}
  sampler = feed.BatchSampler(0, "student/0", n, case["batch"])
  inputs = lambda t: {"indices": sampler(t), "epochs": sampler.epoch(t)}
  return Job(step_fn, state, consts, inputs, params)


def recover_job(case: dict[str, Any], session: loop.Session) -> Job:
  model, size = make_model(case), case["batch"]
  variables = models.init_variables(model, rng.key_for(0), SPEC.image_shape)
  env = distil.Env(
    SPEC.image_shape, SPEC.num_classes, SPEC.mean, SPEC.std, (distil.Network("a", model),)
  )
  method = distil.make_method(env, "sre2l", num_steps=FOREVER)
  slots = distil.make_slots(SPEC.num_classes, images_per_class=size // SPEC.num_classes)
  fed = {"teachers": mesh_lib.put((variables,), mesh_lib.replicated(session.mesh))}
  state = jax.jit(method.init)(rng.key_for(1), slots, fed)
  state = distil_run.spread(state, size, session)

  def step_fn(state, consts, t):
    return method.step(jax.random.fold_in(consts["key"], t), state, consts["feed"], None)

  params = models.count_params(variables["params"])
  return Job(step_fn, state, {"key": rng.key_for(2), "feed": fed}, np.int32, params)


JOBS = {"teacher": teacher_job, "distil": recover_job, "student": student_job}


class Side:
  """Runs one case, some steps at a time."""

  def __init__(self) -> None:
    self.session = loop.Session(show_progress=False)
    self.compiled: loop.Compiled = {}
    self.done = 0

  def handle(self, message: dict[str, Any]) -> dict[str, Any]:
    """{"case": ...} prepares and compiles; {"steps": n} runs n steps, or a few more."""
    if "case" in message:
      self.job = JOBS[message["case"]["stage"]](message["case"], self.session)
      self.state = self.job.state
      first = self.run(1)
      return {
        "params": self.job.params,
        "first_seconds": first["seconds"],
        "device": jax.devices()[0].device_kind,
      }
    return self.run(message["steps"])

  def run(self, steps: int) -> dict[str, Any]:
    per_call = self.session.steps_per_call()
    steps = -(-steps // per_call) * per_call  # whole dispatches
    start, done = time.perf_counter(), self.done
    self.state = loop.run(
      self.job.step_fn,
      self.state,
      self.job.consts,
      num_steps=steps,
      session=self.session,
      name="benchmark",
      inputs=lambda t: self.job.inputs(done + t),
      compiled=self.compiled,
    )
    jax.block_until_ready(self.state)
    self.done += steps
    return {"seconds": time.perf_counter() - start, "steps": steps}


if __name__ == "__main__":
  timing.serve(Side().handle)
