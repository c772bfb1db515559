"""The supervised step: the average of the parameters, and batch statistics updated twice."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ltdd_jax import models
from ltdd_jax.core.types import LtddError
from ltdd_jax.training import losses, supervised
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
  tx = supervised.make_tx(
    {"name": "sgd", "lr": LR, "momentum": 0.0}, {"name": "constant"}, num_steps
  )
  images = np.random.RandomState(0).normal(size=(6, 8, 8, 1)).astype(np.float32)
  consts = {"images": jnp.asarray(images), "labels": jnp.arange(6) % 3, "key": jax.random.key(1)}
  ema = kwargs.get("ema") is not None
  states = [supervised.init_state(model, tx, jax.random.key(0), (8, 8, 1), ema=ema)]
  step = jax.jit(
    functools.partial(
      supervised.train_step, apply_fn=model.apply, tx=tx, batch_fn=batch,
      loss_fn=losses.cross_entropy, **kwargs,
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


def test_two_updates_of_batch_statistics_are_those_of_two_passes():
  images, states = run(2, bn_updates=2)
  for t, (before, after) in enumerate(itertools.pairwise(states)):
    stats = before.batch_stats
    for _ in range(2):
      variables = {"params": before.params, "batch_stats": stats}
      shown = jnp.asarray(images[3 * (t % 2) : 3 * (t % 2) + 3])
      _, new = network().apply(variables, shown, train=True, mutable=["batch_stats"])
      stats = new["batch_stats"]
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), after.batch_stats, stats
    )
  jax.tree.map(np.testing.assert_array_equal, states[-1].params, run(2)[1][-1].params)


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    ((1.0, 1), r"ema is 1.0; expected a decay in \[0, 1\)"),
    ((None, 3), "bn_updates is 3; expected 1 or 2"),
  ],
)
def test_bad_numbers_are_refused(arguments, message):
  with pytest.raises(LtddError, match=message):
    supervised.check_averages(*arguments)
