"""Distilled images that were not made in this run.

  config.distil.methods.mine = {"name": "imported", "path": "runs/a/distil/sre2l"}

`path` is one of

  * another run's artefact, the folder `distil/IMAGES` of its work directory;
  * an `.npz` file with `images` (n, h, w, c), uint8 or float32 pixels from 0 to 1, and `labels`
    (n,) integers; if wanted also `classes`, the names of the classes by number, which are then
    compared, `soft_labels` (n, k), logits, `student_lr`, a learning rate, and `parts`, f if each
    image holds f x f small ones, of which a view shows one (multi-formation);
  * a folder of class folders of image files, named as the data set's classes are, or by their
    numbers: `new000` (SRe2L), `00000` (RDED); `soft_labels.npy` (n, k) may be beside them, in the
    order of classes and names of files;
  * a folder of `images.pt` (n, c, h, w), `labels.pt` and maybe `soft_labels.pt` and `lr.pt`,
    loaded with `weights_only`, for which torch is needed;
  * what `launch.export` wrote, of any format.

Float pixels of others may be outside [0, 1] by 0.05 in the mean, and no more. Methods that do not
clip leave some pixels outside (`dm` 0.005, `tesla` 0.02); whitened sets of CIFAR-10 are outside by
0.1, normalised ones by 0.7, and those of 0 to 255 by far more. Our own are known to be pixels.

What comes in is labelled, calibrated and learned from like any other image source. It is
identified by its content and not by where it lies: the SHA-256 of images and labels is a part of
the fingerprint. Nothing is resized and nothing is unpickled.
"""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from ltdd_jax.artefacts import manifest
from ltdd_jax.core import files
from ltdd_jax.core.types import LtddError
from ltdd_jax.data import arrays as arrays_lib
from ltdd_jax.data import crops
from ltdd_jax.data.specs import DatasetSpec
from ltdd_jax.data.whitening import Whitening
from ltdd_jax.interop import read as read_lib
from ltdd_jax.interop.exports import fkd, folders, huggingface, npz, record, torch_files
from ltdd_jax.interop.exports.npz import LEARNED
from ltdd_jax.labels import by_class

_OUTSIDE = 0.05  # mean distance of float pixels from [0, 1]


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
  names: Sequence[str] | None
  about_it: Mapping[str, Any] = {}
  ignored: list[str] = []
  if (place / manifest.META).is_file():
    stored, names = _from_artefact(name, place)
  elif place.is_dir():
    stored, names, about_it, ignored = _from_folder(name, place, spec, class_names)
  elif place.is_file():
    stored, names, about_it = npz.read(name, place)
  else:
    raise LtddError(
      f"{name}: there is no such file or folder. Expected another run's artefact "
      "(WORKDIR/distil/IMAGES), an .npz file with images and labels, a folder of class folders or "
      "of images.pt and labels.pt, or what launch.export wrote"
    )
  check_classes(name, names, class_names)
  pixels = np.ascontiguousarray(stored["images"])
  folders.check_shape(name, pixels.shape[1:], spec)
  labels = stored["labels"]
  labels = arrays_lib.check_labels(f"{name}: labels", labels, spec.num_classes, len(pixels))
  own = bool(about_it) or (place / manifest.META).is_file()
  _check_range(name, pixels, np.inf if own else _OUTSIDE)
  shapes = {"soft_labels": (len(pixels), spec.num_classes), "student_lr": ()}
  learned = {k: check_learned(name, k, stored[k], shapes[k]) for k in LEARNED if k in stored}
  parts = _parts(f"{name}: parts", stored.get("parts", np.array(1)), spec)
  digest = content_sha256(pixels, labels, *learned.values(), *([parts] if parts > 1 else []))
  size = "x".join(map(str, spec.image_shape))
  held = f", each of {parts} x {parts} small ones," if parts > 1 else ""
  about = f"{len(labels):,} images {size} {pixels.dtype}{held} from {path}, SHA-256 {digest[:12]}"
  empty = np.flatnonzero(np.bincount(labels, minlength=spec.num_classes) == 0)
  notes = [about, *ignored, *_normalisation(about_it, spec)]
  notes += [f"no image for classes {empty.tolist()}"] if len(empty) else []
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


def _from_folder(
  name: str, place: epath.Path, spec: DatasetSpec, class_names: Sequence[str]
) -> tuple[dict[str, np.ndarray], Sequence[str] | None, Mapping[str, Any], list[str]]:
  """Arrays, class map, description and notes of a folder: an export, tensors or class folders."""
  file, about = place / record.ABOUT, {}
  if file.is_file():
    about = record.read_description(name, file.read_text())
  names, to = about.get("class_names"), about.get("format")
  if to == "fkd":
    return *npz.read(name, place / fkd.SET), []
  if to == "huggingface":
    return huggingface.read(name, place, about), names, about, []
  if to in ("torch", "ddranking") or (place / torch_files.IMAGES).is_file():
    return torch_files.read(name, place, about, spec.num_classes), names, about, []
  stored, notes = folders.read(name, place, about, spec, class_names)
  return stored, names, about, notes


def _normalisation(about: Mapping[str, Any], spec: DatasetSpec) -> list[str]:
  """A note if students of this run see the images with another normalisation than exported."""
  if not about:
    return []
  whitened = isinstance(spec.std, Whitening)
  std = spec.std.channels if isinstance(spec.std, Whitening) else spec.std
  here = {"mean": list(spec.mean), "std": list(std), "whitened": whitened}
  there = {key: about.get(key) for key in here}
  if here == there:
    return []
  say = lambda x: f"mean {x['mean']}, std {x['std']}{', whitened' if x['whitened'] else ''}"
  return [f"distilled for images of {say(there)}; here they are of {say(here)}"]


def check_classes(name: str, names: Sequence[str] | None, class_names: Sequence[str]) -> None:
  """Raises LtddError for another class map than that of this run; None is no map."""
  if names is None or list(names) == list(class_names):
    return
  there, here = folders.some_names(names), folders.some_names(class_names)
  raise LtddError(
    f"{name}: was made with another class map.\n  there ({len(names)} classes): {there}\n"
    f"  here ({len(class_names)} classes): {here}\nImport images of the same data set, or number "
    "their classes as here"
  )


def _check_range(name: str, pixels: np.ndarray, most: float) -> None:
  if pixels.dtype == np.uint8:
    return
  low, high = pixels.min(), pixels.max()  # NaN if any is
  if not np.isfinite([low, high]).all() or _outside(pixels) > most:
    raise LtddError(
      f"{name}: images has pixels from {low:.4g} to {high:.4g}; expected finite floats of which "
      "most are from 0 to 1. Divide pixels of 0 to 255 by 255; undo a normalisation or whitening"
    )


def _outside(pixels: np.ndarray) -> float:
  """The mean distance of pixels from [0, 1]."""
  return float(np.abs(pixels - np.clip(pixels, 0, 1)).mean(dtype=np.float64))


def check_learned(name: str, key: str, values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
  """Soft labels (n, k) or the rate [], as float32; LtddError for others."""
  what = "expected a finite number above 0" if key == "student_lr" else "expected finite logits"
  if values.shape != shape or values.dtype.kind not in "fiu":
    raise LtddError(f"{name}: {key} is {values.dtype} {values.shape}; {what} of shape {shape}")
  out = np.asarray(values, np.float32)
  bad = ~np.isfinite(out) | ((out <= 0) & (key == "student_lr"))
  if bad.any():
    raise LtddError(f"{name}: {key} has {out[bad][0]:.4g}; {what}, or leave the array out")
  if key == "soft_labels":
    by_class.check_no_probabilities(f"{name}: {key}", out)
  return out


def _parts(name: str, value: np.ndarray, spec: DatasetSpec) -> int:
  """f, a whole number of which the images' sides are multiples."""
  if value.shape != () or value.dtype.kind not in "iu":
    raise LtddError(f"{name} is {value.dtype} {value.shape}; expected one integer, 2 say")
  crops.check_factor(f"{name}: ", int(value), spec.image_shape)
  return int(value)
