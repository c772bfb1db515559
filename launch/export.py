"""Exports a distilled set of a run: `python -m launch.export runs/a --to npz --out edc.npz`.

With `--labels teacher --calibrator adsa` its soft labels are the teacher's logits of the images as
they are, after ADSA. docs/how-to/import_and_export_images.md says what each format holds.
"""

import logging as std_logging

from ltdd_jax.core import startup

startup.tune_host()  # before jax is imported, and so above the other imports
startup.stop_in_one_line()

from absl import app, flags  # noqa: E402

from launch import errors  # noqa: E402

_TO = flags.DEFINE_string("to", None, "folder, npz, huggingface, torch, ddranking or fkd")
_OUT = flags.DEFINE_string("out", None, "folder to write, or for npz the file")
_IMAGES = flags.DEFINE_string("images", None, "image source; the run's only one if left out")
_LABELS = flags.DEFINE_string("labels", None, "label source of soft labels: teacher, say")
_CALIBRATOR = flags.DEFINE_string("calibrator", None, "calibrator of these labels: adsa, say")
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "replace an export that is there")


@errors.in_one_message
def main(argv: list[str]) -> None:
  """Calls `pipeline.export`."""
  from ltdd_jax.core import files
  from ltdd_jax.core.types import LtddError
  from ltdd_jax.pipeline import export

  std_logging.getLogger("jax").setLevel(std_logging.WARNING)  # it lists accelerators it lacks
  if len(argv) != 2:
    raise LtddError(f"the arguments are {argv[1:]}; expected the work directory of one run")
  startup.setup_jax()
  found, path = export.write(
    argv[1], str(_TO.value), str(_OUT.value), images=_IMAGES.value, labels=_LABELS.value,
    calibrator=_CALIBRATOR.value, overwrite=_OVERWRITE.value,
  )  # fmt: skip
  size = "x".join(map(str, found.images.shape[1:]))
  soft = "no soft labels" if found.soft_labels is None else "soft labels (logits)"
  written = sum(map(files.num_bytes, files.below(path))) if path.is_dir() else files.num_bytes(path)
  print(
    f"wrote {path}: {_TO.value}, {len(found.images):,} images {size} {found.images.dtype} of "
    f"{len(found.class_names):,} classes, {soft}, {files.size(written)}"
  )


if __name__ == "__main__":
  flags.mark_flags_as_required(["to", "out"])
  app.run(main, flags_parser=startup.parse_flags)
