"""What is timed: networks, batches and optimisers of `configs/cifar10_lt.py`, on noise.

Times do not depend on what the images show, so that no data set is needed.
"""

from typing import Any

import numpy as np

IMAGE_SHAPE, CLASSES = (32, 32, 3), 10
CONVNET = {"name": "convnet", "depth": 3, "width": 64}
RESNET = {"name": "resnet18", "stem": "cifar"}
TEACHER: dict[str, Any] = {
  "stage": "teacher",
  "batch": 128,
  "images": 12_406,  # CIFAR-10-LT at imbalance factor 100
  "optimizer": {"name": "sgd", "lr": 0.05, "momentum": 0.9, "weight_decay": 5e-4},
  "augment": [{"name": "random_crop", "padding": 4}, {"name": "random_flip"}],
}
RECOVER: dict[str, Any] = {"stage": "distil", "batch": 100}
STUDENT: dict[str, Any] = {
  "stage": "student",
  "batch": 50,
  "images": 100,  # ten of each class
  "label_epochs": 300,
  "optimizer": {"name": "adamw", "lr": 1e-3, "weight_decay": 0.01},
  "loss": {"name": "mse_ce", "ce_weight": 0.025},
  "views": {"crop_scale": [0.08, 1.0], "flip": True, "mix": "cutmix", "mix_alpha": 1.0},
}
CASES: dict[str, dict[str, Any]] = {
  "teacher/convnet": {**TEACHER, "model": {**CONVNET, "norm": "batch"}},
  "distil/convnet": {**RECOVER, "model": {**CONVNET, "norm": "batch"}},
  "student/convnet": {**STUDENT, "model": {**CONVNET, "norm": "instance"}},
  "teacher/resnet18": {**TEACHER, "model": RESNET},
  "distil/resnet18": {**RECOVER, "model": RESNET},
  "teacher/mobilenet_v2": {**TEACHER, "model": {"name": "mobilenet_v2"}},
  "teacher/wide_resnet": {**TEACHER, "model": {"name": "wide_resnet"}},
  "teacher/shufflenet_v2": {**TEACHER, "model": {"name": "shufflenet_v2"}},
}
_TINY = {"name": "convnet", "depth": 1, "width": 4}
SMOKE: dict[str, dict[str, Any]] = {  # by stage, over any case of it
  "teacher": {"batch": 8, "images": 16, "model": {**_TINY, "norm": "batch"}},
  "distil": {"batch": 10, "model": {**_TINY, "norm": "batch"}},
  "student": {"batch": 8, "images": 16, "label_epochs": 2, "model": {**_TINY, "norm": "instance"}},
}


def random_images(n: int) -> tuple[np.ndarray, np.ndarray]:
  """Noise in the shape of CIFAR-10: (n, h, w, c) uint8, and labels (n,) int32."""
  draws = np.random.RandomState(0)
  images = draws.randint(0, 256, (n, *IMAGE_SHAPE)).astype(np.uint8)
  return images, np.arange(n, dtype=np.int32) % CLASSES


def random_logits(epochs: int, n: int) -> np.ndarray:
  """A label store (e, n, k) float16."""
  return np.random.RandomState(1).randn(epochs, n, CLASSES).astype(np.float16)


def long_tail() -> np.ndarray:
  """Training images of each class (k,) of CIFAR-10-LT at imbalance factor 100."""
  return (5000 * 100.0 ** (-np.arange(CLASSES) / (CLASSES - 1))).astype(np.int64)


def stored_labels(epochs: int, n: int) -> Any:
  """Stored soft labels, adjusted by tau = 1, as `students.train.train_students` takes them."""
  from ltdd_jax import calibrate
  from ltdd_jax.data import longtail
  from ltdd_jax.labels import sources

  logits, log_prior = random_logits(epochs, n), longtail.log_prior(long_tail())
  calibrator = calibrate.make_calibrator("fixed", tau=1.0)
  labels = np.arange(n, dtype=np.int32) % CLASSES
  params = calibrator.fit(logits, labels, log_prior)
  return sources.Supervision(
    "stored", logits=logits, calibrator=calibrator, params=params, log_prior=log_prior
  )


def student_batch(case: dict[str, Any], spec: Any, supervision: Any) -> Any:
  """The views and labels of a student's step, `batch_fn` of `supervised.train_step`."""
  from ltdd_jax.core.mesh import make_mesh
  from ltdd_jax.data import views
  from ltdd_jax.students import train

  views_of, mesh = views.view_fn(spec, **case["views"]), make_mesh()

  def batch_fn(consts, x, key):
    x = train.make_views(x, consts, views_of=views_of, mesh=mesh)
    return train.make_batch(consts, x, key, supervision=supervision)

  return batch_fn
