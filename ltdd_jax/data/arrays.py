"""Sources that are arrays already: dictionaries from a notebook, npz files, embedded digits."""

import gzip
import importlib.util
import pathlib
import zipfile
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from ltdd_jax.core import files
from ltdd_jax.core.types import LtddError
from ltdd_jax.data.images import image_shape, make_source, resize
from ltdd_jax.data.specs import SPECS, DataSource

_MEDMNIST = ("train_images", "train_labels", "test_images", "test_labels")
NAMES = (("x_train", "y_train", "x_test", "y_test"), _MEDMNIST)
_HELD_OUT = 60  # test images of each class of digits
_KEPT = 114  # training images: the rarest class has 174


def open_arrays(
  name: str, arrays: Mapping[str, Any] | None, *, image_size: int | Sequence[int] | None = None
) -> DataSource:
  """Opens uint8 images and integer labels under `x_train, y_train, x_test, y_test`.

  Args:
    name: how messages call the source.
    arrays: the four arrays, and maybe `classes`, the k class names. Names of MedMNIST's files will
      do: `train_images`, `train_labels` (n, 1), ...; its `val_images` are not used.
    image_size: side or (h, w) to resize to.

  Raises:
    LtddError: naming the array that is missing or has the wrong type, shape or values.
  """
  arrays = arrays or {}
  keys = _chosen(name, arrays, NAMES)
  images, labels = {}, {}
  names = {"train": keys[:2], "test": keys[2:]}
  for split, (x, y) in names.items():
    images[split] = check_images(f"{name}: {x}", np.asarray(arrays[x]), image_size)
    values = np.asarray(arrays[y])
    column = keys == _MEDMNIST and values.ndim == 2 and values.shape[1] == 1
    labels[split] = check_integers(f"{name}: {y}", values[:, 0] if column else values)
  classes = _class_names(name, arrays.get("classes"), labels)
  for split, (_, y) in names.items():
    where = f"{name}: {y}"
    labels[split] = check_labels(where, labels[split], len(classes), len(images[split]))
  train, test = (images[split].shape[1:] for split in names)
  if train != test:
    raise LtddError(
      f"{name}: {keys[0]} holds {train} images and {keys[2]} {test}; expected one shape "
      "(image_size resizes both)."
    )
  read = lambda split, indices: images[split][np.asarray(indices)]
  return make_source(name, classes, labels, read)


def _chosen(
  name: str, found: Collection[str], expected: Sequence[tuple[str, ...]]
) -> tuple[str, ...]:
  """Returns the first of the expected tuples of names that is there; raises LtddError if none."""
  for keys in expected:
    if set(keys) <= set(found):
      return keys
  raise LtddError(
    f"{name}: found {', '.join(found) or 'nothing'}; expected "
    f"{', or '.join(', '.join(keys) for keys in expected)}."
  )


def check_labels(where: str, labels: np.ndarray, num_classes: int, num_images: int) -> np.ndarray:
  """Returns integer labels as (n,) int32, or says what is wrong with them."""
  if len(labels) != num_images:
    raise LtddError(f"{where} has {len(labels)} labels for {num_images} images.")
  wrong = np.flatnonzero((labels < 0) | (labels >= num_classes))
  if len(wrong):
    hint = " The labels start at 1: subtract 1." if labels.min() == 1 else ""
    raise LtddError(
      f"{where}[{wrong[0]}] is {labels[wrong[0]]}: expected labels in [0, {num_classes}).{hint}"
    )
  return labels.astype(np.int32)


def check_integers(where: str, labels: np.ndarray) -> np.ndarray:
  """Returns labels (n,), n > 0, if they are integers; raises LtddError if not."""
  if labels.dtype.kind not in "iu" or labels.ndim != 1:
    raise LtddError(
      f"{where} is {labels.dtype} {labels.shape}: expected one integer an image, shape (n,)."
    )
  if len(labels) == 0:
    raise LtddError(f"{where} is empty: expected at least one image.")
  return labels


def _class_names(name: str, classes, labels: dict[str, np.ndarray]) -> tuple[str, ...]:
  if classes is None:
    highest = max(int(y.max()) for y in labels.values())
    if min(int(y.min()) for y in labels.values()) == 1:
      raise LtddError(
        f"{name}: labels start at 1 and go to {highest}; expected them to start at 0: subtract 1. "
        "If class 0 has no image, name all classes in the array `classes`."
      )
    return tuple(str(c) for c in range(highest + 1))
  names = np.asarray(classes)
  if names.ndim != 1 or names.dtype.kind not in "US" or len(set(names.tolist())) != len(names):
    raise LtddError(f"{name}: classes is {names!r}: expected k different strings.")
  return tuple(n.decode() if isinstance(n, bytes) else n for n in names.tolist())


def check_images(where: str, images: np.ndarray, image_size) -> np.ndarray:
  """Returns uint8 images (n, h, w, c), resized if asked for; raises LtddError for others."""
  if images.dtype != np.uint8:
    raise LtddError(
      f"{where} is {images.dtype}: expected uint8 pixels. For floats in [0, 1] pass "
      "np.round(255 * x).astype(np.uint8); the library normalises by itself."
    )
  if images.ndim == 3:
    images = images[..., None]
  if images.ndim != 4 or images.shape[-1] not in (1, 3):
    raise LtddError(
      f"{where} has shape {images.shape}: expected (n, h, w, c) with 1 or 3 channels last, "
      "or (n, h, w)."
    )
  return resize(images, image_shape(image_size))


def read_npz(
  name: str,
  path: files.Pathlike,
  expected: Sequence[tuple[str, ...]],
  optional: tuple[str, ...] = (),
) -> dict[str, np.ndarray]:
  """Reads arrays of an npz file, which messages call `name`; nothing is ever unpickled.

  Args:
    name: see above.
    path: of the file.
    expected: tuples of names; the first whose arrays are all there is read.
    optional: names of arrays that are read if they are there.

  Raises:
    LtddError: for a file that is missing or damaged, other arrays, or an array of objects.
  """
  file = files.path(path)
  if not file.is_file():
    raise LtddError(f"{name}: there is no such file.")
  try:
    with file.open("rb") as opened, zipfile.ZipFile(opened):  # refuses what is no archive
      opened.seek(0)
      with np.load(opened, allow_pickle=False) as stored:
        keys = (*_chosen(name, stored.files, expected), *optional)
        return {key: stored[key] for key in keys if key in stored.files}
  except LtddError:
    raise
  except Exception as error:  # damaged headers and archives raise anything
    raise LtddError(f"{name}: not a readable npz file of plain arrays ({error}).") from error


def open_digits(*, image_size: int | Sequence[int] | None = None) -> DataSource:
  """Opens scikit-learn's 8 x 8 handwritten digits, with a balanced test set held out.

  Pixels are `round(value * 255 / 16)`. In each class, `RandomState(0).permutation` of its images in
  scikit-learn's order gives the first 60 to the test set and the next 114 to the training set; the
  rest is unused (class 8 has exactly 174). Both sets keep scikit-learn's order.
  """
  values, target = _read_digits()
  pixels = np.round(values * 255 / 16).astype(np.uint8)
  pixels = resize(pixels, image_shape(image_size))
  parts: dict[str, list[np.ndarray]] = {"train": [], "test": []}
  for c in range(10):
    members = np.flatnonzero(target == c)
    order = members[np.random.RandomState(0).permutation(len(members))]
    parts["test"].append(order[:_HELD_OUT])
    parts["train"].append(order[_HELD_OUT : _HELD_OUT + _KEPT])
  chosen = {split: np.sort(np.concatenate(rows)) for split, rows in parts.items()}
  labels = {split: target[rows].astype(np.int32) for split, rows in chosen.items()}
  read = lambda split, indices: pixels[chosen[split][np.asarray(indices)]]
  classes = tuple(str(c) for c in range(10))
  return make_source("digits", classes, labels, read, known=SPECS["digits"])


def _read_digits() -> tuple[np.ndarray, np.ndarray]:
  """Reads scikit-learn's file: values (n, 8, 8, 1) and classes (n,). Its import takes a second."""
  (folder,) = importlib.util.find_spec("sklearn").submodule_search_locations  # type: ignore[union-attr, misc]
  path = pathlib.Path(folder) / "datasets" / "data" / "digits.csv.gz"
  with gzip.open(path) as file:
    table = np.loadtxt(file, delimiter=",")
  return table[:, :-1].reshape(-1, 8, 8, 1), table[:, -1].astype(np.int64)
