"""Class folders of image files: written with a class map, read by it, by names or by numbers.

    00000-cat/000000.png  00000-cat/000010.png  00001-T-shirt_top/000001.png  ...  export.json

Folders begin with the number of the class, so that programs which sort them number classes alike
(torchvision's `ImageFolder`); files are named by the number of the image in the set.
"""

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath
from PIL import Image

from ltdd_jax.core.types import LtddError
from ltdd_jax.data import class_folders, images
from ltdd_jax.data.specs import DatasetSpec
from ltdd_jax.interop.exports import record
from ltdd_jax.interop.exports.record import DistilledSet

_NUMBERED = re.compile(r"(?:new)?(\d+)")  # SRe2L: new000, new001, ...; RDED: 00000, 00001, ...
_UNSAFE = re.compile(r"[^A-Za-z0-9]+")


def folder_names(class_names: Sequence[str]) -> list[str]:
  """Names of class folders that every disk takes and none confuses: "00003-T-shirt_top"."""
  slugs = [_UNSAFE.sub("_", name).strip("_")[:40] for name in class_names]
  return [f"{c:05d}-{slug}" if slug else f"{c:05d}" for c, slug in enumerate(slugs)]


def png(image: np.ndarray) -> bytes:
  """A PNG file of an image (h, w, c) uint8."""
  file = io.BytesIO()
  Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(file, "PNG")
  return file.getvalue()


def write(found: DistilledSet, folder: epath.Path) -> None:
  """Writes uint8 images; raises LtddError for floats, which PNG files do not hold."""
  if found.images.dtype != np.uint8:
    raise LtddError(
      f"--to folder: images are {found.images.dtype} and would be rounded to 256 levels; expected "
      "uint8. Use --to npz, or distil with config.distil.dtype='uint8'"
    )
  names = folder_names(found.class_names)
  for name in names:
    (folder / name).mkdir()
  for i, (image, label) in enumerate(zip(found.images, found.labels, strict=True)):
    (folder / names[label] / f"{i:06d}.png").write_bytes(png(image))
  record.save(folder, found)
  (folder / record.ABOUT).write_text(record.describe(found, "folder", folders=names))


def read(
  name: str,
  folder: epath.Path,
  about: Mapping[str, Any],
  spec: DatasetSpec,
  class_names: Sequence[str],
) -> tuple[dict[str, np.ndarray], list[str]]:
  """Reads images and labels, and notes on what else was there.

  Args:
    name: of the folder, for messages.
    folder: of class folders; soft labels may be beside them, in `soft_labels.npy`.
    about: the description of an exported folder, or {} for folders of others.
    spec: facts of the data set.
    class_names: its class map.

  Raises:
    LtddError: no images, a folder of no class, an image that cannot be read or has another shape.
  """
  found, notes = class_folders.list_classes(folder, expected=record.FILES)
  label_of, said = _labels(name, found, about, class_names)
  found = tuple(sorted(found, key=label_of.__getitem__))
  pairs, ignored = class_folders.list_images(folder, found)
  if not pairs:
    raise LtddError(f"{name}: no image file in any class folder; expected .png files, say")
  if about:
    pairs = _in_order(name, pairs, about["num_images"])
  pixels = np.stack([_decode(file, spec) for file, _ in pairs])
  labels = np.array([label_of[found[c]] for _, c in pairs], np.int32)
  arrays = {"images": pixels, "labels": labels} | record.learned(name, folder, about)
  return arrays, notes + ignored + said


def _labels(
  name: str, found: Sequence[str], about: Mapping[str, Any], class_names: Sequence[str]
) -> tuple[dict[str, int], list[str]]:
  """The class of each folder: by the class map, by names, or by the numbers of SRe2L and RDED."""
  known = about.get("folders", class_names)
  label_of = {folder: c for c, folder in enumerate(known)}
  unknown = sorted(set(found) - set(known))
  if found and not unknown:
    return label_of, []
  numbers = {folder: _NUMBERED.fullmatch(folder) for folder in found}
  if found and not about and all(numbers.values()):
    label_of = {folder: int(m[1]) for folder, m in numbers.items() if m}
    if len(set(label_of.values())) == len(found) and max(label_of.values()) < len(class_names):
      return label_of, [f"folders {class_folders.some(found)} are classes by their numbers"]
  what = f"the folder {unknown[0]!r} is no class of the data set" if found else "has no folders"
  raise LtddError(
    f"{name}: {what}; expected folders named {some_names(known)}, or by the numbers of classes "
    "from 0: new000 (SRe2L), 00000 (RDED)"
  )


def _in_order(
  name: str, pairs: Sequence[tuple[epath.Path, int]], num_images: int
) -> list[tuple[epath.Path, int]]:
  """Images in the order of the exported set; raises LtddError unless all are there."""
  numbered = {int(file.stem): (file, c) for file, c in pairs if file.stem.isdecimal()}
  if len(pairs) != num_images or sorted(numbered) != list(range(num_images)):
    raise LtddError(
      f"{name}: has {len(pairs)} images; expected {num_images} as exported, numbered from 000000. "
      f"Copy it whole, or delete {record.ABOUT} to read it as any other folder"
    )
  return [numbered[i] for i in range(num_images)]


def _decode(file: epath.Path, spec: DatasetSpec) -> np.ndarray:
  try:
    pixels = images.decode(file.read_bytes(), spec.image_shape[-1])
  except images.UNREADABLE as error:
    raise LtddError(
      f"{file}: cannot be read as an image ({type(error).__name__}: {error}). Repair or delete it"
    ) from error
  check_shape(str(file), pixels.shape, spec)
  return pixels


def check_shape(name: str, shape: Sequence[int], spec: DatasetSpec) -> None:
  """Raises LtddError unless images have the shape of the data set."""
  if tuple(shape) != tuple(spec.image_shape):
    raise LtddError(
      f"{name}: images have the shape {tuple(shape)}; the data set {spec.name} has "
      f"{tuple(spec.image_shape)} (height, width, channels), and imported images are not resized"
    )


def some_names(names: Sequence[str]) -> str:
  """The first twenty names of classes, with their numbers."""
  shown = ", ".join(f"{c}: {n}" for c, n in enumerate(names[:20]))
  return shown + (", ..." if len(names) > 20 else "")
