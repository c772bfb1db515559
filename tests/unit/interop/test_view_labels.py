"""Folders of labels of views: what is read, and what is wrong with others."""

import json

import numpy as np
import pytest

from ltdd_jax.core.types import LtddError
from ltdd_jax.interop import exports, view_labels
from ltdd_jax.interop.exports import fkd, record
from tests import small

LABELS = np.array([2, 0, 1, 0], np.int32)
LOGITS = np.random.RandomState(3).normal(0, 4, (4, 3)).astype(np.float16)
# Of 8 x 8 pixels. Image 1 is mirrored, and gets a box of 2 x 4 pixels of image 3.
ROWS = {
  "coords": np.array([[0, 0, 8, 8], [1, 2, 7, 5], [0, 0, 1, 1], [7, 7, 1, 1]], np.float32) / 8,
  "flip": np.array([False, True, False, False]),
  "mix_index": np.array([0, 3, 2, 3], np.int32),
  "mix_lam": np.array([1, 0.875, 1, 1], np.float32),
  "mix_bbox": np.array([[0] * 4, [6, 4, 8, 8], [0] * 4, [0] * 4], np.int32),
}


@pytest.fixture
def folder(tmp_path):
  """Three label epochs."""
  views = record.LabelledViews(3, "cutmix", lambda epoch: ROWS | {"logits": LOGITS + epoch})
  spec = small.SPEC
  facts = small.images(4), LABELS, spec.class_names, spec.mean, spec.std, LOGITS.astype(np.float32)
  return exports.write(record.DistilledSet(*facts, views=views), "fkd", tmp_path / "set")


def open_it(folder, names=small.SPEC.class_names):
  return view_labels.open_folder("config.label.sources.mine", str(folder), small.SPEC, names)


def change(folder, epoch=1, **arrays):
  """Writes a label epoch with other arrays; without those that are None."""
  arrays = {k: v for k, v in (fkd.read_epoch(folder, epoch) | arrays).items() if v is not None}
  np.savez(fkd.label_file(folder, epoch), **arrays)


def describe(folder, **facts):
  about = json.loads((folder / record.ABOUT).read_text()) | facts
  (folder / record.ABOUT).write_text(json.dumps(about))


def with_row(key, i, value):
  """An array of which row i is another."""
  array = (ROWS | {"logits": LOGITS})[key].copy()
  array[i] = value
  return {key: array}


def test_records_and_logits(folder):
  found = open_it(folder)
  assert (found.mix, found.shape, found.dtype, found.sides) == (
    "cutmix",
    (3, 4, 3),
    "float16",
    (8, 8),
  )
  np.testing.assert_array_equal(found.labels, LABELS)
  np.testing.assert_array_equal(found.clean_logits, LOGITS.astype(np.float32))
  records, logits = found.read(2)
  assert records.crop.tolist() == [[0, 0, 8, 8], [1, 2, 7, 5], [0, 0, 1, 1], [7, 7, 1, 1]]
  assert records.partner.tolist() == [0, 3, 2, 3]
  assert records.box[1].tolist() == [6, 4, 8, 8]
  assert [x.dtype.name for x in records] == ["int32", "bool", "int32", "float32", "int32"]
  np.testing.assert_array_equal(logits, LOGITS + 2)
  view_labels.check_fits(found, "mine", LABELS, 1, "clean")


def test_the_content_is_known_without_reading_it(folder):
  first = open_it(folder).sha256
  change(folder)
  assert open_it(folder).sha256 == first  # the same arrays, at another time
  change(folder, logits=(LOGITS + 1).astype(np.float32))
  second = open_it(folder)
  assert second.dtype == "float32"  # one file is enough
  describe(folder, mix="mixup")
  assert len({first, second.sha256, open_it(folder).sha256}) == 3


@pytest.mark.parametrize(
  ("arrays", "message"),
  [
    ({"flip": None}, r"epoch_00001.npz is damaged, or no npz file of coords, .*\. Export the set"),
    (
      {"logits": LOGITS[:, :2]},
      r"logits is float16 \(4, 2\); expected float16 or float32 \(4, 3\)",
    ),
    ({"flip": ROWS["flip"][:3]}, r"flip is bool \(3,\); expected bool \(4,\), for 4 images"),
    ({"logits": LOGITS.astype(int)}, "logits is int64 .*; expected float16 or float32"),
    ({"mix_index": ROWS["mix_lam"]}, "mix_index is float32 .*; expected int32 or int64"),
  ],
)
def test_types_and_shapes_are_checked_before_anything_is_read(arrays, message, folder):
  change(folder, **arrays)
  with pytest.raises(LtddError, match=message):
    open_it(folder)


@pytest.mark.parametrize(
  ("arrays", "message"),
  [
    (with_row("coords", 1, [0.5, 0, 0.625, 1]), r"coords\[1\] is .*inside images of 8 x 8"),
    (
      with_row("coords", 2, [0.1, 0, 0.5, 1]),
      r"coords\[2\] is \[0.1 .*expected a box of whole pixels",
    ),
    (with_row("coords", 0, np.nan), r"coords\[0\] is \[nan"),
    (with_row("mix_index", 3, 4), r"mix_index\[3\] is 4; expected the number of an image, 0 to 3"),
    (with_row("mix_bbox", 1, [6, 4, 9, 8]), r"mix_bbox\[1\] is \[6 4 9 8\]; expected a box inside"),
    (with_row("mix_lam", 1, 0.5), r"mix_lam\[1\] is 0.5; expected the share outside mix_bbox"),
    (with_row("logits", 3, np.inf), r"epoch_00001.npz: logits\[3\] is .*; expected finite logits"),
  ],
)
def test_values_are_checked_when_they_are_read(arrays, message, folder):
  change(folder, **arrays)
  found = open_it(folder)
  assert len(found.read(0)[1]) == 4
  with pytest.raises(LtddError, match=message):
    found.read(1)


def test_mixes_are_those_of_the_description(folder):
  describe(folder, mix=None)
  with pytest.raises(LtddError, match=r"mix_index\[1\] is 3; expected the image's own number"):
    open_it(folder).read(0)
  describe(folder, mix="mixup")
  change(folder, **with_row("mix_lam", 1, 1.5))
  with pytest.raises(LtddError, match=r"mix_lam\[1\] is 1.5; expected a share from 0 to 1"):
    open_it(folder).read(1)
  describe(folder, mix="blend")
  with pytest.raises(LtddError, match=r"mix in export.json is 'blend'"):
    open_it(folder)


def test_files_that_are_missing_damaged_or_too_many(folder, tmp_path):
  file = fkd.label_file(folder, 1)
  content = file.read_bytes()
  file.unlink()
  with pytest.raises(LtddError, match=r"labels/epoch_00001.npz is not there, and num_epochs is 3"):
    open_it(folder)
  file.write_bytes(content[: len(content) // 2])
  with pytest.raises(LtddError, match=r"epoch_00001.npz is damaged.*Export the set again"):
    open_it(folder)
  start = content.index((LOGITS + 1).tobytes())
  file.write_bytes(content[:start] + b"\0" + content[start + 1 :])
  with pytest.raises(LtddError, match=r"epoch_00001.npz is damaged.*Bad CRC-32"):
    open_it(folder)  # of a large file only `read` finds it
  with pytest.raises(LtddError, match=r"epoch_00001.npz: not a readable npz file .*Bad CRC-32"):
    fkd.read_epoch(folder, 1)
  file.write_bytes(content)
  change(folder, coords=np.tile(ROWS["coords"], (100, 1)))
  file.write_bytes(file.read_bytes().replace(b"(400, 4)", b"(400, 4 "))
  with pytest.raises(LtddError, match=r"epoch_00001.npz is damaged.*EOF in multi-line"):
    open_it(folder)
  file.write_bytes(content)
  describe(folder, num_epochs=2)
  with pytest.raises(LtddError, match=r"labels/epoch_00002.npz is there, and num_epochs is 2"):
    open_it(folder)
  describe(folder, num_epochs=None)
  with pytest.raises(LtddError, match=r"and num_epochs is None in export.json"):
    open_it(folder)
  with pytest.raises(LtddError, match="is a folder without labels of views; expected"):
    open_it(tmp_path)


def test_labels_of_another_set(folder):
  with pytest.raises(LtddError, match="another class map"):
    open_it(folder, ("a", "b"))
  found = open_it(folder)
  for labels, parts, message in (
    (LABELS[:3], 1, "of views of 4 images, and image source 'mine' has 3; expected the images"),
    (LABELS[::-1], 1, "of images of other classes than those of image source 'mine'"),
    (LABELS, 2, "those of image source 'mine' hold 2 x 2 small ones"),
  ):
    with pytest.raises(LtddError, match=message):
      view_labels.check_fits(found, "mine", labels, parts, "views")
  (folder / "set.npz").unlink()
  found = open_it(folder)
  view_labels.check_fits(found, "mine", LABELS[::-1], 1, "views")
  with pytest.raises(LtddError, match=r"fit_on is 'clean', and .* has no logits of the images"):
    view_labels.check_fits(found, "mine", LABELS, 1, "clean")
  describe(folder, image_shape=[9, 8, 1])
  with pytest.raises(LtddError, match=r"images have the shape \(9, 8, 1\)"):
    open_it(folder)
