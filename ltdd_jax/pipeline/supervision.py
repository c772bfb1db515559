"""Where the labels of students come from: the label store, the calibrator, or neither.

Part of the stages; `regime` is "hard" or the name of a calibrator of the config.
"""

from typing import Any

import jax

from ltdd_jax import calibrate
from ltdd_jax.core.types import LtddError
from ltdd_jax.data import longtail
from ltdd_jax.labels import label as label_lib
from ltdd_jax.labels import store as label_store
from ltdd_jax.pipeline.context import Context
from ltdd_jax.students import train as student_training

HARD = "hard"  # the name of the label regime without a teacher


def open_store(ctx: Context, source: str) -> label_store.LabelStore:
  """The label store of an image source; refuses one of another class map."""
  folder = ctx.workdir.load(f"label/{source}").folder(label_lib.STORE)
  return label_store.open_store(folder, class_names=ctx.source.class_names)


def load_params(ctx: Context, source: str, name: str) -> tuple[calibrate.Calibrator, Any]:
  """A calibrator and its fitted parameters, from the artefact of the calibrate stage.

  Raises:
    LtddError: parameters of another number, shape or type: another version of ltdd_jax fitted them.
  """
  calibrator = calibrate.make_calibrator(**ctx.config["calibrate"]["calibrators"][name])
  artefact = ctx.workdir.load(f"calibrate/{source}/{name}")
  like = jax.eval_shape(calibrator.init, longtail.log_prior(ctx.counts))
  want = {f"param{i}": (x.shape, x.dtype) for i, x in enumerate(jax.tree.leaves(like))}
  found = {key: (x.shape, x.dtype) for key, x in artefact.arrays.items()}
  if found != want:
    raise LtddError(
      f"{artefact.path} was fitted by another version of ltdd_jax, or with other options: it has "
      f"the parameters {found}, and {want} are expected. Delete the folder and run again, or use "
      "another --workdir."
    )
  leaves = [artefact.arrays[key] for key in want]
  return calibrator, jax.tree.unflatten(jax.tree.structure(like), leaves)


def of_regime(ctx: Context, source: str, regime: str) -> student_training.Supervision:
  """Where the labels of a regime come from."""
  if regime == HARD:
    return student_training.Supervision()
  return calibrated(ctx, source, *load_params(ctx, source, regime))


def calibrated(
  ctx: Context, source: str, calibrator: calibrate.Calibrator, params: Any
) -> student_training.Supervision:
  """Labels by a calibrator and its params, from the store, or on line if the config says so."""
  common = {
    "calibrator": calibrator,
    "params": params,
    "log_prior": longtail.log_prior(ctx.counts),
  }
  if ctx.config["label"]["online"]:
    how = {k: ctx.config["label"][k] for k in ("aggregate", "teacher_bn")}
    return student_training.Supervision("online", teachers=ctx.label_teachers, **how, **common)
  return student_training.stored(open_store(ctx, source), **common)


def label_bytes(ctx: Context, source: str, regime: str) -> int | None:
  """Bytes on disk of the labels of a regime; None for labels on line, which take teachers."""
  if regime == HARD:
    return 0
  return None if ctx.config["label"]["online"] else open_store(ctx, source).nbytes
