"""One line for each stage, for `--dry_run`, by its kind: shapes, parameters, steps, bytes."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ltdd_jax import models
from ltdd_jax.data import feed
from ltdd_jax.labels import encoding
from ltdd_jax.labels import store as label_store
from ltdd_jax.pipeline import continued
from ltdd_jax.pipeline.context import HARD, Context, Row
from ltdd_jax.teachers import statistics as statistics_lib


def data(ctx: Context) -> str:
  spec, counts, splits = ctx.source.spec, ctx.counts, ctx.config["data"]["splits"]
  also = f"; other splits: {', '.join(splits)}" if splits else ""
  where = "on the device" if ctx.config["data"]["stream_workers"] is None else "that stay on disk"
  white = "; whitened" if ctx.config["data"]["whiten"] is not None else ""
  return (
    f"{spec.name}: {counts.sum():,} of {len(ctx.source.train_labels):,} training images, "
    f"{spec.num_classes} classes of {counts.max():,} to {counts.min():,}; images "
    f"{'x'.join(map(str, spec.image_shape))} uint8, "
    f"{counts.sum() * int(np.prod(spec.image_shape)):,} bytes {where}{also}{white}"
    + "".join(f"\n  {note}" for note in ctx.source.notes)
  )


def parameters(ctx: Context, model: Any) -> int:
  return models.count_params(ctx.variable_shapes(model)["params"])


def teacher(ctx: Context) -> str:
  config = ctx.config["teacher"]
  parts = []
  for split, names in ctx.by_split(sorted(ctx.networks)).items():
    steps = config["num_steps"] or feed.num_steps(
      len(ctx.split(split).labels), config["batch_size"], num_epochs=config["num_epochs"]
    )
    nets = [f"{name} ({parameters(ctx, ctx.networks[name]):,} parameters)" for name in names]
    parts.append(f"{', '.join(nets)}: {steps:,} steps of {config['batch_size']} images")
  return "; ".join(parts)


def statistics(ctx: Context, *, names: Sequence[str]) -> str:
  found = ctx.statistics_shapes(names)
  layers = [f"{name} ({len(x.layers)} layers)" for name, x in zip(names, found, strict=True)]
  size = ctx.config["statistics"]["batch_size"]
  steps = [f"{-(-len(ctx.split(split).labels) // size):,}" for split in ctx.by_split(names)]
  return (
    f"{', '.join(layers)}, {ctx.source.spec.num_classes} classes: "
    f"{sum(map(statistics_lib.num_bytes, found)):,} bytes; {' and '.join(steps)} steps of {size} "
    "images"
  )


def trajectories(ctx: Context, *, splits: Sequence[str | None]) -> str:
  config, shape = ctx.config["trajectories"], ctx.trajectory_shapes().shape
  size, epochs = config["batch_size"], config["num_epochs"]
  counts = [feed.num_steps(len(ctx.split(s).labels), size, num_epochs=epochs) for s in splits]
  steps = " and ".join(f"{count:,}" for count in counts)
  of = f" of each of {len(splits)} splits" if len(splits) > 1 else ""
  total, more = int(np.prod(shape)), ""
  if config["classifier_epochs"]:
    own, epochs = ctx.classifier_shapes().shape, config["classifier_epochs"]
    longest = [feed.class_aware_epoch(ctx.split(s).labels) for s in splits]
    taken = " and ".join(f"{feed.num_steps(n, size, num_epochs=epochs):,}" for n in longest)
    more = f"; their classifiers ({own[2]:,} parameters): {taken} steps, {own[1]:,} snapshots"
    total += int(np.prod(own))
  return (
    f"{shape[0]:,} x {config['network']['name']} ({shape[2]:,} parameters){of}: {steps} steps "
    f"of {size} images, {shape[1]:,} snapshots{more}, "
    f"{4 * len(splits) * total:,} bytes on disk, twice that until the stage is done"
  )


def distil(ctx: Context, *, images: str) -> str:
  method, n = ctx.method(images), len(continued.new_slots(ctx, images).labels)
  if file := ctx.file(images):
    return file.about
  config, shape = ctx.config["distil"], ctx.source.spec.image_shape
  size = min(n, config["batch_size"] or n) if method.batching == "batches" else n
  quality, names = config["jpeg_quality"], ctx.teacher_names(images)
  batches = -(-n // size)
  how = f"{batches} batch{'es' * (batches > 1)} of {size}, {method.num_steps:,} steps each"
  several = "teachers" in method.needs and len(ctx.networks) > 1
  return (
    f"{n:,} images {'x'.join(map(str, shape))} {config['dtype'] or method.dtype}, "
    f"{n * int(np.prod(shape)):,} pixels; "
    + (how if method.num_steps else "selected in one pass")
    + (f", of about {method.memory(size):,} bytes of memory" if method.memory else "")
    + (f", teachers {', '.join(names)}" if several else "")
    + (f", back from JPEG of quality {quality}" if quality else "")
    + "".join(f"\n  {note}" for note in continued.notes(ctx, images))
  )


def label(ctx: Context, *, row: Row) -> str:
  config, made = ctx.config["label"], ctx.label_source(row.labels)
  n = len(ctx.slots(row.images).labels)
  epochs = config["num_epochs"] if made.kind == "teacher" else 1
  shape = (epochs, n, ctx.source.spec.num_classes)
  if views := ctx.folder_logits(row.labels):
    return (
      f"{made.kind} logits {views.shape} of views as {views.dtype}, SHA-256 {views.sha256[:12]}"
    )
  if made.kind != "teacher":
    return f"{made.kind} logits {shape[1:]}, one for each image"
  stored = encoding.from_config(config)
  where = "students label on line; stored for calibration: " if made.online else ""
  of = f" of {made.aggregate}({', '.join(made.teachers or ())})" if len(ctx.networks) > 1 else ""
  return (
    f"{where}logits {shape}{of} as {stored}, {stored.row_bytes(shape[-1]):,} bytes a label, "
    f"{label_store.disk_bytes(shape, stored):,} bytes"
  )


def probe(ctx: Context, *, row: Row) -> str:
  return "1 student, " + student(ctx, row=row).split(" x ", 1)[1]


def calibrate(ctx: Context, *, row: Row) -> str:
  calibrator = ctx.config["calibrate"]["calibrators"][row.calibrator]
  rest = ", ".join(f"{k}={v}" for k, v in calibrator.items() if k != "name")
  return f"{calibrator['name']}({rest}) fitted on {ctx.config['calibrate']['fit_on']}"


def student(ctx: Context, *, row: Row) -> str:
  config, n = ctx.config["student"], len(ctx.slots(row.images).labels)
  size = min(config["batch_size"], n)
  steps = feed.num_steps(n, size, num_epochs=config["num_epochs"])
  return (
    f"{config['num_seeds']} x {config['model']['name']} "
    f"({parameters(ctx, ctx.student_model):,} parameters): {steps:,} steps of {size} images, "
    f"{'hard' if row.labels == HARD else 'soft'} labels"
    f"{f'; recipe {ctx.recipe}' if ctx.recipe else ''}"
  )
