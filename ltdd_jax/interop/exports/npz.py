"""One `.npz` file with everything, for NumPy alone."""

import pathlib
from collections.abc import Sequence

import numpy as np
from etils import epath

from ltdd_jax.core.types import LtddError
from ltdd_jax.data import arrays as arrays_lib
from ltdd_jax.interop import write as write_lib
from ltdd_jax.interop.exports import record
from ltdd_jax.interop.exports.record import DistilledSet

LEARNED = ("soft_labels", "student_lr")


def write(found: DistilledSet, file: pathlib.Path) -> None:
  """Writes `images`, `labels`, `classes`, `mean`, `std`, `parts`, `about`, and what else is."""
  arrays = {
    "images": found.images,
    "classes": np.array(found.class_names),  # without NULs at their ends; `about` has all of them
    "mean": np.array(found.mean, np.float64),
    "std": np.array(found.std, np.float64),
    "parts": np.array(found.parts),
    "about": np.array(record.describe(found, "npz")),
    **record.beside(found),
  }
  if found.student_lr is not None:
    arrays["student_lr"] = np.asarray(found.student_lr, np.float32)
  labels = np.asarray(found.labels, np.int32)
  write_lib.write(file, labels.shape, labels.dtype, [labels], lambda: arrays)


def read(
  name: str, file: epath.Path
) -> tuple[dict[str, np.ndarray], Sequence[str] | None, dict[str, object]]:
  """Reads arrays, the class map if the file has one, and its description or {}.

  Raises:
    LtddError: images or labels are missing or have wrong types, or the file is damaged.
  """
  more = ("classes", "parts", "about", *LEARNED)
  stored = arrays_lib.read_npz(name, file, [("images", "labels")], more)
  pixels = stored["images"]
  if pixels.ndim == 4 and pixels.shape[-1] not in (1, 3) and pixels.shape[1] in (1, 3):
    raise LtddError(
      f"{name}: images has shape {pixels.shape}, channels first; expected channels last: "
      "images.transpose(0, 2, 3, 1)"
    )
  if pixels.dtype.kind == "f" and pixels.dtype != np.float32:
    raise LtddError(
      f"{name}: images is {pixels.dtype}; expected uint8 or float32 pixels. Save "
      "images.astype(np.float32)"
    )
  if pixels.dtype != np.float32:
    stored["images"] = arrays_lib.check_images(f"{name}: images", pixels, None)
  stored["labels"] = arrays_lib.check_integers(f"{name}: labels", stored["labels"])
  names = stored["classes"].tolist() if "classes" in stored else None
  if "about" not in stored:
    return stored, names, {}
  about = record.read_description(name, str(stored.pop("about")))
  return stored, about["class_names"], about
