"""The library's side of `matching.py`: its own methods in its own loop, set up as a run is."""

from ltdd_jax.core import startup

startup.tune_host()  # before jax is imported, as launch/main.py does
startup.setup_jax(cache_dir=None)

import time  # noqa: E402
from typing import Any  # noqa: E402

import jax  # noqa: E402
import numpy as np  # noqa: E402

from benchmarks import recipes, timing  # noqa: E402
from ltdd_jax import distil, models  # noqa: E402
from ltdd_jax.core import mesh as mesh_lib  # noqa: E402
from ltdd_jax.core import rng  # noqa: E402
from ltdd_jax.data import specs  # noqa: E402
from ltdd_jax.distil import run as distil_run  # noqa: E402
from ltdd_jax.models.flat import flat_params  # noqa: E402
from ltdd_jax.training import loop  # noqa: E402

SPEC = specs.SPECS["cifar10"]
FOREVER = 1_000_000


def arguments(case: str, network: dict[str, Any], message: dict[str, Any]) -> dict[str, Any]:
  """Those of the method: no views, and clusters of DREAM once."""
  common = {"num_steps": FOREVER, "augment": None}
  if case == "dm":
    return common | {"network": network, "batch_real": message["batch_real"]}
  if case == "dream":
    return common | {
      "network": network, "num_clusters": 64, "interval": FOREVER, "steps_per_network": FOREVER,
      "num_iterations": 1, "network_images": 512, "network_augment": None,
    }  # fmt: skip
  own = {"inner_steps": message["inner_steps"], "max_start_epoch": 2, "init": "real"}
  return common | own | ({"first_max_start_epoch": None} if case == "datm" else {})


def trajectories(model: Any) -> np.ndarray:
  """Snapshots (2, 5, p) that move a little after each epoch: times do not depend on them."""
  flat = flat_params(model, SPEC.image_shape)
  first = flat.ravel(models.init_variables(model, rng.key_for(0), SPEC.image_shape)["params"])
  moves = np.random.RandomState(0).normal(0, 0.01, (2, 5, flat.size))
  return (np.asarray(first) + moves.cumsum(1)).astype(np.float32)


class Side:
  """Runs steps of one method."""

  def __init__(self) -> None:
    self.session = loop.Session(show_progress=False)
    self.compiled: loop.Compiled = {}

  def handle(self, message: dict[str, Any]) -> dict[str, Any]:
    """{"case": name, sizes} prepares and compiles; {"steps": n} runs n steps."""
    if "steps" in message:
      return self.run(message["steps"])
    params = self.prepare(message)
    self.run(1)
    return {"params": [params], "device": jax.devices()[0].device_kind}

  def prepare(self, message: dict[str, Any]) -> int:
    network = recipes.CONVNET | {"width": message["width"], "norm": "instance"}
    shapes = {"num_classes": SPEC.num_classes, "image_shape": SPEC.image_shape}
    model = models.make_model(**network, **shapes)
    env = distil.Env(
      SPEC.image_shape, SPEC.num_classes, SPEC.mean, SPEC.std, expert=lambda: model
    )  # fmt: skip
    kwargs = arguments(message["case"], network, message)
    self.method = distil.make_method(env, message["case"], **kwargs)
    images, labels = recipes.random_images(10 * 64)
    snapshots = trajectories(model)
    found = {"images": images, "labels": labels, "experts": snapshots[:, -1]}
    self.host = found | {"trajectories": snapshots}
    fed = {name: found[name] for name in self.method.needs if name in found}
    slots = distil.make_slots(SPEC.num_classes, images_per_class=10)
    fed = mesh_lib.put(fed, mesh_lib.replicated(self.session.mesh))
    state = jax.jit(self.method.init)(rng.key_for(1), slots, fed)
    self.state = distil_run.spread(state, len(slots.labels), self.session)
    self.consts = {"key": rng.key_for(2), "res": fed}
    return flat_params(model, SPEC.image_shape).size

  def inputs(self, t: int) -> tuple[np.int32, Any]:
    return np.int32(t), self.method.inputs(np.random.default_rng(t), t, self.host)

  def run(self, steps: int) -> dict[str, Any]:
    def step_fn(state, consts, inputs):
      t, x = inputs
      return self.method.step(jax.random.fold_in(consts["key"], t), state, consts["res"], x)

    start = time.perf_counter()
    self.state = loop.run(
      step_fn, self.state, self.consts, num_steps=steps, session=self.session,
      name="benchmark", inputs=self.inputs, compiled=self.compiled,
    )  # fmt: skip
    jax.block_until_ready(self.state)
    return {"seconds": time.perf_counter() - start, "steps": steps}


if __name__ == "__main__":
  timing.serve(Side().handle)
