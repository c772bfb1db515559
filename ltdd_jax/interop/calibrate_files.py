"""A calibration from beginning to end: fit, then write labels block by block."""

import json
import pathlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ltdd_jax import calibrate
from ltdd_jax.artefacts import provenance
from ltdd_jax.calibrate import base, streaming
from ltdd_jax.core import config
from ltdd_jax.core.types import LtddError
from ltdd_jax.data import longtail
from ltdd_jax.interop import write
from ltdd_jax.interop.job import Job, prepare


class Calibration(NamedTuple):
  """What came out. Confidences are mean true-class probabilities at temperature 1."""

  soft_labels: np.ndarray | None  # (..., n, k), None if they were written to a file
  tau: float  # of ADSA and `fixed`, or the slope on log pi of what was subtracted
  confidence_before: np.ndarray  # (k,) float64, NaN for classes without an image
  confidence_after: np.ndarray  # (k,) float64, of the labels that are given, but at temperature 1
  class_counts: np.ndarray  # (k,) float64
  report: dict[str, Any]  # of the calibrator, with its "message"
  calibrator: str  # its name
  agreement: float  # share of rows whose largest logit is the label's
  out: pathlib.Path | None


def calibrate_logits(logits: Any, labels: Any, counts: Any, **options: Any) -> Calibration:
  """Removes the long-tail bias from a teacher's logits and gives soft labels.

  Args:
    logits: (n, k) or (..., n, k) floats, on distilled images or on augmented views of them.
    labels: (n,) or (..., n) integers, the classes that the images were distilled for.
    counts: (k,) training images of each class, or anything proportional to them.
    **options: `out`, `calibrator` and the other keyword arguments of `prepare`.

  Returns:
    The soft labels, of the shape of the logits, and what was found.

  Raises:
    LtddError: anything that does not fit, before any work if possible.

  Example:
    >>> logits = np.array([[2.0, 0.0], [0.5, 0.0]], np.float32)
    >>> done = calibrate_logits(logits, np.array([0, 1]), np.array([100, 10]))
    >>> round(done.tau, 2), done.soft_labels.shape
    (0.54, (2, 2))
  """
  known = config.parameters(prepare)
  for key in options.keys() - known.keys():
    raise LtddError(
      f"calibrate_logits: unexpected argument {key!r}; expected some of {', '.join(known)}. What a "
      f"calibrator takes goes into calibrator_args: {{{key!r}: {options[key]!r:.40}}}."
    )
  return run(prepare(logits, labels, counts, **options))


def run(job: Job) -> Calibration:
  """Fits the calibrator, then makes the labels in one more pass over the logits."""
  log_prior = longtail.log_prior(job.counts)
  params = job.calibrator.fit(job.source, job.labels, log_prior)
  report = job.calibrator.report(params)
  sums = np.zeros((3, job.rows.k))
  blocks = _blocks(job, lambda z: job.calibrator.apply(params, z, log_prior), sums)
  if job.out is not None:
    beside = lambda: _beside(job, _finished(job, report, sums))
    write.write(job.out, job.shape, job.dtype, blocks, beside)
    return _finished(job, report, sums)
  soft_labels, end = np.empty((job.rows.n, job.rows.k), job.dtype), 0
  for block in blocks:
    soft_labels[end : end + len(block)] = block
    end += len(block)
  return _finished(job, report, sums)._replace(soft_labels=soft_labels.reshape(job.shape))


def _finished(job: Job, report: dict[str, Any], sums: np.ndarray) -> Calibration:
  before, after = sums[:2] / np.where(job.rows.counts, job.rows.counts, np.nan)
  agreement = sums[2].sum() / job.rows.n
  if "target_prior" in report and "confidence_after" in report:  # of the fit, before that step
    aligned = {"confidence_aligned": report["confidence_after"]}
    report = report | aligned | {"confidence_after": base.plain(after)}
  return Calibration(
    None, float(report["tau"]), before, after, job.counts, report, job.name, agreement, job.out
  )


def _beside(job: Job, found: Calibration) -> dict[str, np.ndarray]:
  """What an .npz file holds besides the labels; `report` is JSON in a string."""
  about = {
    "calibrator": job.name,
    "calibrator_version": calibrate.version(job.name),
    "calibrator_args": job.args,
    "temperature": job.temperature,
    "kind": job.kind,
    "report": found.report,
    "versions": provenance.versions(),
  }
  return {
    "tau": np.asarray(found.tau),
    "class_confidence_before": found.confidence_before,
    "class_confidence_after": found.confidence_after,
    "class_counts": found.class_counts,
    "report": np.array(json.dumps(config.canonical(about, "report"))),
  }


# ---- one pass over the logits ----


def _blocks(
  job: Job, calibrated: Callable[[jax.Array], jax.Array], sums: np.ndarray
) -> Iterator[np.ndarray]:
  """Yields labels (r, k) of consecutive rows.

  Args:
    job: says what labels are.
    calibrated: logits (r, k) -> float32 (r, k).
    sums: (3, k), to which true-class probabilities before and after, and the rows whose largest
      logit is the label's, are added by class.

  Raises:
    LtddError: a row that is not finite, or labels that the dtype cannot hold.
  """

  @jax.jit
  def step(z: jax.Array, y: jax.Array) -> Any:
    z = z.astype(jnp.float32)
    out = calibrated(z)
    labels = out if job.kind == "logits" else jax.nn.softmax(out / job.temperature)
    of_class = lambda x: jnp.take_along_axis(jax.nn.softmax(x), y[:, None], 1)[:, 0]
    stats = jnp.stack([of_class(z), of_class(out), z.argmax(1) == y])
    return (labels, stats), streaming.finite_rows(z)

  k = job.rows.k
  parts = streaming.each(job.rows, np.ones(k), lambda start, z, y, weights: step(z, y))
  with base.named(job.text):
    for start, y, _, (labels, of_class) in parts:
      for total, p in zip(sums, np.asarray(of_class, np.float64), strict=True):
        total += np.bincount(y, p, k)
      yield _stored(job, start, np.asarray(labels))


def _stored(job: Job, start: int, labels: np.ndarray) -> np.ndarray:
  """Labels in their dtype, if it can hold them."""
  whole = labels
  if job.kind == "logits" and job.source.dtype.itemsize > 4:
    # `Rows` takes the largest float64 logit off each row; here the row gets it back
    whole = whole + job.source.rows(start, start + len(whole)).max(1, keepdims=True)
  with np.errstate(over="ignore"):
    out = whole.astype(job.dtype)
  # A softmax that overflows is NaN in all of its row, so that one column tells.
  if np.isfinite(out[:, 0] if job.kind == "probabilities" else out).all():
    return out
  if job.kind == "probabilities":
    raise LtddError(f"{job.text}: probabilities overflow; use a larger temperature.")
  raise LtddError(
    f"{job.text}: calibrated logits reach {np.abs(whole).max():.4g}, beyond {job.dtype}; use "
    "float32."
  )
