"""Loss and gradients of MTT and TESLA against NumPy and finite differences, in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ltdd_jax.distil import inner_loop, trajectory_matching
from ltdd_jax.distil.network_training import batch_rows
from tests.reference import mtt_ref as ref

N, D, HIDDEN, K = 5, 4, 3, 3
RATE = 0.4


def inner_loss(theta, learned, i):
  """The network and the views of the reference."""
  images, logits = learned
  x = images * (1 + 0.3 * i)
  w1, w2 = theta[: D * HIDDEN].reshape(D, HIDDEN), theta[D * HIDDEN :].reshape(HIDDEN, K)
  log_p = jax.nn.log_softmax(jnp.tanh(x @ w1) @ w2)
  return -(jax.nn.softmax(logits) * log_p).sum(1).mean()


@functools.cache
def case():
  draws = np.random.RandomState(0)
  size = D * HIDDEN + HIDDEN * K
  start = draws.normal(size=size)
  return start, start + 0.1 * draws.normal(size=size), draws.normal(size=(N, D)), draws.normal(
    size=(N, K)
  )  # fmt: skip


@functools.cache
def compiled(method, steps, **kwargs):
  return jax.jit(functools.partial(method, inner_loss, num_steps=steps, **kwargs))


def compute(method, steps, rate=RATE, **kwargs):
  start, target, images, logits = case()
  with jax.enable_x64(True):
    fn = compiled(method, steps, **kwargs)
    found = fn(*map(jnp.asarray, (start, target)), (images, logits), jnp.float64(rate))
    return jax.tree.map(np.asarray, found)


@pytest.mark.parametrize("steps", [1, 5])
def test_exact_gradients(steps):
  start, target, images, logits = case()
  loss, ((by_images, by_logits), by_rate) = compute(inner_loop.exact, steps)
  of = functools.partial(ref.loss, start, target, steps=steps, hidden=HIDDEN)
  assert by_images.dtype == np.float64
  np.testing.assert_allclose(loss, of(images, logits, RATE), rtol=1e-12)
  np.testing.assert_allclose(
    by_rate, ref.slope(lambda rate: of(images, logits, rate), RATE, 1.0), rtol=1e-7
  )
  for seed in range(3):
    way = np.random.RandomState(seed).normal(size=(N, D + K))
    slopes = (
      ref.slope(lambda x: of(x, logits, RATE), images, way[:, :D]),
      ref.slope(lambda y: of(images, y, RATE), logits, way[:, D:]),
    )
    found = (by_images * way[:, :D]).sum(), (by_logits * way[:, D:]).sum()
    np.testing.assert_allclose(found, slopes, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("matched", [None, D * HIDDEN])
def test_gradients_in_constant_memory(matched):
  """Of the whole vector, or of the first layer alone, as in DAMED."""
  start, target, images, logits = case()
  loss, ((by_images, by_logits), by_rate) = compute(inner_loop.constant_memory, 5, matched=matched)
  common = start, target, images, logits, RATE, 5, HIDDEN
  last = ref.path(*common[:1], *common[2:])[0][-1]
  moved, wanted = (((x - target)[:matched] ** 2).sum() for x in (last, start))
  np.testing.assert_allclose(loss, moved / wanted, rtol=1e-12)
  s, slope = ref.tesla_terms(*common, matched)
  np.testing.assert_allclose(by_rate, slope, rtol=1e-10)
  for seed in range(3):
    way = np.random.RandomState(seed).normal(size=(N, D + K))
    slopes = (
      ref.slope(lambda x: s(x, logits), images, way[:, :D]),
      ref.slope(lambda y: s(images, y), logits, way[:, D:]),
    )
    found = (by_images * way[:, :D]).sum(), (by_logits * way[:, D:]).sum()
    np.testing.assert_allclose(found, slopes, rtol=1e-6, atol=1e-9)
  released = compute(inner_loop.constant_memory, 5, factor=1.0, matched=matched)
  np.testing.assert_allclose(released[1][0][0], by_images / 2, rtol=1e-12)
  np.testing.assert_allclose(released[1][1], by_rate, rtol=1e-12)


def test_gradient_by_learned_labels():
  """Of DATM's inner loss, in batches of 2 and 3 of the 5 images."""
  start, target, images, logits = case()
  options = trajectory_matching.Options(1, 4, 3, 1, 1, 1.0, 0.0, RATE, 1.0, None, "real")
  keys = jax.random.key_data(jax.random.split(jax.random.key(0)))

  def logits_of(theta, x):
    w1, w2 = theta[: D * HIDDEN].reshape(D, HIDDEN), theta[D * HIDDEN :].reshape(HIDDEN, K)
    return jnp.tanh(x @ w1) @ w2

  def matched(start, target, learned):
    loss_fn = functools.partial(
      trajectory_matching.inner_loss, options, logits_of, jnp.zeros((N, K)), keys
    )
    return inner_loop.exact(loss_fn, start, target, learned, jnp.float64(RATE), num_steps=4)

  with jax.enable_x64(True):
    compiled = jax.jit(matched)
    of = lambda y: compiled(start, target, {"images": images, "soft_labels": y})
    by_labels = np.asarray(of(logits)[1][0]["soft_labels"])
    for seed in range(3):
      way = np.random.RandomState(seed).normal(size=(N, K))
      slope = ref.slope(lambda y: float(of(y)[0]), logits, way)
      np.testing.assert_allclose((by_labels * way).sum(), slope, rtol=1e-6)
  assert by_labels.dtype == np.float64
  np.testing.assert_allclose(by_labels.sum(1), 0, atol=1e-12)  # a softmax knows no level


def test_weights_of_classes_are_those_of_the_labels_shares():
  """A mean over images of sum_c w_c q_c (-log p_c), whatever the weights sum to."""
  draws = np.random.RandomState(0)
  logits, free, weights = (
    draws.normal(size=(N, K)),
    draws.normal(size=(N, K)),
    draws.uniform(size=K),
  )
  options = trajectory_matching.Options(1, 4, None, 1, 1, 1.0, 0.0, RATE, 1.0, None, "real")
  keys = jax.random.key_data(jax.random.split(jax.random.key(0)))
  learned = {"images": jnp.zeros((N, 1)), "soft_labels": free}
  wanted = -(weights * ref.softmax(free) * np.log(ref.softmax(logits))).sum(1).mean()
  found = trajectory_matching.inner_loss(
    options, lambda theta, x: jnp.asarray(logits), jnp.zeros((N, K)), keys, jnp.zeros(2), learned,
    jnp.int32(0), class_weights=jnp.asarray(weights),
  )  # fmt: skip
  np.testing.assert_allclose(found, wanted, rtol=1e-5)


def test_they_agree_for_one_step_and_not_for_more():
  for steps, same in ((1, True), (5, False)):
    pairs = [compute(m, steps) for m in (inner_loop.exact, inner_loop.constant_memory)]
    flat = [np.concatenate([np.ravel(x) for x in jax.tree.leaves(p[1])]) for p in pairs]
    np.testing.assert_allclose(pairs[0][0], pairs[1][0], rtol=1e-12)
    assert np.allclose(*flat, rtol=1e-9, atol=1e-12) == same


def test_the_loss_is_one_for_a_rate_of_zero_and_zero_at_the_target():
  for method in (inner_loop.exact, inner_loop.constant_memory):
    assert compute(method, 1, rate=0.0)[0] == 1
  vector = jnp.arange(3.0)
  assert inner_loop.matching_loss(vector + 1, vector, vector + 1) == 0


def peak(method, steps, width=2000):
  """Bytes of temporary memory of a step whose parameters are large and activations small."""
  big = lambda theta, x, i: jnp.square(jnp.tanh(theta.reshape(2, -1)).mean(1) * x).sum() + i
  fn = functools.partial(method, big, num_steps=steps)
  vector, scalar = (jax.ShapeDtypeStruct(s, jnp.float32) for s in ((2 * width,), ()))
  x = jax.ShapeDtypeStruct((2,), jnp.float32)
  return jax.jit(fn).lower(vector, vector, x, scalar).compile().memory_analysis().temp_size_in_bytes


def test_memory_grows_by_one_vector_for_each_step_or_not_at_all():
  vector = 4 * 4000
  few, many = (peak(inner_loop.exact, steps) for steps in (16, 256))
  assert few < (16 + 10) * vector  # one step's own need is a few vectors
  assert abs(many - few - (256 - 16) * vector) < vector
  few, many = (peak(inner_loop.constant_memory, steps) for steps in (16, 256))
  assert many - few < 256 * 8  # but for the numbers of the steps


def test_batches_use_each_image_once_and_start_with_the_short_one():
  batch = jax.jit(lambda i: batch_rows(jax.random.key(0), i, 7, 3, "first"))
  rows = [batch(i) for i in range(6)]
  assert [int(weights.sum()) for _, weights in rows] == [1, 3, 3, 1, 3, 3]
  passes = [
    np.concatenate([np.asarray(r)[np.asarray(w) > 0] for r, w in rows[i : i + 3]]) for i in (0, 3)
  ]
  assert all(sorted(p) == list(range(7)) for p in passes)
  assert list(passes[0]) != list(passes[1])
