"""FRePo's losses and gradients against NumPy, its pool of networks, and its settings."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import methods
from ltdd_jax import distil, models
from ltdd_jax.core.types import LtddError
from ltdd_jax.distil import frepo as frepo_fn
from ltdd_jax.distil.frepo import Learned, centred, embed, objective, ridge_regression
from tests import small
from tests.contract.test_methods import KWARGS
from tests.reference import frepo_ref as ref

ENV = small.env(0)
NET = {"depth": 2, "width": 6, "norm": "batch", "layout": "frepo"}
MODEL = models.make_model("convnet", num_classes=3, image_shape=ENV.image_shape, **NET)
SLOTS = small.slots(2, 1, 2)


def make(**kwargs):
  return frepo_fn(ENV, **KWARGS["frepo"] | kwargs)


@functools.cache
def variables():
  """With running moments that are not those of the start."""
  found = models.init_variables(MODEL, jax.random.key(0), ENV.image_shape)
  draw = np.random.RandomState(0).uniform
  stats = jax.tree.map(lambda x: draw(0.5, 1.5, x.shape).astype("f"), found["batch_stats"])
  return {"params": found["params"], "batch_stats": stats}


@pytest.mark.parametrize("flip", [False, True])
def test_losses_and_gradients(flip):
  draws = np.random.RandomState(1)
  images, real = (draws.normal(size=(n, *ENV.image_shape)).astype("f") for n in (4, 6))
  labels = draws.normal(size=(4, 3)).astype("f")
  labels[0] = [0.1, 0.2, -0.5]  # a gap below 1/3; that of others may be above
  targets = np.asarray(centred(jnp.array([0, 1, 2, 0, 0, 1]), 3))
  look = functools.partial(embed, MODEL, variables())
  loss_fn = functools.partial(
    objective, look=look, real=look(jnp.asarray(real)), targets=jnp.asarray(targets), flip=flip
  )
  grads, terms = jax.jit(jax.grad(loss_fn, has_aux=True))(Learned(images, labels))
  want = lambda x, y: ref.terms(x, y, real, targets, jax.device_get(variables()), flip)
  found = [terms["regression"], terms["margin"]]
  np.testing.assert_allclose(found, want(images, labels), rtol=1e-3)
  np.testing.assert_allclose(terms["loss"], sum(found), rtol=1e-6)
  for seed in range(3):  # the slope in random directions
    draw = np.random.RandomState(seed).normal
    way, turn = draw(size=images.shape), draw(size=labels.shape)
    moves = {
      "images": lambda s, way=way: sum(want(images + s * way, labels)),
      "soft_labels": lambda s, turn=turn: sum(want(images, labels + s * turn)),
    }
    for (name, move), to in zip(moves.items(), (way, turn), strict=True):
      slope = (move(1e-6) - move(-1e-6)) / 2e-6
      dot = (np.asarray(getattr(grads, name)) * to).sum()
      np.testing.assert_allclose(dot, slope, rtol=5e-3, atol=5e-3)


def test_the_margin_moves_labels_with_a_small_gap_alone():
  look = lambda images: images.reshape(len(images), -1)
  images = jnp.eye(2).reshape(2, 1, 2, 1)
  real = jnp.zeros((1, 2))  # predicted as zeros: the regression moves nothing
  rows = jnp.array([[0.3, 0.1, 0.0], [0.9, 0.1, 0.0]])
  loss_fn = functools.partial(
    objective, look=look, real=real, targets=jnp.zeros((1, 3)), flip=False
  )
  grads, terms = jax.grad(loss_fn, has_aux=True)(Learned(images, rows))
  np.testing.assert_allclose(terms["margin"], -(0.2 + 1 / 3) / 2, rtol=1e-6)
  np.testing.assert_allclose(grads.soft_labels, [[-0.5, 0.5, 0], [0, 0, 0]], atol=1e-7)


def test_copies_of_images_have_finite_predictions_and_gradients():
  x = jnp.asarray(np.random.RandomState(0).exponential(size=(10, 40)), jnp.float32)
  many = jnp.repeat(x, 40, 0)  # 1e-6 is lost in rounding
  labels = jnp.repeat(jnp.eye(10), 40, 0)

  def loss_fn(features):
    found = ridge_regression(x, features, labels)
    return jnp.square(found).sum(), found

  slope, found = jax.jit(jax.grad(loss_fn, has_aux=True))(many)
  np.testing.assert_allclose(found, np.eye(10), atol=1e-2)
  assert np.isfinite(slope).all()
  dead = ridge_regression(jnp.zeros((2, 5)), jnp.zeros((3, 5)), labels[:3])
  np.testing.assert_array_equal(dead, 0)


def test_images_and_labels_move_by_lamb():
  draws = np.random.RandomState(0)
  param, grads = draws.normal(size=(3, 2)), draws.normal(size=(3, 3, 2))
  rate = optax.cosine_decay_schedule(0.1, 5, alpha=0.1)
  tx = optax.lamb(rate)
  now = jnp.asarray(param, jnp.float32)
  state = tx.init(now)
  for g in grads:
    updates, state = tx.update(jnp.asarray(g, jnp.float32), state, now)
    now = optax.apply_updates(now, updates)
  lrs = [0.1 * (0.1 + 0.9 * (1 + np.cos(np.pi * t / 5)) / 2) for t in range(3)]
  np.testing.assert_allclose(now, ref.lamb(param, grads, lrs), rtol=1e-4)


def test_networks_age_and_are_replaced():
  method, res = make(num_networks=3, max_updates=7), small.resources()
  state, step = jax.jit(method.init)(jax.random.key(0), SLOTS, res), jax.jit(method.step)
  ages = np.array(state.pool.age)
  assert ages.tolist() == [0, 2, 4]
  want = np.asarray(centred(jnp.asarray(SLOTS.labels), 3)) / 0.3**0.5
  np.testing.assert_allclose(state.learned.soft_labels, want, rtol=1e-6)
  kernel = lambda s: np.asarray(s.pool.variables["params"]["conv0"]["kernel"])
  replaced = 0
  for t in range(30):
    old = state
    state, _ = step(jax.random.key(t), state, res, None)
    (place,) = np.flatnonzero((kernel(state) != kernel(old)).any((1, 2, 3, 4)))
    fresh = ages[place] == 8  # the first age above 7
    replaced += fresh
    ages[place] = 0 if fresh else ages[place] + 1
    np.testing.assert_array_equal(state.pool.age, ages)
    counts = np.asarray(state.pool.opt_state[0].count)
    assert not fresh or counts[place] == 0
  assert replaced
  assert method.read(state).soft_labels.shape == (5, 3)


def test_published_settings():
  flips = {("cifar10", 50): True, ("cifar100", 1): True, ("cifar100", 10): False,
           ("tiny_imagenet", 10): False, ("digits", 1): False}  # fmt: skip
  for case, want in flips.items():
    assert methods.frepo(*case).method["flip"] is want
  found = methods.frepo("cifar100", 10)
  assert (found.method["num_steps"], found.student["norm"], found.whiten) == (
    500_000, "none", 0.0071
  )  # fmt: skip
  made = distil.make_method(ENV._replace(image_shape=(32, 32, 3)), **found.method)
  assert made.num_steps == 500_000


@pytest.mark.parametrize(
  ("kwargs", "message"),
  [
    ({"batch_real": 0}, "'frepo': batch_real is 0; expected 1 or more"),
    ({"num_networks": 0}, "'frepo': num_networks is 0; expected 1 or more"),
    ({"max_updates": 0}, "max_updates is 0; expected 1 or more"),
    ({"lr": -1.0}, "lr is -1.0; expected 0 or more"),
  ],
)
def test_invalid_arguments(kwargs, message):
  with pytest.raises(LtddError, match=message):
    make(**kwargs)
