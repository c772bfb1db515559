"""Exports without other packages: round trips to equal bits, names of folders, what is refused."""

import json
import os
import sys
import types

import numpy as np
import pytest
from PIL import Image

from ltdd_jax.core import files
from ltdd_jax.core.types import LtddError
from ltdd_jax.interop import distilled_sets, exports
from ltdd_jax.interop.exports import fkd, folders, record
from tests import small

LABELS = np.array([2, 0, 1, 0, 2, 1], np.int32)  # not in the order of classes
IMAGES = small.images(len(LABELS))
LOGITS = np.random.RandomState(3).normal(0, 4, (6, 3)).astype(np.float32)
# What no disk, Markdown table or page would take; two differ by case alone.
NAMES = ("a/b", "A|<b>\n", "..")


def distilled(**changes):
  whole = record.DistilledSet(
    IMAGES,
    LABELS,
    small.SPEC.class_names,
    small.SPEC.mean,
    small.SPEC.std,
    LOGITS,
    np.float32(0.0123),
    parts=2,
    meta={"method": "dm", "tau": 0.5},
  )
  return whole._replace(**changes)


def floats():
  """Pixels of a method that does not clip, with all bits in use."""
  return np.random.RandomState(1).uniform(-1, 2, IMAGES.shape).astype(np.float32)


def one_epoch(epoch):
  whole = np.tile(np.array([0, 0, 8, 8], np.float32) / 8, (6, 1))
  rows = {"coords": whole, "flip": np.zeros(6, bool), "mix_index": np.arange(6, dtype=np.int32)}
  rows |= {"mix_lam": np.ones(6, np.float32), "mix_bbox": np.zeros((6, 4), np.int32)}
  return rows | {"logits": LOGITS + epoch}


VIEWS = record.LabelledViews(2, "cutmix", one_epoch)


def read(path, names=small.SPEC.class_names, spec=small.SPEC):
  return distilled_sets.read("mine", str(path), spec, names)


def assert_same(got, want):
  """Bit for bit, in the same order and of the same types."""
  for x, y in ((got.images, want.images), (got.labels, want.labels)):
    assert x.dtype == y.dtype
    assert x.tobytes() == y.tobytes()
  assert got.parts == want.parts
  learned = {"soft_labels": want.soft_labels, "student_lr": want.student_lr}
  learned = {k: v for k, v in learned.items() if v is not None}
  assert set(got.learned) == set(learned)
  for key, value in learned.items():
    assert got.learned[key].tobytes() == np.asarray(value).tobytes()


@pytest.mark.parametrize("to", ["folder", "npz", "fkd"])
@pytest.mark.parametrize("bare", [False, True])
def test_what_goes_out_comes_in_again(to, bare, tmp_path):
  found = distilled(views=VIEWS, class_names=NAMES)
  if bare:
    found = found._replace(soft_labels=None, student_lr=None, parts=1)
  path = exports.write(found, to, tmp_path / "set.npz")
  got = read(path, NAMES)
  assert_same(got, found)
  assert len(got.notes) == 1
  with pytest.raises(LtddError, match="another class map"):
    read(path)
  assert [p.name for p in tmp_path.iterdir()] == ["set.npz"]


@pytest.mark.parametrize("to", ["npz", "fkd"])
def test_floats_keep_their_bits(to, tmp_path):
  found = distilled(images=floats(), views=VIEWS)
  assert_same(read(exports.write(found, to, tmp_path / "set.npz")), found)


def test_floats_are_not_rounded_into_image_files(tmp_path):
  with pytest.raises(LtddError, match=r"float32 and would be rounded to 256 levels; .*--to npz"):
    exports.write(distilled(images=floats()), "folder", tmp_path / "set")
  assert not list(tmp_path.iterdir())


def test_an_npz_file_is_read_by_numpy_alone(tmp_path):
  white = np.ones((8, 8, 1), np.float32), np.eye(64, dtype=np.float32)
  path = exports.write(distilled(whitening=white), "npz", tmp_path / "set.npz")
  with np.load(path, allow_pickle=False) as stored:
    assert stored["mean"].tolist() == [0.4]
    assert stored["std"].tolist() == [0.3]
    assert stored["classes"].tolist() == ["a", "b", "c"]
    np.testing.assert_array_equal(stored["whitening_matrix"], np.eye(64))
    about = json.loads(str(stored["about"]))
  assert about["meta"] == {"method": "dm", "tau": 0.5}
  assert about["whitened"] is True
  (note,) = read(path).notes[1:]
  assert note == (
    "distilled for images of mean [0.4], std [0.3], whitened; here they are of mean [0.4], std "
    "[0.3]"
  )


def test_an_fkd_folder_holds_each_label_epoch(tmp_path):
  path = exports.write(distilled(views=VIEWS), "fkd", tmp_path / "set")
  assert json.loads((path / "export.json").read_text())["num_epochs"] == 2
  got = fkd.read_epoch(path, 1)
  for key, value in one_epoch(1).items():
    assert got[key].tobytes() == value.tobytes()
  with pytest.raises(LtddError, match="without labels of views; expected --labels"):
    exports.write(distilled(), "fkd", tmp_path / "other")


# ---- names ----


def test_folders_have_safe_names_in_the_order_of_classes():
  names = [
    "T-shirt/top",
    "t-shirt/TOP",
    "",
    "..",
    "a\nb",
    "nul\0",
    " x ",
    "CON",
    "é",
    "<b>|",
    "y" * 300,
  ]
  got = folders.folder_names(names)
  assert got == sorted(got)
  assert len({name.lower() for name in got}) == len(names)
  assert got[:5] == ["00000-T_shirt_top", "00001-t_shirt_TOP", "00002", "00003", "00004-a_b"]
  assert all(name.isascii() and len(name) < 50 for name in got)
  assert not any(set(name) - set("-_") - set(map(chr, range(48, 123))) for name in got)


def test_a_class_without_images_keeps_its_number(tmp_path):
  found = distilled(labels=np.array([2, 0, 2, 0, 2, 0], np.int32))
  path = exports.write(found, "folder", tmp_path / "set")
  assert sorted(p.name for p in path.iterdir() if p.is_dir()) == ["00000-a", "00001-b", "00002-c"]
  got = read(path)
  assert_same(got, found)
  assert got.notes[1] == "no image for classes [1]"


@pytest.mark.parametrize("form", ["new{:03d}", "{:05d}"])
def test_layouts_of_sre2l_and_rded(form, tmp_path):
  """Folders are classes by their numbers, whatever the classes are called."""
  order = np.argsort(LABELS, kind="stable")
  for i in order:
    folder = tmp_path / form.format(LABELS[i])
    folder.mkdir(exist_ok=True)
    Image.fromarray(IMAGES[i, ..., 0]).save(folder / f"class{LABELS[i]:03d}_id{i:03d}.png")
  np.save(tmp_path / "soft_labels.npy", LOGITS[order])
  got = read(tmp_path)
  np.testing.assert_array_equal(got.images, IMAGES[order])
  np.testing.assert_array_equal(got.labels, LABELS[order])
  np.testing.assert_array_equal(got.learned["soft_labels"], LOGITS[order])
  assert "are classes by their numbers" in got.notes[1]
  assert len(got.notes) == 2
  (tmp_path / form.format(3)).mkdir()
  with pytest.raises(LtddError, match=r"is no class of the data set; .*by the numbers of classes"):
    read(tmp_path)


def test_names_that_are_numbers_go_before_numbers(tmp_path):
  """A data set's own folder "00001" is not class 1 because of its number."""
  (tmp_path / "00001").mkdir()
  Image.fromarray(IMAGES[0, ..., 0]).save(tmp_path / "00001" / "x.png")
  assert read(tmp_path, ("00001", "00002", "00003")).labels.tolist() == [0]


# ---- what is refused ----


@pytest.mark.parametrize(("to", "name"), [("npz", "set.npz"), ("folder", "set")])
def test_an_export_overwrites_only_when_told(to, name, tmp_path):
  exports.write(distilled(), to, tmp_path / name)
  other = distilled(images=IMAGES[::-1].copy())
  with pytest.raises(LtddError, match="which is there already"):
    exports.write(other, to, tmp_path / name)
  assert_same(read(tmp_path / name), distilled())
  exports.write(other, to, tmp_path / name, overwrite=True)
  assert_same(read(tmp_path / name), other)
  assert [p.name for p in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("what", ["folder", "file", "link"])
def test_what_is_no_export_is_never_replaced(what, tmp_path):
  path = tmp_path / "mine"
  if what == "file":
    path.write_text("mine")
  elif what == "link":
    path.symlink_to(exports.write(distilled(), "folder", tmp_path / "set"))
  else:
    path.mkdir()
    (path / "thesis.txt").write_text("mine")
  with pytest.raises(LtddError, match="which is there and no export"):
    exports.write(distilled(), "folder", path, overwrite=True)
  assert path.exists()


@pytest.mark.parametrize(
  ("to", "name", "message"),
  [
    ("nzp", "x", "--to is 'nzp'.*Did you mean 'npz'"),
    ("npz", "x", "expected a name that ends in .npz"),
    ("folder", "no/x", "there is no folder .*no. Make it first"),
    ("folder", "gs://a/b", "expected a file on this machine"),
  ],
)
def test_targets_that_are_refused(to, name, message, tmp_path):
  out = name if "://" in name else tmp_path / name
  with pytest.raises(LtddError, match=message):
    exports.write(distilled(), to, out)


@pytest.mark.parametrize("to", ["npz", "folder", "fkd"])
def test_a_full_disk_is_found_before_anything_is_written(to, tmp_path, monkeypatch):
  monkeypatch.setattr(files.shutil, "disk_usage", lambda path: types.SimpleNamespace(free=100))
  with pytest.raises(LtddError, match=r"cannot be written: the disk of .* has 100 bytes free"):
    exports.write(distilled(views=VIEWS), to, tmp_path / "set.npz")
  assert not list(tmp_path.iterdir())


def test_a_disk_that_fills_up_leaves_the_old_export(tmp_path, monkeypatch):
  path = exports.write(distilled(), "folder", tmp_path / "set")

  def full(image):
    raise OSError(28, os.strerror(28))

  monkeypatch.setattr(folders, "png", full)
  with pytest.raises(LtddError, match="the disk of"):
    exports.write(distilled(), "folder", path, overwrite=True)
  assert_same(read(path), distilled())
  assert [p.name for p in tmp_path.iterdir()] == ["set"]


def test_exports_that_were_changed_are_refused(tmp_path):
  path = exports.write(distilled(), "folder", tmp_path / "set")
  (path / "00002-c" / "000004.png").rename(path / "00002-c" / "000009.png")
  with pytest.raises(LtddError, match="has 6 images; expected 6 as exported, numbered from 000000"):
    read(path)
  (path / "00002-c" / "000009.png").rename(path / "00002-c" / "000004.png")
  labels = path / "soft_labels.npy"
  labels.write_bytes(labels.read_bytes().replace(b"(6, 3)", b"(6, 3 "))
  with pytest.raises(LtddError, match=r"soft_labels\.npy is no readable array .*EOF in multi-line"):
    read(path)
  (path / "export.json").write_text("{}")
  with pytest.raises(LtddError, match=r"export\.json is damaged or of another version"):
    read(path)


@pytest.mark.parametrize(
  ("to", "package"), [("torch", "torch"), ("ddranking", "torch"), ("huggingface", "datasets")]
)
def test_a_package_that_is_missing_is_named(to, package, tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, package, None)
  extra = "torch" if package == "torch" else "huggingface"
  with pytest.raises(LtddError, match=rf"needs? the package {package}; .*-e '\.\[{extra}\]'"):
    exports.write(distilled(), to, tmp_path / "set")
  assert not list(tmp_path.iterdir())


def test_dd_ranking_wants_as_many_images_of_each_class(tmp_path):
  found = distilled(labels=np.array([0, 0, 0, 1, 1, 2], np.int32))
  with pytest.raises(LtddError, match=r"classes have 1 to 3 images; expected as many in each"):
    exports.write(found, "ddranking", tmp_path / "set")
