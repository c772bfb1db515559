"""Real images to start from: raw ones and mosaics."""

import jax
import numpy as np
import pytest

from ltdd_jax import distil
from ltdd_jax.core.types import LtddError
from ltdd_jax.data import augment
from ltdd_jax.distil import initial_images
from tests import small

SLOTS = small.slots(40, 20, 2)


def test_edc_starts_from_mosaics(key):
  init = {"name": "rded", "images_per_class": 2, "factor": 2, "pool": 6}
  method = distil.make_method(small.env(), "edc", num_steps=2, init=init)
  assert method.needs == ("teachers", "statistics", "images", "labels")
  state = jax.eval_shape(method.init, key, SLOTS, small.resources())
  assert state.images.shape == (62, 8, 8, 1)
  notes = distil.check_resources("edc", method, SLOTS, small.resources(), small.env())
  assert "class 2: 8 patches of 1 training images; up to 8 of each" in notes


def test_rded_draws_mosaics_of_the_set(key):
  """A set of one image of each class: every slot shows it, mirrored or not."""
  spec = {"name": "rded", "images_per_class": 1, "num_crops": 1, "pool": 4}
  start = initial_images.make_start(small.env(), spec)
  images = np.asarray(jax.jit(start.draw)(key, SLOTS, small.resources()))
  for c in range(small.K):
    mine = images[SLOTS.labels == c]
    views = {x.tobytes() for x in mine} | {x[:, ::-1].tobytes() for x in mine}
    assert len(views) == 2


def test_real_start_draws_of_the_own_class_again_and_again(key):
  slots, res = small.slots(40, 0, 3), small.resources()
  images = initial_images.make_start(small.env(), "real").draw(key, slots, res)
  drawn = np.asarray(augment.denormalize(images, small.SPEC.mean, small.SPEC.std))
  for c, distinct in ((0, 7), (2, 1)):
    mine = drawn[np.asarray(slots.labels) == c]
    whole = res["images"][res["labels"] == c]
    both = {x.tobytes() for x in np.concatenate([whole, whole[:, :, ::-1]])}
    assert {x.tobytes() for x in mine} <= both
    unflipped = {x.tobytes() for x in mine} & {x.tobytes() for x in whole}
    assert len(unflipped) <= distinct
  assert len(np.unique(drawn[np.asarray(slots.labels) == 0], axis=0)) > 7  # some are mirrored


def test_notes_are_those_of_the_start():
  have, want = np.array([7, 1]), np.array([3, 2])
  real = initial_images.make_start(small.env(), "real").notes(have, want)
  assert real == ("class 1: 2 slots start from 1 training images, drawn with replacement",)
  spec = {"name": "rded", "images_per_class": 5, "pool": 6}
  said = initial_images.make_start(small.env(), spec).notes(have, want)
  assert said[1:] == ("class 1: 5 patches of 1 training images; up to 5 of each",)


@pytest.mark.parametrize(
  ("spec", "message"),
  [
    ("raw", "unknown 'init' of .*'raw'. Known: crops, imported, noise, rded, real"),
    ({"name": "red"}, "Did you mean 'rded'"),
    ({"name": "rded", "factor": 3}, "factor is 3"),
    ({"name": "rded", "images_per_class": 0}, "images_per_class is 0"),
    ({"name": "real", "factor": 1}, "factor"),
  ],
)
def test_bad_starts_are_refused(spec, message):
  with pytest.raises(LtddError, match=message):
    initial_images.make_start(small.env(), spec)
