"""CDA, G-VBSM and EDC as methods: turns, what goes on over batches, starts, options."""

import collections
import functools
import gc

import chex
import jax
import numpy as np
import pytest

from configs import cifar10_lt
from ltdd_jax import distil, models
from ltdd_jax.artefacts import checkpoint
from ltdd_jax.core.types import LtddError
from ltdd_jax.data import specs
from ltdd_jax.distil.run import run_method
from ltdd_jax.teachers import statistics
from ltdd_jax.training import loop
from tests import small

SLOTS = small.slots(2, 2, 2, order="class_major")
QUIET = loop.Session(show_progress=False)


def counted(method, counts):
  """The method, with the number of times that each turn of its step is traced."""

  def step(key, state, res, x, *, turn=0):
    counts[turn] += 1
    return method.step(key, state, res, None, turn=turn)

  return method._replace(step=step)


def fill(method, session=QUIET, batch_size=2, slots=SLOTS):
  env, res = small.env(method.turns), small.resources(teachers=method.turns)
  return run_method("a", method, env, slots, res, batch_size=batch_size, session=session)


@functools.cache
def edc():
  return distil.make_method(small.env(2), "edc", num_steps=3)


@functools.cache
def whole():
  """Three batches of images, without a break, and how often each turn was traced."""
  traced = collections.Counter()
  return fill(counted(edc(), traced)), traced


def test_teachers_compile_once_each_over_all_batches():
  result, traced = whole()
  assert traced == {0: 1, 1: 1}
  assert result.images.std() > 0


def test_a_shorter_last_batch_compiles_once_more():
  traced = collections.Counter()
  slots = small.slots(2, 2, 1, order="class_major")
  method = distil.make_method(small.env(), "sre2l", num_steps=2)
  result = fill(counted(method, traced), slots=slots)
  assert traced == {0: 2}
  assert len(result.images) == 5


def test_memory_does_not_grow_with_the_number_of_batches():
  """What is alive on the device when a batch begins: after one batch as much as after five."""
  held = []

  def carry(fresh, last):
    gc.collect()
    held.append(sum(x.nbytes for x in jax.live_arrays()))
    return edc().carry(fresh, last)

  fill(edc()._replace(carry=carry), slots=small.slots(4, 4, 4, order="class_major"))
  assert len(held) == 5
  assert len(set(held)) == 1


FEW = ("convnet_d1", "wrn16_2")  # without and with batch norms


@pytest.mark.parametrize("names", [FEW, pytest.param(None, marks=pytest.mark.slow, id="all")])
def test_different_networks_take_turns(names):
  """CIFAR-10's EDC as published, abstractly: the state has one structure whoever's turn it is."""
  config, spec = cifar10_lt.get_config("method=edc"), specs.SPECS["cifar10"]

  def teacher(name):
    kwargs = config.teacher.models[name].to_dict()
    model = models.make_model(num_classes=10, image_shape=spec.image_shape, **kwargs)
    init = functools.partial(models.init_variables, model, image_shape=spec.image_shape)
    variables = jax.eval_shape(init, jax.random.key(0))
    stats = statistics.shapes(model, variables, spec.image_shape, 10, config.statistics.tile)
    return distil.Network(name, model), variables, stats

  teachers, variables, stats = zip(*map(teacher, names or config.distil.teachers), strict=True)
  env = distil.Env(spec.image_shape, 10, spec.mean, spec.std, teachers)
  method = distil.make_method(env, **config.distil.methods.edc.to_dict())
  images = jax.ShapeDtypeStruct((50, *spec.image_shape), np.uint8)
  res = {
    "teachers": variables,
    "images": images,
    "labels": jax.ShapeDtypeStruct((50,), np.int32),
    "statistics": stats,
  }
  slots = small.slots(*[2] * 10, order="class_major")
  state = jax.eval_shape(method.init, jax.random.key(0), slots, res)
  assert method.turns == len(teachers)
  for turn in range(method.turns):
    step = functools.partial(method.step, turn=turn)
    new, _ = jax.eval_shape(step, jax.random.key(0), state, res, None)
    chex.assert_trees_all_equal_shapes_and_dtypes(new, state)


def test_a_killed_batch_goes_on_bit_for_bit(tmp_path, monkeypatch):
  session = loop.Session(show_progress=False, scratch=tmp_path, checkpoint_seconds=0.0)
  calls = iter([False] * 4 + [True])
  monkeypatch.setattr(checkpoint, "stop_requested", lambda: next(calls))
  with pytest.raises(checkpoint.Interrupted, match="distil/a/1: stopped after step 2 of 3"):
    fill(edc(), session)
  monkeypatch.setattr(checkpoint, "stop_requested", lambda: False)
  np.testing.assert_array_equal(fill(edc(), session).images, whole()[0].images)


def test_only_the_teacher_whose_turn_it_is_moves_its_running_means(key):
  method, res = edc(), small.resources(teachers=2)
  state = method.init(key, SLOTS, res)
  step = jax.jit(method.step, static_argnames="turn")
  weights = lambda s: [float(r[0].batch.weight[0]) for r in s.running]
  assert weights(state) == [0, 0]
  state, _ = step(jax.random.key(1), state, res, None, turn=1)
  np.testing.assert_allclose(weights(state), [0, 0.2], rtol=1e-6)
  classes = state.running[1][0].classes.weight
  np.testing.assert_allclose(classes, [0.2, 0.2, 0.2], rtol=1e-6)
  fresh = method.init(jax.random.key(2), SLOTS, res)
  carried = method.carry(fresh, state)
  np.testing.assert_allclose(weights(carried), [0, 0.2], rtol=1e-6)
  assert carried.step == 0
  np.testing.assert_array_equal(carried.images, fresh.images)


def test_running_mean_of_the_images_lags_by_one_step(key):
  method, res = edc(), small.resources(teachers=2)
  state = method.init(key, SLOTS, res)
  step = jax.jit(method.step, static_argnames="turn")
  one, metrics = step(jax.random.key(1), state, res, None, turn=1)
  assert metrics["flatness"] == 0  # both are the start
  np.testing.assert_allclose(one.slow, state.images, rtol=1e-6)
  two, metrics = step(jax.random.key(2), one, res, None, turn=1)
  assert metrics["flatness"] > 0
  np.testing.assert_allclose(two.slow, 0.99 * one.slow + 0.01 * one.images, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["edc", "gvbsm"])
def test_many_steps_fit_one_dispatch(name, key):
  """On accelerators the turns are branches of one switch in a scan: all types must agree."""
  res = small.resources(teachers=2)
  method = distil.make_method(small.env(2), name)

  def step_fn(state, consts, t, turn):
    return method.step(jax.random.fold_in(consts, t), state, res, None, turn=turn)

  step = loop.in_turn([functools.partial(step_fn, turn=turn) for turn in range(2)])
  state = jax.eval_shape(method.init, key, SLOTS, res)
  x = jax.ShapeDtypeStruct((4,), np.int32)
  scan = lambda state, x: jax.lax.scan(lambda s, x: step(s, key, x), state, x)
  after, metrics = jax.eval_shape(scan, state, (x, x))
  assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == jax.tree.map(
    lambda x: (x.shape, x.dtype), state
  )
  assert all(m.shape == (4,) for m in metrics.values())


def test_edc_of_the_released_code(key):
  method = distil.make_method(small.env(), "edc_released", num_steps=2, init="noise")
  assert method.needs == ("teachers", "statistics")
  state = method.init(key, SLOTS, small.resources())
  assert state.slow is None
  assert state.running[0][0].classes is None
  _, metrics = jax.jit(method.step)(jax.random.key(1), state, small.resources(), None)
  assert set(metrics) == {"loss", "cross_entropy", "statistics"}


@pytest.mark.parametrize(
  ("name", "kwargs", "message"),
  [
    ("edc", {"alpha": 1.5}, r"alpha is 1.5; expected a number in \[0, 1\]"),
    ("edc", {"init": "rdet"}, "unknown 'init' of method 'edc': 'rdet'. Did you mean 'rded'"),
    ("edc", {"flatness": -0.25}, "flatness is -0.25; expected 0 or more"),
    ("edc", {"flatness_decay": 1.5}, "flatness_decay is 1.5"),
    ("edc", {"ema": -0.1}, "ema is -0.1"),
    ("edc_released", {"target_batch": 1}, "target_batch is 1; expected 2 or more"),
    ("gvbsm", {"densify": -1.0}, "densify is -1.0"),
    ("gvbsm", {"r_stats": -1.0}, "r_stats is -1.0"),
    ("gvbsm", {"first_multiplier": -1.0}, "first_multiplier is -1.0"),
    ("sre2l", {"r_bn": -1.0}, "r_bn is -1.0; expected 0 or more"),
    ("cda", {"first_bn_multiplier": -1.0}, "first_bn_multiplier is -1.0"),
    ("cda", {"min_scale": 2.0}, "min_scale is 2.0"),
    ("gvbsm", {"ema_init": "one"}, "ema_init is 'one'; expected one of 'zero', 'unbiased'"),
    ("gvbsm", {"conv_drop": -1.0}, "conv_drop is -1.0"),
    (
      "cda",
      {"curriculum": "sine"},
      "curriculum is 'sine'; expected one of 'cosine', 'linear', 'step'",
    ),
    ("cda", {"milestone": 2.0}, "milestone is 2.0"),
  ],
)
def test_bad_options_are_refused(name, kwargs, message):
  with pytest.raises(LtddError, match=message):
    distil.make_method(small.env(), name, **kwargs)


@pytest.mark.parametrize("name", ["cda", "edc", "gvbsm", "sre2l"])
def test_no_teacher_is_refused(name):
  with pytest.raises(LtddError, match=f"method '{name}' needs a teacher"):
    distil.make_method(small.env()._replace(teachers=()), name)


def test_statistics_of_each_teacher_are_asked_for():
  res = small.resources(teachers=2) | {"statistics": (small.teacher_statistics(),)}
  with pytest.raises(LtddError, match="got statistics of 1 networks for 2 teachers"):
    distil.check_resources("edc", edc(), SLOTS, res, small.env(2))
