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

NET = {"name": "convnet", "depth": 1, "width": 2, "norm": "none"}
GRADIENTS = {"num_steps": 3, "batch_real": 4, "network": NET, "steps_per_network": 2}
TRAJECTORIES = {
  "num_steps": 2, "inner_steps": 2, "expert_epochs": 1, "max_start_epoch": 2, "augment": None
}  # fmt: skip
FREQUENCIES = {"num_steps": 3, "batch_real": 4, "num_frequencies": 16}
KWARGS = {
  **dict.fromkeys(("mtt", "tesla", "tesla_released"), TRAJECTORIES),
  "damed": TRAJECTORIES | {"inner_steps": 1, "classifier_steps": 1},
  "datm": TRAJECTORIES | {"inner_steps": 1, "first_max_start_epoch": 1, "growth_steps": 1},
  "ftd": TRAJECTORIES | {"inner_steps": 1, "ema_decay": 0.5},
  **{name: {"num_steps": 3} for name in ("cda", "edc", "edc_released", "gvbsm", "rldd", "sre2l")},
  "dc": GRADIENTS | {"epochs": 2, "network_batch": 4},
  "dm": {"num_steps": 3, "batch_real": 4, "network": small.NET},
  "dream": {
    "num_steps": 3,
    "network": NET,
    "steps_per_network": 2,
    "num_clusters": 5,
    "interval": 1,
    "num_iterations": 2,
    "network_images": 6,
    "network_batch": 4,
    "augment": "color_cutout",  # without a warp, whose gradient takes long to compile
    "network_augment": None,
  },
  "dsa": GRADIENTS | {"epochs": 0, "augment": "color"},
  "frepo": {
    "num_steps": 3,
    "batch_real": 4,
    "num_networks": 2,
    "max_updates": 1,
    "network_batch": 4,
    "network": NET | {"norm": "batch", "layout": "frepo"},
  },
  "idm": {
    "num_steps": 3,
    "batch_real": 4,
    "num_networks": 4,
    "new_every": 2,
    "trained_networks": 1,
    "train_steps": 1,
    "train_batch": 4,
    "network": NET,
    "augment": "color",
  },
  "imported": {"path": "somewhere"},
  "kmeans": {"num_iterations": 2},
  "ncfm": FREQUENCIES | {"augment": None},
  "ncfm_released": FREQUENCIES | {"augment": "color_cutout", "calibration": 0.0},
  "rded": {"factor": 2, "num_crops": 2, "pool": 10},
}
WITHOUT_KEY = {"herding", "imported", "k_center"}  # the images are the same for every key
SLOTS = small.slots(2, 1, 2)


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
  """`init` and `step`, compiled once for all tests: the shapes of these are the same.

  The third is a list of what `step` was traced for: turn and shapes.
  """
  traces = []

  def step(*args, turn):
    traces.append((turn, str(jax.tree.map(lambda x: (x.shape, str(x.dtype)), args))))
    return method.step(*args, turn=turn)

  return jax.jit(method.init), jax.jit(step, static_argnames="turn"), traces


def run(method, key, slots=SLOTS, res=None):
  res = res or small.resources()
  init, step, _ = compiled(method)
  state = init(key, slots, res)
  for t in range(method.num_steps):
    x = inputs_of(method, t, res)
    state, _ = step(jax.random.fold_in(key, t), state, res, x, turn=t % method.turns)
  return method.read(state)


def inputs_of(method, t, res):
  """Host arrays of a step, or None."""
  return None if method.inputs is None else method.inputs(np.random.default_rng(t), t, res)


def test_initialises_abstractly(method, key):
  state = jax.eval_shape(method.init, key, SLOTS, small.resources())
  synth = jax.eval_shape(method.read, state)
  assert isinstance(synth, Distilled)
  assert synth.images.shape == (5, *small.SPEC.image_shape)
  assert synth.images.dtype == np.float32
  assert synth.labels.shape == (5,)


def test_step_keeps_structure_and_compiles_once_a_turn(method, key):
  res = small.resources()
  init, step, traces = compiled(method)
  state = init(key, SLOTS, res)
  for t in range(method.turns + 2):
    x = inputs_of(method, t, res)
    new, metrics = step(jax.random.fold_in(key, t), state, res, x, turn=t % method.turns)
    chex.assert_trees_all_equal_shapes_and_dtypes(new, state)
    assert all(np.isfinite(v) for v in metrics.values())
    state = new
  assert len(traces) == len(set(traces))
  assert {turn for turn, _ in traces} == set(range(method.turns))


def test_is_deterministic_in_the_key(method, name):
  one, two, other = (run(method, jax.random.key(s)) for s in (1, 1, 2))
  np.testing.assert_array_equal(one.images, two.images)
  assert np.array_equal(one.images, other.images) == (name in WITHOUT_KEY)


def test_fills_the_slots_with_valid_pixels(method, key):
  synth = run(method, key)
  np.testing.assert_array_equal(synth.labels, SLOTS.labels)
  if method.dtype == "float32":  # not clamped
    assert np.isfinite(synth.images).all()
    return
  low, high = (0 - 0.4) / 0.3, (1 - 0.4) / 0.3
  assert low - 1e-5 <= synth.images.min()
  assert synth.images.max() <= high + 1e-5


def test_missing_feed_is_refused_helpfully(method, name):
  for field in method.needs:
    res = small.resources() | {field: None}
    with pytest.raises(LtddError, match=rf"{name}.*needs the resource '{field}'"):
      distil.check_resources(name, method, SLOTS, res, small.env())


def test_classes_with_one_and_three_images_and_more_slots(method, name):
  for slots in (small.slots(1, 4, 0), small.slots(0, 1, 4)):  # shapes that are compiled already
    notes = distil.check_resources(name, method, slots, small.resources(), small.env())
    assert bool(notes) == (method.real_images and name != "dc")  # which starts from noise
    assert np.isfinite(run(method, jax.random.key(0), slots).images).all()


def test_class_without_an_image(method, name, key):
  res = small.resources(np.array([7, 3, 0]))
  if method.real_images:
    with pytest.raises(LtddError, match=r"classes \[2\] have slots and no training image"):
      distil.check_resources(name, method, SLOTS, res, small.env())
  else:
    assert distil.check_resources(name, method, SLOTS, res, small.env()) == ()
    assert np.isfinite(run(method, key, res=res).images).all()


def test_arguments_are_keyword_only_with_defaults(name):
  _, *rest = inspect.signature(distil.METHODS[name]).parameters.values()
  assert all(p.kind is p.KEYWORD_ONLY for p in rest)
  assert all(p.default is not p.empty for p in rest if p.name != "path")
