"""Opens a data set by name: embedded digits, any TFDS image set, folders, npz files, arrays.

  source = open_source("cifar10", data_dir="/data/tfds")
  images = source.read("train", indices)               # uint8 (n, h, w, c)

TFDS is read through its random-access sources: no TensorFlow, no network. This is the only file
that imports tensorflow_datasets.
"""

import contextlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ltdd_jax.core import config, files
from ltdd_jax.core.types import LtddError
from ltdd_jax.data import checks
from ltdd_jax.data.arrays import check_labels, open_arrays, open_digits, open_npz
from ltdd_jax.data.folders import open_folder
from ltdd_jax.data.images import UNREADABLE, decode_all, image_shape, measure
from ltdd_jax.data.specs import SPECS, DatasetSpec, DataSource

__all__ = ["DataSource", "open_source"]

_TFDS_NAME = re.compile(r"[A-Za-z]\w*(/[\w.+=,-]+)?(:(\d+|\*)(\.(\d+|\*)){2})?")
_CHUNK = 1024  # records held at a time
_TEST_SPLITS = ("test", "validation")


def open_source(
  name: str,
  *,
  data_dir: str | None = None,
  image_size: int | Sequence[int] | None = None,
  on_unreadable: str = "error",
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
    on_unreadable: for folders, "error" or "skip".
    arrays: for "arrays", a dict of x_train, y_train, x_test, y_test and maybe classes.
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
  if name == "digits":
    source = open_digits(image_size=image_size)
  elif name == "arrays":
    source = open_arrays(name, arrays, image_size=image_size)
  elif kind == "npz":
    source = open_npz(path, image_size=image_size)
  elif kind == "folder":
    source = open_folder(path, image_size=image_size, on_unreadable=on_unreadable)
  else:
    _check_name(name)
    source = _open_tfds(name, data_dir and str(files.path(data_dir)), image_size)
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


def _open_tfds(name: str, data_dir: str | None, image_size) -> DataSource:
  builder = _prepared_builder(name, data_dir)
  info = builder.info
  image_key, label_key = _keys(name, info)
  shape = _output_shape(name, info.features[image_key], image_shape(image_size))
  class_names = tuple(info.features[label_key].names)
  k = len(class_names)

  records, labels, test_split = {}, {}, None
  for split in _usable_splits(name, info):
    found = _open_split(builder, split, image_key)
    values = _read_labels(builder, found, label_key)
    if len(values) == 0:
      raise LtddError(f"{name}: the {split} split is empty.")
    if split != "train" and (values < 0).any():
      continue  # ImageNet's test split has label -1 throughout: go on to validation
    test_split = None if split == "train" else split
    role = "test" if test_split else "train"
    records[role] = found
    labels[role] = check_labels(f"{name}: {split} labels", values, k, len(values))
    if test_split:
      break
  if test_split is None:
    raise LtddError(f"{name}: no test or validation split has labels.")

  def read(split, indices):
    out = np.empty((len(indices), *shape), np.uint8)
    for start in range(0, len(out), _CHUNK):
      rows = _fetch(builder, records[split], indices[start : start + _CHUNK])
      with _damage_named(builder):
        encoded = [row[image_key] for row in rows]
        out[start : start + _CHUNK] = decode_all(encoded, shape[2], shape[:2])
    return out

  spec = _tfds_spec(name, class_names, shape, labels, read)
  notes = () if test_split == "test" else (f"test: the {test_split} split of {name}",)
  return DataSource(
    spec, labels["train"], labels["test"], read, spec.class_names or class_names, notes
  )


def _output_shape(name: str, image, size: tuple[int, int] | None) -> tuple[int, int, int]:
  known = SPECS.get(_base_name(name))
  height, width, channels = image.shape
  if channels not in (1, 3) or image.np_dtype != np.uint8:
    raise LtddError(
      f"{name}: {image.np_dtype} images of shape {image.shape}; expected 8-bit grey or RGB."
    )
  if size is None and (height is None or width is None):
    if known is None:
      raise LtddError(f"{name}: its images differ in size; set data.image_size, e.g. 64.")
    size = known.image_shape[:2]
  return (*(size or (height, width)), channels)


def _base_name(name: str) -> str:
  """The name without TFDS's `/config` and `:version`."""
  return re.split("[:/]", name)[0]


def _tfds_spec(name, names, shape, labels, read) -> DatasetSpec:
  """Facts from the table where it has them, else measured; sizes are those found."""
  known = SPECS.get(_base_name(name))
  if known and known.num_classes != len(names):
    raise LtddError(
      f"{name}: prepared with {len(names)} classes, expected {known.num_classes}. "
      "Is data_dir the right folder?"
    )
  if known:
    mean, std = known.mean, known.std
  else:
    mean, std = measure(lambda indices: read("train", indices), len(labels["train"]))
  unnamed = names == tuple(str(c) for c in range(len(names)))
  return DatasetSpec(
    name=name,
    num_classes=len(names),
    image_shape=shape,
    mean=mean,
    std=std,
    num_train=len(labels["train"]),
    num_test=len(labels["test"]),
    class_names=known.class_names if known and known.class_names and unnamed else names,
    tfds_name=known.tfds_name if known else name,
  )


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
    raise LtddError(_unknown(name, known)) from error
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


def _usable_splits(name: str, info) -> list[str]:
  found = [s for s in ("train", *_TEST_SPLITS) if s in info.splits]
  if "train" not in found or len(found) < 2:
    raise LtddError(
      f"{name} has the splits {', '.join(info.splits)}; expected train and test or validation. "
      "Export it as a folder or an npz file with a test set of your choice."
    )
  return found


def _open_split(builder, split: str, image_key: str):
  """Opens a split whose images stay encoded, so that labels can be read by themselves."""
  import tensorflow_datasets as tfds

  encoded = {image_key: tfds.decode.SkipDecoding()}
  with _damage_named(builder):
    return builder.as_data_source(split=split, decoders=encoded, file_format="array_record")


def _fetch(builder, records, indices) -> list[dict[str, Any]]:
  with _damage_named(builder):
    return records.__getitems__([int(i) for i in indices])


def _read_labels(builder, records, label_key: str) -> np.ndarray:
  labels = np.empty(len(records), np.int64)
  for start in range(0, len(labels), _CHUNK):
    rows = _fetch(builder, records, range(start, min(start + _CHUNK, len(labels))))
    labels[start : start + _CHUNK] = [row[label_key] for row in rows]
  return labels


@contextlib.contextmanager
def _damage_named(builder):
  """ArrayRecord raises RuntimeError for files that are cut short, altered or gone."""
  try:
    yield
  except (RuntimeError, *UNREADABLE) as error:
    raise LtddError(
      f"{builder.data_path}: a file of this prepared data set is damaged or missing ({error}). "
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
