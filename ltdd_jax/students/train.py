"""Students: networks trained on a distilled set alone and scored on the balanced test set.

The labels of a batch are hard (classes), or soft: logits of teachers, stored or made on line, that
a calibrator adjusts as they are read. Several seeds train at once under `vmap`, or one by one.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ltdd_jax import models
from ltdd_jax.core import mesh as mesh_lib
from ltdd_jax.core import rng
from ltdd_jax.core.types import ArrayData, Leaf
from ltdd_jax.data import feed, resident, view_records
from ltdd_jax.data import views as views_lib
from ltdd_jax.data.specs import DatasetSpec
from ltdd_jax.labels.sources import Supervision
from ltdd_jax.training import loop, losses, many, metrics, optimizers, supervised


class Target(NamedTuple):
  """What a student's loss compares with."""

  labels: Leaf  # (b,) int32
  partner_labels: Leaf  # (b,) int32, of the image mixed in
  weight: Leaf  # (b,) float32, share of the image itself
  logits: Leaf  # (b, k) float32 calibrated teacher logits, or None


class StudentResult(NamedTuple):
  """Predictions of each student, class by class: the correct ones at each evaluation."""

  correct: np.ndarray  # (s, m, k) int32
  confusion: np.ndarray  # (s, k, k) int32 at the end: images of a class predicted as another
  total: np.ndarray  # (k,) int32, test images of each class
  steps: np.ndarray  # (m,) int32, steps after which the students were scored; the last is the end
  variables: Any  # the students that were scored at the end, with a leading seed axis


def hard_loss(logits: jax.Array, target: Target) -> jax.Array:
  """Cross-entropy with the classes of both images of a mixed view, by their shares."""
  own = losses.cross_entropy_rows(logits, target.labels)
  other = losses.cross_entropy_rows(logits, target.partner_labels)
  return jnp.mean(target.weight * own + (1 - target.weight) * other)


def soft_loss(
  logits: jax.Array,
  target: Target,
  *,
  loss_fn: Callable[..., jax.Array],
  hard_weight: float = 0.0,
) -> jax.Array:
  """Computes (1 - hard_weight) * loss_fn + hard_weight * `hard_loss`."""
  soft = loss_fn(logits, target.logits, target.labels)
  if not hard_weight:
    return soft
  return (1 - hard_weight) * soft + hard_weight * hard_loss(logits, target)


def make_views(
  x: dict[str, Any], consts: dict[str, Any], *, views_of: views_lib.ViewFn, mesh: jax.sharding.Mesh
) -> dict[str, Any]:
  """Adds the views of a batch, `x` of indices (b,) and epochs (b,).

  `consts` has images, labels and "view_key", the key of the label store, or records of its views.
  """
  data = consts["view_key"], consts["images"], consts["labels"]
  made = mesh_lib.evenly(functools.partial(views_of, *data), mesh)
  return x | {"views": made(x["indices"], x["epochs"])}


def make_batch(
  consts: dict[str, Any], x: dict[str, Any], key: jax.Array, *, supervision: Supervision
) -> tuple[jax.Array, Target]:
  """Makes the labels of a batch of `make_views`; `consts` has the arrays of the supervision."""
  del key
  views = x["views"]
  logits = supervision.logits_of(consts, views, x["indices"], x["epochs"])
  return views.images, Target(views.labels, views.partner_labels, views.weight, logits)


def train_students(
  name: str,
  images: np.ndarray,
  labels: np.ndarray,
  supervision: Supervision,
  test: ArrayData,
  spec: DatasetSpec,
  *,
  model: Mapping[str, Any],
  num_epochs: int,
  batch_size: int,
  optimizer: Mapping[str, Any],
  schedule: Mapping[str, Any],
  loss: Mapping[str, Any],
  views: Mapping[str, Any],
  view_key: jax.Array | view_records.Records,
  label_epochs: int | None = None,
  hard_weight: float = 0.0,
  ema: float | None = None,
  num_seeds: int = 3,
  evaluations: int = 5,
  eval_batch_size: int = 500,
  parallel: str = "auto",
  compute_dtype: str = "float32",
  seed: int = 0,
  key_name: str = "student",
  session: loop.Session | None = None,
) -> StudentResult:
  """Trains `num_seeds` students and scores them.

  Seeds differ in initialisation and order of images, and are the same for every kind of label, so
  that comparisons between labels are paired.

  Args:
    name: of the stage, for messages and checkpoints.
    images: (n,h,w,c) distilled images.
    labels: (n,) their classes.
    supervision: where labels come from.
    test: the balanced test set.
    spec: facts of the data set.
    model: {name, **kwargs} for `models.make_model`.
    num_epochs: passes over the distilled set.
    batch_size: images in a step; no more than n are used.
    optimizer: see `optimizers.make_optimizer`. In a config, an `lr` of None is the rate that the
      method learned with the images, or that of the named recipe where it learned none.
    schedule: likewise; with `per_epoch` True it moves once an epoch.
    loss: {name, **kwargs} for `losses.make_soft_loss`; hard labels always use cross-entropy.
    hard_weight: share, in [0, 1), of the hard loss in the loss of soft labels, see `soft_loss`.
    views: keyword arguments of `data.views.view_fn`; with records, of `view_records.replay_fn`.
    view_key: from `labels.label.view_key`, or the records of imported views.
    label_epochs: epochs that have views; students of more go round again. None: all of them.
    ema: decay in [0, 1) of an average of the parameters that is scored in their place, or None.
    num_seeds: students.
    evaluations: how often a student is scored, evenly spaced; the last is at the end.
    eval_batch_size: test images in one pass.
    parallel: how seeds are trained; see `many.train`.
    compute_dtype: of training steps; see `models.computing_in`.
    seed: the run's seed.
    key_name: first part of the paths of all keys: students of another name share no draws.
    session: devices, checkpoints, progress.

  Raises:
    LtddError: a part that cannot be made, or training that diverged.
  """
  session = session or loop.Session()
  n = len(labels)
  num_steps = feed.num_steps(n, min(batch_size, n), num_epochs=num_epochs)
  network = models.make_model(num_classes=spec.num_classes, image_shape=spec.image_shape, **model)
  size = min(batch_size, n)
  tx = optimizers.make_optimizer(optimizer, schedule, num_steps, n / size, size)
  step = functools.partial(
    supervised.train_step,
    apply_fn=models.computing_in(network, compute_dtype).apply,
    tx=tx,
    batch_fn=functools.partial(make_batch, supervision=supervision),
    objective=supervised.of_logits(_loss_fn(supervision, loss, hard_weight)),
    num_steps=num_steps,
    ema=ema,
  )
  scoring = many.Scoring(
    tuple(sorted({max(1, round(num_steps * (i + 1) / evaluations)) for i in range(evaluations)})),
    spec.num_classes,
    _scorer(network.apply, test, spec, eval_batch_size, session),
  )
  init = functools.partial(
    supervised.init_on_images,
    images_of=lambda consts: consts["images"][:],
    model=network,
    tx=tx,
    spec=spec,
    ema=ema is not None,
  )
  trained = many.train(
    [
      _network(name, key_name, i, n, batch_size, seed, label_epochs or num_epochs)
      for i in range(num_seeds)
    ],
    init,
    step,
    _consts(images, labels, supervision, view_key, session),
    num_steps=num_steps,
    session=session,
    parallel=parallel,
    scoring=scoring,
    prepare=functools.partial(
      make_views, views_of=view_records.view_fn(spec, view_key, views), mesh=session.mesh
    ),
  )
  total = np.bincount(np.asarray(test.labels), minlength=spec.num_classes).astype(np.int32)
  steps = np.asarray(scoring.steps, np.int32)
  correct, confusion = np.asarray(trained.correct), np.asarray(trained.confusion)
  return StudentResult(correct, confusion, total, steps, trained.state.scored)


def _network(
  name: str,
  key_name: str,
  i: int,
  num_images: int,
  batch_size: int,
  seed: int,
  label_epochs: int,
) -> many.Network:
  """Student i; the kind of label does not enter."""
  sampler = feed.BatchSampler(seed, f"{key_name}/{i}", num_images, batch_size)
  return many.Network(
    f"{name}/seed{i}",
    rng.key_for(seed, key_name, "init", i),
    rng.key_for(seed, key_name, "step", i),
    lambda t: {"indices": sampler(t), "epochs": sampler.epoch(t) % label_epochs},
  )


def _scorer(
  apply_fn: Callable[..., Any],
  test: ArrayData,
  spec: DatasetSpec,
  batch_size: int,
  session: loop.Session,
) -> Callable[[Any], jax.Array]:
  test = mesh_lib.put(test, mesh_lib.replicated(session.mesh))
  evaluate = metrics.make_evaluate(
    apply_fn, spec.mean, spec.std, spec.num_classes, networks=True, mesh=session.mesh
  )
  return lambda variables: evaluate(variables, test.images, test.labels, batch_size).confusion


def _loss_fn(
  supervision: Supervision, loss: Mapping[str, Any], hard_weight: float
) -> Callable[[jax.Array, Target], jax.Array]:
  if supervision.kind == "hard":
    return hard_loss
  return functools.partial(
    soft_loss, loss_fn=losses.make_soft_loss(**loss), hard_weight=hard_weight
  )


def _consts(
  images: np.ndarray,
  labels: np.ndarray,
  supervision: Supervision,
  view_key: jax.Array | view_records.Records,
  session: loop.Session,
) -> dict[str, Any]:
  arrays, mesh = {"labels": labels} | supervision.arrays(), session.mesh
  large = {"images": resident.images(images, mesh)}
  if "logits" in arrays:
    large["logits"] = resident.rows(arrays.pop("logits"), mesh, axis=1)
  if isinstance(view_key, view_records.Records):  # arrays too, where a key is none
    arrays["view_key"] = view_key
  return {"view_key": view_key} | large | mesh_lib.put(arrays, mesh_lib.replicated(mesh))
