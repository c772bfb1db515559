"""What is in class folders: the classes, their images, and what is neither.

  classes, notes = list_classes(root / "train")
  images, more_notes = list_images(root / "train", classes)     # (file, label) pairs

Links are followed. Nothing is left out without a note or an error.
"""

import os
from collections.abc import Collection, Iterator, Sequence

from etils import epath

from ltdd_jax.core.types import LtddError

_SUFFIXES = frozenset(
  (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
)
_SYSTEM = frozenset(  # beside names that begin with a dot; in lower case
  ("@eadir", "__macosx", "thumbs.db", "desktop.ini", "$recycle.bin", "#recycle", "lost+found")
)


def list_classes(
  folder: epath.Path, expected: Collection[str] = ()
) -> tuple[tuple[str, ...], list[str]]:
  """Returns the names of the class folders, and notes on files beside them that are not expected.

  Names are sorted; names that are all whole numbers are sorted by number: 2 before 10.
  """
  entries, hidden = _entries(folder)
  _check_links(entries)
  names = [p.name for p in entries if p.is_dir()]
  beside = [p for p in entries if not p.is_dir() and p.name not in expected]
  notes = ignored("files beside the class folders", beside)
  notes += ignored("hidden or system files and folders", hidden)
  if are_numbers(names):
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
    LtddError: a link that leads nowhere, a folder that is found twice through links, for one class
      or two, or a folder that cannot be read.
  """
  hidden: list[epath.Path] = []
  others: list[epath.Path] = []
  images: list[tuple[epath.Path, int]] = []
  seen = {os.path.realpath(folder): folder}
  for label, name in enumerate(classes):
    files = list(_walk(folder / name, hidden, seen)) if (folder / name).is_dir() else []
    _check_links(files)
    for file in files:
      if file.suffix.lower() in _SUFFIXES and file.is_file():
        images.append((file, label))
      else:
        others.append(file)
  notes = ignored("files that are not images", others)
  return images, notes + ignored("hidden or system files and folders", hidden)


def are_numbers(names: Sequence[str]) -> bool:
  """Whether all names are whole numbers."""
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
  folder: epath.Path, hidden: list[epath.Path], seen: dict[str, epath.Path]
) -> Iterator[epath.Path]:
  """Yields the files of a folder and its folders; `hidden` and `seen` (real paths) are added to."""
  real = os.path.realpath(folder)
  if real in seen:
    raise LtddError(
      f"{folder}: is the same folder as {seen[real]}, so that its images would count twice; remove "
      "the link."
    )
  seen[real] = folder
  entries, more = _entries(folder)
  hidden += more
  for entry in entries:
    if entry.is_dir():
      yield from _walk(entry, hidden, seen)
    else:
      yield entry


def _check_links(entries: Sequence[epath.Path]) -> None:
  dangling = [p for p in entries if os.path.islink(p) and not p.exists()]
  if dangling:
    raise LtddError(
      f"{len(dangling)} link(s) lead nowhere: {some(dangling)}. Expected files or folders that "
      "are there: mount or copy what the links stand for, or remove them."
    )


def ignored(what: str, names: Sequence[object]) -> list[str]:
  """A note on what was left out, if it was anything."""
  return [f"ignored {len(names)} {what}: {some(names)}"] if names else []


def some(things: Sequence[object]) -> str:
  """The first five things."""
  return ", ".join(shown(str(t)) for t in things[:5]) + (", ..." if len(things) > 5 else "")


def shown(name: str) -> str:
  """A name that can be written, with codes in the place of bytes that are not UTF-8."""
  return name.encode("utf-8", "backslashreplace").decode()
