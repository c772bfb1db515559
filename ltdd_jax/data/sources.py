"""Opens a data set by name: embedded digits, any TFDS image set, folders, npz files, arrays.

  source = open_source("cifar10", data_dir="/data/tfds")
  images = source.read("train", indices)               # uint8 (n, h, w, c)

TFDS is read through its random-access sources: no TensorFlow, no network. This is the only file
that imports tensorflow_datasets.
"""

import contextlib
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ltdd_jax.core import config, files
from ltdd_jax.core.registry import check_choice
from ltdd_jax.core.types import LtddError
from ltdd_jax.data import checks
from ltdd_jax.data.arrays import NAMES, check_labels, open_arrays, open_digits, read_npz
from ltdd_jax.data.folders import open_folder
from ltdd_jax.data.images import (
  UNREADABLE,
  check_crop_pct,
  decode_all,
  image_shape,
  make_source,
)
from ltdd_jax.data.specs import SPECS, DatasetSpec, DataSource

_TFDS_NAME = re.compile(r"[A-Za-z]\w*(/[\w.+=,-]+)?(:(\d+|\*)(\.(\d+|\*)){2})?")
_CHUNK = 1024  # records held at a time


def open_source(
  name: str,
  *,
  data_dir: str | None = None,
  image_size: int | Sequence[int] | None = None,
  on_unreadable: str = "error",
  lists: tuple[str, str] | None = None,
  crop_pct: float = 1.0,
  arrays: Mapping[str, Any] | None = None,
  mean: Sequence[float] | None = None,
  std: Sequence[float] | None = None,
) -> DataSource:
  """Opens a data set. Labels are read now, images when `read` is called.

  Args:
    name: "digits"; "folder:/path" with train/<class>/* and test/<class>/*; "npz:/path/file.npz";
      "arrays"; else the name of a TFDS image-classification set, such as "cifar10".
    data_dir: where prepared TFDS sets lie; None is TFDS's own default.
    image_size: side or (h, w) to resize to; required for images of different sizes.
    on_unreadable: for folders, "error", "skip" or "later".
    lists: for folders, files that list the training and the test images.
    crop_pct: for folders and TFDS, the share of a test image's short side that is scaled to
      `image_size`; 0.875 is torchvision's 224 pixels out of 256.
    arrays: for "arrays", see `arrays.open_arrays`.
    mean: with `std`, channel constants instead of the table's or measured ones.
    std: see mean.

  Raises:
    LtddError: saying what is wrong and what to do.
  """
  if not isinstance(name, str):
    raise LtddError(f"data source {name!r} is of type {type(name).__name__}; expected a name.")
  if (arrays is not None) != (name == "arrays"):
    raise LtddError(f"data source {name!r}: the argument `arrays` goes with the name 'arrays'.")
  kind, _, path = name.partition(":")
  if kind in ("folder", "npz") and not path:
    raise LtddError(f"data source {name!r}: the path is missing, as in '{kind}:/path'.")
  if lists is not None and kind != "folder":
    raise LtddError(f"data source {name!r}: config.data.lists is {lists}; expected 'folder:/path'")
  check_choice("config.data.on_unreadable", on_unreadable, ("error", "skip", "later"))
  if on_unreadable == "skip" and kind != "folder":
    raise LtddError(
      f"data source {name!r}: config.data.on_unreadable is 'skip', which is for 'folder:/path'; "
      "expected 'error' or 'later', both of which stop at an unreadable image"
    )
  check_crop_pct(crop_pct)
  if crop_pct < 1 and kind in ("digits", "arrays", "npz"):
    raise LtddError(
      f"data source {name!r}: config.data.crop_pct is {crop_pct}; expected 1, since its images are "
      "arrays"
    )
  if name == "digits":
    source = open_digits(image_size=image_size)
  elif name == "arrays":
    source = open_arrays(name, arrays, image_size=image_size)
  elif kind == "npz":
    arrays = read_npz(name, path, NAMES, ("classes",))
    source = open_arrays(name, arrays, image_size=image_size)
  elif kind == "folder":
    constants = None if mean is None or std is None else (mean, std)  # checked below
    source = open_folder(
      path,
      image_size=image_size,
      on_unreadable=on_unreadable,
      lists=lists,
      constants=constants,
      crop_pct=crop_pct,
    )
  else:
    _check_name(name)
    source = _open_tfds(name, data_dir and str(files.path(data_dir)), image_size, crop_pct)
  return _with_constants(source, mean, std)


def _check_name(name: str) -> None:
  """Raises LtddError for what cannot be the name of a TFDS set."""
  if name.endswith(".npz"):
    raise LtddError(f"data source {name!r} is not known: npz:{name} was meant?")
  if name.startswith(("/", "~", ".")) or "://" in name:
    raise LtddError(f"data source {name!r} is not known: folder:{name} was meant?")
  if not _TFDS_NAME.fullmatch(name):
    raise LtddError(_unknown(name, ("digits", "folder", "npz", "arrays", *SPECS)))


def _unknown(name: str, known: Sequence[str]) -> str:
  hint = config.suggest(name.partition(":")[0].lower(), known)
  return (
    f"data source {name!r} is not known. {hint}{' ' if hint else ''}Sources: digits, folder:/path, "
    f"npz:/file.npz, arrays, or a set of TFDS ({', '.join(s for s in SPECS if s != 'digits')}, "
    "...), whose prepared files may lie in data_dir."
  )


def _with_constants(source: DataSource, mean, std) -> DataSource:
  if mean is None and std is None:
    return source
  channels = source.spec.image_shape[-1]
  for values in (mean, std):
    numbers = isinstance(values, (Sequence, np.ndarray)) and all(map(checks.is_number, values))
    if not numbers or len(values) != channels:
      raise LtddError(f"mean={mean}, std={std}: expected both, with {channels} number(s) each.")
  if min(std) <= 0:
    raise LtddError(f"std={std}: expected numbers > 0, which images are divided by.")
  spec = source.spec._replace(mean=tuple(map(float, mean)), std=tuple(map(float, std)))
  return source._replace(spec=spec)


class _Prepared(NamedTuple):
  """The images of a TFDS set, which workers get a copy of."""

  where: str
  records: Mapping[str, Any]  # of each split, still encoded
  orders: Mapping[str, np.ndarray]  # places of its images among them
  image_key: str
  shape: tuple[int, ...]  # (h, w, c) of images that are read
  crop_pct: float  # of those of the test

  def read(self, split: str, indices: np.ndarray) -> np.ndarray:
    out = np.empty((len(indices), *self.shape), np.uint8)
    seen = self.crop_pct if split == "test" else 1.0
    for start in range(0, len(out), _CHUNK):
      places = self.orders[split][indices[start : start + _CHUNK]]
      with _damage_named(self.where):
        rows = self.records[split].__getitems__(places.tolist())
        encoded = [row[self.image_key] for row in rows]
        out[start : start + _CHUNK] = decode_all(encoded, self.shape[2], self.shape[:2], seen)
    return out

  def stored(self, split: str, index: int) -> tuple[str, bytes]:
    with _damage_named(self.where):
      row = self.records[split][int(self.orders[split][index])]  # __getitems__ starts threads
    return f"{self.where}: {split} image {index}", row[self.image_key]


def _open_tfds(name: str, data_dir: str | None, image_size, crop_pct: float) -> DataSource:
  known = SPECS.get(_base_name(name))
  builder = _prepared_builder(name, data_dir)
  info = builder.info
  image_key, label_key = _keys(name, info)
  *size, channels = _output_shape(name, info.features[image_key], image_shape(image_size), known)
  classes = tuple(info.features[label_key].names)
  if known and known.num_classes != len(classes):
    raise LtddError(
      f"{name}: prepared with {len(classes)} classes, expected {known.num_classes}. "
      "Is data_dir the right folder?"
    )
  records, labels, orders, test_split = _labelled_splits(name, builder, image_key, label_key)
  where, shape = str(builder.data_path), (*size, channels)
  prepared = _Prepared(where, records, orders, image_key, shape, crop_pct)
  for split, values in labels.items():
    labels[split] = check_labels(f"{name}: {split} labels", values, len(classes), len(values))
  if known and known.class_names and classes == tuple(str(c) for c in range(len(classes))):
    classes = known.class_names
  notes = []
  if test_split != "test":
    notes.append(f"test: the {test_split} split of {name}")
  if "id" not in builder.info.features:
    notes.append(f"{name} has no ids: its images are in TFDS's order, not in the archive's")
  return make_source(name, classes, labels, prepared.read, tuple(notes), known, prepared.stored)


def _labelled_splits(
  name: str, builder, image_key: str, label_key: str
) -> tuple[dict[str, Any], dict[str, np.ndarray], dict[str, np.ndarray], str]:
  """Returns records, labels and order of "train" and "test", and which split is the test set.

  Images stay encoded, so that labels can be read by themselves. A split whose labels are -1, as
  ImageNet's test split, is no test set.
  """
  import tensorflow_datasets as tfds

  encoded = {image_key: tfds.decode.SkipDecoding()}
  records, labels, orders = {}, {}, {}
  for split in ("train", "test", "validation"):
    if split not in builder.info.splits:
      continue
    with _damage_named(builder.data_path):
      found = builder.as_data_source(split=split, decoders=encoded, file_format="array_record")
      values, order = _read_labels(found, label_key)
    role = "train" if split == "train" else "test"
    if len(values) and (split == "train" or values.min() >= 0):
      records[role], labels[role], orders[role] = found, values, order
    if "test" in labels:
      break
  if len(labels) < 2:
    raise LtddError(
      f"{name} has the splits {', '.join(builder.info.splits)}; expected train, and test or "
      "validation, with images and labels. Export it as a folder or an npz file with a test set of "
      "your choice."
    )
  return records, labels, orders, split


def _output_shape(
  name: str, image, size: tuple[int, int] | None, known: DatasetSpec | None
) -> tuple[int, int, int]:
  height, width, channels = image.shape
  if channels not in (1, 3) or image.np_dtype != np.uint8:
    raise LtddError(
      f"{name}: {image.np_dtype} images of shape {image.shape}; expected 8-bit grey or RGB."
    )
  if size is None and None in (height, width):
    if known is None:
      raise LtddError(f"{name}: its images differ in size; set data.image_size, e.g. 64.")
    size = known.image_shape[:2]
  return (*(size or (height, width)), channels)


def _base_name(name: str) -> str:
  """The name without TFDS's `/config` and `:version`."""
  return re.split("[:/]", name)[0]


def _prepared_builder(name: str, data_dir: str | None):
  """Finds the prepared set, or explains how to come by one."""
  builder = _builder(name, data_dir)
  where = "" if data_dir is None else f", data_dir={data_dir!r}"
  command = (
    f'python -c "import tensorflow_datasets as tfds; tfds.builder({name!r}{where})'
    ".download_and_prepare(file_format='array_record')\""
  )
  if not builder.is_prepared():
    folder = _base_name(name)
    raise LtddError(
      f"{name} is not prepared: nothing in {builder.data_path}.\n"
      f"  With a network:  {command}\n"
      "    (preparing may need TensorFlow, reading never does)\n"
      f"  Without: run that on another machine, copy the folder {folder}/ which it makes, and set\n"
      f"    data.data_dir to the folder that {folder}/ then lies in."
    )
  formats = {str(f.value) for f in builder.info.available_file_formats()}
  if "array_record" not in formats:
    raise LtddError(
      f"{builder.data_path} is prepared as {', '.join(sorted(formats))}, which cannot be read at "
      "random without TensorFlow. Prepare it as ArrayRecord, into another data_dir or after "
      f"deleting this folder:\n  {command}"
    )
  return builder


def _builder(name: str, data_dir: str | None):
  import tensorflow_datasets as tfds  # 0.4 s, and needed by TFDS sets only

  try:
    return tfds.builder(name, data_dir=data_dir)
  except tfds.core.DatasetNotFoundError as error:
    known = ("digits", *SPECS, *tfds.list_builders(with_community_datasets=False))
    where = f" Nothing of this name and version is prepared in data_dir {data_dir!r}."
    raise LtddError(_unknown(name, known) + (where if data_dir else "")) from error
  except (ImportError, OSError, KeyError, ValueError, AssertionError) as error:
    raise LtddError(
      f"data source {name!r}: TFDS cannot set it up here ({type(error).__name__}: {error}). "
      "Export it as a folder or an npz file instead."
    ) from error


def _keys(name: str, info) -> tuple[str, str]:
  import tensorflow_datasets as tfds

  image, label = info.supervised_keys or (None, None)
  features = info.features
  if not (
    isinstance(image, str)
    and isinstance(label, str)
    and isinstance(features[image], tfds.features.Image)
    and isinstance(features[label], tfds.features.ClassLabel)
  ):
    raise LtddError(
      f"{name} is no image-classification set: its supervised keys are {info.supervised_keys}, "
      f"its features {', '.join(features)}."
    )
  return image, label


def _read_labels(records, label_key: str) -> tuple[np.ndarray, np.ndarray]:
  """Labels (n,) in the order of the archive, and where each image lies among the records (n,).

  TFDS stores records by a hash of their `id`, which ends in the position in the archive:
  `train_16399`. Published rules choose images by that position. Without ids the order stays.
  """
  labels, places = [], []
  for start in range(0, len(records), _CHUNK):
    rows = records.__getitems__(list(range(start, min(start + _CHUNK, len(records)))))
    labels += [row[label_key] for row in rows]
    places += [re.fullmatch(rb"\w*_(\d+)", row.get("id", b"")) for row in rows]
  order = np.arange(len(labels))
  known = [int(place[1]) for place in places if place]
  if len(known) == len(labels):
    order = np.argsort(known, kind="stable")
  return np.array(labels, np.int64)[order], order


@contextlib.contextmanager
def _damage_named(where):
  """ArrayRecord raises RuntimeError for files that are cut short, altered or gone."""
  try:
    yield
  except (RuntimeError, *UNREADABLE) as error:
    raise LtddError(
      f"{where}: a file of this prepared data set is damaged or missing ({error}). "
      "Delete the folder and prepare or copy it anew."
    ) from error


def test_indices(source: DataSource, num_test: int | None) -> np.ndarray:
  """All test images, or the first `num_test // k` of each class."""
  if num_test is None:
    return np.arange(len(source.test_labels))
  per_class = num_test // source.spec.num_classes
  if per_class < 1:
    raise LtddError(
      f"config.data.num_test is {num_test}; expected at least one image for each of the "
      f"{source.spec.num_classes} classes, or None for all"
    )
  rows = [
    np.flatnonzero(source.test_labels == c)[:per_class] for c in range(source.spec.num_classes)
  ]
  return np.sort(np.concatenate(rows))
