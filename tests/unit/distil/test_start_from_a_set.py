"""Every method that optimises images starts from a set that exists."""

import inspect

import jax
import numpy as np
import pytest

from ltdd_jax import distil
from ltdd_jax.core.types import LtddError
from ltdd_jax.data import augment
from ltdd_jax.distil import ftd_datm
from tests import small
from tests.contract.test_methods import KWARGS

NAMES = [n for n, f in distil.METHODS.items() if "init" in inspect.signature(f).parameters]
SET = {"name": "imported", "path": "somewhere"}
OLD = small.resources()["init_set"]  # three images of each class, in turn


def made(name, init):
  return distil.make_method(small.env(), name, **KWARGS[name] | {"init": init})


def started(name, init, slots):
  method = made(name, init)
  return method.read(jax.jit(method.init)(jax.random.key(1), slots, small.resources()))


def pixels(images):
  return np.asarray(augment.denormalize_pixels(images, small.SPEC.mean, small.SPEC.std))


def test_all_but_those_that_select_or_read_images_have_starts():
  others = {"herding", "imported", "k_center", "kmeans", "random", "rded"}
  assert set(distil.METHODS) - set(NAMES) == others


@pytest.mark.parametrize("name", NAMES)
def test_first_images_are_those_of_the_set(name):
  slots = small.slots(3, 1, 2, order="class_major")
  found = started(name, SET, slots)
  want = OLD["images"][[0, 3, 6, 1, 2, 5]] / 255
  np.testing.assert_allclose(pixels(found.images), want, atol=1e-6)
  np.testing.assert_array_equal(found.labels, slots.labels)
  method = made(name, SET)
  assert method.needs.count("init_set") == 1
  assert "repeated" not in "".join(method.notes(np.array([1, 1, 1]), np.array([3, 1, 2])))


@pytest.mark.parametrize("name", ["dm", "mtt", "idm", "dream"])
def test_slots_beyond_the_set_start_as_the_method_does(name):
  slots = small.slots(5, 1, 4)
  mixed, own = (started(name, init, slots) for init in (SET | {"rest": "real"}, "real"))
  beyond = slots.rank >= 3
  assert beyond.sum() == 3
  np.testing.assert_allclose(mixed.images[beyond], own.images[beyond], atol=1e-5)
  assert (abs(mixed.images - own.images)[~beyond].max((1, 2, 3)) > 0.1).all()


@pytest.mark.parametrize(
  ("name", "experts"), [("datm", "experts"), ("damed", "classifier_experts")]
)
def test_labels_that_are_learned_start_from_the_first_expert(name, experts):
  found = started(name, SET, small.slots(2, 1, 3))
  logits_of, _ = ftd_datm.expert_network(name, small.env())
  want = logits_of(small.resources()[experts][0], found.images)
  np.testing.assert_allclose(found.soft_labels, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
  ("name", "init", "message"),
  [
    ("frepo", "reel", "'init' of method 'frepo': 'reel'. Did you mean 'real'.*: imported, noise, "),
    ("idm", "noise", "'init' of method 'idm': 'noise'. .*: imported, real"),
    ("dream", {"name": "imported"}, "'imported': missing key 'path'"),
    ("ncfm", SET | {"rest": "noise"}, "'noise'. .*: imported, real"),
    ("mtt", SET | {"rest": SET}, "rest is 'imported' too"),
    ("dsa", {"name": "real", "flip": True}, "unexpected key 'flip'"),
  ],
)
def test_unknown_starts_are_refused(name, init, message):
  with pytest.raises(LtddError, match=message):
    made(name, init)
