"""Sets that go on from one that exists: starts, and nested budgets."""

import shutil

import jax
import numpy as np
import pytest

from ltdd_jax import distil, pipeline
from ltdd_jax.artefacts.workdir import Workdir
from ltdd_jax.core.types import LtddError
from ltdd_jax.data import augment
from ltdd_jax.distil import initial_images
from ltdd_jax.pipeline import check, graph, plan
from ltdd_jax.pipeline.context import Context
from tests import small
from tests.contract.test_methods import KWARGS

SRE2L = {"name": "sre2l", "num_steps": 2}


def old_set(folder, per_class=(2, 1, 2), name="old.npz", seed=5, **more):
  """An `.npz` file of a set, class after class; returns its path and images."""
  labels = np.repeat(np.arange(3), per_class)
  images = small.images(len(labels), seed)
  np.savez(folder / name, images=images, labels=labels, **more)
  return str(folder / name), images


def config_of(folder, entry, per_class=(3, 2, 2), **distil_options):
  config = small.run_config(folder, {"more": entry})
  config["distil"] |= {"slots_per_class": per_class} | distil_options
  return config


def fingerprint(config):
  made = graph.make_stages(Context(check.check(config)))
  return {s.name: s.fingerprint for s in made}["distil/more"]


def refused(match, config):
  with pytest.raises(LtddError, match=match):
    check.check_with_data(Context(check.check(config)))


def start_from(path, **more):
  return SRE2L | {"init": {"name": "imported", "path": path, **more}}


# ---- init ----


def test_slots_start_from_the_image_of_their_class_and_rank(tmp_path, key):
  res = {"init_set": {"images": small.images(5), "labels": np.array([0, 2, 0, 1, 2], np.int32)}}
  start = initial_images.make_start(small.env(), {"name": "imported", "path": "x"})
  slots = distil.make_slots(3, slots_per_class=(2, 1, 2), order="class_major")
  drawn = jax.jit(start.draw)(key, slots, res)
  want = augment.normalize(small.images(5)[[0, 2, 3, 1, 4]], small.SPEC.mean, small.SPEC.std)
  np.testing.assert_allclose(drawn, want, rtol=1e-5, atol=1e-6)


def test_slots_beyond_the_set_start_as_the_rest_does(key):
  res = small.resources()  # a set of three images of each class
  spec = {"name": "imported", "path": "x", "rest": "noise"}
  start, slots = initial_images.make_start(small.env(), spec), small.slots(4, 1, 3)
  drawn = np.asarray(start.draw(jax.random.clone(key), slots, res))
  noise = np.asarray(initial_images.make_start(small.env(), "noise").draw(key, slots, res))
  beyond = slots.rank >= 3
  assert beyond.sum() == 1
  np.testing.assert_array_equal(drawn[beyond], noise[beyond])
  assert not (drawn[~beyond] == noise[~beyond]).any()
  method = distil.make_method(small.env(), "sre2l", init=spec | {"rest": "real"})
  assert method.needs == ("teachers", "init_set", "images", "labels")
  with pytest.raises(LtddError, match="rest is 'imported' too; expected another start"):
    initial_images.make_start(small.env(), spec | {"rest": {"name": "imported", "path": "y"}})


def test_a_run_starts_from_a_set(tmp_path):
  path, images = old_set(tmp_path, (3, 2, 2), soft_labels=np.zeros((7, 3), np.float32))
  config = config_of(tmp_path, start_from(path) | {"lr": 0.0}, order="class_major")
  pipeline.run(config, tmp_path / "run", stage="distil", show_progress=False)
  made = Workdir(tmp_path / "run").load("distil/more")
  close = np.abs(made.arrays["images"].astype(int) - images)  # truncated, not moved
  assert close.max() <= 1
  notes = "\n".join(made.meta["extra"]["notes"])
  assert f"starts from 7 images 8x8x1 uint8 from {path}, SHA-256" in notes
  assert "soft_labels of the set that images start from: not used" in notes


def test_a_start_is_known_by_content_and_checked(tmp_path):
  path, _ = old_set(tmp_path, (3, 2, 2))
  moved = shutil.copy(path, tmp_path / "moved.npz")
  other, _ = old_set(tmp_path, (3, 2, 2), "other.npz", seed=6)
  prints = [fingerprint(config_of(tmp_path, start_from(str(p)))) for p in (path, moved, other)]
  assert prints[0] == prints[1] != prints[2]
  few, _ = old_set(tmp_path, (3, 1, 2), "few.npz")
  match = r"more\.init: 6 images .* has 1 images of class 1, which has 2 slots.*rest='real'"
  refused(match, config_of(tmp_path, start_from(few)))
  config = config_of(tmp_path, start_from(few, rest="noise"))
  check.check_with_data(Context(check.check(config)))
  formed, _ = old_set(tmp_path, (3, 2, 2), "formed.npz", parts=2)
  refused("2 x 2 small ones in each, and .* one in each", config_of(tmp_path, start_from(formed)))
  refused("there is no such file or folder", config_of(tmp_path, start_from("nowhere.npz")))


@pytest.mark.parametrize("whiten", [None, 0.1])
def test_trajectories_start_from_a_set(tmp_path, whiten):
  """Images that do not move are those of the set; it had a rate, which is not taken."""
  path, images = old_set(tmp_path, (3, 2, 2), student_lr=np.float32(0.5))
  still = KWARGS["mtt"] | {"name": "mtt", "lr": 0.0, "lr_lr": 0.0, "student_lr": 0.01}
  init = {"name": "imported", "path": path}
  config = config_of(tmp_path, still | {"init": init}, order="class_major")
  config["data"]["whiten"] = whiten
  config["trajectories"] = {"network": small.NET, "num_experts": 1, "num_epochs": 2}
  pipeline.run(config, tmp_path / "run", stage="distil", show_progress=False)
  made = Workdir(tmp_path / "run").load("distil/more")
  np.testing.assert_allclose(255 * made.arrays["images"], images, atol=0.1)
  np.testing.assert_allclose(made.arrays["student_lr"], 0.01)
  notes = "\n".join(made.meta["extra"]["notes"])
  assert f"starts from 7 images 8x8x1 uint8 from {path}, SHA-256" in notes
  assert "student_lr of the set that images start from: not used" in notes


@pytest.mark.parametrize("name", ["dream", "idm", "ncfm"])
def test_small_images_start_from_sets_of_as_many(tmp_path, name):
  entry = lambda path: KWARGS[name] | {"name": name, "init": {"name": "imported", "path": path}}
  formed, _ = old_set(tmp_path, (3, 2, 2), "formed.npz", parts=2)
  check.check_with_data(Context(check.check(config_of(tmp_path, entry(formed)))))
  whole, _ = old_set(tmp_path, (3, 2, 2))
  refused("one in each, and .* 2 x 2 small ones in each", config_of(tmp_path, entry(whole)))


# ---- on_top_of ----


@pytest.mark.parametrize("order", ["interleaved", "class_major"])
def test_a_grown_set_has_the_old_images_first_in_each_class(tmp_path, order):
  path, images = old_set(tmp_path)
  entry = SRE2L | {"on_top_of": path}
  config = config_of(tmp_path, entry, (3, 1, 4), order=order, batch_size=2)
  line = plan.distil(Context(check.check(config)), images="more")
  assert line.startswith("3 images 8x8x1 uint8")
  assert f"on top of 5 images 8x8x1 uint8 from {path}, SHA-256" in line
  pipeline.run(config, tmp_path / "run", stage="distil", show_progress=False)
  made = Workdir(tmp_path / "run").load("distil/more").arrays
  slots = distil.make_slots(3, slots_per_class=(3, 1, 4), order=order)
  np.testing.assert_array_equal(made["labels"], slots.labels)
  for c, first in enumerate((images[:2], images[2:3], images[3:])):
    mine = made["images"][made["labels"] == c]
    np.testing.assert_array_equal(mine[: len(first)], first)
    assert len(np.unique(mine, axis=0)) == len(mine)


@pytest.mark.parametrize("name", ["random", "herding", "k_center"])
def test_methods_that_go_by_rank_go_on(tmp_path, name):
  """A set that grew in two steps is the set that was made in one."""
  folder, config = tmp_path / "run", config_of(tmp_path, {"name": name}, (2, 1, 0))
  run = lambda path: pipeline.run(config, path, stage="distil", show_progress=False)
  run(folder)
  config["distil"]["methods"]["more"]["on_top_of"] = str(folder / "distil" / "more")
  config["distil"]["slots_per_class"] = (5, 2, 1)
  run(tmp_path / "grown")
  del config["distil"]["methods"]["more"]["on_top_of"]
  run(tmp_path / "whole")
  grown, whole = (Workdir(tmp_path / k).load("distil/more").arrays for k in ("grown", "whole"))
  np.testing.assert_array_equal(grown["images"], whole["images"])


def test_new_images_are_not_the_old_ones_again(tmp_path):
  """Though name, seed and number of slots are those of the set that grows."""
  folder, config = tmp_path / "run", config_of(tmp_path, dict(SRE2L), (2, 2, 2))
  run = lambda path: pipeline.run(config, path, stage="distil", show_progress=False)
  run(folder)
  config["distil"]["methods"]["more"]["on_top_of"] = str(folder / "distil" / "more")
  config["distil"]["slots_per_class"] = (4, 4, 4)
  run(tmp_path / "grown")
  made = Workdir(tmp_path / "grown").load("distil/more").arrays["images"]
  assert len(np.unique(made, axis=0)) == 12


def test_patches_of_rded_go_on(key):
  """A set that grew has the patches of one that was made at once, though at other places."""
  method, whole = distil.make_method(small.env(), "rded", factor=2), small.slots(4, 4, 4)

  def patches(*parts):
    of = lambda slots: method.init(jax.random.clone(key), slots, small.resources()).images
    images = np.concatenate([of(slots)[slots.labels == 0] for slots in parts])
    cells = images.reshape(4, 2, 4, 2, 4).swapaxes(2, 3).reshape(16, -1)
    return cells[np.lexsort(cells.T)]

  old, new = (type(whole)(*(x[where] for x in whole)) for where in (whole.rank < 2, whole.rank > 1))
  np.testing.assert_array_equal(patches(old, new), patches(whole))


@pytest.mark.parametrize("name", ["rded", "idm", "dream", "rldd", "kmeans"])  # that go by rank
def test_methods_fill_slots_of_later_ranks(name, key):
  """Slots of ranks 2 and on: images of the class, finite, of no other shapes."""
  method, slots = distil.make_method(small.env(), name), small.slots(4, 3, 3)
  slots = type(slots)(*(x[slots.rank >= 2] for x in slots))
  found = method.read(jax.jit(method.init)(key, slots, small.resources()))
  np.testing.assert_array_equal(found.labels, slots.labels)
  assert np.isfinite(found.images).all()


def test_kmeans_clusters_the_new_slots_alone(key):
  method, slots = distil.make_method(small.env(), "kmeans"), small.slots(2, 2, 1)
  later = slots._replace(rank=slots.rank + np.array([3, 1, 1], np.int32)[slots.labels])
  a, b = (method.init(jax.random.clone(key), s, small.resources()).images for s in (slots, later))
  np.testing.assert_array_equal(a, b)


def test_notes_count_the_earlier_slots(key):
  method, slots = distil.make_method(small.env(), "random"), small.slots(9, 3, 1)
  slots = type(slots)(*(x[slots.rank >= 6] for x in slots))
  notes = distil.check_resources("random", method, slots, small.resources(), small.env())
  assert notes == ("class 0: 9 slots but 7 training images; images are repeated",)


def test_a_base_is_known_by_content(tmp_path):
  path, _ = old_set(tmp_path)
  moved = shutil.copy(path, tmp_path / "moved.npz")
  other, _ = old_set(tmp_path, name="other.npz", seed=6)
  grown = lambda p: fingerprint(config_of(tmp_path, SRE2L | {"on_top_of": p and str(p)}))
  assert grown(path) == grown(moved) != grown(other)
  assert grown(None) == fingerprint(config_of(tmp_path, dict(SRE2L))) != grown(path)


def test_sets_that_cannot_grow_are_refused(tmp_path):
  path, _ = old_set(tmp_path)
  on = lambda entry, *args, **options: config_of(
    tmp_path, {"on_top_of": path} | entry, *args, **options
  )
  refused("has 2 images of class 0, which has 1 slots; .* Raise", on(SRE2L, (1, 3, 3)))
  refused("has 2 images of class 0, which has 2 slots; .* fewer in one", on(SRE2L, (2, 1, 2)))
  refused("'imported' takes a set as it is", on({"name": "imported", "path": path}))
  refused(r"would be float32; .* Set config.distil.dtype='uint8'", on({"name": "dm"}))
  refused(r"would be float32; .* Set", on(SRE2L, dtype="float32"))
  learned, _ = old_set(tmp_path, name="learned.npz", student_lr=np.float32(0.1))
  refused("the set .*npz has student_lr, learned for", on(SRE2L | {"on_top_of": learned}))
  formed, _ = old_set(tmp_path, name="formed.npz", parts=2)
  refused("2 x 2 small ones in each", on(SRE2L | {"on_top_of": formed}))
  refused("there is no such file or folder", on(SRE2L | {"on_top_of": "nowhere"}))
  config = on({"name": "frepo"}, dtype="uint8")
  refused("method 'frepo' has soft_labels, learned for", config)
