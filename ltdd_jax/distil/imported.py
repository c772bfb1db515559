"""Images that were made elsewhere, as a method without steps."""

import jax
import jax.numpy as jnp

from ltdd_jax.core.types import Distilled, Slots
from ltdd_jax.data import augment
from ltdd_jax.distil.base import Env, Method, Resources, select

VERSION = 2


def imported(env: Env, /, *, path: str) -> Method:
  """Takes a distilled set from a file as it is: see `interop.distilled_sets.read`.

  The file is the budget: the slots are its images, in its order.

  Args:
    env: static facts.
    path: another run's artefact WORKDIR/distil/IMAGES, an `.npz` file or a folder of class
      folders.
  """
  del path  # the pipeline reads it: the resource "file"

  def init(key: jax.Array, slots: Slots, res: Resources) -> Distilled:
    del key, slots
    file = res["file"]
    images = augment.normalize(file["images"], env.mean, env.std)
    labels = jnp.asarray(file["labels"], jnp.int32)
    return Distilled(images, labels, file.get("soft_labels"), file.get("student_lr"))

  return select(init, needs=("file",), real_images=False)
