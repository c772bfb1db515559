"""Images from elsewhere: what is read, what is refused, and what identifies them."""

import shutil

import numpy as np
import pytest
from PIL import Image

from configs import digits_lt
from ltdd_jax.artefacts.workdir import Workdir
from ltdd_jax.core.types import LtddError
from ltdd_jax.data import sources
from ltdd_jax.interop import distilled_sets
from ltdd_jax.pipeline import check, graph
from ltdd_jax.pipeline.context import Context
from ltdd_jax.pipeline.run import run_stage
from tests import small

CLASSES = small.SPEC.class_names
LABELS = np.array([0, 0, 1, 2], np.int32)  # by class, as a folder gives them
IMAGES = small.images(len(LABELS))
FLOATS = (IMAGES / 255).astype(np.float32)
WHITE = np.random.RandomState(0).normal(0, 0.2, IMAGES.shape).astype(np.float32)
LOGITS = 2 * np.eye(3, dtype=np.float32)[LABELS]


def read(path, spec=small.SPEC, classes=CLASSES):
  return distilled_sets.read("config.distil.methods.mine", str(path), spec, classes)


def commit(folder, stage="distil/mine", classes=CLASSES, images=IMAGES, labels=LABELS):
  with Workdir(folder) as work:
    return work.commit(
      stage, config={}, inputs={}, arrays={"images": images, "labels": labels}, class_names=classes
    ).path


def write_folders(root, images=IMAGES, labels=LABELS, classes=CLASSES):
  for i, (image, label) in enumerate(zip(images, labels, strict=True)):
    (root / classes[label]).mkdir(parents=True, exist_ok=True)
    Image.fromarray(image[..., 0]).save(root / classes[label] / f"{i}.png")
  return root


def test_three_ways_in_give_the_same_images_and_the_same_identity(tmp_path):
  np.savez(tmp_path / "a.npz", images=IMAGES, labels=LABELS.astype(np.int64), classes=CLASSES)
  np.savez(tmp_path / "grey.npz", images=IMAGES[..., 0], labels=LABELS)
  places = (
    commit(tmp_path / "run"),
    tmp_path / "a.npz",
    tmp_path / "grey.npz",
    write_folders(tmp_path / "folders"),
  )
  for place in places:
    got = read(place)
    np.testing.assert_array_equal(got.images, IMAGES)
    np.testing.assert_array_equal(got.labels, LABELS)
    assert got.labels.dtype == np.int32
    assert got.sha256 == distilled_sets.content_sha256(IMAGES, LABELS)
    assert str(place) in got.about
    assert len(got.notes) == 1


def test_identity_sees_every_pixel_every_label_and_the_shape():
  pixels, labels = IMAGES.copy(), LABELS.copy()
  pixels[-1, -1, -1, 0] ^= 1
  labels[0] = 1
  marks = {
    distilled_sets.content_sha256(x, y)
    for x, y in (
      (IMAGES, LABELS),
      (pixels, LABELS),
      (IMAGES, labels),
      (IMAGES.reshape(4, 4, 16, 1), LABELS),
    )
  }
  assert len(marks) == 4


def test_pixels_of_our_own_may_be_anywhere(tmp_path):
  np.testing.assert_array_equal(read(commit(tmp_path, images=3 * WHITE)).images, 3 * WHITE)


def test_a_class_without_an_image_is_noted(tmp_path):
  np.savez(tmp_path / "a.npz", images=IMAGES[:3], labels=LABELS[:3])
  assert read(tmp_path / "a.npz").notes[1] == "no image for classes [2]"


def test_colours_become_what_the_data_set_has(tmp_path):
  (tmp_path / "a").mkdir()
  Image.fromarray(np.full((8, 8, 3), 7, np.uint8)).save(tmp_path / "a" / "x.png")
  assert read(tmp_path).images.shape == (1, 8, 8, 1)


@pytest.mark.parametrize(
  ("arrays", "message"),
  [
    ({"images": IMAGES}, "found images; expected images, labels"),
    ({"images": IMAGES / 255.0, "labels": LABELS}, "float64; expected uint8 or float32 .*float32"),
    ({"images": IMAGES, "labels": LABELS.astype(float)}, r"labels is float64 \(4,\)"),
    ({"images": IMAGES, "labels": LABELS[:2]}, "2 labels for 4 images"),
    (
      {"images": IMAGES, "labels": LABELS + 1},
      r"labels\[3\] is 3: expected labels in \[0, 3\)\. The labels start at 1: subtract 1",
    ),
    ({"images": IMAGES[:, :4], "labels": LABELS}, r"shape \(4, 8, 1\).*\(8, 8, 1\)"),
    ({"images": np.zeros((4, 1, 8, 8), np.uint8), "labels": LABELS}, "channels first"),
    ({"images": IMAGES, "labels": LABELS, "classes": ["a", "c", "b"]}, "another class map"),
    ({"images": FLOATS * np.nan, "labels": LABELS}, "pixels from nan to nan; expected finite"),
    ({"images": np.where(FLOATS > 0.9, np.float32(np.inf), FLOATS), "labels": LABELS}, "to inf"),
    ({"images": FLOATS * 255, "labels": LABELS}, r"to 25\d; .*of 0 to 255 by 255"),
    ({"images": (FLOATS - 0.5) / 0.3, "labels": LABELS}, r"from -1\.\d+ .*; undo a normalisation"),
    ({"images": WHITE, "labels": LABELS}, "from -0.* to 0.*; undo a normalisation or whitening"),
    ({"soft_labels": LOGITS * np.nan}, "soft_labels has nan; expected finite logits"),
    ({"soft_labels": LOGITS[:, :2]}, r"soft_labels is float32 \(4, 2\); .* shape \(4, 3\)"),
    ({"soft_labels": LOGITS[:3]}, r"soft_labels is float32 \(3, 3\); .* shape \(4, 3\)"),
    ({"soft_labels": LOGITS.astype(str)}, r"soft_labels is <U32 \(4, 3\); expected finite logits"),
    ({"soft_labels": np.eye(3)[LABELS]}, r"soft_labels are probabilities, .*; expected logits"),
    ({"student_lr": -1.0}, "student_lr has -1; expected a finite number above 0"),
    ({"student_lr": np.nan}, "student_lr has nan; expected a finite number above 0"),
    ({"student_lr": np.ones(2)}, r"student_lr is float64 \(2,\); .* of shape \(\)"),
    ({"parts": 2.0}, r"parts is float64 \(\); expected one integer"),
    ({"parts": 0}, "parts: factor is 0; expected"),
    ({"parts": 5}, "parts: factor is 5, which cuts images of 8 x 8"),
    ({"images": IMAGES, "labels": np.array([object()] * 4)}, "not a readable npz file of plain"),
  ],
)
def test_npz_files_that_are_refused(arrays, message, tmp_path):
  if not {"images", "labels"} & set(arrays):  # of what is learned
    arrays = {"images": IMAGES, "labels": LABELS} | arrays
  np.savez(tmp_path / "a.npz", **arrays)
  with pytest.raises(LtddError, match=rf"(?s)config\.distil\.methods\.mine.*{message}"):
    read(tmp_path / "a.npz")


def test_places_that_are_refused(tmp_path):
  with pytest.raises(LtddError, match="there is no such file or folder"):
    read(tmp_path / "nowhere")
  (tmp_path / "a.npz").write_bytes(b"no archive")
  with pytest.raises(LtddError, match="not a readable npz file"):
    read(tmp_path / "a.npz")
  with pytest.raises(LtddError, match="stage label/mine; expected one of a distil stage"):
    read(commit(tmp_path / "other", stage="label/mine"))
  with pytest.raises(LtddError, match=r"(?s)another class map.*0: c.*0: a"):
    read(commit(tmp_path / "run", classes=("c", "b", "a")))
  place = commit(tmp_path / "damaged")
  (place / "images.npy").write_bytes(b"cut")
  with pytest.raises(LtddError, match=r"images\.npy is damaged"):
    read(place)


def test_folders_that_are_refused(tmp_path):
  (tmp_path / "empty").mkdir()
  with pytest.raises(LtddError, match=r"has no folders; expected folders named 0: a, 1: b, 2: c"):
    read(tmp_path / "empty")
  (tmp_path / "bare" / "a").mkdir(parents=True)
  with pytest.raises(LtddError, match="no image file in any class folder"):
    read(tmp_path / "bare")
  with pytest.raises(LtddError, match="the folder 'x' is no class"):
    read(write_folders(tmp_path / "others", classes=("x", "y", "z")))
  root = write_folders(tmp_path / "large", images=np.zeros((4, 9, 9, 1), np.uint8))
  with pytest.raises(LtddError, match=r"0\.png: images have the shape \(9, 9, 1\)"):
    read(root)
  (write_folders(tmp_path / "bad") / "a" / "0.png").write_bytes(b"no picture")
  with pytest.raises(LtddError, match=r"0\.png: cannot be read as an image"):
    read(tmp_path / "bad")


def test_what_is_left_out_of_folders_is_noted(tmp_path):
  root = write_folders(tmp_path / "set")
  (root / "@eaDir").mkdir()
  (root / "a" / ".ipynb_checkpoints").mkdir()
  shutil.copy(root / "a" / "0.png", root / "a" / ".ipynb_checkpoints" / "0.png")
  (root / "a" / "notes.txt").write_text("hello")
  got = read(root)
  np.testing.assert_array_equal(got.images, IMAGES)
  assert [note.partition(":")[0] for note in got.notes[1:]] == [
    "ignored 1 hidden or system files and folders",
    "ignored 1 files that are not images",
    "ignored 1 hidden or system files and folders",
  ]
  (root / "b" / "gone.png").symlink_to(tmp_path / "nowhere.png")
  with pytest.raises(LtddError, match=r"1 link\(s\) lead nowhere: .*b/gone\.png"):
    read(root)


def test_the_home_folder_is_expanded(tmp_path, monkeypatch):
  monkeypatch.setenv("HOME", str(tmp_path))
  np.savez(tmp_path / "a.npz", images=IMAGES, labels=LABELS, logits=np.eye(3)[LABELS])
  np.testing.assert_array_equal(read("~/a.npz").images, IMAGES)
  logits = distilled_sets.read_logits("config.label.sources.mine", "~/a.npz")
  np.testing.assert_array_equal(logits, np.eye(3)[LABELS])


@pytest.mark.parametrize(
  ("content", "message"),
  [(b"", "is truncated, damaged or no .npy file"), (b"no array", "holds no array of numbers")],
)
def test_files_that_hold_no_logits(content, message, tmp_path):
  (tmp_path / "z.npy").write_bytes(content)
  with pytest.raises(LtddError, match=rf"sources\.mine: .*z\.npy {message}"):
    distilled_sets.read_logits("config.label.sources.mine", str(tmp_path / "z.npy"))


# ---- in a run ----


@pytest.fixture
def config(monkeypatch, tmp_path):
  """A config whose one image source is imported, and a data set of three classes."""
  data = small.train_data()
  there = sources.open_source(
    "arrays",
    arrays={
      "x_train": data.images,
      "y_train": data.labels,
      "x_test": small.images(3),
      "y_test": np.arange(3),
      "classes": np.array(CLASSES),
    },
  )
  monkeypatch.setattr(sources, "open_source", lambda name, **kw: there)
  np.savez(tmp_path / "a.npz", images=IMAGES, labels=LABELS)
  plain = check.check(digits_lt.get_config("preset=smoke"))
  plain["data"] |= {"rule": "as_is", "imbalance_factor": 1.0, "num_test": None}
  plain["distil"]["methods"] = {"mine": {"name": "imported", "path": str(tmp_path / "a.npz")}}
  return plain


def stage_of(config, name):
  ctx = Context(check.check(config))
  found = graph.make_stages(ctx)
  return ctx, found, next(s for s in found if s.name == name)


def test_content_and_not_place_is_the_identity(config, tmp_path):
  prints = lambda: {s.name: s.fingerprint for s in stage_of(config, "distil/mine")[1]}
  here = prints()
  (tmp_path / "a.npz").rename(tmp_path / "b.npz")
  config["distil"]["methods"]["mine"]["path"] = str(tmp_path / "b.npz")
  assert prints() == here
  config["seed"] = 7  # other teachers and students, the same images
  assert prints()["distil/mine"] == here["distil/mine"]
  config["seed"] = 0
  np.savez(tmp_path / "b.npz", images=IMAGES[::-1], labels=LABELS)
  after = prints()
  changed = {name for name in here if here[name] != after[name]}
  assert changed == {name for name in here if "/mine" in name}


def test_the_distil_stage_stores_what_was_read(config, tmp_path):
  ctx, found, distilled = stage_of(config, "distil/mine")
  assert list(distilled.inputs) == ["data"]
  assert "4 images 8x8x1 uint8 from" in distilled.plan(ctx)
  assert "(3, 4, 3)" in next(s for s in found if s.name == "label/mine/teacher").plan(ctx)
  check.check_with_data(ctx)
  with Workdir(tmp_path / "run") as work:
    ctx.workdir = work
    for stage in (found[0], distilled):
      run_stage(stage, ctx, checkpoint_seconds=30.0, show_progress=False)
    stored = ctx.distilled("mine")
    np.testing.assert_array_equal(stored["images"], IMAGES)
    np.testing.assert_array_equal(stored["labels"], LABELS)
    np.savez(tmp_path / "a.npz", images=IMAGES, labels=LABELS[::-1])
    _, _, other = stage_of(config, "distil/mine")
    with pytest.raises(LtddError, match=r"distil\.method\.sha256"):
      work.status(other.name, other.config, other.inputs)


def test_a_set_with_what_was_learned(config, tmp_path):
  """Floats stay floats, and logits and a rate come along; they are a part of the content."""
  pixels, logits = FLOATS.copy(), LOGITS
  pixels[:, 0, 0] = 2.0  # as where a method does not clip
  learned = {"soft_labels": logits, "student_lr": np.float32(0.02)}
  np.savez(tmp_path / "a.npz", images=pixels, labels=LABELS, **learned)
  ctx, found, distilled = stage_of(config, "distil/mine")
  with Workdir(tmp_path / "run") as work:
    ctx.workdir = work
    for stage in (found[0], distilled):
      run_stage(stage, ctx, checkpoint_seconds=30.0, show_progress=False)
    stored = ctx.distilled("mine")
  np.testing.assert_allclose(stored["images"], pixels, atol=1e-6)
  np.testing.assert_array_equal(stored["soft_labels"], logits)
  assert float(stored["student_lr"]) == np.float32(0.02)
  np.savez(tmp_path / "a.npz", images=pixels, labels=LABELS, soft_labels=-logits)
  assert stage_of(config, "distil/mine")[2].fingerprint != distilled.fingerprint


def test_a_set_of_small_images_says_so_where_it_goes(config, tmp_path):
  """Views of it show one of the small images, also when it is taken from another run's artefact."""
  _, _, whole = stage_of(config, "distil/mine")
  np.savez(tmp_path / "a.npz", images=IMAGES, labels=LABELS, parts=2)
  ctx, found, distilled = stage_of(config, "distil/mine")
  assert distilled.fingerprint != whole.fingerprint
  assert "uint8, each of 2 x 2 small ones, from" in distilled.plan(ctx)
  with Workdir(tmp_path / "run") as work:
    ctx.workdir = work
    for stage in (found[0], distilled):
      run_stage(stage, ctx, checkpoint_seconds=30.0, show_progress=False)
  config["distil"]["methods"]["mine"]["path"] = str(tmp_path / "run" / "distil" / "mine")
  again, _, taken = stage_of(config, "distil/mine")
  assert taken.fingerprint == distilled.fingerprint
  assert ctx.views("mine")["parts"] == again.views("mine")["parts"] == 2


@pytest.mark.parametrize(
  ("method", "message"),
  [
    ({"name": "imported"}, "missing key 'path'"),
    ({"name": "imported", "pth": "x"}, "Did you mean 'path'"),
    ({"name": "imported", "path": 3}, "path is 3"),
  ],
)
def test_entries_that_are_wrong(config, method, message):
  config["distil"]["methods"]["mine"] = method
  with pytest.raises(LtddError, match=rf"config\.distil\.methods\.mine.*{message}"):
    check.check_with_data(Context(check.check(config)))
