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
from ltdd_jax.interop import blocks, inputs, read, write
from ltdd_jax.labels import store as label_store

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
  out: pathlib.Path | None = None

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


def calibrate_logits(logits: Any, labels: Any, counts: Any, **options: Any) -> Calibration:
  """Removes the long-tail bias from a teacher's logits and gives soft labels.

  Args:
    logits: (n, k) or (epochs, n, k) floats, on distilled images or on augmented views of them.
    labels: (n,) or (epochs, n) integers, the classes that the images were distilled for.
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
  return run(prepare(logits, labels, counts, **options))


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
  """Opens and checks everything that a calibration needs, and does nothing yet.

  Inputs are names of files ("z.npy", "store.npz:logits", "z.safetensors:name"; labels, counts and
  priors may be .txt, .csv and .json), or arrays: NumPy, JAX, torch, or row sources (`read.py`).

  Args:
    logits: as for `calibrate_logits`; so are labels and counts.
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

  Raises:
    LtddError: anything that does not fit.
  """
  _check_options(temperature, kind, dtype, chunk_size)
  text, source = inputs.open_logits(logits)
  k = source.shape[-1]
  labels_text, y = inputs.open_vector(labels, "labels")
  counts_text, n = inputs.open_vector(counts, "counts")
  n = inputs.check_counts(counts_text, n, k, y.size)
  args = dict(calibrator_args or {})
  if target_prior is not None:
    args["target_prior"] = _target_argument(calibrator, args, target_prior, k)
  job = Job(
    text=text,
    source=source,
    labels=inputs.check_labels(labels_text, y, tuple(source.shape)),
    counts=inputs.smooth(counts_text, n, smoothing),
    name=calibrator,
    args=args,
    calibrator=_make(calibrator, args, source),
    temperature=float(temperature),
    kind=kind,
    dtype=np.dtype(dtype),
    chunk_size=chunk_size,
  )
  if out is None:
    return job
  given = zip((logits, labels, counts, target_prior), _INPUTS, strict=True)
  files = [read.parse(v, wanted).path for v, wanted in given if isinstance(v, str | os.PathLike)]
  target = write.check_target(out, overwrite=overwrite, need=job.nbytes, inputs=files)
  return job._replace(out=target)


_INPUTS = ("logits", "labels", "counts", "target_prior")


def _check_options(temperature: float, kind: str, dtype: str, chunk_size: int | None) -> None:
  name = "calibrate_logits"
  base.check_choice(name, "kind", kind, KINDS)
  base.check_choice(name, "dtype", dtype, DTYPES)
  base.check_number(name, "temperature", temperature, above=True)
  base.check_chunk(name, chunk_size)
  if kind == "logits" and temperature != 1:
    raise LtddError(
      f"temperature is {temperature} with kind 'logits', which are given undivided. Divide them "
      "where you take the softmax, or use kind 'probabilities'."
    )


def _target_argument(name: str, args: Mapping[str, Any], target: Any, k: int) -> list[float]:
  """The target prior as an argument of the calibrator."""
  prior = inputs.check_prior(*inputs.open_vector(target, "target_prior"), k)
  if "target_prior" in args:
    raise LtddError("target_prior is given twice, also in calibrator_args; expected once.")
  takes = lambda name: "target_prior" in config.parameters(calibrate.CALIBRATORS[name])
  if name in calibrate.CALIBRATORS and not takes(name):
    able = ", ".join(filter(takes, calibrate.CALIBRATORS)) or "none"
    raise LtddError(
      f"target_prior is given, but calibrator {name!r} takes none. Those that do: {able}."
    )
  return prior.tolist()


def _make(name: str, args: Mapping[str, Any], source: Any) -> calibrate.Calibrator:
  """The calibrator, if it goes with the logits."""
  if name in calibrate.WITH_STUDENT:
    raise LtddError(
      f"calibrator {name!r} looks at a student, which files of labels do not have. Calibrate "
      "with 'adsa', train a student, and take off what it still has: docs/any_framework.md"
    )
  made, k = calibrate.make_calibrator(name, **args), source.shape[-1]
  calibrate.check_classes(made, k)
  if isinstance(source, label_store.LabelStore):
    calibrate.check_encoding(f"calibrator {name!r}", made, source.encoding, k)
  return made


def run(job: Job) -> Calibration:
  """Fits the calibrator, then makes the labels in one more pass over the logits."""
  log_prior = longtail.log_prior(job.counts)
  params = job.calibrator.fit(job.source, job.labels, log_prior)
  report = job.calibrator.report(params)
  labels = blocks.Pass(
    job.text, job.source, job.labels,
    lambda z: job.calibrator.apply(params, z, log_prior),
    temperature=None if job.kind == "logits" else job.temperature,
    dtype=job.dtype, chunk_size=job.chunk_size,
  )  # fmt: skip
  soft_labels = None
  if job.out is None:
    soft_labels = np.concatenate([*labels]).reshape(job.shape)
  else:
    beside = lambda: _beside(job, _finished(job, report, labels.confidences()))
    write.write(job.out, job.shape, job.dtype, labels, beside)
  return _finished(job, report, labels.confidences())._replace(soft_labels=soft_labels)


def _finished(job: Job, report: dict[str, Any], confidences: np.ndarray) -> Calibration:
  before, after = confidences
  if "target_prior" in report and "confidence_after" in report:  # of the fit, before that step
    aligned = {"confidence_aligned": report["confidence_after"]}
    report = report | aligned | {"confidence_after": base.plain(after)}
  return Calibration(
    None, float(report["tau"]), before, after, job.counts, report, job.name, job.out
  )


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


# ---- arguments of a calibrator on the command line ----


def parse_args(text: str | None) -> dict[str, Any]:
  """Parses arguments of a calibrator: "criterion=marginal,tau_range=(0,2),bootstrap=200".

  Values are Python literals; other words are strings, `true` and `false` booleans. Whether the
  calibrator takes them is checked by `make_calibrator`.

  Raises:
    LtddError: no `key=value`, or a key that is given twice.
  """
  try:
    call = ast.parse(f"f({text or ''})", mode="eval").body
    if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name) or call.args:
      raise ValueError("no keywords")
    pairs = [(k.arg, _literal(k.value)) for k in call.keywords]
  except (ValueError, SyntaxError) as error:
    raise LtddError(
      f"calibrator arguments {text!r}: expected key=value, separated by commas, such as "
      "tau_range=(0,2),allow_negative=true"
    ) from error
  keys = [key for key, _ in pairs]
  for key in keys:
    if keys.count(key) > 1:
      raise LtddError(f"calibrator argument {key!r} is given twice; expected once.")
  return dict(pairs)


def _literal(node: ast.expr) -> Any:
  if isinstance(node, ast.Name):
    return {"true": True, "false": False, "none": None}.get(node.id.lower(), node.id)
  return ast.literal_eval(node)
