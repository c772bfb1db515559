"""What is exported: a distilled set with all that is known of it, and its description in JSON."""

import json
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from ltdd_jax.core.types import LtddError

ABOUT = "export.json"  # in each folder; an .npz file has its text as the array `about`
WHITENING = ("whitening_mean", "whitening_matrix")
FILES = (ABOUT, "soft_labels.npy", *(f"{key}.npy" for key in WHITENING))
VERSION = 1


class LabelledViews(NamedTuple):
  """Logits of views, label epoch by label epoch, with what made each view."""

  num_epochs: int
  mix: str | None
  read: Callable[[int], Mapping[str, np.ndarray]]  # the arrays of a label epoch, see `fkd`


class DistilledSet(NamedTuple):
  """A distilled set. Pixels are neither normalised nor whitened: 0 is black, 1 (or 255) white."""

  images: np.ndarray  # (n, h, w, c) uint8, or float32
  labels: np.ndarray  # (n,) int32
  class_names: tuple[str, ...]  # (k,)
  mean: tuple[float, ...]  # (c,) of the training images, which students normalise by
  std: tuple[float, ...]  # (c,)
  soft_labels: np.ndarray | None = None  # (n, k) float32 logits
  student_lr: np.ndarray | None = None  # [] float32
  parts: int = 1  # f, if each image holds f x f small ones
  whitening: tuple[np.ndarray, np.ndarray] | None = None  # mean (h, w, c), matrix (d, d)
  views: LabelledViews | None = None
  meta: Mapping[str, Any] = {}


def describe(found: DistilledSet, to: str, **more: Any) -> str:
  """The JSON text that travels with an export: ASCII, whatever the class names are."""
  about = {
    "format": to,
    "version": VERSION,
    "num_images": len(found.images),
    "image_shape": list(found.images.shape[1:]),
    "image_dtype": found.images.dtype.name,
    "class_names": list(found.class_names),
    "mean": list(found.mean),
    "std": list(found.std),
    "whitened": found.whitening is not None,
    "student_lr": None if found.student_lr is None else float(found.student_lr),
    "parts": found.parts,
    "meta": dict(found.meta),
  }
  return json.dumps(about | more, indent=1, allow_nan=False)


def read_description(name: str, text: str) -> dict[str, Any]:
  """Reads what `describe` wrote; `name` is for messages.

  Raises:
    LtddError: it is no such text, or of another version.
  """
  try:
    about = json.loads(text)
    known = about["version"] == VERSION and isinstance(about["format"], str)
    _ = about["class_names"], about["num_images"], about["image_dtype"]
  except (ValueError, KeyError, TypeError):
    known = False
  if not known:
    raise LtddError(
      f"{name}: {ABOUT} is damaged or of another version; expected one that launch.export wrote, "
      f"version {VERSION}. Export the set again"
    )
  return about


def beside(found: DistilledSet) -> dict[str, np.ndarray]:
  """The arrays that most formats keep as NumPy files: soft labels, and of a whitened run."""
  arrays = {} if found.soft_labels is None else {"soft_labels": found.soft_labels}
  if found.whitening is not None:
    arrays |= dict(zip(WHITENING, found.whitening, strict=True))
  return arrays


def save(folder: epath.Path, found: DistilledSet, skip: tuple[str, ...] = ()) -> None:
  """Writes the arrays of `beside` into a folder, but for those that a format has elsewhere."""
  for key, array in beside(found).items():
    if key not in skip:
      with (folder / f"{key}.npy").open("wb") as file:
        np.save(file, array, allow_pickle=False)


def learned(name: str, folder: epath.Path, about: Mapping[str, Any]) -> dict[str, np.ndarray]:
  """Soft labels, learning rate and parts of an exported folder, for those that have them."""
  found: dict[str, Any] = {"parts": np.array(about.get("parts", 1))}
  if about.get("student_lr") is not None:
    found["student_lr"] = np.float32(about["student_lr"])
  file = folder / "soft_labels.npy"
  if file.is_file():
    found["soft_labels"] = load(name, file)
  return found


def load(name: str, file: epath.Path) -> np.ndarray:
  """Reads an .npy file; raises LtddError if it is damaged."""
  try:
    with file.open("rb") as opened:
      return np.load(opened, allow_pickle=False)
  except Exception as error:  # damaged headers raise anything
    raise LtddError(f"{name}: {file.name} is no readable array ({error})") from error
