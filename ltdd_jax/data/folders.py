"""Folders of images, one folder a class: `path/train/<class>/*` and `path/test/<class>/*`."""

from collections.abc import Sequence

import numpy as np
from etils import epath

from ltdd_jax.core import files
from ltdd_jax.core.types import LtddError
from ltdd_jax.data import class_folders
from ltdd_jax.data.images import UNREADABLE, decode, image_shape, make_source, map_threads
from ltdd_jax.data.specs import DataSource

_TEST_FOLDERS = ("test", "val", "validation")


def open_folder(
  path: str, *, image_size: int | Sequence[int] | None, on_unreadable: str = "error"
) -> DataSource:
  """Opens class folders; class names are the sorted folder names, counts are what is found.

  Images of any size and mode become RGB of `image_size` (see `images.decode`). Every file is
  decoded once when the source is opened, so an unreadable one is found before any work starts.

  Args:
    path: the folder with `train` and `test` (or `val`, `validation`) in it.
    image_size: side or (h, w); required.
    on_unreadable: "error", or "skip" to leave unreadable images out, counted in `notes`.

  Raises:
    LtddError: a missing or empty folder, classes that differ, an unreadable image, or what
      `class_folders` refuses.
  """
  name = f"folder:{path}"
  size = image_shape(image_size)
  if size is None:
    raise LtddError(f"{name}: image_size is missing; set data.image_size, e.g. 64.")
  if on_unreadable not in ("error", "skip"):
    raise LtddError(f"on_unreadable={on_unreadable!r}: expected 'error' or 'skip'.")
  root = files.path(path)
  test, notes = _test_folder(root)
  folders = {"train": root / "train", "test": test}
  classes, train_notes = class_folders.list_classes(folders["train"])
  if len(classes) < 2:
    raise LtddError(
      f"{folders['train']}: found {len(classes)} class folder(s); expected two or more."
    )
  if class_folders.are_numbers(classes):
    notes.append(
      f"classes are sorted by the numbers that name them: class 0 is {classes[0]!r}, class "
      f"{len(classes) - 1} is {classes[-1]!r}"
    )
  about = {"train": train_notes, "test": _check_test_classes(test, classes)}
  images, labels = {}, {}
  for split, folder in folders.items():
    found, ignored = class_folders.list_images(folder, classes)
    found, bad = _readable(found, size, on_unreadable)
    if bad:
      about[split].append(f"skipped {len(bad)} unreadable images: {class_folders.some(bad)}")
    notes += [f"{split}: {note}" for note in about[split] + ignored]
    images[split] = [file for file, _ in found]
    labels[split] = np.array([label for _, label in found], np.int32)
    _check_counts(folder, classes, labels[split], all_needed=split == "train")

  def read(split, indices):
    if len(indices) == 0:
      return np.zeros((0, *size, 3), np.uint8)
    chosen = [images[split][i] for i in indices]
    return np.stack(map_threads(lambda file: _decode(file, size), chosen))

  def stored(split, index):
    file = images[split][index]
    return str(file), file.read_bytes()

  return make_source(name, classes, labels, read, notes, stored=stored)


def _test_folder(root: epath.Path) -> tuple[epath.Path, list[str]]:
  """Returns the folder of test images, and notes on folders that are not used."""
  names = class_folders.list_classes(root)[0] if root.is_dir() else ()
  test = next((name for name in _TEST_FOLDERS if name in names), None)
  if "train" not in names or test is None:
    raise LtddError(
      f"folder:{root}: found the folders: {', '.join(names) or 'nothing'}. Expected "
      "train/<class>/* and test/<class>/* (test may be called val or validation); a balanced test "
      "set is what results are counted on."
    )
  return root / test, class_folders.ignored(
    "other folders", [n for n in names if n not in ("train", test)]
  )


def _check_test_classes(test: epath.Path, classes: tuple[str, ...]) -> list[str]:
  found, notes = class_folders.list_classes(test)
  unknown = sorted(set(found) - set(classes))
  if unknown:
    raise LtddError(
      f"{test}: class folder {unknown[0]!r} has no counterpart in train ({len(unknown)} such). "
      f"Classes are the folders of train: {', '.join(classes[:20])}."
    )
  return notes


def _readable(found, size, on_unreadable):
  """Decodes every file once; returns the readable pairs and the unreadable files."""

  def problem(pair):
    try:
      decode(pair[0].read_bytes(), 3, size)
    except UNREADABLE as error:
      return f"{type(error).__name__}: {error}"
    return None

  good, bad = [], {}
  for pair, why in zip(found, map_threads(problem, found), strict=True):
    if why is None:
      good.append(pair)
    else:
      bad[pair[0]] = why
  if bad and on_unreadable == "error":
    file, why = next(iter(bad.items()))
    raise LtddError(
      f"{file}: cannot be read as an image ({why}); {len(bad)} of {len(found)} images in this "
      "split are unreadable. Repair or delete them, or set data.on_unreadable='skip'."
    )
  return good, list(bad)


def _decode(file: epath.Path, size: tuple[int, int]) -> np.ndarray:
  try:
    return decode(file.read_bytes(), 3, size)
  except UNREADABLE as error:
    raise LtddError(f"{file}: was readable when the source was opened: {error}.") from error


def _check_counts(folder, classes, labels, *, all_needed: bool) -> None:
  if len(labels) == 0:
    raise LtddError(f"{folder}: no readable image in any class folder.")
  empty = np.flatnonzero(np.bincount(labels, minlength=len(classes)) == 0)
  if all_needed and len(empty):
    raise LtddError(
      f"{folder / classes[empty[0]]}: no readable image in this class folder ({len(empty)} such). "
      "Every class needs at least one training image: add some or delete the folder."
    )
