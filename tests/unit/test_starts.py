"""Real images to start from: raw ones and mosaics."""

import jax
import numpy as np
import pytest

from ltdd_jax import distil
from ltdd_jax.data import augment
from ltdd_jax.distil import starts
from ltdd_jax.types import LtddError
from tests import small

SLOTS = distil.make_slots(np.array([40, 20, 2]))


def test_real_draws_images_of_the_class_with_replacement_and_mirrors_half(key):
  feed, start = small.feed(), starts.make_start(small.env(), "real")
  images = jax.jit(start.draw)(key, SLOTS, feed)
  pixels = np.asarray(augment.denormalize(images, small.SPEC.mean, small.SPEC.std))
  mirrored = []
  for x, c in zip(pixels, SLOTS.labels, strict=True):
    mine = feed.images[feed.labels == c]
    plain, flipped = ((mine == v).all((1, 2, 3)) for v in (x, x[:, ::-1]))
    assert plain.any() or flipped.any()
    mirrored.append(flipped.any())
  assert 20 < sum(mirrored) < 42  # 4 standard deviations around 31 of 62
  assert len(np.unique(pixels[SLOTS.labels == 0], axis=0)) > 10  # of 14 views of 7 images
  assert start.needs == ("images", "labels")


def test_rded_draws_mosaics_of_the_set(key):
  """A set of one image of each class: every slot shows it, mirrored or not."""
  spec = {"name": "rded", "images_per_class": 1, "num_crops": 1, "pool": 4}
  start = starts.make_start(small.env(), spec)
  images = np.asarray(jax.jit(start.draw)(key, SLOTS, small.feed()))
  for c in range(small.K):
    mine = images[SLOTS.labels == c]
    views = {x.tobytes() for x in mine} | {x[:, ::-1].tobytes() for x in mine}
    assert len(views) == 2


def test_notes_are_those_of_the_start():
  have, want = np.array([7, 1]), np.array([3, 2])
  real = starts.make_start(small.env(), "real").notes(have, want)
  assert real == ("class 1: 2 slots start from 1 training images, drawn with replacement",)
  spec = {"name": "rded", "images_per_class": 5, "pool": 6}
  said = starts.make_start(small.env(), spec).notes(have, want)
  assert said[1:] == ("class 1: 5 patches of 1 training images; up to 5 of each",)


@pytest.mark.parametrize(
  ("spec", "message"),
  [
    ("raw", "unknown start 'raw'"),
    ({"name": "red"}, "Did you mean 'rded'"),
    ({"name": "rded", "factor": 3}, "factor is 3"),
    ({"name": "rded", "images_per_class": 0}, "images_per_class is 0"),
    ({"name": "real", "factor": 1}, "factor"),
  ],
)
def test_bad_starts_are_refused(spec, message):
  with pytest.raises(LtddError, match=message):
    starts.make_start(small.env(), spec)
