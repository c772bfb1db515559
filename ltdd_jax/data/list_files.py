"""List files: one image a line, `train/n01440764/n01440764_190.JPEG 0`, its path and its class.

ImageNet-LT (Liu et al., CVPR 2019) is given by such files, `ImageNet_LT_train.txt` and
`ImageNet_LT_test.txt`, whose paths are those of ImageNet's folders `train` and `val`.
"""

import functools
import itertools

import numpy as np
from etils import epath

from ltdd_jax.core import files
from ltdd_jax.core.types import LtddError
from ltdd_jax.data import class_folders

Images = list[tuple[epath.Path, int]]


def read(list_file: files.Pathlike, root: epath.Path) -> Images:
  """Reads the images of a list, in its order, as (file, class) pairs.

  Raises:
    LtddError: a list that is not there, a line that is no path and class, or images that are not.
  """
  path = files.path(list_file)
  try:
    lines = [line for line in path.read_text().splitlines() if line.strip()]
  except (OSError, UnicodeDecodeError) as error:
    raise LtddError(f"{path}: cannot be read as a list of images ({error})") from error
  if not lines:
    raise LtddError(f"{path}: is empty; expected a line for each image, its path and its class")
  found = [_pair(path, number, line, root) for number, line in enumerate(lines, 1)]
  listed = functools.cache(_names)  # many images are in one folder
  missing = [file for file, _ in found if file.name not in listed(file.parent)]
  if missing:
    raise LtddError(
      f"{path}: {len(missing):,} of {len(found):,} images are not there: "
      f"{class_folders.some(missing)}. Paths are within {root}: is that the folder of the list?"
    )
  return found


def class_names(list_file: files.Pathlike, found: Images) -> tuple[str, ...]:
  """The folder that all images of a class lie in, or where there is no such folder its number.

  Raises:
    LtddError: a class from 0 to the highest has no image.
  """
  folders: dict[int, set[str]] = {}
  for file, label in found:
    folders.setdefault(label, set()).add(file.parent.name)
  if len(folders) <= max(folders):
    gap = next(c for c in itertools.count() if c not in folders)
    raise LtddError(
      f"{list_file}: has {len(folders)} classes up to {max(folders)}, and none of its images is of "
      f"class {gap}; expected an image of each class from 0"
    )
  names = [next(iter(folders[c])) for c in range(len(folders))]
  alone = all(len(names) == 1 for names in folders.values()) and len(set(names)) == len(names)
  return tuple(names) if alone else tuple(map(str, range(len(names))))


def _pair(path: epath.Path, number: int, line: str, root: epath.Path) -> tuple[epath.Path, int]:
  name, _, label = line.rpartition(" ")
  if not name.strip() or not label.isdecimal():
    raise LtddError(
      f"{path}, line {number}: {line!r} is no path and class; expected such as "
      "'train/n01440764/n01440764_190.JPEG 0'"
    )
  return root / name.strip(), int(label)


def _names(folder: epath.Path) -> set[str]:
  """What is in a folder."""
  return {p.name for p in folder.iterdir()} if folder.is_dir() else set()


def labels_of(found: Images) -> np.ndarray:
  """The classes (n,) int32."""
  return np.array([label for _, label in found], np.int32)
