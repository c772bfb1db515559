"""One line for each stage, for `--dry_run`: shapes, parameters, steps, bytes."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from ltdd_jax import calibrate as calibrate_lib
from ltdd_jax import models
from ltdd_jax.data import feed
from ltdd_jax.labels import encoding
from ltdd_jax.labels import store as label_store
from ltdd_jax.pipeline.context import Context
from ltdd_jax.students.recipes import changes
from ltdd_jax.teachers import aggregate as aggregate_lib
from ltdd_jax.teachers import statistics as statistics_lib


def data(ctx: Context) -> str:
  spec, counts = ctx.source.spec, ctx.counts
  return (
    f"{spec.name}: {counts.sum():,} of {len(ctx.source.train_labels):,} training images, "
    f"{spec.num_classes} classes of {counts.max():,} to {counts.min():,}; images "
    f"{'x'.join(map(str, spec.image_shape))} uint8, "
    f"{counts.sum() * int(np.prod(spec.image_shape)):,} bytes on the device"
  )


def parameters(ctx: Context, model: Any) -> int:
  return models.count_params(ctx.variable_shapes(model)["params"])


def teacher(ctx: Context) -> str:
  config = ctx.config["teacher"]
  steps = feed.num_steps(
    int(ctx.counts.sum()), config["batch_size"], num_epochs=config["num_epochs"]
  )
  nets = [f"{k} ({parameters(ctx, m):,} parameters)" for k, m in sorted(ctx.networks.items())]
  return f"{', '.join(nets)}: {steps:,} steps of {config['batch_size']} images"


def statistics(ctx: Context) -> str:
  found, names = ctx.statistics_shapes(), [o.name for o in ctx.env().teachers]
  layers = [f"{name} ({len(x.layers)} layers)" for name, x in zip(names, found, strict=True)]
  n, size = int(ctx.counts.sum()), ctx.config["statistics"]["batch_size"]
  return (
    f"{', '.join(layers)}, {ctx.source.spec.num_classes} classes: "
    f"{sum(map(statistics_lib.num_bytes, found)):,} bytes; {-(-n // size):,} steps of {size} images"
  )


def distil(ctx: Context, *, source: str) -> str:
  if source in ctx.imported:
    return ctx.imported[source].about
  n, method = len(ctx.slots(source).labels), ctx.method(source)
  shape, names = ctx.source.spec.image_shape, aggregate_lib.distil_teachers(ctx.config)
  size = min(n, ctx.config["distil"]["batch_size"] or n)
  quality = ctx.config["distil"]["jpeg_quality"]
  how = f"{-(-n // size)} batches of {size}, {method.num_steps:,} steps each"
  return (
    f"{n:,} images {'x'.join(map(str, shape))} uint8, {n * int(np.prod(shape)):,} bytes; "
    + (how if method.num_steps else "selected in one pass")
    + (f", teachers {', '.join(names)}" if len(ctx.networks) > 1 else "")
    + (f", back from JPEG of quality {quality}" if quality else "")
  )


def label(ctx: Context, *, source: str) -> str:
  config, n = ctx.config["label"], len(ctx.slot_labels(source))
  shape = (config["num_epochs"], n, ctx.source.spec.num_classes)
  stored = encoding.from_config(config)
  size = label_store.disk_bytes(shape, stored)
  where = "students label on line; stored for calibration: " if config["online"] else ""
  each = stored.row_bytes(shape[-1])
  names = aggregate_lib.label_teachers(ctx.config)
  of = f" of {config['aggregate']}({', '.join(names)})" if len(ctx.networks) > 1 else ""
  return f"{where}logits {shape}{of} as {stored}, {each:,} bytes a label, {size:,} bytes"


def calibrate(ctx: Context, *, calibrator: Mapping[str, Any]) -> str:
  rest = ", ".join(f"{k}={v}" for k, v in calibrator.items() if k != "name")
  probed = calibrator["name"] in calibrate_lib.WITH_STUDENT
  return f"{calibrator['name']}({rest}) fitted on {ctx.config['calibrate']['fit_on']}" + (
    ", and on what a student of such labels says of the training set" if probed else ""
  )


def student(ctx: Context, *, source: str) -> str:
  config, n = ctx.config["student"], len(ctx.slot_labels(source))
  spec = ctx.source.spec
  model = models.make_model(
    num_classes=spec.num_classes, image_shape=spec.image_shape, **config["model"]
  )
  size = min(config["batch_size"], n)
  steps = feed.num_steps(n, size, num_epochs=config["num_epochs"])
  recipe = changes.sentence_of(ctx.config, len(ctx.slots().labels), spec.num_classes)
  return (
    f"{config['num_seeds']} x {config['model']['name']} ({parameters(ctx, model):,} parameters): "
    f"{steps:,} steps of {size} images{f'; recipe {recipe}' if recipe else ''}"
  )
