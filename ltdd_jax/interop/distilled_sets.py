"""Distilled images that were not made in this run.

  config.distil.methods.mine = {"name": "imported", "path": "runs/a/distil/sre2l"}

`path` is one of

  * another run's artefact, the folder `distil/IMAGES` of its work directory;
  * an `.npz` file with `images` (n, h, w, c), uint8 or float32 pixels from 0 to 1, and `labels`
    (n,) integers; if wanted also `classes`, the names of the classes by number, which are then
    compared, `soft_labels` (n, k), logits, `student_lr`, a learning rate, and `parts`, f if each
    image holds f x f small ones, of which a view shows one (multi-formation);
  * a folder of class folders of image files, named as the data set's classes are.

Float pixels may be outside [0, 1] by 0.1 in the mean, and no more. Methods that do not clip, such
as `dm`, leave some pixels outside (0.005); normalised sets are outside by 0.3 or so, and those of 0
to 255 by far more.

What comes in is labelled, calibrated and learned from like any other image source. It is
identified by its content and not by where it lies: the SHA-256 of images and labels is a part of
the fingerprint. Nothing is resized and nothing is unpickled.
"""

import hashlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from etils import epath

from ltdd_jax.artefacts import manifest
from ltdd_jax.core import files
from ltdd_jax.core.types import LtddError
from ltdd_jax.data import arrays as arrays_lib
from ltdd_jax.data import class_folders, crops, images
from ltdd_jax.data.specs import DatasetSpec
from ltdd_jax.interop import read as read_lib

LEARNED = ("soft_labels", "student_lr")
_OUTSIDE = 0.1  # mean distance of float pixels from [0, 1]


class Imported(NamedTuple):
  """Images from elsewhere, checked against the data set of this run."""

  images: np.ndarray  # (n, h, w, c) uint8, or float32 pixels from 0 to 1
  labels: np.ndarray  # (n,) int32
  sha256: str
  about: str  # one line for --dry_run
  notes: tuple[str, ...]  # for the report
  learned: Mapping[str, np.ndarray] = {}
  parts: int = 1  # f, see the module's docstring

  @property
  def arrays(self) -> dict[str, np.ndarray]:
    """Images, labels, and what else was learned."""
    return {"images": self.images, "labels": self.labels, **self.learned}


def read(where: str, path: str, spec: DatasetSpec, class_names: Sequence[str]) -> Imported:
  """Reads images and labels, and checks them against a data set.

  Args:
    where: what is being configured, for messages: "config.distil.methods.mine".
    path: see the module's docstring.
    spec: facts of the data set: shape of images, number of classes.
    class_names: (k,) its class map.

  Raises:
    LtddError: nothing is there, it cannot be read, its class map, image shape, types or labels are
      not those of the data set, or pixels, soft labels or the rate are no such numbers.
  """
  place, name = files.path(path), f"{where}: {path}"
  ignored: list[str] = []
  if (place / manifest.META).is_file():
    stored, names = _from_artefact(name, place)
  elif place.is_dir():
    stored, ignored = _from_folders(name, place, spec, class_names)
    names = None
  elif place.is_file():
    stored, names = _from_npz(name, place)
  else:
    raise LtddError(
      f"{name}: there is no such file or folder. Expected another run's artefact "
      "(WORKDIR/distil/IMAGES), an .npz file with images and labels, or a folder of class folders"
    )
  _check_classes(name, names, class_names)
  pixels = np.ascontiguousarray(stored["images"])
  _check_shape(name, pixels.shape[1:], spec)
  labels = stored["labels"]
  labels = arrays_lib.check_labels(f"{name}: labels", labels, spec.num_classes, len(pixels))
  _check_range(name, pixels)
  shapes = {"soft_labels": (len(pixels), spec.num_classes), "student_lr": ()}
  learned = {k: _learned(name, k, stored[k], shapes[k]) for k in LEARNED if k in stored}
  parts = _parts(f"{name}: parts", stored.get("parts", np.array(1)), spec)
  digest = content_sha256(pixels, labels, *learned.values(), *([parts] if parts > 1 else []))
  size = "x".join(map(str, spec.image_shape))
  held = f", each of {parts} x {parts} small ones," if parts > 1 else ""
  about = f"{len(labels):,} images {size} {pixels.dtype}{held} from {path}, SHA-256 {digest[:12]}"
  empty = np.flatnonzero(np.bincount(labels, minlength=spec.num_classes) == 0)
  notes = [about, *ignored] + ([f"no image for classes {empty.tolist()}"] if len(empty) else [])
  return Imported(pixels, labels, digest, about, tuple(notes), learned, parts)


def read_logits(where: str, path: str) -> np.ndarray:
  """Reads logits (n, k) of distilled images from a file of `read.parse`: `.npy`, say.

  Raises:
    LtddError: there is no such file, or it holds no logits.
  """
  name = f"{where}: {path}"
  logits = read_lib.array_of(read_lib.parse(path, "logits", f"{where}: "))
  if logits.ndim != 2 or not np.issubdtype(logits.dtype, np.floating):
    raise LtddError(
      f"{name}: is {logits.dtype} of shape {logits.shape}; expected float logits (n, k)"
    )
  return logits


def content_sha256(pixels: np.ndarray, labels: np.ndarray, *more: np.ndarray | int) -> str:
  """SHA-256 of the shape, pixels (n, h, w, c), labels (n,) as int32, and more as float32."""
  digest = hashlib.sha256(str(tuple(int(n) for n in pixels.shape)).encode())
  digest.update(np.ascontiguousarray(pixels).tobytes())
  digest.update(np.asarray(labels).astype("<i4").tobytes())
  for array in more:
    digest.update(np.asarray(array).astype("<f4").tobytes())
  return digest.hexdigest()


def _from_artefact(name: str, folder: epath.Path) -> tuple[dict[str, np.ndarray], list[str]]:
  artefact = manifest.open_artefact(folder)
  stage = artefact.meta["stage"]
  if not stage.startswith("distil/"):
    raise LtddError(
      f"{name}: is the artefact of stage {stage}; expected one of a distil stage, such as "
      f"{folder.parent / 'distil' / 'sre2l'}"
    )
  stored = {k: np.array(v) for k, v in artefact.arrays.items()}
  return stored | {"parts": np.array(artefact.meta["extra"].get("parts", 1))}, artefact.meta[
    "class_names"
  ]


def _from_npz(name: str, file: epath.Path) -> tuple[dict[str, np.ndarray], list[str] | None]:
  stored = arrays_lib.read_npz(name, file, [("images", "labels")], ("classes", "parts", *LEARNED))
  pixels = stored["images"]
  if pixels.ndim == 4 and pixels.shape[-1] not in (1, 3) and pixels.shape[1] in (1, 3):
    raise LtddError(
      f"{name}: images has shape {pixels.shape}, channels first; expected channels last: "
      "images.transpose(0, 2, 3, 1)"
    )
  if pixels.dtype != np.float32:
    stored["images"] = arrays_lib.check_images(f"{name}: images", pixels, None)
  stored["labels"] = arrays_lib.check_integers(f"{name}: labels", stored["labels"])
  return stored, stored["classes"].tolist() if "classes" in stored else None


def _from_folders(
  name: str, folder: epath.Path, spec: DatasetSpec, class_names: Sequence[str]
) -> tuple[dict[str, np.ndarray], list[str]]:
  found, notes = class_folders.list_classes(folder)
  unknown = sorted(set(found) - set(class_names))
  if unknown or not found:
    what = f"the folder {unknown[0]!r} is no class of the data set" if found else "has no folders"
    raise LtddError(f"{name}: {what}; expected folders named {_some(class_names)}")
  pairs, ignored = class_folders.list_images(folder, class_names)
  if not pairs:
    raise LtddError(f"{name}: no image file in any class folder; expected .png files, say")
  pixels = np.stack([_decode(file, spec) for file, _ in pairs])
  labels = np.array([label for _, label in pairs], np.int32)
  return {"images": pixels, "labels": labels}, notes + ignored


def _decode(file: epath.Path, spec: DatasetSpec) -> np.ndarray:
  try:
    pixels = images.decode(file.read_bytes(), spec.image_shape[-1])
  except images.UNREADABLE as error:
    raise LtddError(
      f"{file}: cannot be read as an image ({type(error).__name__}: {error}). Repair or delete it"
    ) from error
  _check_shape(str(file), pixels.shape, spec)
  return pixels


def _check_classes(name: str, names: Sequence[str] | None, class_names: Sequence[str]) -> None:
  if names is None or list(names) == list(class_names):
    return
  raise LtddError(
    f"{name}: was made with another class map.\n  there ({len(names)} classes): {_some(names)}\n"
    f"  here ({len(class_names)} classes): {_some(class_names)}\nImport images of the same data "
    "set, or number their classes as here"
  )


def _check_shape(name: str, shape: Sequence[int], spec: DatasetSpec) -> None:
  if tuple(shape) != tuple(spec.image_shape):
    raise LtddError(
      f"{name}: images have the shape {tuple(shape)}; the data set {spec.name} has "
      f"{tuple(spec.image_shape)} (height, width, channels), and imported images are not resized"
    )


def _check_range(name: str, pixels: np.ndarray) -> None:
  if pixels.dtype == np.uint8:
    return
  low, high = pixels.min(), pixels.max()  # NaN if any is
  if not np.isfinite([low, high]).all() or _outside(pixels) > _OUTSIDE:
    raise LtddError(
      f"{name}: images has pixels from {low:.4g} to {high:.4g}; expected finite floats of which "
      "most are from 0 to 1. Divide pixels of 0 to 255 by 255; undo a normalisation"
    )


def _outside(pixels: np.ndarray) -> float:
  """The mean distance of pixels from [0, 1]."""
  return float(np.abs(pixels - np.clip(pixels, 0, 1)).mean(dtype=np.float64))


def _learned(name: str, key: str, values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
  """Soft labels (n, k) or the rate [], as float32."""
  what = "expected a finite number above 0" if key == "student_lr" else "expected finite logits"
  if values.shape != shape or values.dtype.kind not in "fiu":
    raise LtddError(f"{name}: {key} is {values.dtype} {values.shape}; {what} of shape {shape}")
  out = np.asarray(values, np.float32)
  bad = ~np.isfinite(out) | ((out <= 0) & (key == "student_lr"))
  if bad.any():
    raise LtddError(f"{name}: {key} has {out[bad][0]:.4g}; {what}, or leave the array out")
  return out


def _parts(name: str, value: np.ndarray, spec: DatasetSpec) -> int:
  """f, a whole number of which the images' sides are multiples."""
  if value.shape != () or value.dtype.kind not in "iu":
    raise LtddError(f"{name} is {value.dtype} {value.shape}; expected one integer, 2 say")
  crops.check_factor(f"{name}: ", int(value), spec.image_shape)
  return int(value)


def _some(names: Sequence[str]) -> str:
  shown = ", ".join(f"{c}: {n}" for c, n in enumerate(names[:20]))
  return shown + (", ..." if len(names) > 20 else "")
