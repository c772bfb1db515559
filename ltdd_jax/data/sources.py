"""Opens a data set by name: embedded digits, any TFDS image set, folders, npz files, arrays.

  source = open_source("cifar10", data_dir="/data/tfds")
  images = source.read("train", indices)               # uint8 (n, h, w, c)

TFDS is read through its random-access sources: no TensorFlow, no network. This is the only file
that imports tensorflow_datasets.
"""

import difflib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ltdd_jax.data.arrays import check_labels, open_arrays, open_digits, open_npz
from ltdd_jax.data.folders import open_folder
from ltdd_jax.data.images import decode, image_shape, map_threads, measure
from ltdd_jax.data.specs import SPECS, DatasetSpec, Source
from ltdd_jax.types import LtddError

__all__ = ["Source", "open_source"]

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
) -> Source:
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
    source = _open_tfds(name, data_dir, image_size)
  return _with_constants(source, mean, std)


def _with_constants(source: Source, mean, std) -> Source:
  if mean is None and std is None:
    return source
  channels = source.spec.image_shape[-1]
  for values in (mean, std):
    if values is None or len(values) != channels:
      raise LtddError(f"mean={mean}, std={std}: expected both, with {channels} number(s) each.")
  spec = source.spec._replace(mean=tuple(map(float, mean)), std=tuple(map(float, std)))
  return source._replace(spec=spec)


def _open_tfds(name: str, data_dir: str | None, image_size) -> Source:
  builder = _prepared_builder(name, data_dir)
  image_key, label_key = _keys(name, builder.info)
  image, label = builder.info.features[image_key], builder.info.features[label_key]
  size = image_shape(image_size)
  height, width, channels = image.shape
  if size is None and (height is None or width is None):
    raise LtddError(f"{name}: its images differ in size; set data.image_size, e.g. 64.")
  if channels not in (1, 3) or image.np_dtype != np.uint8:
    raise LtddError(
      f"{name}: {image.dtype} images of shape {image.shape}; expected 8-bit grey or RGB."
    )

  records = _open_splits(name, builder, image_key)
  labels = {split: _read_labels(records[split], label_key) for split in records}
  test_split = _test_split(name, labels, label.num_classes)
  origin = {"train": records["train"], "test": records[test_split]}
  train_labels, test_labels = (
    check_labels(f"{name}: {s} labels", labels[s], label.num_classes, len(labels[s]))
    for s in ("train", test_split)
  )

  shape = (*(size or (height, width)), channels)

  def read(split, indices):
    out = np.empty((len(indices), *shape), np.uint8)
    for start in range(0, len(out), _CHUNK):
      rows = origin[split].__getitems__([int(i) for i in indices[start : start + _CHUNK]])
      pixels = map_threads(lambda row: decode(row[image_key], channels, size), rows)
      out[start : start + _CHUNK] = pixels
    return out

  names = tuple(label.names)
  spec = _tfds_spec(
    name, names, (*(size or (height, width)), channels), train_labels, test_labels, read
  )
  notes = () if test_split == "test" else (f"test: the {test_split} split of {name}",)
  return Source(spec, train_labels, test_labels, read, spec.class_names, notes)


def _tfds_spec(name, names, shape, train_labels, test_labels, read) -> DatasetSpec:
  """Facts from the table where it has them, else measured; sizes are those found."""
  known = SPECS.get(re.split("[:/]", name)[0])
  if known and known.num_classes != len(names):
    raise LtddError(
      f"{name}: prepared with {len(names)} classes, expected {known.num_classes}. "
      "Is data_dir the right folder?"
    )
  if known:
    mean, std = known.mean, known.std
  else:
    mean, std = measure(lambda indices: read("train", indices), len(train_labels))
  unnamed = names == tuple(str(c) for c in range(len(names)))
  return DatasetSpec(
    name=name,
    num_classes=len(names),
    image_shape=shape,
    mean=mean,
    std=std,
    num_train=len(train_labels),
    num_test=len(test_labels),
    class_names=known.class_names if known and known.class_names and unnamed else names,
    tfds_name=known.tfds_name if known else name,
  )


def _prepared_builder(name: str, data_dir: str | None):
  import tensorflow_datasets as tfds  # 0.4 s, and needed by TFDS sets only

  try:
    builder = tfds.builder(name, data_dir=data_dir)
  except tfds.core.DatasetNotFoundError as error:
    known = ["digits", "folder:", "npz:", "arrays", *SPECS, *tfds.list_builders()]
    near = difflib.get_close_matches(name, known, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise LtddError(
      f"data source {name!r} is not known.{hint} Sources: digits, folder:/path, npz:/file.npz, "
      f"arrays, or a set of TFDS ({', '.join(s for s in SPECS if s != 'digits')}, ...)."
    ) from error
  where = "" if data_dir is None else f", data_dir={data_dir!r}"
  command = (
    f'python -c "import tensorflow_datasets as tfds; tfds.builder({name!r}{where})'
    ".download_and_prepare(file_format='array_record')\""
  )
  if not builder.is_prepared():
    raise LtddError(
      f"{name} is not prepared: {builder.data_path} does not hold it.\n"
      f"  With a network:  {command}\n"
      "    (preparing may need TensorFlow for some sets; reading never does)\n"
      "  Without: run that command on another machine, copy the folder "
      f"{name.partition(':')[0]}/ that it\n"
      "    makes, and set data.data_dir to the folder that you copied it into."
    )
  formats = {str(f.value) for f in builder.info.available_file_formats()}
  if "array_record" not in formats:
    raise LtddError(
      f"{builder.data_path} is prepared as {', '.join(sorted(formats))}, which only TensorFlow "
      "reads. Prepare it once more as ArrayRecord, in another folder or after deleting this one:\n"
      f"  {command}"
    )
  return builder


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


def _open_splits(name: str, builder, image_key: str) -> dict[str, Any]:
  """Opens train and the possible test splits; images stay encoded, labels are decoded."""
  import tensorflow_datasets as tfds

  found = [s for s in ("train", *_TEST_SPLITS) if s in builder.info.splits]
  if "train" not in found or len(found) < 2:
    raise LtddError(
      f"{name} has the splits {', '.join(builder.info.splits)}; expected train and test or "
      "validation. Export it as a folder or an npz file with a test set of your choice."
    )
  encoded = {image_key: tfds.decode.SkipDecoding()}
  return {
    s: builder.as_data_source(split=s, decoders=encoded, file_format="array_record") for s in found
  }


def _read_labels(records, label_key: str) -> np.ndarray:
  labels = np.empty(len(records), np.int64)
  for start in range(0, len(labels), _CHUNK):
    rows = records.__getitems__(list(range(start, min(start + _CHUNK, len(labels)))))
    labels[start : start + _CHUNK] = [row[label_key] for row in rows]
  return labels


def _test_split(name: str, labels: dict[str, np.ndarray], num_classes: int) -> str:
  """The first test split that is labelled: that of ImageNet has label -1 throughout."""
  for split in _TEST_SPLITS:
    if split in labels and len(labels[split]) and (labels[split] >= 0).all():
      return split
  raise LtddError(f"{name}: no test or validation split has labels.")
