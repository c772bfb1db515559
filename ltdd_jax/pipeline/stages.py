"""What each stage of the pipeline reads, computes and stores.

A stage is a function from artefacts to one artefact; `run.py` decides which run. The names of
stages are the names of their folders in the work directory: `data`, `teacher`, `statistics`,
`trajectories`, `distil/IMAGES`, `label/IMAGES/LABELS`, `probe/IMAGES/LABELS/CALIBRATOR`,
`calibrate/IMAGES/LABELS/CALIBRATOR`, `student/IMAGES/LABELS/CALIBRATOR` and `student/IMAGES/hard`.
A run has the stages that something in it needs.
"""

import functools
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import logging

from ltdd_jax import calibrate, models
from ltdd_jax.calibrate import streaming
from ltdd_jax.core.types import Teacher
from ltdd_jax.data import longtail, view_records, whitening
from ltdd_jax.distil.run import run_method
from ltdd_jax.interop.view_labels import ViewLabels
from ltdd_jax.labels import label as label_lib
from ltdd_jax.labels import sources as label_sources
from ltdd_jax.pipeline import continued
from ltdd_jax.pipeline.context import (
  HARD,
  Context,
  Row,
  arguments_of,
  classifiers_of,
  experts_of,
)
from ltdd_jax.pipeline.resources import RESOURCES
from ltdd_jax.students import probe
from ltdd_jax.students import train as student_training
from ltdd_jax.teachers import statistics, statistics_pass
from ltdd_jax.teachers import train as teacher_training
from ltdd_jax.teachers import trajectories as trajectories_lib
from ltdd_jax.training import loop

# Code versions: raise one when the results of its stage change, so that no artefact of the older
# code is used (tests/golden/test_golden_digests.py). Methods and calibrators have their own.
VERSIONS = {
  "data": 2, "teacher": 1, "statistics": 1, "trajectories": 1, "distil": 1, "label": 1, "probe": 3,
  "calibrate": 1, "student": 4,
}  # fmt: skip
KINDS = (*VERSIONS, "report")

SCORING = ("num_seeds", "evaluations", "eval_batch_size")
_CHUNK = 1 << 22  # logits that are calibrated at once


class Product(NamedTuple):
  """What a stage leaves behind."""

  arrays: dict[str, np.ndarray]
  trees: dict[str, Any] = {}  # noqa: RUF012 (never changed)
  extra: dict[str, Any] = {}  # noqa: RUF012
  folders: dict[str, pathlib.Path] = {}  # noqa: RUF012 (of its scratch, moved into the artefact)


# ---- the stages ----


def data_stage(ctx: Context, session: loop.Session) -> Product:
  split = ctx.split()
  provenance = longtail.provenance(ctx.source.spec.name, split)
  notes = [*ctx.source.notes, *([provenance] if provenance else [])]
  if split.num_short:
    notes.append(f"{split.num_short} classes have fewer images than the rule wants, and keep all")
  for note in notes:
    logging.info("data: %s", note)
  arrays = {"indices": split.indices, "labels": split.labels, "counts": ctx.counts}
  if (eps := ctx.config["data"]["whiten"]) is not None:
    found = whitening.fit(ctx.train_data().images, eps)._asdict()
    arrays |= {f"whitening_{name}": array for name, array in found.items()}
  test_counts = np.bincount(ctx.test_data.labels, minlength=ctx.source.spec.num_classes)
  extra = {
    "dataset": ctx.source.spec.name,
    "rule": split.rule,
    "imbalance_factor": split.imbalance_factor,
    "counts": [int(n) for n in split.counts],
    "test_counts": test_counts.tolist(),
    "notes": notes,
  }
  return Product(arrays, extra=extra)


def teacher_stage(ctx: Context, session: loop.Session) -> Product:
  config = {k: v for k, v in ctx.config["teacher"].items() if k not in ("models", "splits")}
  teachers: list[Teacher] = []
  for split, own in ctx.by_split(ctx.networks).items():
    teachers += teacher_training.train_teachers(
      ctx.train_data(split),
      ctx.source.spec,
      np.asarray(ctx.split(split).counts),
      models={name: ctx.config["teacher"]["models"][name] for name in own},
      **config,
      seed=ctx.config["seed"],
      session=session,
    )
  score = functools.partial(
    teacher_training.evaluate, test=ctx.test_data, spec=ctx.source.spec, mesh=session.mesh
  )
  scores = [score(t) for t in teachers]
  arrays = {
    "test_correct": np.stack([np.asarray(s.correct) for s in scores]),
    "test_total": np.asarray(scores[0].total),
  }
  extra = {"teachers": [t.name for t in teachers]}
  return Product(arrays, trees={t.name: t.variables for t in teachers}, extra=extra)


def statistics_stage(ctx: Context, session: loop.Session, *, names: Sequence[str]) -> Product:
  config = dict(ctx.config["statistics"])
  if config["augment"] is None:
    config["augment"] = ctx.config["teacher"]["augment"]
  trees, layers = {}, {}
  for split, own in ctx.by_split(names).items():
    found = statistics_pass.collect(
      ctx.train_data(split),
      ctx.source.spec,
      ctx.teachers(own),
      **config,
      seed=ctx.config["seed"],
      session=session,
    )
    for name, one in zip(own, found, strict=True):
      trees[name] = statistics.to_tree(one)
      layers[name] = [[x.path, x.kind] for x in one.layers]
  return Product({}, trees=trees, extra={"layers": layers})


def trajectories_stage(
  ctx: Context, session: loop.Session, *, splits: Sequence[str | None]
) -> Product:
  config, common = ctx.config["trajectories"], {"seed": ctx.config["seed"], "session": session}
  experts, classifiers = trajectories_lib.train_experts, trajectories_lib.train_classifiers
  trained = {}
  for split in splits:
    data, spec, name = ctx.train_data(split), ctx.source.spec, experts_of(split)
    own = arguments_of(experts, config)
    trained[name] = found = experts(data, spec, **own, name=name, **common)
    if config["classifier_epochs"]:
      name, own = classifiers_of(split), arguments_of(classifiers, config)
      trained[name] = classifiers(data, spec, found, **own, name=name, **common)
  return Product(trained)


def distil_stage(ctx: Context, session: loop.Session, *, images: str) -> Product:
  method, config = ctx.method(images), ctx.config["distil"]
  res = {need: RESOURCES[need].load(ctx, images) for need in method.needs}
  file, dtype, quality = ctx.file(images), config["dtype"], config["jpeg_quality"]
  if file:  # taken as it is
    dtype, quality = dtype or file.arrays["images"].dtype.name, None
  found = run_method(
    images,
    method,
    ctx.env(images),
    continued.new_slots(ctx, images),
    res,
    batch_size=config["batch_size"],
    jpeg_quality=quality,
    dtype=dtype,
    on_host=tuple(need for need in method.needs if RESOURCES[need].where == "host"),
    seed=ctx.config["seed"],
    session=session,
  )
  notes = [*found.notes, *(file.notes if file else ()), *continued.notes(ctx, images)]
  held = {"parts": ctx.parts(images)} if ctx.parts(images) > 1 else {}
  arrays = continued.joined(ctx, images, found.arrays)
  if file and dtype == file.arrays["images"].dtype:  # to the same bits, not normalised and back
    arrays["images"] = file.arrays["images"]
  return Product(arrays, extra={"notes": notes} | held)


def label_stage(ctx: Context, session: loop.Session, *, row: Row) -> Product:
  distilled, made = ctx.distilled(row.images), ctx.label_source(row.labels)
  if views := ctx.folder_logits(row.labels):
    return _imported_views(ctx, session, row, views)
  images, targets, names = distilled["images"], distilled["labels"], ctx.source.class_names
  if made.kind == "teacher":
    config = {k: v for k, v in ctx.config["label"].items() if k not in ("sources", "views")}
    labelled = label_lib.label_images(
      row.images,
      images,
      targets,
      ctx.teachers(made.teachers),
      ctx.source.spec,
      **config,
      views=ctx.views(row.images),
      aggregate=made.aggregate,
      batch_norm=made.batch_norm,
      class_names=names,
      stage=row.stage("label"),
      seed=ctx.config["seed"],
      session=session,
    )
  else:
    logits = distilled["soft_labels"] if made.path is None else ctx.file_logits(row.labels)
    labelled = label_lib.store_logits(
      row.images, images, logits, class_names=names, session=session
    )
  arrays = {"clean_logits": labelled.clean_logits, "labels": targets}
  extra = {"per_view": made.kind == "teacher"}
  return Product(arrays, extra=extra, folders={label_lib.STORE: labelled.store.path})


def _imported_views(ctx: Context, session: loop.Session, row: Row, found: ViewLabels) -> Product:
  """Logits of views from a folder, with the records that students replay the views from."""
  distilled, names = ctx.distilled(row.images), ctx.source.class_names
  store, records = label_lib.store_views(
    row.images,
    distilled["images"],
    found.read,
    found.shape,
    found.dtype,
    sha256=found.sha256,
    class_names=names,
    session=session,
  )
  arrays = {"labels": distilled["labels"], **view_records.to_arrays(records)}
  if found.clean_logits is not None:
    arrays["clean_logits"] = found.clean_logits
  replay = view_records.facts_of(records, found.mix, ctx.source.spec.image_shape)
  extra = {"per_view": True, "replay": replay}
  return Product(arrays, extra=extra, folders={label_lib.STORE: store.path})


def _fitted(ctx: Context, row: Row) -> tuple[calibrate.Calibrator, Any]:
  """The calibrator of a row, fitted to its labels alone."""
  config, calibrator = ctx.config["calibrate"], ctx.calibrator(row)
  artefact = ctx.workdir.load(row.stage("label"))
  if config["fit_on"] == "views":  # streamed from the store
    logits: Any = streaming.Shared(ctx.store(row).first(config["max_epochs"]))
  else:
    logits = artefact.arrays["clean_logits"]
  return calibrator, calibrator.fit(logits, artefact.arrays["labels"], ctx.log_prior(row))


def probe_stage(ctx: Context, session: loop.Session, *, row: Row) -> Product:
  distilled = ctx.distilled(row.images)
  arguments = _student_arguments(ctx, row, distilled.get("student_lr"))
  logits, labels = probe.unseen_logits(
    row.stage("probe"),
    distilled["images"],
    distilled["labels"],
    calibrated(ctx, row, *_fitted(ctx, row)),
    ctx.train_data(ctx.label_split(row)),
    ctx.log_prior(row),
    ctx.source.spec,
    session=session,
    **{k: v for k, v in arguments.items() if k not in SCORING},
  )
  return Product({"logits": logits, "labels": labels})


def calibrate_stage(ctx: Context, session: loop.Session, *, row: Row) -> Product:
  calibrator, params = _fitted(ctx, row)
  if calibrator.refine is not None:
    unseen = ctx.workdir.load(row.stage("probe")).arrays
    params = calibrator.refine(params, unseen["logits"], unseen["labels"], ctx.log_prior(row))
  arrays = {f"param{i}": np.asarray(x) for i, x in enumerate(jax.tree.leaves(params))}
  return Product(arrays, extra={"report": calibrator.report(params)})


def student_stage(ctx: Context, session: loop.Session, *, row: Row) -> Product:
  result = train_row(ctx, session, row, supervision_of(ctx, row))
  learned_lr = ctx.distilled(row.images).get("student_lr")
  arrays = {k: v for k, v in result._asdict().items() if k != "variables"}
  extra = {"notes": _rate_notes(ctx, learned_lr)}
  return Product(arrays, trees={"students": result.variables}, extra=extra)


def train_row(
  ctx: Context, session: loop.Session, row: Row, supervision: label_sources.Supervision
) -> student_training.StudentResult:
  """Trains the students of a row."""
  distilled = ctx.distilled(row.images)
  return student_training.train_students(
    row.stage("student"),
    distilled["images"],
    distilled["labels"],
    supervision,
    ctx.test_data,
    ctx.source.spec,
    session=session,
    **_student_arguments(ctx, row, distilled.get("student_lr")),
  )


def _rate_notes(ctx: Context, learned_lr: np.ndarray | None) -> list[str]:
  if not ctx.own_lr:
    return []
  if learned_lr is None:
    recipe = ctx.config["student"]["recipe"]
    return [f"learning rate {ctx.recipe_lr:g} of recipe {recipe}: the images came without one"]
  return [f"learning rate {float(learned_lr):.4g}, learned with the images"]


def _student_arguments(ctx: Context, row: Row, learned_lr: np.ndarray | None) -> dict[str, Any]:
  """What the config and the images say about students of a row."""
  numbers, seed = student_numbers(ctx), ctx.config["seed"]
  if ctx.own_lr:
    lr = ctx.recipe_lr if learned_lr is None else float(learned_lr)
    numbers["optimizer"] = {**numbers["optimizer"], "lr": lr}
  if ctx.folder_logits(row.labels):  # else views come from the key
    found = ctx.workdir.load(row.stage("label"))
    records, views = view_records.from_arrays(found.arrays), found.meta["extra"]["replay"]
    numbers |= {"views": views, "view_key": records, "label_epochs": len(records.flip)}
  else:
    numbers["views"] = ctx.views(row.images)
    numbers["view_key"] = label_lib.view_key(seed, row.images)
    numbers["label_epochs"] = ctx.config["label"]["num_epochs"]
  return numbers | {"seed": seed}


def student_numbers(ctx: Context) -> dict[str, Any]:
  """Arguments of `train_students` in the config group."""
  return {k: v for k, v in ctx.config["student"].items() if k not in ("hard_labels", "recipe")}


# ---- reading what stages left ----


def load_params(ctx: Context, row: Row) -> tuple[calibrate.Calibrator, Any]:
  """A calibrator and its fitted parameters, from the artefact of the calibrate stage."""
  calibrator, artefact = ctx.calibrator(row), ctx.workdir.load(row.stage("calibrate"))
  return calibrator, params_of(calibrator, artefact.arrays, ctx.log_prior(row))


def params_of(
  calibrator: calibrate.Calibrator, arrays: Mapping[str, np.ndarray], log_prior: np.ndarray
) -> Any:
  """Fitted parameters from the arrays of a calibrate stage."""
  like = jax.eval_shape(calibrator.init, log_prior)
  leaves = [arrays[f"param{i}"] for i in range(len(jax.tree.leaves(like)))]
  return jax.tree.unflatten(jax.tree.structure(like), leaves)


def label_chunks(ctx: Context, row: Row, num_epochs: int | None = None) -> Iterator[np.ndarray]:
  """Calibrated logits (e, n, k) float32 of a row's labels, some label epochs at a time."""
  calibrator, params = load_params(ctx, row)
  log_prior, apply = ctx.log_prior(row), jax.jit(calibrator.apply)
  store = ctx.store(row)
  epochs, n, k = store.shape
  epochs = min(epochs, num_epochs or epochs)
  step = max(1, _CHUNK // (n * k))
  for start in range(0, epochs, step):
    logits = store.logits(start, min(start + step, epochs))
    yield np.asarray(apply(params, logits, log_prior))


def supervision_of(ctx: Context, row: Row) -> label_sources.Supervision:
  """Where the labels of a row come from, with the arrays."""
  if row.labels == HARD:
    return label_sources.Supervision()
  return calibrated(ctx, row, *load_params(ctx, row))


def calibrated(
  ctx: Context, row: Row, calibrator: calibrate.Calibrator, params: Any
) -> label_sources.Supervision:
  """Labels by a calibrator and its params, from the store, or on line if the source says so."""
  made = ctx.label_source(row.labels)
  common = {"calibrator": calibrator, "params": params, "log_prior": ctx.log_prior(row)}
  if made.online:
    common |= {"aggregate": made.aggregate, "batch_norm": made.batch_norm}
    dtype, teachers = ctx.config["label"]["compute_dtype"], ctx.teachers(made.teachers)
    teachers = tuple(t._replace(model=models.computing_in(t.model, dtype)) for t in teachers)
    return label_sources.Supervision("online", teachers=teachers, **common)
  per_view = made.kind == "teacher" or ctx.folder_logits(row.labels) is not None
  return label_sources.stored(ctx.store(row), per_view=per_view, **common)


def label_bytes(ctx: Context, row: Row) -> int | None:
  """Bytes on disk of the labels of a row; None for labels on line, which take teachers."""
  if row.labels == HARD:
    return 0
  return None if ctx.label_source(row.labels).online else ctx.store(row).nbytes
