"""RDED: order of patches, mosaics, short classes, notes and errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ltdd_jax import distil
from ltdd_jax.core.types import LtddError
from ltdd_jax.data import augment
from ltdd_jax.distil import patches, selection
from tests import small


def test_best_patch_of_each_image_comes_before_any_second_best():
  """Two images (entries 0 and 2 are one, 1 and 3 the other) of two crops in each entry, by hand."""
  scores = jnp.array([[0.1, 0.9, 0.4, 0.8, 0.2, 0.3, 0.7, 0.6]])
  order = patches.rank_patches(scores, jnp.array([2]), num_crops=2)
  assert order.tolist() == [[0, 2, 4, 7, 5, 6, 3, 1]]


def test_one_patch_of_each_image_where_there_are_enough():
  scores = jnp.array([[0.5, 0.1, 0.2, 0.3, 0.9, 0.8]])
  order = patches.rank_patches(scores, jnp.array([9]), num_crops=2)
  assert order[0, :3].tolist() == [1, 2, 5]


def test_equal_scores_take_the_first_candidate():
  order = patches.rank_patches(jnp.zeros((1, 6)), jnp.array([3]), num_crops=2)
  assert order.tolist() == [[0, 2, 4, 1, 3, 5]]


def test_classes_that_are_not_asked_for_are_not_scored(key):
  res, options = small.resources(), patches.PatchOptions(1, 2, 4, 8)  # a chunk is a class
  pool = patches.Pool(key, selection.by_class(res["labels"], small.K, key))
  ask = lambda wanted: patches.score_patches(pool, small.env(), options, res, jnp.array(wanted))
  whole, part = ask([True] * small.K), ask([True, False, True])
  np.testing.assert_allclose(part[0::2], whole[0::2], rtol=1e-5)
  assert (part[1] == 0).all()
  assert (whole[1] > 0).all()


def test_cells_show_every_third_patch_of_three_images():
  """Images 0 and 1 of 3: four cells each, of twelve patches."""
  numbers, totals = jnp.array([0, 1]), jnp.array([3, 3])
  found = patches.places(patches.PatchOptions(2, 1, 12, 1), numbers, totals)
  assert found.tolist() == [[0, 3, 6, 9], [1, 4, 7, 10]]


def test_cells_are_joined_row_by_row():
  cells = jnp.arange(4.0).reshape(1, 4, 1, 1, 1) * jnp.ones((1, 1, 2, 2, 1))
  expected = [[0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 3, 3], [2, 2, 3, 3]]
  assert patches.join_cells(cells)[0, ..., 0].tolist() == expected


def test_padding_is_the_mean_colour_on_all_sides():
  canvas = patches.pad_to(jnp.ones((1, 4, 4, 1)), (8, 8, 1))
  assert canvas[0, 2:6, 2:6].min() == 1
  assert canvas.sum() == 16


@pytest.fixture(scope="module")
def fill():
  method = distil.make_method(small.env(), "rded", factor=2, num_crops=2, pool=6)
  return method, jax.jit(method.init)


def test_unequal_slots_and_a_class_without(fill, key):
  """Every cell of a class without variation shows that class, whatever the number of slots."""
  res = small.resources()
  shades = (40 * res["labels"] + 40).astype(np.uint8)[:, None, None, None]
  res |= {"images": np.broadcast_to(shades, res["images"].shape)}
  slots = small.slots(3, 0, 2)
  synth = fill[1](key, slots, res)
  pixels = np.asarray(augment.denormalize(synth.images, small.SPEC.mean, small.SPEC.std))
  expected = np.broadcast_to((40 * slots.labels + 40)[:, None, None, None], pixels.shape)
  np.testing.assert_array_equal(pixels, expected)
  np.testing.assert_array_equal(synth.labels, slots.labels)


def test_a_class_of_one_image_gets_different_patches(fill, key):
  synth = fill[1](key, small.slots(1, 1, 3), small.resources())
  mine = np.asarray(synth.images)[np.asarray(synth.labels) == 2]
  assert len(np.unique(mine.reshape(3, -1), axis=0)) == 3


def test_notes_say_that_images_give_more_patches(fill):
  slots = small.slots(1, 1, 3)
  assert distil.check_resources("rded", fill[0], slots, small.resources(), small.env()) == (
    "classes 1 (3), 2 (1) have fewer training images than the pool of 6; each image gives more "
    "candidate patches",
    "class 1: 4 patches of 3 training images; up to 2 of each",
    "class 2: 12 patches of 1 training images; up to 12 of each",
  )


def test_enough_images_need_no_note():
  method = distil.make_method(small.env(), "rded", num_crops=1, pool=3)
  slots = small.slots(3, 2, 0)
  assert distil.check_resources("rded", method, slots, small.resources(), small.env()) == ()


def test_more_patches_than_candidates_are_refused(fill):
  slots = small.slots(4, 1, 1)
  with pytest.raises(LtddError, match=r"class 0 has 4 slots of 4 patches.*6 x 2 candidate"):
    distil.check_resources("rded", fill[0], slots, small.resources(), small.env())


@pytest.mark.parametrize(
  ("kwargs", "message"),
  [
    ({"factor": 3}, "factor is 3, which does not divide the sides of images of 8 x 8"),
    ({"factor": 0}, "factor is 0; expected 1 or more"),
    ({"pool": 0}, "pool is 0; expected 1 or more"),
    ({"num_crops": 0}, "num_crops is 0; expected 1 or more"),
    ({"chunk_size": 0}, "chunk_size is 0; expected 1 or more"),
  ],
)
def test_bad_arguments_are_refused(kwargs, message):
  with pytest.raises(LtddError, match=f"'rded'.*{message}"):
    distil.make_method(small.env(), "rded", **kwargs)


def test_no_teacher_is_refused():
  with pytest.raises(LtddError, match="'rded' needs a teacher"):
    distil.make_method(small.env(0), "rded")
