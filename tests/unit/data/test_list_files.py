"""Lists of images, as those of ImageNet-LT."""

import pathlib

import numpy as np
import pytest
from PIL import Image

from ltdd_jax.core.types import LtddError
from ltdd_jax.data import list_files
from ltdd_jax.data.sources import open_source

TRAIN = ["train/ant/b.png 0", "train/cat/a.png 1", "train/cat/with space.png 1"]
TEST = ["val/cat/0.png 1", "val/ant/0.png 0"]


@pytest.fixture
def root(tmp_path):
  for number, line in enumerate([*TRAIN, *TEST, "train/cat/not_in_the_list.png 1"]):
    file = tmp_path / line.rpartition(" ")[0]
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (5, 7), (number,) * 3).save(file)
  (tmp_path / "train.txt").write_text("\n".join(TRAIN) + "\n")
  (tmp_path / "test.txt").write_text("\n".join(TEST))
  return tmp_path


def opened(root: pathlib.Path, train="train.txt", test="test.txt"):
  return open_source(f"folder:{root}", image_size=4, lists=(str(root / train), str(root / test)))


def test_images_and_order_are_those_of_the_list(root):
  source = opened(root)
  assert source.class_names == ("ant", "cat")
  assert source.train_labels.tolist() == [0, 1, 1]
  assert source.test_labels.tolist() == [1, 0]
  pixels = source.read("train", np.array([2, 0])), source.read("test", np.arange(2))
  assert [x[:, 0, 0, 0].tolist() for x in pixels] == [[2, 0], [3, 4]]
  assert source.notes == (f"images of {root}/train.txt and {root}/test.txt",)


def test_classes_of_several_folders_are_numbers(root):
  (root / "train.txt").write_text("train/ant/b.png 0\ntrain/cat/a.png 0\nval/cat/0.png 1\n")
  found = list_files.read(root / "train.txt", root)
  assert list_files.class_names("train.txt", found) == ("0", "1")


@pytest.mark.parametrize(
  ("lines", "said"),
  [
    (["train/ant/b.png"], r"train\.txt, line 1: 'train/ant/b\.png' is no path and class"),
    ([*TRAIN, "train/ant/b.png -1"], "line 4: .* is no path and class"),
    ([" 1"], "line 1: ' 1' is no path and class"),
    ([], "is empty; expected a line for each image"),
    (
      [*TRAIN, "train/ant/x.png 0", "train/cow/y.png 2"],
      r"2 of 5 images are not there: .*x\.png, .*y\.png\. Paths are within .*: is that the folder",
    ),
    ([*TRAIN, "train/cat/a.png 99999999999"], "3 classes up to 99999999999, and none .* class 2;"),
    (["train/ant/b.png 0"], r"found 1 class; expected two or more|has a class 1"),
  ],
)  # fmt: skip
def test_bad_lists(root, lines, said):
  (root / "train.txt").write_text("\n".join(lines))
  with pytest.raises(LtddError, match=said):
    opened(root)


def test_classes_of_the_test_list_have_the_numbers_of_the_training_list(root):
  (root / "test.txt").write_text("val/ant/0.png 0\nval/cat/0.png 0\n")
  said = r"val/cat/0\.png is of class 0, 'ant'; its folder, 'cat', is class 1 in .*train\.txt"
  with pytest.raises(LtddError, match=said):
    opened(root)


def test_one_list_for_both(root):
  both = (str(root / "train.txt"),) * 2
  with pytest.raises(LtddError, match=r"config\.data\.lists has .*train\.txt twice; expected a l"):
    open_source(f"folder:{root}", image_size=4, lists=both)


def test_a_list_that_is_not_there(root):
  with pytest.raises(LtddError, match=r"no\.txt: cannot be read as a list of images"):
    opened(root, train="no.txt")
  with pytest.raises(LtddError, match=r"config\.data\.lists is .*; expected 'folder:/path'"):
    open_source("digits", lists=("a", "b"))
