"""What a calibration needs, opened and checked before any work."""

import ast
import math
import os
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from ltdd_jax import calibrate
from ltdd_jax.adsa import Rows
from ltdd_jax.calibrate import base
from ltdd_jax.core import config
from ltdd_jax.core.registry import check_choice
from ltdd_jax.core.types import LtddError
from ltdd_jax.interop import inputs, label_stores, read, write

KINDS = ("probabilities", "logits")
DTYPES = ("float16", "float32")
_INPUTS = ("logits", "labels", "counts", "target_prior")


class Job(NamedTuple):
  """Inputs that fit together, and what to do with them; made by `prepare`."""

  text: str  # what messages call the logits
  source: Any  # row source (..., n, k)
  labels: np.ndarray  # (n,) or (..., n) integers
  rows: Rows  # of both
  counts: np.ndarray  # (k,) float64, smoothed
  name: str  # of the calibrator
  args: dict[str, Any]  # its arguments
  calibrator: calibrate.Calibrator
  temperature: float
  kind: str
  dtype: np.dtype
  out: pathlib.Path | None = None

  @property
  def shape(self) -> tuple[int, ...]:
    """Of logits and labels."""
    return tuple(self.source.shape)

  @property
  def nbytes(self) -> int:
    """Of the labels."""
    return math.prod(self.shape) * self.dtype.itemsize


def prepare(
  logits: Any,
  labels: Any,
  counts: Any,
  *,
  out: str | os.PathLike[str] | None = None,
  calibrator: str = "adsa",
  calibrator_args: Mapping[str, Any] | str | None = None,
  target_prior: Any = None,
  temperature: float = 1.0,
  kind: str = "probabilities",
  dtype: str = "float32",
  smoothing: float = 0.0,
  overwrite: bool = False,
) -> Job:
  """Opens and checks everything that a calibration needs, and does nothing yet.

  Inputs are names of files ("z.npy", "store.npz:logits", "z.safetensors:name"; labels, counts and
  priors may be .txt, .csv and .json), or arrays: NumPy, JAX, torch, or row sources (`read.py`).
  Logits may also be the labels of a run (`label_stores.py`); these bring their classes: give None.

  Args:
    logits: as for `calibrate_logits`; so are labels and counts.
    out: an .npz or .npy file to write, block by block, or None for an array in memory.
    calibrator: a name in `ltdd_jax.calibrate.CALIBRATORS`.
    calibrator_args: its arguments, or a text of them as of `parse_args`.
    target_prior: (k,) class frequencies of a test set that is not balanced, for calibrators that
      take it.
    temperature: that logits are divided by before the softmax.
    kind: "probabilities", or "logits" (calibrated, for losses on logits; temperature must be 1).
    dtype: of the result, "float16" or "float32".
    smoothing: added to every count; needed if a class has no training image.
    overwrite: whether `out` may be there already.

  Raises:
    LtddError: anything that does not fit.
  """
  _check_options(temperature, kind, dtype)
  text, source = inputs.open_logits(logits)
  k = source.shape[-1]
  labels_text, y = inputs.open_labels(labels, source)
  counts_text, n = inputs.open_vector(counts, "counts")
  given_args = calibrator_args or {}
  args = parse_args(given_args) if isinstance(given_args, str) else dict(given_args)
  if target_prior is not None:
    args["target_prior"] = _target_argument(calibrator, args, target_prior, k)
  y, rows = inputs.check_labels(labels_text, y, source)
  with base.named(text):
    rows.alive()
  job = Job(
    text=text,
    source=source,
    labels=y,
    rows=rows,
    counts=inputs.check_counts(counts_text, n, k, y.size, smoothing),
    name=calibrator,
    args=args,
    calibrator=_make(calibrator, args, k),
    temperature=float(temperature),
    kind=kind,
    dtype=np.dtype(dtype),
  )
  if out is None:
    return job
  given = zip((logits, labels, counts, target_prior), _INPUTS, strict=True)
  named = [pair for pair in given if isinstance(pair[0], str | os.PathLike)]
  files = [read.parse(*pair).path for pair in named if not label_stores.is_folder(pair[0])]
  target = write.check_target(out, overwrite=overwrite, need=job.nbytes, inputs=files)
  return job._replace(out=target)


def _check_options(temperature: float, kind: str, dtype: str) -> None:
  name = "calibrate_logits"
  check_choice(f"{name}: kind", kind, KINDS)
  check_choice(f"{name}: dtype", dtype, DTYPES)
  base.check_number(name, "temperature", temperature, above=True)
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


def _make(name: str, args: Mapping[str, Any], k: int) -> calibrate.Calibrator:
  """The calibrator, if it needs no student and goes with k classes."""
  made = calibrate.make_calibrator(name, **args)
  if "probe" in made.needs:
    raise LtddError(
      f"calibrator {name!r} looks at a student, which files of labels do not have. Calibrate "
      "with 'adsa', train a student, and take off what it still has: "
      "docs/how-to/calibrate_logits.md"
    )
  calibrate.check_classes(made, k)
  return made


# ---- arguments of a calibrator on the command line ----


def parse_args(text: str | None, what: str = "calibrator arguments") -> dict[str, Any]:
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
    pairs = [(str(k.arg), _literal(k.value)) for k in call.keywords]
  except (ValueError, SyntaxError) as error:
    raise LtddError(
      f"{what} {text!r}: expected key=value, separated by commas, such as "
      "'tau_range=(0,2),bootstrap=200' (in quotes, as shells read parentheses); values with colons "
      "need quotes of their own"
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
