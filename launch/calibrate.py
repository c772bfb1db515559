"""Calibrates logits of any program: files in, soft labels out.

    python -m launch.calibrate --logits z.npy --labels y.npy --counts n.npy --out labels.npz

`docs/how-to/calibrate_logits.md` says what the files may be, and what comes out.
"""

import logging as std_logging
import pathlib

from ltdd_jax.core import startup

startup.tune_host()  # before jax is imported, and so above the other imports
startup.stop_in_one_line()

from absl import app, flags, logging  # noqa: E402

from launch import errors  # noqa: E402

_LOGITS = flags.DEFINE_string(
  "logits", None, "(n, k) or (..., n, k) floats: z.npy, store.npz:logits, z.safetensors:name; or "
  "the labels of a run, WORKDIR/label/IMAGES/LABELS, which need no --labels"
)  # fmt: skip
_LABELS = flags.DEFINE_string(
  "labels", None, "(n,) or (..., n) integers, the classes that images were distilled for; the "
  "same formats, and .txt .csv .json"
)  # fmt: skip
_COUNTS = flags.DEFINE_string("counts", None, "(k,) training images of each class")
_OUT = flags.DEFINE_string("out", None, "file to write, .npz or .npy")
_CALIBRATOR = flags.DEFINE_string("calibrator", "adsa", "a name in ltdd_jax.calibrate.CALIBRATORS")
_ARGS = flags.DEFINE_string(
  "calibrator_args", None, "its arguments: 'criterion=marginal,tau_range=(0,2)', in quotes"
)
_TARGET_PRIOR = flags.DEFINE_string(
  "target_prior", None, "(k,) class frequencies of a test set that is not balanced"
)
_TEMPERATURE = flags.DEFINE_float("temperature", 1.0, "divides logits before the softmax")
_KIND = flags.DEFINE_string("kind", "probabilities", "what to write: probabilities or logits")
_DTYPE = flags.DEFINE_string("dtype", "float32", "of what is written: float16 or float32")
_SMOOTHING = flags.DEFINE_float("smoothing", 0.0, "training images to add to every class")
_PLOT = flags.DEFINE_string("plot", None, "PNG of the curve of tau and of class confidences")
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "replace files that are there")
_DRY_RUN = flags.DEFINE_bool(  # launch.main has one too, of the same meaning
  "dry_run", False, "check everything, say what would be done, and stop", allow_override=True
)


@errors.in_one_message
def main(argv: list[str]) -> None:
  """Calls `interop`."""
  from ltdd_jax.core.types import LtddError

  logging.set_verbosity(logging.INFO)
  std_logging.getLogger("jax").setLevel(std_logging.WARNING)  # it lists accelerators it lacks
  if len(argv) > 1:
    raise LtddError(f"unexpected arguments {argv[1:]}; every value needs its --flag.")
  startup.setup_jax()
  _run()


def _run() -> None:
  from ltdd_jax import interop
  from ltdd_jax.report import calibration, plots

  plot = _check_plot()
  job = interop.prepare(
    _LOGITS.value, _LABELS.value, _COUNTS.value, out=_OUT.value, calibrator=_CALIBRATOR.value,
    calibrator_args=interop.parse_args(_ARGS.value), target_prior=_TARGET_PRIOR.value,
    temperature=_TEMPERATURE.value, kind=_KIND.value, dtype=_DTYPE.value,
    smoothing=_SMOOTHING.value, overwrite=_OVERWRITE.value,
  )  # fmt: skip
  if _DRY_RUN.value:
    print(calibration.describe_job(job))
    return
  found = interop.run(job)
  print(calibration.describe(found))
  print(f"\nwrote {job.out}: {job.kind}, {job.dtype} {job.shape}, {job.nbytes / 1e6:,.1f} MB")
  if plot:
    pair = found.confidence_before, found.confidence_after
    plots.save(plots.calibration(found.report, found.class_counts, pair), plot)
    print(f"wrote {plot}")


def _check_plot() -> pathlib.Path | None:
  """The file of the plot; finds before any work what would keep it from being drawn."""
  from ltdd_jax.interop import write
  from ltdd_jax.report import plots

  if not _PLOT.value:
    return None
  plots.check_available()
  return write.check_target(
    _PLOT.value, overwrite=_OVERWRITE.value, need=0, what="plot", formats=(".png", ".PNG")
  )


if __name__ == "__main__":
  flags.mark_flags_as_required(["logits", "counts", "out"])
  app.run(main, flags_parser=startup.parse_flags)
