"""Joining `distil.METHODS` means passing these."""

import functools
import inspect

import chex
import jax
import numpy as np
import pytest

from ltdd_jax import distil
from ltdd_jax.core.types import Distilled, LtddError
from tests import small

KWARGS = {
  **{name: {"num_steps": 3} for name in ("cda", "edc", "gvbsm", "sre2l")},
  "kmeans": {"num_iterations": 2},
  "rded": {"factor": 2, "num_crops": 2, "pool": 10},
}
WITHOUT_KEY = {"herding", "k_center"}  # the images are the same for every key
SLOTS = distil.make_slots(np.array([2, 1, 2]))


@pytest.fixture(params=sorted(distil.METHODS))
def name(request):
  return request.param


@pytest.fixture
def method(name):
  return make(name)


@functools.cache
def make(name):
  return distil.make_method(small.env(), name, **KWARGS.get(name, {}))


@functools.cache
def compiled(method):
  """`init` and `step`, compiled once for all tests: the shapes of these are the same."""
  return jax.jit(method.init), jax.jit(method.step, static_argnames="turn")


def run(method, key, slots=SLOTS, feed=None):
  feed = feed or small.feed()
  init, step = compiled(method)
  state = init(key, slots, feed)
  for t in range(method.num_steps):
    state, _ = step(jax.random.fold_in(key, t), state, feed, turn=t % method.turns)
  return method.read(state)


def test_initialises_abstractly(method, key):
  state = jax.eval_shape(method.init, key, SLOTS, small.feed())
  synth = jax.eval_shape(method.read, state)
  assert isinstance(synth, Distilled)
  assert synth.images.shape == (5, *small.SPEC.image_shape)
  assert synth.images.dtype == np.float32
  assert synth.labels.shape == (5,)


def test_step_keeps_structure_and_compiles_once_a_turn(method, key):
  feed = small.feed()
  chex.clear_trace_counter()  # it counts by the place of a function, which several methods share
  traced = chex.assert_max_traces(method.step, n=method.turns)
  step = jax.jit(traced, static_argnames="turn")
  state = compiled(method)[0](key, SLOTS, feed)
  for t in range(method.turns + 2):
    new, metrics = step(jax.random.fold_in(key, t), state, feed, turn=t % method.turns)
    chex.assert_trees_all_equal_shapes_and_dtypes(new, state)
    assert all(np.isfinite(v) for v in metrics.values())
    state = new


def test_is_deterministic_in_the_key(method, name):
  one, two, other = (run(method, jax.random.key(s)) for s in (1, 1, 2))
  np.testing.assert_array_equal(one.images, two.images)
  assert np.array_equal(one.images, other.images) == (name in WITHOUT_KEY)


def test_fills_the_slots_with_valid_pixels(method, key):
  synth = run(method, key)
  np.testing.assert_array_equal(synth.labels, SLOTS.labels)
  low, high = (0 - 0.4) / 0.3, (1 - 0.4) / 0.3
  assert low - 1e-5 <= synth.images.min()
  assert synth.images.max() <= high + 1e-5


def test_missing_feed_is_refused_helpfully(method, name):
  for field in method.needs:
    feed = small.feed()._replace(**{field: None})
    with pytest.raises(LtddError, match=rf"{name}.*needs feed\.{field}"):
      distil.check_feed(name, method, SLOTS, feed, small.env())


def test_classes_with_one_and_three_images_and_more_slots(method, name, key):
  slots = distil.make_slots(np.array([1, 5, 3]))
  notes = distil.check_feed(name, method, slots, small.feed(), small.env())
  assert bool(notes) == method.real_images
  assert np.isfinite(run(method, key, slots).images).all()


def test_class_without_an_image(method, name, key):
  feed = small.feed(np.array([7, 3, 0]))
  if method.real_images:
    with pytest.raises(LtddError, match=r"classes \[2\] have slots and no training image"):
      distil.check_feed(name, method, SLOTS, feed, small.env())
  else:
    assert distil.check_feed(name, method, SLOTS, feed, small.env()) == ()
    assert np.isfinite(run(method, key, feed=feed).images).all()


def test_arguments_are_keyword_only_with_defaults(name):
  _, *rest = inspect.signature(distil.METHODS[name]).parameters.values()
  assert all(p.kind is p.KEYWORD_ONLY and p.default is not p.empty for p in rest)


def test_stages_know_what_a_method_needs(method, name):
  assert ("statistics" in method.needs) == (name in distil.NEEDS_STATISTICS)
  assert ("teachers" not in method.needs) == (name in distil.WITHOUT_TEACHERS)
  assert (method.num_steps == 0) == (name in distil.SELECT)
