"""The library's side of `relabel.py`: `labels.label.label_images`, set up as a run is."""

from ltdd_jax.core import startup

startup.tune_host()  # before jax is imported, as launch/main.py does
startup.setup_jax()

import time  # noqa: E402
from typing import Any  # noqa: E402

import jax  # noqa: E402
import numpy as np  # noqa: E402

from benchmarks import edc_recipe, recipes, timing  # noqa: E402
from configs import base  # noqa: E402
from ltdd_jax import models  # noqa: E402
from ltdd_jax.core import rng  # noqa: E402
from ltdd_jax.core.types import Teacher  # noqa: E402
from ltdd_jax.data import specs  # noqa: E402
from ltdd_jax.labels import label as label_lib  # noqa: E402
from ltdd_jax.training import loop  # noqa: E402

SPEC = specs.SPECS["cifar10"]


class Side:
  """Labels as often as it is asked to."""

  def handle(self, message: dict[str, Any]) -> dict[str, Any]:
    """{"teachers": names} prepares and compiles; {"epochs": n} labels all images n times."""
    if "epochs" in message:
      return self.run(message["epochs"])
    kwargs = {"num_classes": SPEC.num_classes, "image_shape": SPEC.image_shape}
    self.teachers = []
    for name in message["teachers"]:
      net = models.make_model(**edc_recipe.OBSERVERS[name], **kwargs)
      variables = models.init_variables(net, rng.key_for(0), SPEC.image_shape)
      self.teachers.append(Teacher(name, net, variables))
    self.images, self.labels = recipes.random_images(edc_recipe.BATCH)
    self.run(1)
    params = [models.count_params(t.variables["params"]) for t in self.teachers]
    return {"params": params, "device": jax.devices()[0].device_kind}

  def run(self, epochs: int) -> dict[str, Any]:
    start = time.perf_counter()
    with timing.CompileClock() as clock:
      labelled = label_lib.label_images(
        "benchmark", self.images, self.labels.astype(np.int32), tuple(self.teachers), SPEC,
        num_epochs=epochs, views=base.CROPS_AND_CUTMIX,
        session=loop.Session(show_progress=False),
      )  # fmt: skip
    seconds = time.perf_counter() - start - clock.seconds
    return {
      "seconds": seconds,
      "compile": clock.seconds,
      "labels": int(np.prod(labelled.store.shape[:2])),
    }


if __name__ == "__main__":
  timing.serve(Side().handle)
