"""Probe students: trained to see what students of some labels end up with, not to be scored."""

from typing import Any

import numpy as np

from ltdd_jax import models
from ltdd_jax.calibrate import probe
from ltdd_jax.core import mesh as mesh_lib
from ltdd_jax.core.types import ArrayData
from ltdd_jax.data.specs import DatasetSpec
from ltdd_jax.labels import label as label_lib
from ltdd_jax.labels.sources import Supervision
from ltdd_jax.students import train as student_training
from ltdd_jax.training import loop, many

_BATCH = 500  # images in one forward pass, or read at once


def unseen_logits(
  name: str,
  images: np.ndarray,
  labels: np.ndarray,
  supervision: Supervision,
  data: ArrayData,
  log_prior: np.ndarray,
  spec: DatasetSpec,
  *,
  session: loop.Session,
  **student: Any,
) -> tuple[np.ndarray, np.ndarray]:
  """Trains a student on calibrated labels and shows it training images that it has not seen.

  Those that are in the distilled set as they are, as with methods that select, are left out: of
  what it has learnt by heart a student is sure, whatever its bias is.

  Args:
    name: of the stage, for messages and metrics.
    images: (n, h, w, c), the distilled images.
    labels: (n,), their classes.
    supervision: where labels come from.
    data: the training set that the labels are biased by; the test set has no part in this.
    log_prior: (k,) log frequencies of its classes.
    spec: facts of the data set.
    session: devices, checkpoints, progress.
    **student: of `students.train.train_students`, without numbers of seeds and evaluations.

  Returns:
    Logits (m, k) and classes (m,). Nothing, and no student is trained, where it would be of no use:
    classes are equally frequent, or too few of them have such images (`calibrate.probe.enough`).
  """
  shown = unseen(data, images)
  if np.ptp(log_prior) == 0 or not probe.enough(shown.labels, log_prior):
    return np.zeros((0, spec.num_classes), np.float32), np.zeros(0, np.int32)
  found = student_training.train_students(
    name, images, labels, supervision, data, spec, num_seeds=1, evaluations=1, key_name="probe",
    session=session,
    **student,
  )  # fmt: skip
  network = models.make_model(
    num_classes=spec.num_classes, image_shape=spec.image_shape, **student["model"]
  )
  consts = {"images": shown.images, "variables": many.member(found.variables, 0)}
  consts = mesh_lib.put(consts, mesh_lib.replicated(session.mesh))
  apply: Any = lambda variables, pixels: network.apply(variables, pixels, train=False)
  logits = label_lib.clean_logits(consts, apply, spec, _BATCH, session.mesh)
  return logits, shown.labels


def unseen(data: ArrayData, images: np.ndarray) -> ArrayData:
  """The training images that are not among the distilled images (n, h, w, c) as they are."""
  if images.dtype != np.uint8:  # stored as floats: an image as it is has whole levels
    images = np.rint(255 * np.clip(images, 0, 1)).astype(np.uint8)
  seen = {image.tobytes() for image in images}
  n = len(data.labels)
  blocks = (np.asarray(data.images[i : i + _BATCH]) for i in range(0, n, _BATCH))
  keep = np.array([image.tobytes() not in seen for block in blocks for image in block], bool)
  return ArrayData(data.images[keep], data.labels[keep])
