"""Folders of images, one folder a class: `path/train/<class>/*` and `path/test/<class>/*`."""

import pathlib
from collections.abc import Sequence

import numpy as np

from ltdd_jax.core.types import LtddError
from ltdd_jax.data.images import UNREADABLE, decode, image_shape, map_threads, measure
from ltdd_jax.data.specs import DatasetSpec, Source

_SUFFIXES = frozenset(
  (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
)
_TEST_FOLDERS = ("test", "val", "validation")


def open_folder(
  path: str, *, image_size: int | Sequence[int] | None, on_unreadable: str = "error"
) -> Source:
  """Opens class folders; class names are the sorted folder names, counts are what is found.

  Images of any size and mode become RGB of `image_size` (see `images.decode`). Every file is
  decoded once when the source is opened, so an unreadable one is found before any work starts.

  Args:
    path: the folder with `train` and `test` (or `val`, `validation`) in it.
    image_size: side or (h, w); required.
    on_unreadable: "error", or "skip" to leave unreadable images out, counted in `notes`.

  Raises:
    LtddError: for a missing or empty folder, classes that differ, or an unreadable image.
  """
  name = f"folder:{path}"
  size = image_shape(image_size)
  if size is None:
    raise LtddError(f"{name}: image_size is missing; set data.image_size, e.g. 64.")
  if on_unreadable not in ("error", "skip"):
    raise LtddError(f"on_unreadable={on_unreadable!r}: expected 'error' or 'skip'.")
  root = pathlib.Path(path).expanduser()
  folders = {"train": root / "train", "test": _test_folder(root)}
  classes = _classes(folders["train"])
  notes = _check_test_classes(folders["test"], classes)
  files, labels = {}, {}
  for split, folder in folders.items():
    found, other = list_images(folder, classes)
    found, skipped = _readable(found, size, on_unreadable)
    notes += _notes(split, skipped, other)
    files[split] = [file for file, _ in found]
    labels[split] = np.array([label for _, label in found], np.int32)
    _check_counts(folder, classes, labels[split], all_needed=split == "train")

  def read(split, indices):
    if len(indices) == 0:
      return np.zeros((0, *size, 3), np.uint8)
    chosen = [files[split][i] for i in indices]
    return np.stack(map_threads(lambda file: _decode(file, size), chosen))

  mean, std = measure(lambda indices: read("train", indices), len(files["train"]))
  spec = DatasetSpec(
    name=name,
    num_classes=len(classes),
    image_shape=(*size, 3),
    mean=mean,
    std=std,
    num_train=len(files["train"]),
    num_test=len(files["test"]),
    class_names=classes,
  )
  return Source(spec, labels["train"], labels["test"], read, classes, tuple(notes))


def _subfolders(folder: pathlib.Path) -> list[str]:
  if not folder.is_dir():
    return []
  return sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def _test_folder(root: pathlib.Path) -> pathlib.Path:
  if not (root / "train").is_dir() or not any((root / n).is_dir() for n in _TEST_FOLDERS):
    found = ", ".join(_subfolders(root)) or "nothing"
    raise LtddError(
      f"folder:{root}: found the folders: {found}. Expected train/<class>/* and test/<class>/* "
      "(test may be called val or validation); a balanced test set is what results are counted on."
    )
  return next(root / n for n in _TEST_FOLDERS if (root / n).is_dir())


def _classes(train: pathlib.Path) -> tuple[str, ...]:
  classes = tuple(_subfolders(train))
  if len(classes) < 2:
    raise LtddError(f"{train}: found {len(classes)} class folder(s); expected two or more.")
  return classes


def _check_test_classes(test: pathlib.Path, classes: tuple[str, ...]) -> list[str]:
  found = set(_subfolders(test))
  unknown = sorted(found - set(classes))
  if unknown:
    raise LtddError(
      f"{test}: class folder {unknown[0]!r} has no counterpart in train ({len(unknown)} such). "
      f"Classes are the folders of train: {', '.join(classes[:20])}."
    )
  missing = sorted(set(classes) - found)
  if missing:
    return [f"test: no folder for {len(missing)} of {len(classes)} classes: {_some(missing)}"]
  return []


def list_images(
  folder: pathlib.Path, classes: tuple[str, ...]
) -> tuple[list[tuple[pathlib.Path, int]], list[pathlib.Path]]:
  """Returns (file, label) pairs sorted by class and name, and the files that are no images."""
  found, other = [], []
  for label, name in enumerate(classes):
    for file in sorted((folder / name).rglob("*")):
      if file.name.startswith(".") or not file.is_file():
        continue
      if file.suffix.lower() in _SUFFIXES:
        found.append((file, label))
      else:
        other.append(file)
  return found, other


def _readable(found, size, on_unreadable):
  """Decodes every file once; returns the readable pairs and the unreadable files."""

  def problem(pair):
    try:
      decode(pair[0], 3, size)
    except UNREADABLE as error:
      return f"{type(error).__name__}: {error}"
    return None

  problems = map_threads(problem, found)
  bad = [(file, why) for (file, _), why in zip(found, problems, strict=True) if why]
  if bad and on_unreadable == "error":
    file, why = bad[0]
    raise LtddError(
      f"{file}: cannot be read as an image ({why}); {len(bad)} of {len(found)} images in this "
      "split are unreadable. Repair or delete them, or set data.on_unreadable='skip'."
    )
  return [pair for pair, why in zip(found, problems, strict=True) if not why], [f for f, _ in bad]


def _decode(file: pathlib.Path, size: tuple[int, int]) -> np.ndarray:
  try:
    return decode(file, 3, size)
  except UNREADABLE as error:
    raise LtddError(f"{file}: was readable when the source was opened: {error}.") from error


def _notes(split: str, skipped: list[pathlib.Path], other: list[pathlib.Path]) -> list[str]:
  notes = []
  if skipped:
    notes.append(f"{split}: skipped {len(skipped)} unreadable images: {_some(skipped)}")
  if other:
    notes.append(f"{split}: ignored {len(other)} files that are not images: {_some(other)}")
  return notes


def _some(things: Sequence[object]) -> str:
  return ", ".join(str(t) for t in things[:5]) + (", ..." if len(things) > 5 else "")


def _check_counts(folder, classes, labels, *, all_needed: bool) -> None:
  if len(labels) == 0:
    raise LtddError(f"{folder}: no readable image in any class folder.")
  empty = np.flatnonzero(np.bincount(labels, minlength=len(classes)) == 0)
  if all_needed and len(empty):
    raise LtddError(
      f"{folder / classes[empty[0]]}: no readable image in this class folder ({len(empty)} such). "
      "Every class needs at least one training image: add some or delete the folder."
    )
