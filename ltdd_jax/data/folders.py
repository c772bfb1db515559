"""Folders of images, one folder a class: `path/train/<class>/*` and `path/test/<class>/*`."""

import os
from collections.abc import Iterator, Sequence

import numpy as np
from etils import epath

from ltdd_jax.core import files
from ltdd_jax.core.types import LtddError
from ltdd_jax.data.images import UNREADABLE, decode, image_shape, map_threads, measure
from ltdd_jax.data.specs import DatasetSpec, DataSource

_SUFFIXES = frozenset(
  (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
)
_SYSTEM = frozenset(  # beside names that begin with a dot; in lower case
  ("@eadir", "__macosx", "thumbs.db", "desktop.ini", "$recycle.bin", "#recycle", "lost+found")
)
_TEST_FOLDERS = ("test", "val", "validation")


def open_folder(
  path: str, *, image_size: int | Sequence[int] | None, on_unreadable: str = "error"
) -> DataSource:
  """Opens class folders; class names are the sorted folder names, counts are what is found.

  Images of any size and mode become RGB of `image_size` (see `images.decode`). Every file is
  decoded once when the source is opened, so an unreadable one is found before any work starts.
  What is left out is counted in `notes`.

  Args:
    path: the folder with `train` and `test` (or `val`, `validation`) in it.
    image_size: side or (h, w); required.
    on_unreadable: "error", or "skip" to leave unreadable images out, counted in `notes`.

  Raises:
    LtddError: for a missing or empty folder, classes that differ, an unreadable image, or a link
      that leads nowhere.
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
  classes, train_notes = class_folders(folders["train"])
  if len(classes) < 2:
    raise LtddError(
      f"{folders['train']}: found {len(classes)} class folder(s); expected two or more."
    )
  if _are_numbers(classes):
    notes.append(
      f"classes are sorted by the numbers that name them: class 0 is {classes[0]!r}, class "
      f"{len(classes) - 1} is {classes[-1]!r}"
    )
  about = {"train": train_notes, "test": _check_test_classes(test, classes)}
  images, labels = {}, {}
  for split, folder in folders.items():
    found, ignored = list_images(folder, classes)
    found, skipped = _readable(found, size, on_unreadable)
    if skipped:
      about[split].append(f"skipped {len(skipped)} unreadable images: {_some(skipped)}")
    notes += [f"{split}: {note}" for note in about[split] + ignored]
    images[split] = [file for file, _ in found]
    labels[split] = np.array([label for _, label in found], np.int32)
    _check_counts(folder, classes, labels[split], all_needed=split == "train")

  def read(split, indices):
    if len(indices) == 0:
      return np.zeros((0, *size, 3), np.uint8)
    chosen = [images[split][i] for i in indices]
    return np.stack(map_threads(lambda file: _decode(file, size), chosen))

  mean, std = measure(lambda indices: read("train", indices), len(images["train"]))
  spec = DatasetSpec(
    name=name,
    num_classes=len(classes),
    image_shape=(*size, 3),
    mean=mean,
    std=std,
    num_train=len(images["train"]),
    num_test=len(images["test"]),
    class_names=classes,
  )
  return DataSource(spec, labels["train"], labels["test"], read, classes, tuple(notes))


# ---- what is there ----


def class_folders(folder: epath.Path) -> tuple[tuple[str, ...], list[str]]:
  """Returns the names of the class folders, and notes on what else is beside them.

  Names are sorted; names that are all whole numbers are sorted by number: 2 before 10.
  """
  entries, hidden = _entries(folder)
  _check_links(entries)
  names = [p.name for p in entries if p.is_dir()]
  notes = _ignored("files beside the class folders", [p for p in entries if not p.is_dir()])
  notes += _ignored("hidden or system files and folders", hidden)
  if _are_numbers(names):
    names.sort(key=lambda name: (int(name), name))
  return tuple(names), notes


def list_images(
  folder: epath.Path, classes: Sequence[str]
) -> tuple[list[tuple[epath.Path, int]], list[str]]:
  """Finds the images of class folders and of the folders in them, through links.

  Returns:
    (file, label) pairs sorted by class and name, and notes on files that were left out: those that
    are no images, and hidden ones and those of systems, as `.DS_Store` or `@eaDir`.

  Raises:
    LtddError: a link that leads nowhere or to a folder that it lies in, or a folder that cannot be
      read.
  """
  hidden = []
  found = [
    (file, label)
    for label, name in enumerate(classes)
    if (folder / name).is_dir()
    for file in _walk(folder / name, hidden)
  ]
  _check_links([file for file, _ in found])
  is_image = lambda file: file.suffix.lower() in _SUFFIXES and file.is_file()
  images = [(file, label) for file, label in found if is_image(file)]
  kept = {file for file, _ in images}
  notes = _ignored("files that are not images", [f for f, _ in found if f not in kept])
  return images, notes + _ignored("hidden or system files and folders", hidden)


def _are_numbers(names: Sequence[str]) -> bool:
  return all(name.isdecimal() for name in names)


def _entries(folder: epath.Path) -> tuple[list[epath.Path], list[epath.Path]]:
  """Returns what is in a folder, by name, and apart from that what is hidden or a system's."""
  try:
    entries = sorted(folder.iterdir())
  except OSError as error:
    raise LtddError(f"{folder}: cannot be read as a folder ({error}).") from error
  is_hidden = lambda p: p.name.startswith(".") or p.name.lower() in _SYSTEM
  return [p for p in entries if not is_hidden(p)], [p for p in entries if is_hidden(p)]


def _walk(
  folder: epath.Path, hidden: list[epath.Path], above: tuple[str, ...] = ()
) -> Iterator[epath.Path]:
  """Yields the files of a folder and its folders; what is hidden goes to that list."""
  real = os.path.realpath(folder)
  if real in above:
    raise LtddError(f"{folder}: a link to a folder that it lies in; remove it.")
  entries, more = _entries(folder)
  hidden += more
  for entry in entries:
    if entry.is_dir():
      yield from _walk(entry, hidden, (*above, real))
    else:
      yield entry


def _check_links(entries: Sequence[epath.Path]) -> None:
  dangling = [p for p in entries if os.path.islink(p) and not p.exists()]
  if dangling:
    raise LtddError(
      f"{len(dangling)} link(s) lead nowhere: {_some(dangling)}. Expected files or folders that "
      "are there: mount or copy what the links stand for, or remove them."
    )


def _ignored(what: str, paths: Sequence[epath.Path]) -> list[str]:
  return [f"ignored {len(paths)} {what}: {_some(paths)}"] if paths else []


def _some(things: Sequence[object]) -> str:
  return ", ".join(str(t) for t in things[:5]) + (", ..." if len(things) > 5 else "")


# ---- train and test ----


def _test_folder(root: epath.Path) -> tuple[epath.Path, list[str]]:
  """Returns the folder of test images, and notes on folders that are not used."""
  names = class_folders(root)[0] if root.is_dir() else ()
  test = next((name for name in _TEST_FOLDERS if name in names), None)
  if "train" not in names or test is None:
    raise LtddError(
      f"folder:{root}: found the folders: {', '.join(names) or 'nothing'}. Expected "
      "train/<class>/* and test/<class>/* (test may be called val or validation); a balanced test "
      "set is what results are counted on."
    )
  return root / test, _ignored("other folders", [n for n in names if n not in ("train", test)])


def _check_test_classes(test: epath.Path, classes: tuple[str, ...]) -> list[str]:
  found, notes = class_folders(test)
  unknown = sorted(set(found) - set(classes))
  if unknown:
    raise LtddError(
      f"{test}: class folder {unknown[0]!r} has no counterpart in train ({len(unknown)} such). "
      f"Classes are the folders of train: {', '.join(classes[:20])}."
    )
  missing = [name for name in classes if name not in found]
  if missing:
    notes.append(f"no folder for {len(missing)} of {len(classes)} classes: {_some(missing)}")
  return notes


def _readable(found, size, on_unreadable):
  """Decodes every file once; returns the readable pairs and the unreadable files."""

  def problem(pair):
    try:
      decode(pair[0].read_bytes(), 3, size)
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
