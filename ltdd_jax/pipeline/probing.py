"""Probe students: trained to see what students of some labels end up with, not to be scored."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from ltdd_jax import models
from ltdd_jax.calibrate import probe
from ltdd_jax.core import mesh as mesh_lib
from ltdd_jax.core.types import ArrayData
from ltdd_jax.data import longtail
from ltdd_jax.labels import label as label_lib
from ltdd_jax.pipeline import supervision as label_sources
from ltdd_jax.pipeline.context import Context
from ltdd_jax.students import train as student_training
from ltdd_jax.training import loop

_BATCH = 500  # images in one forward pass
_SCORING = ("num_seeds", "evaluations", "eval_batch_size")


def numbers(trained: Mapping[str, Any]) -> dict[str, Any]:
  """What a probe depends on, of the numbers that students depend on."""
  return {k: v for k, v in trained.items() if k not in _SCORING}


def unseen_logits(
  ctx: Context,
  source: str,
  name: str,
  calibrator: Any,
  params: Any,
  trained: Mapping[str, Any],
  session: loop.Session,
) -> tuple[np.ndarray, np.ndarray]:
  """Trains a student on calibrated labels and shows it training images that it has not seen.

  Those that are in the distilled set as they are, as with methods that select, are left out: of
  what it has learnt by heart a student is sure, whatever its bias is.

  Args:
    ctx: of the run.
    source: of the images.
    name: of the calibrator in the config, for messages and metrics.
    calibrator: of the labels.
    params: as it was fitted.
    trained: arguments of `student.train_students`; see `numbers`.
    session: devices, checkpoints, progress.

  Returns:
    Logits (m, k) and classes (m,). Nothing, and no student is trained, where it would be of no use:
    classes are equally frequent, or too few of them have such images (`calibrate.probe.enough`).
  """
  images, targets = ctx.images(source)
  spec, seed, data = ctx.source.spec, ctx.config["seed"], ctx.train_data
  shown = unseen(data, images)
  if np.ptp(ctx.counts) == 0 or not probe.enough(shown.labels, longtail.log_prior(ctx.counts)):
    return np.zeros((0, spec.num_classes), np.float32), np.zeros(0, np.int32)
  found = student_training.train_students(
    f"probe/{source}/{name}",
    images,
    targets,
    label_sources.calibrated(ctx, source, calibrator, params),
    data,  # the test set has no part in this
    spec,
    **numbers(trained),
    num_seeds=1,
    evaluations=1,
    views=ctx.config["label"]["views"],
    view_key=label_lib.view_key(seed, source),
    seed=seed,
    key_name="probe",
    session=session,
  )
  first = jax.tree.map(lambda x: x[0], found.variables)
  return logits_of(ctx, trained["model"], first, shown.images), shown.labels


def unseen(data: ArrayData, images: np.ndarray) -> ArrayData:
  """The training images that are not among the distilled images (n, h, w, c) as they are."""
  seen = {image.tobytes() for image in images}
  keep = np.array([image.tobytes() not in seen for image in data.images])
  return ArrayData(data.images[keep], data.labels[keep])


def logits_of(
  ctx: Context, model: Mapping[str, Any], variables: Any, images: np.ndarray
) -> np.ndarray:
  """Logits (m, k) of a student, {name, **kwargs} of `models.make_model`, on images (m, h, w, c)."""
  spec = ctx.source.spec
  network = models.make_model(num_classes=spec.num_classes, image_shape=spec.image_shape, **model)
  mesh = mesh_lib.make_mesh()
  consts = {"images": images, "variables": variables}
  consts = mesh_lib.put(consts, mesh_lib.replicated(mesh))
  apply = lambda variables, pixels: network.apply(variables, pixels, train=False)
  return label_lib.clean_logits(consts, apply, spec, _BATCH, mesh)
