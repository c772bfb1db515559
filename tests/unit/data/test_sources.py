"""Sources, among them tiny TFDS sets that are prepared here without TensorFlow or a network."""

import io
import json
import os
import shutil
import struct

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from ltdd_jax.core import files
from ltdd_jax.core.types import LtddError
from ltdd_jax.data import arrays as array_sources
from ltdd_jax.data import images as image_files
from ltdd_jax.data import stream
from ltdd_jax.data.sources import open_source


def blobs(n, h=6, w=6, c=3, seed=0):
  return np.random.RandomState(seed).randint(0, 256, (n, h, w, c)).astype(np.uint8)


# ---- digits -------------------------------------------------------------------------------------


def test_digits_are_those_of_scikit_learn():
  values, target = array_sources._read_digits()
  theirs = load_digits()
  np.testing.assert_array_equal(values[..., 0], theirs.images)
  np.testing.assert_array_equal(target, theirs.target)


def test_digits_are_balanced_and_disjoint():
  source = open_source("digits")
  assert np.bincount(source.train_labels).tolist() == [114] * 10
  assert np.bincount(source.test_labels).tolist() == [60] * 10
  assert source.class_names == tuple("0123456789")
  train, test = source.read("train", np.arange(1140)), source.read("test", np.arange(600))
  assert train.shape == (1140, 8, 8, 1)
  assert train.dtype == np.uint8
  assert not {x.tobytes() for x in train} & {x.tobytes() for x in test}
  assert train.max() == 255
  assert (train / 255).mean() == pytest.approx(source.spec.mean[0], abs=5e-5)
  assert (train / 255).std() == pytest.approx(source.spec.std[0], abs=5e-5)


def test_read_keeps_the_order_of_the_indices():
  source = open_source("digits")
  rows = np.array([5, 2, 5])
  got = source.read("test", rows)
  np.testing.assert_array_equal(got[0], got[2])
  np.testing.assert_array_equal(got[1:2], source.read("test", rows[1:2]))
  assert source.read("test", rows[:0]).shape == (0, 8, 8, 1)


def test_image_size_resizes():
  source = open_source("digits", image_size=16)
  assert source.spec.image_shape == (16, 16, 1)
  assert source.read("train", np.arange(2)).shape == (2, 16, 16, 1)


# ---- arrays and npz -----------------------------------------------------------------------------


@pytest.fixture
def arrays():
  return {
    "x_train": blobs(9),
    "y_train": np.arange(9) % 3,
    "x_test": blobs(6, seed=1),
    "y_test": np.arange(6) % 3,
  }


def test_arrays(arrays):
  source = open_source("arrays", arrays=arrays | {"classes": ["a", "b", "c"]})
  assert source.class_names == ("a", "b", "c")
  assert source.spec.num_train == 9
  assert source.train_labels.dtype == np.int32
  np.testing.assert_array_equal(source.read("train", [3, 1]), arrays["x_train"][[3, 1]])
  pixels = arrays["x_train"] / 255
  np.testing.assert_allclose(source.spec.mean, pixels.mean((0, 1, 2)), atol=1e-6)
  np.testing.assert_allclose(source.spec.std, pixels.std((0, 1, 2)), atol=1e-6)


def test_arrays_without_names_or_channels(arrays):
  arrays |= {"x_train": blobs(9)[..., 0], "x_test": blobs(6)[..., 0]}
  source = open_source("arrays", arrays=arrays)
  assert source.class_names == ("0", "1", "2")
  assert source.spec.image_shape == (6, 6, 1)


def test_classes_without_an_image_are_noted(arrays):
  arrays |= {"y_train": np.arange(9) % 2 * 2, "y_test": np.arange(6) % 2}
  assert open_source("arrays", arrays=arrays).notes == (
    "train: no image of 1 of 3 classes: 1",
    "test: no image of 1 of 3 classes: 2",
  )


def test_given_constants_replace_measured_ones(arrays):
  source = open_source("arrays", arrays=arrays, mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.1))
  assert source.spec.mean == (0.5, 0.4, 0.3)
  with pytest.raises(LtddError, match=r"expected both, with 3 number\(s\) each"):
    open_source("arrays", arrays=arrays, mean=(0.5,), std=(0.2,))
  with pytest.raises(LtddError, match=r"mean=0\.5, std=0\.2: expected both, with 3 number\(s\)"):
    open_source("arrays", arrays=arrays, mean=0.5, std=0.2)
  with pytest.raises(LtddError, match=r"std=\('a', 'b', 'c'\): expected both, with 3 number"):
    open_source("arrays", arrays=arrays, mean=(0.5,) * 3, std=("a", "b", "c"))
  with pytest.raises(LtddError, match=r"std=\(0\.2, 0, 0\.2\): expected numbers > 0"):
    open_source("arrays", arrays=arrays, mean=(0.5,) * 3, std=(0.2, 0, 0.2))


def test_a_constant_channel_can_still_be_normalised(arrays):
  arrays |= {"x_train": np.zeros_like(arrays["x_train"])}
  assert open_source("arrays", arrays=arrays).spec.std == pytest.approx((1 / 255,) * 3, abs=1e-6)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"x_train": blobs(9) / 255}, r"arrays: x_train is float64: expected uint8 pixels.*np\.round"),
    ({"x_train": blobs(9, c=2)}, r"x_train has shape \(9, 6, 6, 2\): expected \(n, h, w, c\)"),
    ({"x_train": blobs(9, h=5)}, r"x_train holds \(5, 6, 3\) images and x_test \(6, 6, 3\)"),
    ({"y_train": np.zeros(9)}, r"y_train is float64 \(9,\): expected one integer an image"),
    ({"y_test": np.zeros((6, 1), int)}, r"y_test is int64 \(6, 1\): expected one integer"),
    ({"y_train": np.zeros(8, int)}, r"y_train has 8 labels for 9 images"),
    ({"y_train": np.full(9, -1)}, r"y_train\[0\] is -1: expected labels in \[0, 3\)"),
    ({"x_test": blobs(0), "y_test": np.zeros(0, int)}, r"y_test is empty"),
    ({"classes": ["a", "b"]}, r"y_train\[2\] is 2: expected labels in \[0, 2\)"),
    ({"classes": ["a", "b", "a"]}, r"expected k different strings"),
    ({"y_test": None}, r"y_test is object"),
    (
      {k: np.zeros(n, int) for k, n in (("y_train", 9), ("y_test", 6))},
      "found 1 class; expected two",
    ),
  ],
)
def test_bad_arrays(arrays, change, message):
  with pytest.raises(LtddError, match=message):
    open_source("arrays", arrays=arrays | change)


def test_missing_arrays(arrays):
  del arrays["x_test"]
  with pytest.raises(LtddError, match="found x_train, y_train, y_test; expected x_train, y_train,"):
    open_source("arrays", arrays=arrays)
  with pytest.raises(LtddError, match="the argument `arrays` goes with the name 'arrays'"):
    open_source("arrays")


MEDMNIST = {
  "train_images": blobs(9)[..., 0],
  "train_labels": np.arange(9, dtype=np.uint8)[:, None] % 3,
  "val_images": blobs(3)[..., 0],
  "val_labels": np.arange(3, dtype=np.uint8)[:, None],
  "test_images": blobs(6, seed=1)[..., 0],
  "test_labels": np.arange(6, dtype=np.uint8)[:, None] % 3,
}


def test_npz_of_medmnist(tmp_path):
  np.savez(tmp_path / "pathmnist.npz", **MEDMNIST)
  source = open_source(f"npz:{tmp_path}/pathmnist.npz")
  assert source.spec.image_shape == (6, 6, 1)
  assert source.train_labels.tolist() == [0, 1, 2] * 3
  assert (source.spec.num_train, source.spec.num_test) == (9, 6)
  np.testing.assert_array_equal(source.read("test", [2])[0, ..., 0], MEDMNIST["test_images"][2])
  several = MEDMNIST | {"train_labels": np.zeros((9, 14), np.uint8)}
  with pytest.raises(LtddError, match=r"train_labels is uint8 \(9, 14\): expected one integer"):
    open_source("arrays", arrays=several)


def test_npz_with_other_names_lists_what_is_there(tmp_path):
  np.savez(tmp_path / "set.npz", X=blobs(3), y=np.arange(3))
  with pytest.raises(
    LtddError, match=r"^npz:\S*set\.npz: found X, y; expected x_train, .*, or train_images, "
  ):
    open_source(f"npz:{tmp_path}/set.npz")


def test_labels_from_one_are_named(arrays):
  ones = {"y_train": arrays["y_train"] + 1, "y_test": arrays["y_test"] + 1}
  with pytest.raises(LtddError, match=r"labels start at 1 and go to 3; expected .*subtract 1"):
    open_source("arrays", arrays=arrays | ones)
  with pytest.raises(LtddError, match=r"y_train\[2\] is 3: .*The labels start at 1: subtract 1"):
    open_source("arrays", arrays=arrays | ones | {"classes": ["a", "b", "c"]})
  named = open_source("arrays", arrays=arrays | ones | {"classes": ["none", "a", "b", "c"]})
  assert named.spec.num_classes == 4


def test_the_home_folder_of_npz_and_folders_is_expanded(arrays, folder, tmp_path, monkeypatch):
  monkeypatch.setenv("HOME", str(tmp_path))
  np.savez(tmp_path / "set.npz", **arrays)
  assert open_source("npz:~/set.npz").spec.num_train == 9
  assert open_source("folder:~", image_size=6).spec.num_train == 6


def test_npz(arrays, tmp_path):
  np.savez(tmp_path / "set.npz", classes=np.array(["a", "b", "c"]), id_train=np.arange(9), **arrays)
  source = open_source(f"npz:{tmp_path}/set.npz")
  assert source.class_names == ("a", "b", "c")
  np.testing.assert_array_equal(source.read("test", np.arange(6)), arrays["x_test"])


def test_bad_npz(arrays, tmp_path):
  with pytest.raises(LtddError, match="there is no such file"):
    open_source(f"npz:{tmp_path}/none.npz")
  with pytest.raises(LtddError, match="the path is missing, as in 'npz:/path'"):
    open_source("npz:")
  file = tmp_path / "set.npz"
  np.savez(file, **arrays)
  file.write_bytes(file.read_bytes()[:500])
  with pytest.raises(LtddError, match=r"set\.npz: not a readable npz file"):
    open_source(f"npz:{file}")
  np.savez(file, **arrays | {"x_train": blobs(64)})  # more than is read at once with its header
  file.write_bytes(file.read_bytes().replace(b"(64, 6, 6, 3)", b"(64, 6, 6, 3 "))
  with pytest.raises(LtddError, match=r"set\.npz: not a readable npz file .*EOF in multi-line"):
    open_source(f"npz:{file}")


def test_pickles_are_refused(arrays, tmp_path):
  np.savez(tmp_path / "set.npz", **(arrays | {"y_test": np.array([object()] * 6)}))
  with pytest.raises(LtddError, match="not a readable npz file of plain arrays"):
    open_source(f"npz:{tmp_path}/set.npz")


# ---- folders ------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
  for split, sizes in {"train": {"cat": 4, "ant": 2}, "test": {"cat": 1, "ant": 1}}.items():
    for name, n in sizes.items():
      (tmp_path / split / name).mkdir(parents=True)
      for i in range(n):
        picture = Image.fromarray(np.full((10 + i, 8, 3), 10 * i, np.uint8))
        picture.save(tmp_path / split / name / f"{i}.png")
  return tmp_path


def test_folder_measures_what_it_finds(folder):
  source = open_source(f"folder:{folder}", image_size=6)
  assert source.class_names == ("ant", "cat")
  assert source.train_labels.tolist() == [0, 0, 1, 1, 1, 1]
  assert source.spec.image_shape == (6, 6, 3)
  assert source.notes == ()
  got = source.read("train", np.array([5, 0]))
  assert got[:, 0, 0, 0].tolist() == [30, 0]
  assert source.read("train", np.array([], int)).shape == (0, 6, 6, 3)
  mean = np.mean([0, 10, 0, 10, 20, 30]) / 255
  np.testing.assert_allclose(source.spec.mean, [mean] * 3, atol=1e-6)


def test_unreadable_image_is_named(folder):
  (folder / "train" / "cat" / "broken.jpg").write_bytes(b"not a picture")
  whole = (folder / "train" / "cat" / "3.png").read_bytes()
  (folder / "train" / "cat" / "cut.png").write_bytes(whole[: len(whole) // 2])
  with pytest.raises(LtddError, match=r"broken\.jpg: cannot be read .* 2 of 8 images .*'skip'"):
    open_source(f"folder:{folder}", image_size=6)


def test_unreadable_images_may_be_found_later(folder):
  (folder / "train" / "cat" / "3.png").write_bytes(b"not a picture")
  half = (0.5,) * 3
  source = open_source(f"folder:{folder}", image_size=6, on_unreadable="later", mean=half, std=half)
  assert source.train_labels.tolist() == [0, 0, 1, 1, 1, 1]
  draws = np.random.default_rng(0).spawn(1)
  for read in (
    lambda: source.read("train", np.array([5])),
    lambda: image_files.read_crops(source, "train", np.array([5]), draws, (0.5, 1)),
  ):
    with pytest.raises(
      LtddError, match=r"3\.png: cannot be read as an image .*give the same comm"
    ) as e:
      read()
    assert "(UnidentifiedImageError: its bytes are of no format that Pillow knows)" in str(e.value)


def test_unreadable_images_are_counted_when_skipping_is_allowed(folder):
  (folder / "train" / "cat" / "broken.jpg").write_bytes(b"not a picture")
  (folder / "train" / "cat" / "notes.txt").write_text("hello")
  (folder / "train" / "cat" / ".DS_Store").write_text("hello")
  source = open_source(f"folder:{folder}", image_size=6, on_unreadable="skip")
  assert source.train_labels.tolist() == [0, 0, 1, 1, 1, 1]
  assert len(source.notes) == 3
  assert source.notes[0].startswith("train: skipped 1 unreadable images: ")
  assert source.notes[0].endswith("broken.jpg")
  assert source.notes[1].startswith("train: ignored 1 files that are not images: ")
  assert source.notes[2].startswith("train: ignored 1 hidden or system files and folders: ")
  assert source.notes[2].endswith(".DS_Store")


@pytest.mark.parametrize("name", [".ipynb_checkpoints", "@eaDir", "__MACOSX", "lost+found"])
@pytest.mark.parametrize("place", ["train", "train/cat"])
def test_folders_of_systems_hold_no_images(folder, name, place):
  shutil.copytree(folder / "train" / "cat", folder / place / name)
  source = open_source(f"folder:{folder}", image_size=6)
  assert source.class_names == ("ant", "cat")
  assert source.spec.num_train == 6
  path = folder / place / name
  assert source.notes == (f"train: ignored 1 hidden or system files and folders: {path}",)


@pytest.mark.parametrize("name", ["._0.png", ".DS_Store", "Thumbs.db"])
def test_files_of_systems_are_no_images(folder, name):
  for place in ("train", "train/cat", "test/ant"):
    shutil.copy(folder / "train" / "cat" / "0.png", folder / place / name)
  source = open_source(f"folder:{folder}", image_size=6)
  assert (source.spec.num_train, source.spec.num_test) == (6, 2)
  assert [note[:40] for note in source.notes] == [
    "train: ignored 1 hidden or system files ",
    "train: ignored 1 hidden or system files ",
    "test: ignored 1 hidden or system files a",
  ]


def test_files_beside_classes_and_other_folders_are_noted(folder):
  shutil.copy(folder / "train" / "cat" / "0.png", folder / "train" / "stray.png")
  shutil.copytree(folder / "test", folder / "val")
  assert open_source(f"folder:{folder}", image_size=6).notes == (
    "ignored 1 other folders: val",
    f"train: ignored 1 files beside the class folders: {folder}/train/stray.png",
  )


def test_names_that_are_not_utf8_are_noted_or_refused(folder):
  latin = os.fsdecode("é".encode("latin-1"))
  (folder / "train" / "cat" / "0.png").rename(folder / "train" / "cat" / f"{latin}.png")
  (folder / "test" / "ant" / f"{latin}.txt").touch()
  (note,) = open_source(f"folder:{folder}", image_size=6).notes
  assert note == f"test: ignored 1 files that are not images: {folder}/test/ant/\\udce9.txt"
  (folder / "train" / "cat").rename(folder / "train" / latin)
  with pytest.raises(LtddError, match=r"train: the name of the class folder \\udce9 is not UTF-8"):
    open_source(f"folder:{folder}", image_size=6)


@pytest.mark.parametrize("place", ["train/cat/gone.png", "train/dog", "test/ant/more"])
def test_links_that_lead_nowhere_are_named(folder, place):
  (folder / place).symlink_to(folder / "nowhere")
  with pytest.raises(LtddError, match=rf"1 link\(s\) lead nowhere: {folder / place}\. Expected"):
    open_source(f"folder:{folder}", image_size=6)


def test_links_to_folders_and_files_are_followed(folder, tmp_path_factory):
  there = tmp_path_factory.mktemp("there")
  for i in range(3):
    Image.fromarray(np.full((6, 6, 3), 100 + i, np.uint8)).save(there / f"{i}.png")
  (folder / "train" / "ant" / "more").symlink_to(there)
  (folder / "train" / "dog").symlink_to(shutil.copytree(there, there / ".." / "copy"))
  (folder / "train" / "cat" / "x.png").symlink_to(there / "2.png")
  source = open_source(f"folder:{folder}", image_size=6)
  assert np.bincount(source.train_labels).tolist() == [5, 5, 3]
  assert source.read("train", np.array([4]))[0, 0, 0, 0] == 102


def test_a_folder_that_may_not_be_read_is_named(folder, monkeypatch):
  path = type(files.path(folder))
  iterdir = path.iterdir

  def refuse(self):
    if self.name == "cat":
      raise PermissionError(13, "Permission denied")
    return iterdir(self)

  monkeypatch.setattr(path, "iterdir", refuse)
  with pytest.raises(LtddError, match=r"train/cat: cannot be read as a folder \(.*denied"):
    open_source(f"folder:{folder}", image_size=6)


@pytest.mark.parametrize("target", ["train/cat", "train/ant", "train", "."])
@pytest.mark.parametrize("outside", [False, True])
def test_links_by_which_images_count_twice_are_refused(folder, target, outside, tmp_path_factory):
  if outside:  # the class folder is a link itself
    there = tmp_path_factory.mktemp("more") / "cats"
    (folder / "train" / "cat").rename(there)
    (folder / "train" / "cat").symlink_to(there)
  (folder / "train" / "cat" / "again").symlink_to(folder / target)
  with pytest.raises(LtddError, match=r"cat/again.*: is the same folder as .*; remove the link"):
    open_source(f"folder:{folder}", image_size=6)


def test_one_folder_is_not_read_for_two_classes(folder):
  (folder / "train" / "ant" / "others").symlink_to(folder / "train" / "cat")
  with pytest.raises(LtddError, match=r"train/cat: is the same folder as \S*/ant/others, so that"):
    open_source(f"folder:{folder}", image_size=6)


def test_classes_named_by_numbers_are_sorted_by_number(tmp_path):
  for split in ("train", "test"):
    for c in range(1, 13):
      (tmp_path / split / str(c)).mkdir(parents=True)
      Image.fromarray(np.full((4, 4, 3), 10 * c, np.uint8)).save(
        tmp_path / split / f"{c}" / "x.png"
      )
  source = open_source(f"folder:{tmp_path}", image_size=4)
  assert source.class_names == tuple(str(c) for c in range(1, 13))
  assert source.read("train", np.arange(12))[:, 0, 0, 0].tolist() == list(range(10, 121 + 9, 10))
  assert source.notes == (
    "classes are sorted by the numbers that name them: class 0 is '1', class 11 is '12'",
  )


def test_an_image_that_goes_bad_later_is_named(folder):
  source = open_source(f"folder:{folder}", image_size=6)
  (folder / "test" / "cat" / "0.png").write_bytes(b"")
  with pytest.raises(LtddError, match=r"0\.png: cannot be read as an image"):
    source.read("test", np.array([1]))


def test_folder_may_call_its_test_set_val_and_lack_a_class_there(folder):
  (folder / "test").rename(folder / "val")
  shutil.rmtree(folder / "val" / "ant")
  source = open_source(f"folder:{folder}", image_size=6)
  assert source.test_labels.tolist() == [1]
  assert source.notes == ("test: no image of 1 of 2 classes: ant",)


def _no_test(folder):
  shutil.rmtree(folder / "test")


def _no_train(folder):
  shutil.rmtree(folder / "train")


def _one_class(folder):
  shutil.rmtree(folder / "train" / "ant")


def _extra_test_class(folder):
  (folder / "test" / "dog").mkdir()


def _empty_class(folder):
  (folder / "train" / "dog").mkdir()


def _empty_test(folder):
  for file in (folder / "test").rglob("*.png"):
    file.unlink()


@pytest.mark.parametrize(
  ("damage", "message"),
  [
    (_no_test, r"found the folders: train\. Expected train/<class>/\* and test/<class>/\*"),
    (_no_train, r"found the folders: test\. Expected"),
    (_one_class, r"found 1 class folder\(s\); expected two or more"),
    (_extra_test_class, r"class folder 'dog' has no counterpart in train"),
    (_empty_class, r"dog: no readable image in this class folder .*add some or delete"),
    (_empty_test, r"test: no readable image in any class folder"),
  ],
)
def test_bad_folders(folder, damage, message):
  damage(folder)
  with pytest.raises(LtddError, match=message):
    open_source(f"folder:{folder}", image_size=6)


def test_folder_needs_a_size_and_a_known_policy(folder):
  with pytest.raises(LtddError, match=r"image_size is missing; set data\.image_size"):
    open_source(f"folder:{folder}")
  with pytest.raises(LtddError, match=r"image_size=\(6,\): expected a side or \(height, width\)"):
    open_source(f"folder:{folder}", image_size=(6,))
  for size in (0, True, 6.0, "6"):
    with pytest.raises(LtddError, match=f"image_size={size!r}: expected a side or"):
      open_source(f"folder:{folder}", image_size=size)
  for name in (f"folder:{folder}", "digits"):
    with pytest.raises(LtddError, match="on_unreadable is 'ignore'; expected one of"):
      open_source(name, image_size=6, on_unreadable="ignore")
  with pytest.raises(LtddError, match="on_unreadable is 'skip', which is for 'folder:/path'"):
    open_source("digits", on_unreadable="skip")


# ---- image files --------------------------------------------------------------------------------


def _decode(image, tmp_path, channels=3, size=None, **kwargs):
  image.save(tmp_path / "x.png", **kwargs)
  return image_files.decode((tmp_path / "x.png").read_bytes(), channels, size)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1"])
def test_every_mode_becomes_rgb(mode, tmp_path):
  pixels = _decode(Image.new("RGB", (5, 4), (255, 255, 255)).convert(mode), tmp_path)
  assert pixels.shape == (4, 5, 3)
  assert (pixels == 255).all()


def test_palette_with_transparency(tmp_path):
  pixels = _decode(Image.new("P", (5, 4)), tmp_path, transparency=b"\x00\xff")
  assert pixels.shape == (4, 5, 3)


def test_sixteen_bit_grey_is_scaled_not_clipped(tmp_path):
  grey = Image.fromarray(np.array([[0, 257 * 100, 65535]], np.uint16))
  assert _decode(grey, tmp_path, channels=1)[0, :, 0].tolist() == [0, 100, 255]


@pytest.mark.parametrize(
  ("pixels", "message"),
  [
    (np.array([[0, 65536]], np.int32), "its pixels go from 0 to 65536; expected whole numbers"),
    (np.array([[-1, 5]], np.int32), "its pixels go from -1 to 5; expected whole numbers"),
    (np.array([[0.0, 0.5]], np.float32), "its pixels are floats"),
    (np.array([[0, 255]], np.int32), "have 32 bits and go from 0 to 255, .* expected 8 or 16"),
  ],
)
def test_pixels_outside_sixteen_bits_are_refused(pixels, message, tmp_path, folder):
  Image.fromarray(pixels).save(folder / "train" / "cat" / "x.tiff")
  with pytest.raises(LtddError, match=rf"x\.tiff: cannot be read as an image \(.*{message}"):
    open_source(f"folder:{folder}", image_size=6)


def test_black_of_thirty_two_bits_is_black(tmp_path):
  Image.fromarray(np.zeros((1, 2), np.int32)).save(tmp_path / "x.tiff")
  assert image_files.decode((tmp_path / "x.tiff").read_bytes(), 1).ravel().tolist() == [0, 0]


def test_thirty_two_bits_that_hold_sixteen_are_scaled(tmp_path):
  Image.fromarray(np.array([[0, 257 * 100, 65535]], np.int32)).save(tmp_path / "x.tiff")
  assert image_files.decode((tmp_path / "x.tiff").read_bytes(), 1)[0, :, 0].tolist() == [
    0,
    100,
    255,
  ]


def test_transparent_pixels_keep_the_colour_that_is_stored(tmp_path):
  image = Image.new("RGBA", (5, 4), (200, 100, 50, 0))
  assert (_decode(image, tmp_path) == (200, 100, 50)).all()
  palette = Image.new("P", (5, 4), 1)
  palette.putpalette([0, 0, 0, 10, 20, 30])
  assert (_decode(palette, tmp_path, transparency=1) == (10, 20, 30)).all()


def test_cmyk_becomes_rgb_and_one_bit_black_and_white(tmp_path):
  Image.new("CMYK", (5, 4), (0, 255, 0, 0)).save(tmp_path / "x.tiff")
  assert (image_files.decode((tmp_path / "x.tiff").read_bytes(), 3) == (255, 0, 255)).all()
  bits = Image.fromarray(np.array([[0, 255, 255]], np.uint8)).convert("1")
  assert _decode(bits, tmp_path, channels=1)[0, :, 0].tolist() == [0, 255, 255]


def test_the_first_frame_is_taken(tmp_path):
  frames = [Image.new("L", (5, 4), level) for level in (10, 20)]
  frames[0].save(tmp_path / "x.tiff", save_all=True, append_images=frames[1:])
  assert (image_files.decode((tmp_path / "x.tiff").read_bytes(), 1) == 10).all()


def test_images_are_turned_upright(tmp_path):
  image = Image.new("RGB", (6, 4))
  exif = image.getexif()
  exif[0x0112] = 6  # rotated by a quarter
  assert _decode(image, tmp_path, exif=exif).shape == (6, 4, 3)


def test_images_with_a_bad_tag_are_turned_upright():
  entry = lambda *numbers: struct.pack("<HHII", *numbers)
  entries = entry(0x0112, 3, 1, 6) + entry(0x0131, 5, 1, 8)  # the software is a fraction
  exif = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 2) + entries + bytes(4)
  file = io.BytesIO()
  Image.new("RGB", (6, 4)).save(file, "JPEG", exif=exif)
  assert image_files.decode(file.getvalue(), 3).shape == (6, 4, 3)


def test_wide_images_lose_their_sides_not_their_proportions(tmp_path):
  wide = np.zeros((4, 12, 3), np.uint8)
  wide[:, 4:8] = 200
  assert (_decode(Image.fromarray(wide), tmp_path, size=(4, 4)) == 200).all()


def test_test_images_show_their_centre(tmp_path, folder):
  pixels = np.random.default_rng(0).integers(0, 256, (16, 20, 3), np.uint8)
  Image.fromarray(pixels).save(tmp_path / "x.png")
  centre = image_files.decode((tmp_path / "x.png").read_bytes(), 3, (8, 8), crop_pct=0.5)
  np.testing.assert_array_equal(centre, pixels[4:12, 6:14])  # as of 16 x 20 pixels' centre of 8
  for split in ("train", "test"):
    Image.fromarray(pixels).save(folder / split / "ant" / "0.png")
  source = open_source(f"folder:{folder}", image_size=8, crop_pct=0.5)
  np.testing.assert_array_equal(source.read("test", [0])[0], centre)
  whole = image_files.decode((tmp_path / "x.png").read_bytes(), 3, (8, 8))
  np.testing.assert_array_equal(source.read("train", [0])[0], whole)


@pytest.mark.parametrize(
  ("name", "value", "message"),
  [
    ("digits", 0.9, "expected 1, since its images are arrays"),
    ("folder:/x", 0, "expected a number above 0 and at most 1"),
    ("folder:/x", 1.5, "expected a number above 0 and at most 1"),
  ],
)
def test_what_cannot_be_cut_is_refused(name, value, message):
  with pytest.raises(LtddError, match=message):
    open_source(name, crop_pct=value, image_size=4)


def test_large_images_are_decoded_in_threads_to_the_same_pixels(tmp_path):
  Image.fromarray(blobs(1, 80, 80)[0]).save(tmp_path / "x.png")
  data = (tmp_path / "x.png").read_bytes()
  assert len(data) > image_files._WORTH_A_THREAD
  for pixels in image_files.decode_all([data] * 3, 3):
    np.testing.assert_array_equal(pixels, blobs(1, 80, 80)[0])


# ---- TFDS ---------------------------------------------------------------------------------------

PIXELS = {"train": blobs(30, 32, 32), "test": blobs(20, 32, 32, seed=1)}
CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
  """A miniature cifar10 and `tiny_shapes`, a set that neither TFDS nor our table knows."""
  import tensorflow_datasets as tfds
  from tensorflow_datasets.image_classification import cifar

  class Cifar10(cifar.Cifar10, skip_registration=True):
    def _split_generators(self, dl_manager):
      self.info.features["label"].names = CLASSES
      return {split: self._images(split) for split in PIXELS}

    def _images(self, split):
      for i, image in enumerate(PIXELS[split]):
        yield f"{i}", {"id": f"{split}_{i:05}", "image": Image.fromarray(image), "label": i % 10}

  class TinyShapes(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
      features = {
        "picture": tfds.features.Image(shape=(None, None, 1)),
        "kind": tfds.features.ClassLabel(names=["disc", "square"]),
      }
      return tfds.core.DatasetInfo(
        builder=self,
        features=tfds.features.FeaturesDict(features),
        supervised_keys=("picture", "kind"),
      )

    def _split_generators(self, dl_manager):
      return {
        "train": self._generate_examples(4, 0),
        "test": self._generate_examples(2, None),
        "validation": self._generate_examples(3, 0),
      }

    def _generate_examples(self, n, label):
      for i in range(n):
        picture = Image.fromarray(np.full((8 + i, 8), 50 * i, np.uint8))
        yield i, {"picture": picture, "kind": -1 if label is None else i % 2}

  root = tmp_path_factory.mktemp("tfds")
  for builder in (Cifar10, TinyShapes):
    builder(data_dir=root).download_and_prepare(file_format="array_record")
  return root


def test_workers_read_tfds_sets(prepared):
  source = open_source("cifar10", data_dir=str(prepared))
  batch = lambda t: source.read("train", np.arange(3 * t, 3 * t + 3))
  made = stream.Prefetched(batch, 2, workers=1)
  for t in range(2):
    np.testing.assert_array_equal(made(t), PIXELS["train"][3 * t : 3 * t + 3])
  crop = lambda t: image_files.read_crops(
    source, "train", np.arange(2), [np.random.default_rng(t)] * 2, (1, 1)
  )
  made = stream.Prefetched(crop, 1, workers=1)
  np.testing.assert_array_equal(made(0), crop(0))


def test_tfds_set_of_the_table(prepared):
  source = open_source("cifar10", data_dir=str(prepared))
  assert source.class_names == tuple(CLASSES)
  assert (source.spec.num_train, source.spec.num_test) == (30, 20)
  assert source.spec.mean == (0.4914, 0.4822, 0.4465)
  # In the order of the archive, whatever TFDS's hash of the ids has made of it.
  np.testing.assert_array_equal(source.read("train", np.arange(30)[::-1]), PIXELS["train"][::-1])
  np.testing.assert_array_equal(source.train_labels, np.arange(30) % 10)
  assert source.notes == ()
  assert source.read("test", np.array([], int)).shape == (0, 32, 32, 3)


def test_tfds_set_at_another_size(prepared):
  source = open_source("cifar10", data_dir=str(prepared), image_size=(16, 8))
  assert source.spec.image_shape == (16, 8, 3)
  assert source.read("train", np.arange(2)).shape == (2, 16, 8, 3)


def test_tfds_set_known_from_its_files_alone(prepared):
  source = open_source("tiny_shapes", data_dir=str(prepared), image_size=8)
  assert source.class_names == ("disc", "square")
  assert source.spec.image_shape == (8, 8, 1)
  assert source.notes == (
    "test: the validation split of tiny_shapes",
    "tiny_shapes has no ids: its images are in TFDS's order, not in the archive's",
  )
  assert len(source.test_labels) == 3
  np.testing.assert_allclose(source.spec.mean, [75 / 255], atol=1e-6)
  assert sorted(source.read("train", np.arange(4))[:, 0, 0, 0]) == [0, 50, 100, 150]


def test_tfds_images_of_many_sizes_need_a_size(prepared):
  with pytest.raises(
    LtddError, match=r"tiny_shapes: its images differ in size; set data\.image_size"
  ):
    open_source("tiny_shapes", data_dir=str(prepared))


def test_unknown_name_is_corrected():
  with pytest.raises(
    LtddError, match=r"'cifra10' is not known\. Did you mean 'cifar10'\? Sources:"
  ):
    open_source("cifra10")


def test_a_data_dir_without_the_set_is_named(tmp_path):
  with pytest.raises(
    LtddError, match=rf"'packed' is not known.* prepared in data_dir '{tmp_path}'"
  ):
    open_source("packed", data_dir=str(tmp_path))


@pytest.mark.parametrize(
  ("name", "message"),
  [
    ("cifar-10", r"'cifar-10' is not known\. Did you mean 'cifar10'\? Sources: digits"),
    ("CIFAR-100", r"'CIFAR-100' is not known\. Did you mean 'cifar100'\?"),
    ("/abs/x.npz", r"'/abs/x\.npz' is not known: npz:/abs/x\.npz was meant\?"),
    ("~/x.npz", r"npz:~/x\.npz was meant\?"),
    ("gs://bucket/x.npz", r"npz:gs://bucket/x\.npz was meant\?"),
    ("/abs/images", r"folder:/abs/images was meant\?"),
    ("./images", r"folder:\./images was meant\?"),
    ("foldr:/abs", r"'foldr:/abs' is not known\. Did you mean 'folder'\?"),
    ("folder", "'folder': the path is missing, as in 'folder:/path'"),
    ("npz", "'npz': the path is missing, as in 'npz:/path'"),
    ("my set", "'my set' is not known"),
    (3, "data source 3 is of type int; expected a name"),
    ("", "'' is not known"),
    ("cifar10/none", "TFDS cannot set it up here"),
    ("cifar10:9.9.9", "TFDS cannot set it up here"),
  ],
)
def test_names_that_are_no_set_say_what_was_meant(name, message):
  with pytest.raises(LtddError, match=message) as error:
    open_source(name)
  assert str(error.value).count("\n") == 0


def test_the_home_folder_is_expanded(tmp_path, monkeypatch):
  monkeypatch.setenv("HOME", str(tmp_path))
  with pytest.raises(LtddError, match=f"nothing in {tmp_path}/tfds/"):
    open_source("fashion_mnist", data_dir="~/tfds")


def test_set_that_is_not_prepared_says_how_to(tmp_path):
  with pytest.raises(LtddError) as error:
    open_source("fashion_mnist", data_dir=str(tmp_path))
  message = str(error.value)
  assert "fashion_mnist is not prepared" in message
  assert f"tfds.builder('fashion_mnist', data_dir='{tmp_path}').download_and_prepare(" in message
  assert "file_format='array_record'" in message
  assert "copy the folder fashion_mnist/" in message
  assert "set\n    data.data_dir" in message
  assert not list(tmp_path.iterdir())


def _copy_of(name, target, source):
  shutil.copytree(source / name, target / name)
  return next((target / name).rglob("dataset_info.json"))


def test_tfrecord_is_refused(prepared, tmp_path):
  info = _copy_of("cifar10", tmp_path, prepared)
  facts = json.loads(info.read_text())
  facts["fileFormat"] = "tfrecord"
  info.write_text(json.dumps(facts))
  with pytest.raises(LtddError, match="is prepared as tfrecord, which cannot be read at random"):
    open_source("cifar10", data_dir=str(tmp_path))


def test_damaged_file_is_named(prepared, tmp_path):
  info = _copy_of("cifar10", tmp_path, prepared)
  file = next(info.parent.glob("*train*"))
  file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
  with pytest.raises(LtddError, match=r"cifar10/\d.*damaged or missing .*prepare or copy it anew"):
    open_source("cifar10", data_dir=str(tmp_path))


def test_wrong_number_of_classes(prepared, tmp_path):
  info = _copy_of("cifar10", tmp_path, prepared)
  features = info.parent / "features.json"
  features.write_text(features.read_text().replace('"numClasses": "10"', '"numClasses": "12"'))
  names = info.parent / "label.labels.txt"
  names.write_text(names.read_text() + "eleven\ntwelve\n")
  with pytest.raises(LtddError, match="prepared with 12 classes, expected 10"):
    open_source("cifar10", data_dir=str(tmp_path))
