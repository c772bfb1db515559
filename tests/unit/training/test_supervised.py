"""The supervised step: the average of the parameters, the share done, keys, views."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from ltdd_jax import models
from ltdd_jax.training import losses, optimizers, supervised
from tests import small

LR, DECAY = 0.1, 0.75


def batch(consts, x, key):
  del key
  return consts["images"][x], consts["labels"][x]


@functools.cache
def network():
  return models.make_model(num_classes=small.K, image_shape=(8, 8, 1), norm="batch", **small.NET)


def run(num_steps, **kwargs):
  """States before and after each step of plain gradient descent on six images."""
  model = network()
  tx = optimizers.make_optimizer(
    {"name": "sgd", "lr": LR, "momentum": 0.0}, {"name": "constant"}, num_steps
  )
  images = np.random.RandomState(0).normal(size=(6, 8, 8, 1)).astype(np.float32)
  consts = {"images": jnp.asarray(images), "labels": jnp.arange(6) % 3, "key": jax.random.key(1)}
  ema = kwargs.get("ema") is not None
  states = [supervised.init_state(model, tx, jax.random.key(0), (8, 8, 1), ema=ema)]
  step = jax.jit(
    functools.partial(
      supervised.train_step, apply_fn=model.apply, tx=tx, batch_fn=batch,
      objective=supervised.of_logits(losses.cross_entropy), num_steps=num_steps, **kwargs,
    )
  )  # fmt: skip
  for t in range(num_steps):
    states.append(step(states[-1], consts, jnp.arange(3) + 3 * (t % 2))[0])
  return images, states


def test_the_average_of_parameters_is_that_of_a_loop():
  _, states = run(3, ema=DECAY)
  want = states[0].params
  for state in states[1:]:
    want = jax.tree.map(lambda e, p: DECAY * e + (1 - DECAY) * p, want, state.params)
  last = states[-1]
  close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
  jax.tree.map(close, last.ema, want)
  assert last.scored == {"params": last.ema, "batch_stats": last.batch_stats}
  moved = lambda a, b: max(float(jnp.abs(x).max()) for x in jax.tree.leaves(_minus(a, b)))
  assert moved(last.ema, last.params) > 1e-4
  assert moved(last.ema, states[0].params) > 1e-4


def _minus(a, b):
  return jax.tree.map(lambda x, y: x - y, a, b)


def test_training_is_the_same_with_and_without_the_average():
  (_, plain), (_, averaged) = run(2), run(2, ema=DECAY)
  assert plain[-1].ema is None
  assert plain[-1].scored == plain[-1].variables
  jax.tree.map(np.testing.assert_array_equal, plain[-1].params, averaged[-1].params)


def test_two_passes_of_a_batch_are_one_of_another_momentum():
  """What RDED's second pass does to running statistics is what `bn_momentum=0.81` does."""
  images = jnp.asarray(np.random.RandomState(0).normal(size=(3, 8, 8, 1)), jnp.float32)
  variables = models.init_variables(network(), jax.random.key(0), (8, 8, 1))
  run = lambda model, v: model.apply(v, images, train=True, mutable=["batch_stats"])[1]
  twice = run(network(), variables | run(network(), variables))
  once = run(network().clone(bn_momentum=0.81), variables)
  close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
  jax.tree.map(close, once, twice)


def test_an_objective_sees_batch_key_and_share_done():
  """Keys differ from step to step, and from the keys that the batch is made with."""
  seen, batch_keys = [], []

  def look(apply_fn, params, batch_stats, batch, key, progress):
    images, target = batch
    assert images.shape == (2, 3, 8, 8, 1)
    assert target.shape == (3,)
    loss = sum(jnp.sum(p**2) for p in jax.tree.leaves(params))
    return loss, (batch_stats, {"progress": progress, "key": jax.random.key_data(key)})

  def two_views(consts, x, key):
    batch_keys.append(jax.random.key_data(key))
    return jnp.stack([consts["images"][x]] * 2), consts["labels"][x]

  tx = optimizers.make_optimizer({"name": "sgd", "lr": LR}, {"name": "constant"}, 4)
  state = supervised.init_state(network(), tx, jax.random.key(0), (8, 8, 1))
  consts = {"images": jnp.zeros((6, 8, 8, 1)), "labels": jnp.arange(6), "key": jax.random.key(1)}
  for _ in range(4):
    state, metrics = supervised.train_step(
      state, consts, jnp.arange(3), apply_fn=network().apply, tx=tx, batch_fn=two_views,
      objective=look, num_steps=4,
    )  # fmt: skip
    seen.append(metrics)
  np.testing.assert_allclose([m["progress"] for m in seen], [0, 0.25, 0.5, 0.75])
  assert len({tuple(map(int, k)) for k in [*batch_keys, *(m["key"] for m in seen)]}) == 8


def test_a_loss_on_logits_takes_every_view():
  apply_fn = lambda variables, images, *, train, mutable: (images.mean((1, 2)), {})
  images = jnp.asarray(np.random.RandomState(0).normal(size=(2, 3, 4, 4, 5)), jnp.float32)
  labels = jnp.arange(3)
  objective = supervised.of_logits(losses.cross_entropy)
  both, *each = (objective(apply_fn, {}, {}, (x, labels), None, 0.0)[0] for x in (images, *images))
  np.testing.assert_allclose(both, sum(each) / 2, rtol=1e-6)
