"""A calibration from beginning to end: check everything, fit, write."""

import ast
import json
import math
import os
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from ltdd_jax import calibrate
from ltdd_jax.artefacts import provenance
from ltdd_jax.calibrate import base
from ltdd_jax.core import config
from ltdd_jax.core.types import LtddError
from ltdd_jax.data import longtail
from ltdd_jax.interop import inputs, names, streaming, writing

KINDS = ("probabilities", "logits")
DTYPES = ("float16", "float32")


class Job(NamedTuple):
  """Inputs that fit together, and what to do with them; made by `prepare`."""

  text: str  # what messages call the logits
  source: Any  # row source (..., n, k)
  labels: np.ndarray  # (n,) or (..., n) int32
  counts: np.ndarray  # (k,) float64, smoothed
  name: str  # of the calibrator
  args: dict[str, Any]  # its arguments
  calibrator: calibrate.Calibrator
  temperature: float
  kind: str
  dtype: np.dtype
  chunk_size: int | None
  out: pathlib.Path | None

  @property
  def shape(self) -> tuple[int, ...]:
    """Of logits and labels."""
    return tuple(self.source.shape)

  @property
  def nbytes(self) -> int:
    """Of the labels."""
    return math.prod(self.shape) * self.dtype.itemsize


class Calibration(NamedTuple):
  """What came out. Confidences are mean true-class probabilities at temperature 1."""

  soft_labels: np.ndarray | None  # (..., n, k), None if they were written to a file
  tau: float  # of ADSA and `fixed`, or the slope on log pi of what was subtracted
  confidence_before: np.ndarray  # (k,) float64, NaN for classes without an image
  confidence_after: np.ndarray  # (k,) float64, of the labels that are given, but at temperature 1
  class_counts: np.ndarray  # (k,) float64
  report: dict[str, Any]  # of the calibrator, with its "message"
  calibrator: str  # its name
  out: pathlib.Path | None


def calibrate_logits(
  logits: Any,
  labels: Any,
  counts: Any,
  *,
  out: str | os.PathLike[str] | None = None,
  calibrator: str = "adsa",
  calibrator_args: Mapping[str, Any] | None = None,
  target_prior: Any = None,
  temperature: float = 1.0,
  kind: str = "probabilities",
  dtype: str = "float32",
  smoothing: float = 0.0,
  chunk_size: int | None = None,
  overwrite: bool = False,
) -> Calibration:
  """Removes the long-tail bias from a teacher's logits and gives soft labels.

  Inputs are names of files ("z.npy", "store.npz:logits", "z.safetensors:name", "z.parquet",
  "z.raw:float16,300x50000x1000"), or arrays: NumPy, JAX, torch, or row sources (`sources.py`).

  Args:
    logits: (n, k) or (epochs, n, k) floats, on distilled images or on augmented views of them.
    labels: (n,) or (epochs, n) integers, the classes that the images were distilled for.
    counts: (k,) training images of each class, or anything proportional to them.
    out: an .npz or .npy file to write, block by block, or None for an array in memory.
    calibrator: a name in `ltdd_jax.calibrate.CALIBRATORS`.
    calibrator_args: its arguments.
    target_prior: (k,) class frequencies of a test set that is not balanced, for calibrators that
      take it.
    temperature: that logits are divided by before the softmax.
    kind: "probabilities", or "logits" (calibrated, for losses on logits; temperature must be 1).
    dtype: of the result, "float16" or "float32".
    smoothing: added to every count; needed if a class has no training image.
    chunk_size: rows of a block of the result; a million logits by default.
    overwrite: whether `out` may be there already.

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
  return run(
    prepare(
      logits, labels, counts, out=out, calibrator=calibrator, calibrator_args=calibrator_args,
      target_prior=target_prior, temperature=temperature, kind=kind, dtype=dtype,
      smoothing=smoothing, chunk_size=chunk_size, overwrite=overwrite,
    )
  )  # fmt: skip


def prepare(
  logits: Any,
  labels: Any,
  counts: Any,
  *,
  out: str | os.PathLike[str] | None = None,
  calibrator: str = "adsa",
  calibrator_args: Mapping[str, Any] | None = None,
  target_prior: Any = None,
  temperature: float = 1.0,
  kind: str = "probabilities",
  dtype: str = "float32",
  smoothing: float = 0.0,
  chunk_size: int | None = None,
  overwrite: bool = False,
) -> Job:
  """Opens and checks everything that `calibrate_logits` takes, and does nothing yet."""
  _check_options(temperature, kind, dtype, chunk_size)
  text, source = inputs.open_logits(logits)
  shape = tuple(source.shape)
  labels_text, y = inputs.open_vector(labels, "labels")
  counts_text, n = inputs.open_vector(counts, "counts")
  n = inputs.check_counts(counts_text, n, shape[-1], y.size)
  if calibrator in calibrate.WITH_STUDENT:
    raise LtddError(
      f"calibrator {calibrator!r} looks at a student, which files of labels do not have. Calibrate "
      "with 'adsa', train a student, and take off what it still has: docs/any_framework.md"
    )
  args = dict(calibrator_args or {})
  if target_prior is not None:
    prior = inputs.check_prior(*inputs.open_vector(target_prior, "target_prior"), shape[-1])
    if "target_prior" in args:
      raise LtddError("target_prior is given twice, also in calibrator_args; expected once.")
    args["target_prior"] = _target_argument(calibrator, prior)
  made = calibrate.make_calibrator(calibrator, **args)
  calibrate.check_classes(made, shape[-1])
  job = Job(
    text=text,
    source=source,
    labels=inputs.check_labels(labels_text, y, shape),
    counts=inputs.smooth(counts_text, n, smoothing),
    name=calibrator,
    args=args,
    calibrator=made,
    temperature=float(temperature),
    kind=kind,
    dtype=np.dtype(dtype),
    chunk_size=chunk_size,
    out=None,
  )
  if out is None:
    return job
  files = [names.parse(v, w).path for v, w in _files(logits, labels, counts, target_prior)]
  path = writing.check_target(out, overwrite=overwrite, need=job.nbytes, inputs=files)
  return job._replace(out=path)


def run(job: Job) -> Calibration:
  """Fits the calibrator, then makes the labels in one more pass over the logits."""
  log_prior = longtail.log_prior(job.counts)
  params = job.calibrator.fit(job.source, job.labels, log_prior)
  report = job.calibrator.report(params)
  blocks = streaming.Pass(
    job.text, job.source, job.labels, job.calibrator.apply, params, log_prior,
    probabilities=job.kind == "probabilities", temperature=job.temperature, dtype=job.dtype,
    chunk_size=job.chunk_size,
  )  # fmt: skip

  def finished(soft_labels: np.ndarray | None) -> Calibration:
    before, after = blocks.confidences()
    told = report
    if "target_prior" in report and "confidence_after" in report:  # of the fit, before that step
      told = report | {"confidence_aligned": report["confidence_after"]}
      told["confidence_after"] = base.plain(after)
    return Calibration(
      soft_labels, float(report["tau"]), before, after, job.counts, told, job.name, job.out
    )

  if job.out is not None:
    beside = lambda: _beside(job, finished(None))
    writing.write(job.out, job.shape, job.dtype, blocks, beside)
    return finished(None)
  soft_labels, end = np.empty((math.prod(job.shape[:-1]), job.shape[-1]), job.dtype), 0
  for block in blocks:
    soft_labels[end : end + len(block)] = block
    end += len(block)
  return finished(soft_labels.reshape(job.shape))


def _beside(job: Job, found: Calibration) -> dict[str, np.ndarray]:
  """What an .npz file holds besides the labels; `report` is JSON in a string."""
  about = {
    "calibrator": job.name,
    "calibrator_version": calibrate.VERSIONS.get(job.name, 1),
    "calibrator_args": job.args,
    "temperature": job.temperature,
    "kind": job.kind,
    "report": found.report,
    "versions": provenance.versions(),
  }
  return {
    "tau": np.float64(found.tau),
    "class_confidence_before": found.confidence_before,
    "class_confidence_after": found.confidence_after,
    "class_counts": found.class_counts,
    "report": np.array(json.dumps(config.canonical(about, "report"))),
  }


# ---- options ----


def _files(*values: Any) -> list[tuple[Any, str]]:
  pairs = zip(values, ("logits", "labels", "counts", "target_prior"), strict=True)
  return [(v, wanted) for v, wanted in pairs if isinstance(v, str | os.PathLike)]


def _check_options(temperature: float, kind: str, dtype: str, chunk_size: int | None) -> None:
  for what, value, options in (("kind", kind, KINDS), ("dtype", dtype, DTYPES)):
    if value not in options:
      hint = config.suggest(value, options)
      raise LtddError(f"{what} is {value!r}; expected {' or '.join(options)}. {hint}".rstrip())
  if not 0 < temperature < math.inf:
    raise LtddError(f"temperature is {temperature}; expected a number above 0.")
  if kind == "logits" and temperature != 1:
    raise LtddError(
      f"temperature is {temperature} with kind 'logits', which are given undivided. Divide them "
      "where you take the softmax, or use kind 'probabilities'."
    )
  base.check_chunk("calibrate_logits", chunk_size)


def _target_argument(calibrator: str, prior: np.ndarray) -> list[float]:
  takes = lambda name: "target_prior" in config.parameters(calibrate.CALIBRATORS[name])
  if calibrator in calibrate.CALIBRATORS and not takes(calibrator):
    able = ", ".join(filter(takes, calibrate.CALIBRATORS)) or "none"
    raise LtddError(
      f"target_prior is given, but calibrator {calibrator!r} takes none. Those that do: {able}."
    )
  return prior.tolist()


def parse_args(text: str | None) -> dict[str, Any]:
  """Parses arguments of a calibrator: "criterion=marginal,tau_range=(0,2),bootstrap=200".

  Values are Python literals; words that are none are strings, `true` and `false` booleans. Whether
  the calibrator takes them is checked by `make_calibrator`.

  Raises:
    LtddError: no `key=value`, or a key that is given twice.
  """
  out: dict[str, Any] = {}
  for item in _split(text or ""):
    key, equals, value = (part.strip() for part in item.partition("="))
    if not equals or not key.isidentifier() or not value:
      raise LtddError(
        f"calibrator argument {item.strip()!r}: expected key=value, separated by commas, such as "
        "tau_range=(0,2),allow_negative=true"
      )
    if key in out:
      raise LtddError(f"calibrator argument {key!r} is given twice; expected once.")
    out[key] = _literal(value)
  return out


def _split(text: str) -> list[str]:
  """Splits at commas that are in no brackets."""
  parts, depth = [""], 0
  for letter in text:
    depth += (letter in "([{") - (letter in ")]}")
    if letter == "," and depth == 0:
      parts.append("")
    else:
      parts[-1] += letter
  return [p for p in parts if p.strip()]


def _literal(text: str) -> Any:
  words = {"true": True, "false": False, "none": None}
  if text.lower() in words:
    return words[text.lower()]
  try:
    return ast.literal_eval(text)
  except (ValueError, SyntaxError):
    return text
