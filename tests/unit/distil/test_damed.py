"""DAMED as a method: the two phases of a step, what they draw, errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import cifar10_lt
from ltdd_jax import distil
from ltdd_jax.core.types import LtddError
from ltdd_jax.distil.damed import class_weights
from ltdd_jax.models.flat import flat_params
from tests import small
from tests.contract.test_methods import KWARGS

SLOTS = small.slots(2, 1, 1)
RATE = 0.3


def first_step(**kwargs):
  """The state before and after a step, its metrics, and its vectors."""
  options = KWARGS["damed"] | {"student_lr": RATE, "momentum": 0.0, "momentum_labels": 0.0}
  method = distil.make_method(small.env(0), "damed", **options | kwargs)
  res = small.resources()
  state = jax.jit(method.init)(jax.random.key(0), SLOTS, res)
  x = method.inputs(np.random.default_rng(0), 0, res)
  after, metrics = jax.jit(method.step)(jax.random.key(1), state, res, x)
  return state, after, metrics, x


def test_the_losses_of_both_phases():
  """After one inner step: a biased one of the backbone, a plain one of the classifier."""
  model, flat = small.expert(), flat_params(small.expert(), small.SPEC.image_shape)
  weights = class_weights(small.resources()["labels"], small.K)
  np.testing.assert_allclose(weights, small.COUNTS / small.COUNTS.sum(), rtol=1e-6)
  f = flat.num_features
  for phase, part in ((0, slice(f)), (1, slice(f, None))):
    each = {"backbone_weight": 1.0 - phase, "classifier_weight": 1.0 * phase}
    state, _, metrics, x = first_step(**each)
    start, target = map(jnp.asarray, x[phase])
    labels = jax.nn.softmax(state.soft_labels) * (1 if phase else weights[None])

    def loss_fn(theta, state=state, labels=labels):
      logits = model.apply({"params": flat.unravel(theta)}, state.images, train=True)
      return -(labels * jax.nn.log_softmax(logits)).sum(1).mean()

    moved = start - RATE * jax.grad(loss_fn)(start)
    wanted = jnp.square((moved - target)[part]).sum() / jnp.square((start - target)[part]).sum()
    np.testing.assert_allclose(metrics["loss"], wanted, rtol=1e-4)
  np.testing.assert_array_equal(x[1][0][:f], x[1][1][:f])  # one backbone


def test_a_step_adds_the_gradients_of_both_phases():
  pairs = [(1.0, 0.0), (0.0, 1.0), (0.5, 2.0)]
  moves = []
  for one, two in pairs:
    state, after, _, _ = first_step(backbone_weight=one, classifier_weight=two)
    names = ("images", "soft_labels", "student_lr")
    moves.append([np.asarray(getattr(after, n)) - np.asarray(getattr(state, n)) for n in names])
  for first, second, both in zip(*moves, strict=True):
    assert np.abs(first).max() > 0
    assert np.abs(second).max() > 0
    atol = 1e-3 * np.abs(both).max()
    np.testing.assert_allclose(both, 0.5 * first + 2.0 * second, rtol=1e-2, atol=atol)


def test_images_and_labels_start_from_classifier_experts():
  """Those that the experts without balanced classifiers predict play no part."""
  method = distil.make_method(small.env(0), "damed", **KWARGS["damed"] | {"init": "real"})
  res = small.resources() | {"classifier_experts": 2 * small.trajectories()[:, -1]}
  state = jax.jit(method.init)(jax.random.key(0), SLOTS, res)
  model, flat = small.expert(), flat_params(small.expert(), small.SPEC.image_shape)
  params = flat.unravel(jnp.asarray(res["classifier_experts"][0]))
  wanted = model.apply({"params": params}, state.images, train=True)
  np.testing.assert_allclose(state.soft_labels, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
  ("kwargs", "message"),
  [
    ({"classifier_steps": 0}, "method 'damed': classifier_steps is 0; expected 1 or more"),
    ({"backbone_weight": -1.0}, "method 'damed': backbone_weight is -1.0; expected 0 or more"),
    ({"init": "noise"}, "'init' of method 'damed': 'noise'. Known"),
    ({"min_start_epoch": 2}, "method 'damed': max_start_epoch is 2; expected a number above"),
  ],
)
def test_invalid_arguments(kwargs, message):
  with pytest.raises(LtddError, match=message):
    distil.make_method(small.env(0), "damed", **KWARGS["damed"] | kwargs)


@pytest.mark.parametrize(
  ("imbalance", "ipc", "values"),
  [
    (10, 10, (80, 80, 10, 20, 100.0, 1.0, 0.2)),
    (40, 20, (80, 80, 10, 20, 100.0, 0.5, 1.0)),
    (100, 50, (80, 60, None, 40, 1000.0, 1.0, 0.5)),
    (300, 5, (80, 80, None, 20, 100.0, 0.1, 1.0)),
  ],
)
def test_published_settings_are_those_of_the_nearest_factor(imbalance, ipc, values):
  config = cifar10_lt.get_config(f"method=damed,imbalance={imbalance},ipc={ipc}")
  keys = ("inner_steps", "classifier_steps", "first_max_start_epoch", "max_start_epoch", "lr",
          "backbone_weight", "classifier_weight")  # fmt: skip
  assert tuple(config.distil.methods.damed[key] for key in keys) == values
  assert config.trajectories.optimizer.weight_decay == 5e-3
  assert config.trajectories.classifier_epochs == 10
