"""Losses, moments, schedules and optimisers against float64 NumPy loops.

Tolerance 1e-5 relative: float32 has 1.2e-7, and sums here are of some hundred terms.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ltdd_jax.distil import objectives
from ltdd_jax.models import taps
from ltdd_jax.teachers import objectives as teacher_objectives
from ltdd_jax.training import losses, optimizers
from tests.reference import losses_ref as ref

COUNTS = (500, 60, 8, 1)
B, K = 7, len(COUNTS)


def close(actual, expected, rtol=1e-5, atol=1e-6):
  np.testing.assert_allclose(np.asarray(actual), expected, rtol=rtol, atol=atol)


@pytest.fixture
def draws():
  random = np.random.RandomState(0)
  logits, targets = (random.randn(B, K).astype(np.float32) * s for s in (3, 5))
  return jnp.asarray(logits), jnp.asarray(targets), jnp.asarray(random.randint(0, K, B))


def supervised(logits, labels, **kwargs):
  """The loss that an objective makes of a network's logits."""
  objective = teacher_objectives.make_objective(COUNTS, **kwargs)
  apply_fn = lambda variables, images, *, train, mutable: (images, {})
  return objective.loss(apply_fn, {}, {}, (logits, labels), None, 0.0)[0]


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy(draws, smoothing):
  logits, _, labels = draws
  actual = supervised(logits, labels, name="cross_entropy", label_smoothing=smoothing)
  close(actual, ref.cross_entropy(logits, labels, smoothing))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize(("name", "kwargs"), [
  ("balanced_softmax", {}), ("logit_adjusted", {"tau": 1.5})
])  # fmt: skip
def test_losses_with_a_prior(draws, name, kwargs, smoothing):
  logits, _, labels = draws
  actual = supervised(logits, labels, name=name, label_smoothing=smoothing, **kwargs)
  expected = ref.logit_adjusted(logits, labels, COUNTS, kwargs.get("tau", 1.0), smoothing)
  close(actual, expected)


@pytest.mark.parametrize("beta", [0.0, 0.9, 0.999, 0.9999])
def test_class_balanced(draws, beta):
  logits, _, labels = draws
  actual = supervised(logits, labels, name="class_balanced", beta=beta)
  close(actual, ref.class_balanced(logits, labels, COUNTS, beta))


@pytest.mark.parametrize("squared", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 4.0, 20.0])
def test_kl(draws, temperature, squared):
  logits, targets, labels = draws
  fn = losses.make_soft_loss("kl", temperature=temperature, squared=squared)
  # At T = 20 the terms of the sum nearly cancel: an absolute 1e-6 of values near 1e-2.
  close(fn(logits, targets, labels), ref.kl(logits, targets, temperature, squared), 1e-4)


def test_mse_ce(draws):
  logits, targets, labels = draws
  fn = losses.make_soft_loss("mse_ce", ce_weight=0.025)
  close(fn(logits, targets, labels), ref.mse_ce(logits, targets, labels, 0.025))


def test_moments_do_not_cancel():
  """One pass, E[x^2] - E[x]^2, would lose a variance of 1e-2 beside a mean of 100."""
  x = (np.random.RandomState(1).randn(3, 4, 5, 2) * 0.1 + 100).astype(np.float32)
  mean, var = taps.moments(jnp.asarray(x))
  expected_mean, expected_var = ref.moments(x.astype(np.float64))
  close(mean, expected_mean)
  close(var, expected_var, 1e-3)


def test_bn_statistics_term():
  """Three layers with running statistics of their own; the first weighs ten times."""
  random = np.random.RandomState(2)
  layers, moments = [], []
  for i, (side, c) in enumerate(((6, 2), (3, 5), (2, 4))):
    x = (random.randn(3, side, side, c) * (i + 1) + i).astype(np.float32)
    running = random.randn(c).astype(np.float32), random.rand(c).astype(np.float32) + 0.5
    layers.append((x.astype(np.float64), *running))
    moments.append(taps.Moment(str(i), *taps.moments(jnp.asarray(x)), *map(jnp.asarray, running)))
  close(objectives.bn_statistics(moments, 10.0), ref.bn_penalty(layers, 10.0))


SCHEDULES = [
  ("constant", {}), ("cosine", {}), ("smooth", {"zeta": 2.0}), ("linear", {"zeta": 1.0}),
  ("linear", {"zeta": 2.0}), ("ssrs", {"zeta": 2.0}), ("warmup_cosine", {"warmup": 0.1}),
  ("warmup_cosine", {"warmup": 0.1, "start": 0.0, "end": 0.01}),
  ("multistep", {"milestones": (0.5, 2 / 3, 0.95), "factor": 0.2}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "kwargs"), SCHEDULES)
def test_schedules(name, kwargs):
  n, lr = 60, 0.3
  schedule = jax.jit(jax.vmap(optimizers.make_schedule(name, n, lr, **kwargs)))
  expected = [lr * ref.factor(name, i, n, **kwargs) for i in range(n + 1)]
  close(schedule(jnp.arange(n + 1)), expected)


@pytest.mark.parametrize(("name", "kwargs"), SCHEDULES)
def test_schedules_once_an_epoch(name, kwargs):
  n, lr = 60, 0.3
  make = optimizers.make_schedule
  schedule = jax.jit(jax.vmap(make(name, n, lr, steps_per_epoch=6, **kwargs)))
  expected = [lr * ref.factor(name, i // 6, n // 6, **kwargs) for i in range(n + 1)]
  close(schedule(jnp.arange(n + 1)), expected)


OPTIMIZERS = [
  ("sgd", {"momentum": 0.9, "weight_decay": 0.1}, ref.sgd, (0.9, 0.1, False)),
  ("sgd", {"momentum": 0.9, "weight_decay": 0.1, "nesterov": True}, ref.sgd, (0.9, 0.1, True)),
  ("sgd", {"momentum": 0.0}, ref.sgd, (0.0, 0.0, False)),
  ("adam", {"weight_decay": 0.1}, ref.adam, (0.1, False)),
  ("adamw", {"weight_decay": 0.1}, ref.adam, (0.1, True)),
]


@pytest.mark.parametrize(("name", "kwargs", "oracle", "args"), OPTIMIZERS)
def test_optimizers(name, kwargs, oracle, args):
  grads, n = (0.5, -1.0, 2.0, 0.1), 4
  tx = optimizers.make_optimizer({"name": name, "lr": 0.1, **kwargs}, {"name": "cosine"}, n)
  param = jnp.asarray(1.5)
  state = tx.init(param)
  for grad in grads:
    update, state = tx.update(jnp.asarray(grad), state, param)
    param = param + update
  lrs = [0.1 * ref.factor("cosine", i, n) for i in range(n)]
  close(param, oracle(1.5, grads, lrs, *args))
