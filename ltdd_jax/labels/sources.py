"""Where the labels of students come from, and how a batch of views gets them.

A label source gives logits for (image, view): `teacher` asks networks of the teacher stage,
`learned` has what the method learned with the images, `imported` reads files. No label source at
all is hard labels. A calibrator adjusts the logits, whatever their source, when they are read.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ltdd_jax.calibrate import Calibrator
from ltdd_jax.core.registry import check_choice
from ltdd_jax.core.types import Leaf, Teacher
from ltdd_jax.data.views import Views
from ltdd_jax.labels import label as label_lib
from ltdd_jax.labels import store as label_store
from ltdd_jax.teachers import aggregate as aggregate_lib

VERSION = 1


class LabelSource(NamedTuple):
  """A source of logits, as a config names it."""

  kind: str
  teachers: Sequence[str] | None = None
  aggregate: str = "mean"
  batch_norm: str = "eval"
  online: bool = False
  path: str | None = None


def teacher(
  *,
  teachers: Sequence[str] | None = None,
  aggregate: str = "mean",
  batch_norm: str = "eval",
  online: bool = False,
) -> LabelSource:
  """Teachers label each view of each image.

  Args:
    teachers: keys of `config.teacher.models`; None for all that are trained on the run's own split.
    aggregate: how their logits become one label, a key of `teachers.aggregate.AGGREGATES`.
    batch_norm: "eval", or "train" for batch norms with the statistics of a batch of views, as the
      released code of SRe2L on CIFAR-100 has them.
    online: whether students ask the teachers in each step; stored labels then serve calibration.

  Raises:
    LtddError: an unknown aggregate or batch_norm.
  """
  check_choice("label source 'teacher': aggregate", aggregate, aggregate_lib.AGGREGATES)
  check_choice("label source 'teacher': batch_norm", batch_norm, ("eval", "train"))
  return LabelSource("teacher", teachers, aggregate, batch_norm, online)


def learned() -> LabelSource:
  """The soft labels that the method learned: one for each image, the same for all its views."""
  return LabelSource("learned")


def imported(*, path: str) -> LabelSource:
  """Logits of each image from a file, or of each view from a folder.

  Args:
    path: an `.npy` file of logits (n, k), or an `.npz` file with an array `logits`, in the order of
      the images of one image source; or a folder that `launch.export --to fkd` wrote. Students of
      such labels see the views that the folder describes, whatever `config.label.views` says, and
      go round through its label epochs; hard labels of the same images have views of the run's own.
      If a run has several image sources, the config names one under `images`.
  """
  return LabelSource("imported", path=path)


SOURCES: dict[str, Callable[..., LabelSource]] = {
  "teacher": teacher,
  "learned": learned,
  "imported": imported,
}


class Supervision(NamedTuple):
  """Where the labels of students come from, with the arrays.

  Hard labels need nothing. Soft labels need `logits` (see `stored`) or `teachers` (on line), and
  may have a calibrator with its fitted parameters and the log class frequencies it was fitted with.
  """

  kind: str = "hard"  # "hard", "stored" or "online"
  logits: Leaf = None  # (e, n, k), or a dict of arrays (e, n, numbers) that `decode` reads
  decode: Callable[[Any], jax.Array] | None = None  # encoded rows -> float32 logits (b, k)
  per_view: bool = True  # whether logits are of views, and not of images
  teachers: tuple[Teacher, ...] = ()
  aggregate: str = "mean"  # of the teachers' logits
  batch_norm: str = "eval"  # the teachers' batch norms, on line: "eval" or "train"
  calibrator: Calibrator | None = None
  params: Any = None
  log_prior: Leaf = None  # (k,)

  def arrays(self) -> dict[str, Any]:
    """What a student's step takes as an argument."""
    arrays: dict[str, Any] = {}
    if self.kind == "stored":
      arrays["logits"] = self.logits
    if self.kind == "online":
      arrays["variables"] = tuple(t.variables for t in self.teachers)
    if self.calibrator is not None:
      arrays |= {"params": self.params, "log_prior": self.log_prior}
    return arrays

  def logits_of(
    self, consts: dict[str, Any], views: Views, indices: jax.Array, epochs: jax.Array
  ) -> jax.Array | None:
    """Calibrated logits (b, k) of a batch of views; None for hard labels.

    Labels of images, where two are mixed, are mixed by their shares of the view: the probabilities,
    and the level `logsumexp(logits)`, which losses on raw logits (`mse_ce`) see.

    Args:
      consts: holds `arrays`.
      views: of images `indices` (b,) in `epochs` (b,).
      indices: numbers of the images.
      epochs: their epochs.
    """
    if self.kind == "hard":
      return None
    if self.kind == "online":
      models = tuple(t.model for t in self.teachers)
      logits = label_lib.teacher_logits(
        models, consts["variables"], views.images, self.aggregate, batch_norm=self.batch_norm
      )
      return self._calibrate(consts, logits)
    own = self._calibrate(consts, self._rows(consts, indices, epochs))
    if self.per_view:
      return own
    other = self._calibrate(consts, self._rows(consts, views.partners, epochs))
    share = jnp.stack([views.weight, 1 - views.weight])[..., None]
    both = jnp.stack([own, other])
    level = jnp.sum(share * jax.nn.logsumexp(both, axis=-1, keepdims=True), axis=0)
    mixed = jax.nn.logsumexp(jax.nn.log_softmax(both), axis=0, b=share) + level
    return jnp.where((views.weight == 1)[:, None], own, mixed)  # bit for bit, as they are stored

  def _rows(self, consts: dict[str, Any], indices: jax.Array, epochs: jax.Array) -> jax.Array:
    epochs = epochs % jax.tree.leaves(consts["logits"])[0].shape[0]
    rows = jax.tree.map(lambda x: x[epochs, indices], consts["logits"])
    return self.decode(rows) if self.decode else rows.astype(jnp.float32)

  def _calibrate(self, consts: dict[str, Any], logits: jax.Array) -> jax.Array:
    if self.calibrator is None:
      return logits
    return self.calibrator.apply(consts["params"], logits, consts["log_prior"])


def stored(store: label_store.LabelStore, **kwargs: Any) -> Supervision:
  """Supervision by a label store: its encoded arrays, decoded batch by batch.

  Args:
    store: read whole into memory, encoded.
    **kwargs: per_view, calibrator, params and log_prior, as of `Supervision`.
  """
  decode = functools.partial(store.encoding.decode, k=store.shape[-1])
  return Supervision("stored", logits=store.read(), decode=decode, **kwargs)
