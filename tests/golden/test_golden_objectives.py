"""What the methods minimise, put together from their parts, and how the pixels move.

The parts have oracles of their own in `test_golden_distil.py`; here it is their weights and signs,
what they are given, and the optimiser. Tolerances: float32 sums of terms of order ten, 1e-5.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ltdd_jax import distil
from ltdd_jax.data import augment, crops
from ltdd_jax.distil import initial_images, layer_statistics, objectives, pixels
from ltdd_jax.models import taps
from ltdd_jax.teachers import statistics
from tests import small
from tests.reference import distil_ref as ref

SLOTS = small.slots(2, 2, 1)


@pytest.fixture
def views(monkeypatch):
  """Augmentations that have no chance in them, and that nothing but a view goes through."""
  monkeypatch.setattr(augment, "compose", lambda specs: lambda key, x: 0.1 * x + 0.02)
  crop = lambda key, x, *, scale, shared: x * scale[0]  # shows the least share of the area
  monkeypatch.setattr(crops, "random_resized_crop", crop)
  return lambda x: 0.1 * x + 0.02


def steps(name, count, key, **kwargs):
  """The states before each step, and the metrics of each."""
  method = distil.make_method(small.env(), name, num_steps=4, **kwargs)
  res = small.resources()
  state, step, found = method.init(key, SLOTS, res), jax.jit(method.step), []
  for t in range(count):
    new, metrics = step(jax.random.fold_in(key, t), state, res, None)
    found.append((state, metrics))
    state = new
  return found


def cross_entropy(logits):
  rows = [ref.log_softmax(row) for row in np.float64(logits)]
  return -sum(row[y] for row, y in zip(rows, SLOTS.labels, strict=True)) / len(rows)


def batch_norms(x, first):
  """SRe2L's distance of the batch's statistics from the running ones, by NumPy."""
  model, variables = small.teacher().model, small.teacher().variables
  logits, moments = taps.apply_with_moments(model, variables, x)
  _, inputs = taps.apply_with_inputs(model, variables, x)
  total = 0.0
  for i, (moment, layer) in enumerate(zip(moments, inputs, strict=True)):
    flat = np.float64(layer.value).reshape(-1, layer.value.shape[-1])
    here = [flat.mean(0), flat.var(0)]
    total += (first if i == 0 else 1) * ref.distance(
      [np.float64(moment.running_mean), np.float64(moment.running_var)], here
    )
  return cross_entropy(logits), total


@pytest.mark.parametrize("name", ["sre2l", "cda"])
def test_cross_entropy_and_batch_norms(name, views, key):
  for t, (state, metrics) in enumerate(
    steps(name, 3, key, r_bn=0.3, first_bn_multiplier=7.0, augment=({"name": "random_flip"},))
  ):
    low = ref.crop_scale(t, 4, "cosine") if name == "cda" else 1.0
    ce, bn = batch_norms(views(low * state.images), 7.0)
    np.testing.assert_allclose(metrics["cross_entropy"], ce, rtol=1e-5)
    np.testing.assert_allclose(metrics["bn_statistics"], bn, rtol=1e-5)
    np.testing.assert_allclose(metrics["loss"], ce + 0.3 * bn, rtol=1e-5)


def matched(rule, x, running, drop_key):
  teacher, stats = small.teacher(), small.teacher_statistics()
  logits, inputs = taps.apply_with_inputs(teacher.model, teacher.variables, x, statistics.LAYERS)
  labels = jnp.asarray(SLOTS.labels)
  found, _ = layer_statistics.match(
    rule, inputs, labels, teacher.variables, stats, running, drop_key
  )
  return logits, found


def test_gvbsm(views):
  key = jax.random.key(2)  # keeps the stem in steps 0, 2 and 3, and drops it in step 1
  rule = layer_statistics.Rule(first=7.0, momentum=0.6, ema_start="unbiased", drop=0.5, batch=64)
  found = steps(
    "gvbsm", 4, key, r_stats=0.3, densify=0.2, first_multiplier=7.0, ema=0.6, ema_init="unbiased",
    conv_drop=0.5, target_batch=64,
  )  # fmt: skip
  for t, (state, metrics) in enumerate(found):
    x = views(state.images)
    _, drop_key = jax.random.split(jax.random.fold_in(key, t))
    logits, stats = matched(rule, x, state.running[0], drop_key)
    ce = cross_entropy(logits)
    dense = ref.densification(np.float64(pooled(x)), SLOTS.labels.tolist(), 4.0)
    np.testing.assert_allclose(metrics["densification"], dense, rtol=1e-4)
    assert dense > 0.01
    np.testing.assert_allclose(metrics["loss"], ce + 0.3 * stats + 0.2 * dense, rtol=1e-5)


def pooled(x):
  """From 8 x 8 to 32 x 32 pixels each window is one pixel."""
  return np.repeat(np.repeat(x, 4, 1), 4, 2)


def test_edc(views, key):
  rule = layer_statistics.Rule(first=7.0, momentum=0.6, ema_start="unbiased", alpha=0.3)
  found = steps(
    "edc", 3, key, lr=3.0, r_stats=0.3, alpha=0.3, flatness=1000.0, flatness_decay=0.5,
    first_multiplier=7.0, ema=0.6, ema_init="unbiased", init="noise",
  )  # fmt: skip
  slow = found[0][0].images
  for t, (state, metrics) in enumerate(found):
    _, drop_key = jax.random.split(jax.random.fold_in(key, t))
    logits, stats = matched(rule, views(state.images), state.running[0], drop_key)
    teacher = small.teacher()
    of_slow = teacher.model.apply(teacher.variables, views(slow), train=False)
    flat = ref.flatness(logits, of_slow, 4.0)
    np.testing.assert_allclose(metrics["flatness"], flat, rtol=1e-3, atol=1e-7)
    assert (flat > 1e-6) == (t > 0)
    total = cross_entropy(logits) + 0.3 * stats + 1000.0 * flat
    np.testing.assert_allclose(metrics["loss"], total, rtol=1e-5)
    slow = 0.5 * slow + 0.5 * state.images


def test_edc_released(views, key):
  rule = layer_statistics.Rule(momentum=0.6, alpha=0.3, batch=64, released=True)
  for t, (state, metrics) in enumerate(
    steps("edc_released", 3, key, r_stats=0.3, alpha=0.3, ema=0.6, init="noise")
  ):
    _, drop_key = jax.random.split(jax.random.fold_in(key, t))
    logits, stats = matched(rule, views(state.images), state.running[0], drop_key)
    np.testing.assert_allclose(metrics["loss"], cross_entropy(logits) + 0.3 * stats, rtol=1e-5)


def test_gradient_of_the_batch_norm_term(key):
  """Through a network, against finite differences of the float32 objective."""
  teacher = small.teacher()
  x = jax.random.normal(key, (5, *small.SPEC.image_shape))
  way = jax.random.normal(jax.random.key(1), x.shape)

  @jax.jit
  def objective(x):
    _, moments = taps.apply_with_moments(teacher.model, teacher.variables, x)
    return objectives.bn_statistics(moments, 3.0)

  slope = (objective(x + 1e-2 * way) - objective(x - 1e-2 * way)) / 2e-2
  np.testing.assert_allclose(jnp.vdot(jax.grad(objective)(x), way), slope, rtol=1e-2)


def test_pixels_move_by_adam_along_a_cosine_and_stay_in_their_range(key):
  """float64: beta 0.5 and 0.9, lr_t = lr / 2 (1 + cos(pi t / T)), a clip after every step."""
  env, lr, total = small.env(), 0.7, 5
  target = np.random.RandomState(0).randn(5, *small.SPEC.image_shape).astype(np.float32)

  def objective(images, state, key, res, turn):
    loss = 0.5 * jnp.sum(jnp.square(images - target))
    return loss, ({"loss": loss}, None)

  start = initial_images.Start(lambda key, slots, res: jnp.zeros(target.shape))
  method = pixels.pixel_method("small", env, start, objective, num_steps=total, lr=lr)
  state, step = method.init(key, SLOTS, {}), jax.jit(method.step)
  x, m, v = (np.zeros(target.shape) for _ in range(3))
  low, high = (0 - 0.4) / 0.3, (1 - 0.4) / 0.3
  clipped = 0
  for t in range(total):
    state, _ = step(jax.random.fold_in(key, t), state, {}, None)
    g = x - target
    m, v = 0.5 * m + 0.5 * g, 0.9 * v + 0.1 * g * g
    mean, square = m / (1 - 0.5 ** (t + 1)), v / (1 - 0.9 ** (t + 1))
    x = x - lr / 2 * (1 + math.cos(math.pi * t / total)) * mean / (np.sqrt(square) + 1e-8)
    clipped += np.sum((x < low) | (x > high))
    x = np.clip(x, low, high)
    np.testing.assert_allclose(method.read(state).images, x, rtol=1e-5, atol=1e-5)
  assert clipped
