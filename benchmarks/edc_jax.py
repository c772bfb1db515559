"""The library's side of `edc.py`: its own method in its own loop, set up as a run is."""

from ltdd_jax.core import startup

startup.tune_host()  # before jax is imported, as launch/main.py does
startup.setup_jax(cache_dir=None)

import functools  # noqa: E402
import math  # noqa: E402
import time  # noqa: E402
from typing import Any  # noqa: E402

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402

from benchmarks import edc_recipe, timing  # noqa: E402
from ltdd_jax import distil, models  # noqa: E402
from ltdd_jax.core import mesh as mesh_lib  # noqa: E402
from ltdd_jax.core import rng  # noqa: E402
from ltdd_jax.data import specs  # noqa: E402
from ltdd_jax.distil import run as distil_run  # noqa: E402
from ltdd_jax.models import taps  # noqa: E402
from ltdd_jax.teachers import statistics  # noqa: E402
from ltdd_jax.training import loop  # noqa: E402

SPEC = specs.SPECS["cifar10"]


def fake_statistics(model: Any, variables: Any) -> statistics.Statistics:
  """Ones in the shapes of a network's statistics: times do not depend on them."""

  def of(variables, images, member):
    _, inputs = taps.apply_with_inputs(model, variables, images, statistics.LAYERS)
    return statistics.of_batch(inputs, member, edc_recipe.TILE)

  images = jnp.zeros((1, *SPEC.image_shape))
  shapes = jax.eval_shape(of, variables, images, jnp.ones((1, SPEC.num_classes)))
  return jax.tree.map(lambda s: np.ones(s.shape, s.dtype), shapes)


class Side:
  """Runs cycles of all teachers."""

  def __init__(self) -> None:
    self.session = loop.Session(show_progress=False)
    self.compiled: loop.Compiled = {}

  def handle(self, message: dict[str, Any]) -> dict[str, Any]:
    """{"teachers": names, "batch": n} prepares and compiles; {"steps": n} runs whole cycles."""
    if "steps" in message:
      return self.run(message["steps"])
    params = self.prepare(message["teachers"], message["batch"])
    first = self.run(len(message["teachers"]))
    device = jax.devices()[0].device_kind
    return {"params": params, "first_seconds": first["seconds"], "device": device}

  def prepare(self, names: list[str], batch: int) -> list[int]:
    kwargs = {"num_classes": SPEC.num_classes, "image_shape": SPEC.image_shape}
    nets = [models.make_model(**edc_recipe.OBSERVERS[name], **kwargs) for name in names]
    variables = tuple(models.init_variables(n, rng.key_for(0), SPEC.image_shape) for n in nets)
    teachers = tuple(map(distil.Network, names, nets))
    env = distil.Env(SPEC.image_shape, SPEC.num_classes, SPEC.mean, SPEC.std, teachers)
    self.method = distil.make_method(
      env, "edc_released", num_steps=1_000_000, lr=edc_recipe.LR, r_stats=edc_recipe.R_STATS,
      alpha=edc_recipe.ALPHA, ema=edc_recipe.EMA, init="noise",
    )  # fmt: skip
    slots = distil.make_slots(
      SPEC.num_classes,
      images_per_class=batch // SPEC.num_classes,
      order="class_major",
    )
    fed = {
      "teachers": variables,
      "statistics": tuple(map(fake_statistics, nets, variables)),
    }
    whole = mesh_lib.replicated(self.session.mesh)
    self.consts = {"key": rng.key_for(2), "feed": mesh_lib.put(fed, whole)}
    state = jax.jit(self.method.init)(rng.key_for(1), slots, fed)
    self.state = distil_run.spread(state, batch, self.session)

    def step_fn(state, consts, t, turn):
      key = jax.random.fold_in(consts["key"], t)
      return self.method.step(key, state, consts["feed"], None, turn=turn)

    turns = range(self.method.turns)
    self.step_fns = [functools.partial(step_fn, turn=turn) for turn in turns]
    return [models.count_params(v["params"]) for v in variables]

  def run(self, steps: int) -> dict[str, Any]:
    whole = math.lcm(self.session.steps_per_call(), self.method.turns)  # cycles and dispatches
    steps = -(-steps // whole) * whole
    start = time.perf_counter()
    self.state = loop.run(
      self.step_fns, self.state, self.consts, num_steps=steps, session=self.session,
      name="benchmark", inputs=np.int32, compiled=self.compiled,
    )  # fmt: skip
    jax.block_until_ready(self.state)
    return {"seconds": time.perf_counter() - start, "steps": steps}


if __name__ == "__main__":
  timing.serve(Side().handle)
