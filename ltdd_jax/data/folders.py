"""Folders of images, one folder a class: `path/train/<class>/*` and `path/test/<class>/*`."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from etils import epath

from ltdd_jax.core import files
from ltdd_jax.core.types import LtddError
from ltdd_jax.data import class_folders, list_files
from ltdd_jax.data.images import (
  UNREADABLE,
  Constants,
  decode,
  image_shape,
  make_source,
  map_threads,
  unreadable_named,
)
from ltdd_jax.data.specs import DataSource

_TEST_FOLDERS = ("test", "val", "validation")


def open_folder(
  path: str,
  *,
  image_size: int | Sequence[int] | None,
  on_unreadable: str = "error",
  lists: tuple[str, str] | None = None,
  constants: Constants = None,
  crop_pct: float = 1.0,
) -> DataSource:
  """Opens class folders; class names are the sorted folder names, counts are what is found.

  Images of any size and mode become RGB of `image_size` (see `images.decode`). Every file is
  decoded once when the source is opened, so an unreadable one is found before any work starts.

  Args:
    path: the folder with `train` and `test` (or `val`, `validation`) in it.
    image_size: side or (h, w); required.
    on_unreadable: "error", "skip" to leave unreadable images out, counted in `notes`, or "later":
      no file is decoded before it is read, and then an unreadable one stops the run.
    lists: list files of the training and of the test images in `path` (see `list_files`); None for
      all that is in the folders.
    constants: mean and std of the channels; None measures them.
    crop_pct: share of a test image's short side that is seen.

  Raises:
    LtddError: a missing or empty folder, classes that differ, an unreadable image, or what
      `class_folders` or `list_files` refuse.
  """
  name = f"folder:{path}"
  size = image_shape(image_size)
  if size is None:
    raise LtddError(f"{name}: image_size is missing; set data.image_size, e.g. 64.")
  root = files.path(path)
  where, classes, found, notes = _in_folders(root) if lists is None else _listed(root, lists)
  images, labels, skipped = {}, {}, []
  for split, pairs in found.items():
    pairs, bad = (pairs, []) if on_unreadable == "later" else _readable(pairs, size, on_unreadable)
    if bad:
      skipped.append(f"{split}: skipped {len(bad)} unreadable images: {class_folders.some(bad)}")
    images[split], labels[split] = [file for file, _ in pairs], list_files.labels_of(pairs)
    _check_counts(where[split], classes, labels[split], all_needed=split == "train")

  def read(split, indices):
    if len(indices) == 0:
      return np.zeros((0, *size, 3), np.uint8)
    chosen = [images[split][i] for i in indices]
    seen = crop_pct if split == "test" else 1.0
    return np.stack(map_threads(lambda file: _decode(file, size, seen), chosen))

  def stored(split, index):
    file = images[split][index]
    return str(file), file.read_bytes()

  return make_source(
    name, classes, labels, read, [*skipped, *notes], constants=constants, stored=stored
  )


class _Found(NamedTuple):
  where: dict[str, epath.Path]  # folder or list of a split
  classes: tuple[str, ...]
  images: dict[str, list_files.Images]
  notes: list[str]


def _listed(root: epath.Path, lists: tuple[str, str]) -> _Found:
  """What two list files name."""
  where = dict(zip(("train", "test"), map(files.path, lists), strict=True))
  if where["train"] == where["test"]:
    raise LtddError(
      f"config.data.lists has {where['train']} twice; expected a list of the training images and "
      "one of the test images"
    )
  found = {split: list_files.read(path, root) for split, path in where.items()}
  classes = list_files.class_names(lists[0], found["train"])
  if (highest := max(label for _, label in found["test"])) >= len(classes):
    raise LtddError(
      f"{lists[1]}: has a class {highest}, and {lists[0]} has classes up to {len(classes) - 1}; "
      "expected the same classes in both"
    )
  trained = {file.parent.name: label for file, label in found["train"]}
  for file, label in found["test"]:
    c = trained.get(file.parent.name, label)
    if c != label and classes[c] == file.parent.name:  # classes are folders, and not numbers
      raise LtddError(
        f"{lists[1]}: {file} is of class {label}, {classes[label]!r}; its folder, {classes[c]!r}, "
        f"is class {c} in {lists[0]}. Expected the same numbers of classes in both"
      )
  return _Found(where, classes, found, [f"images of {lists[0]} and {lists[1]}"])


def _in_folders(root: epath.Path) -> _Found:
  """What lies in class folders."""
  test, notes = _test_folder(root)
  folders = {"train": root / "train", "test": test}
  classes, train_notes = class_folders.list_classes(folders["train"])
  if len(classes) < 2:
    raise LtddError(
      f"{folders['train']}: found {len(classes)} class folder(s); expected two or more."
    )
  if odd := [name for name in map(class_folders.shown, classes) if name not in classes]:
    raise LtddError(
      f"{folders['train']}: the name of the class folder {odd[0]} is not UTF-8, as in old "
      "archives, and no report could show it; expected another name"
    )
  if class_folders.are_numbers(classes):
    notes.append(
      f"classes are sorted by the numbers that name them: class 0 is {classes[0]!r}, class "
      f"{len(classes) - 1} is {classes[-1]!r}"
    )
  about = {"train": train_notes, "test": _check_test_classes(test, classes)}
  found = {}
  for split, folder in folders.items():
    found[split], ignored = class_folders.list_images(folder, classes)
    notes += [f"{split}: {note}" for note in about[split] + ignored]
  return _Found(folders, classes, found, notes)


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


def _decode(file: epath.Path, size: tuple[int, int], crop_pct: float) -> np.ndarray:
  with unreadable_named(str(file)):
    return decode(file.read_bytes(), 3, size, crop_pct)


def _check_counts(folder, classes, labels, *, all_needed: bool) -> None:
  if len(labels) == 0:
    raise LtddError(f"{folder}: no readable image in any class folder.")
  empty = np.flatnonzero(np.bincount(labels, minlength=len(classes)) == 0)
  if all_needed and len(empty):
    raise LtddError(
      f"{folder / classes[empty[0]]}: no readable image in this class folder ({len(empty)} such). "
      "Every class needs at least one training image: add some or delete the folder."
    )
