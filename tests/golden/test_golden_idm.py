"""IDM's loss, gradient and training of networks against NumPy, and two blobs that it matches."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import methods
from ltdd_jax import distil, models
from ltdd_jax.core.types import LtddError
from ltdd_jax.data import augment, dsa
from ltdd_jax.distil import idm as idm_fn
from ltdd_jax.distil.idm import Queue, append, embed, objective, train_member
from ltdd_jax.training import optimizers
from tests import small
from tests.reference import dm_ref
from tests.reference import idm_ref as ref

ENV = small.env(0)
LABELS = np.array([2, 0, 0, 2], np.int32)  # of distilled images: none of class 1
OPS = ("rotate", "flip", "color")
SGD = {"name": "sgd", "lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}
TX = optimizers.make_optimizer(SGD, {"name": "constant"}, 10)
MODEL = models.make_model("convnet", num_classes=3, image_shape=ENV.image_shape, depth=1, width=3)
RES = {"images": small.images(11), "labels": small.train_data().labels}


def make(num_classes=3, **kwargs):
  few = {"batch_real": 8, "train_steps": 1, "train_batch": 8, "trained_networks": 1}
  return idm_fn(ENV._replace(num_classes=num_classes), **{**few, "network": small.NET, **kwargs})


@pytest.fixture(scope="module")
def queue():
  """Four places, of which the first two have networks."""
  keys = jax.random.split(jax.random.key(0), 4)
  variables = jax.vmap(lambda key: models.init_variables(MODEL, key, ENV.image_shape))(keys)
  opt_state = jax.vmap(TX.init)(variables["params"])
  return Queue(variables, opt_state, jnp.array([0.5, 0.25, 0, 0]), jnp.int32(2))


def params_of(queue, place):
  return jax.tree.map(lambda x: np.asarray(x[place]), queue.variables["params"])


def test_loss_and_gradient(queue):
  draws = np.random.RandomState(1)
  images = draws.normal(size=(4, *ENV.image_shape)).astype(np.float32)
  targets = draws.normal(size=(3, 48)).astype(np.float32)
  numbers = draws.uniform(size=(3, 3)).astype(np.float32)
  views = jnp.asarray([dsa.OPS.index(op) for op in OPS]), jnp.asarray(numbers)
  variables = jax.tree.map(lambda x: x[1], queue.variables)
  loss_fn = functools.partial(
    objective,
    labels=jnp.asarray(LABELS),
    targets=jnp.asarray(targets),
    look=functools.partial(embed, MODEL, variables, views),
    factor=2,
    ce_weight=jnp.float32(3),
  )

  def want(x):
    seen = list(zip(OPS, numbers, strict=True))
    return ref.terms(x, LABELS.tolist(), targets, seen, params_of(queue, 1), 2)

  (loss, terms), grads = jax.jit(jax.value_and_grad(loss_fn, has_aux=True))(jnp.asarray(images))
  np.testing.assert_allclose((terms["distance"], terms["ce"]), want(images), rtol=1e-4)
  np.testing.assert_allclose(loss, terms["distance"] + 3 * terms["ce"], rtol=1e-6)
  total = lambda x: want(x) @ np.array([1, 3])
  for seed in range(4):  # the slope in random directions
    way = np.random.RandomState(seed).normal(size=images.shape)
    slope = (total(images + 1e-6 * way) - total(images - 1e-6 * way)) / 2e-6
    np.testing.assert_allclose((np.asarray(grads) * way).sum(), slope, rtol=2e-3, atol=2e-3)


def test_training_is_sgd_of_the_cross_entropy_and_measures_accuracy(queue):
  """m <- 0.9 m + g + wd p and p <- p - lr m; the other networks stay."""
  rows = np.array([[0, 3, 7, 9, 10], [1, 1, 8, 4, 2]], np.int32)
  step = jax.jit(lambda q, rows: train_member(q, jnp.int32(1), rows, MODEL, TX, ENV, RES))
  real = np.asarray(augment.normalize(RES["images"], ENV.mean, ENV.std))
  one, both = (step(queue, jnp.asarray(rows[:n])) for n in (1, 2))
  old, new = params_of(queue, 1), params_of(one, 1)
  targets = RES["labels"][rows]
  logits_of = lambda p, t: ref.logits(dm_ref.features(real[rows[t]], p, "instance"), p)
  loss = lambda p: ref.cross_entropy(logits_of(p, 0), targets[0]).mean()
  gradient = jax.tree.map(lambda a, b: (a - b) / 0.1 - 0.01 * a, old, new)
  for seed in range(4):
    draw = np.random.RandomState(seed).normal
    way = jax.tree.map(lambda p, draw=draw: draw(size=p.shape), old)
    at = lambda s, way=way: loss(jax.tree.map(lambda p, d: np.float64(p) + s * d, old, way))
    slope = (at(1e-6) - at(-1e-6)) / 2e-6
    dot = sum(jax.tree.leaves(jax.tree.map(lambda g, d: (g * d).sum(), gradient, way)))
    np.testing.assert_allclose(dot, slope, rtol=1e-3, atol=1e-4)
  right = [logits_of(p, t).argmax(1) == targets[t] for t, p in enumerate((old, new))]
  right, targets = np.concatenate(right), targets.ravel()
  want = np.mean([right[targets == c].mean() for c in np.unique(targets)])
  np.testing.assert_allclose(both.accuracy, [0.5, want, 0, 0], rtol=1e-6)
  for a, b in zip(jax.tree.leaves(queue.variables), jax.tree.leaves(both.variables), strict=True):
    np.testing.assert_array_equal(np.delete(a, 1, 0), np.delete(b, 1, 0))
  assert both.made == 2


def test_a_new_network_takes_the_place_of_the_oldest(queue):
  fresh = models.init_variables(MODEL, jax.random.key(9), ENV.image_shape)
  put = jax.jit(lambda q, due: append(q, fresh, TX, due))
  kernel = lambda q: np.asarray(q.variables["params"]["conv0"]["kernel"])
  same = put(queue, jnp.bool_(False))
  jax.tree.map(np.testing.assert_array_equal, same, queue)
  full = queue
  for place in (2, 3, 0, 1):
    full, last = put(full, jnp.bool_(True)), full
    changed = np.flatnonzero((kernel(full) != kernel(last)).any((1, 2, 3, 4)))
    assert changed.tolist() == [place]
    np.testing.assert_array_equal(kernel(full)[place], fresh["params"]["conv0"]["kernel"])
  np.testing.assert_array_equal(full.accuracy, np.zeros(4))
  assert full.made == 6


def blobs():
  """Two classes, 40 images: bright in the left or in the right half, with noise."""
  draws, labels = np.random.RandomState(0), np.repeat([0, 1], 20).astype(np.int32)
  side = np.where(np.arange(8) < 4, 1.0, -1.0)[None, None, :, None]
  images = (
    128
    + 60 * side * (1 - 2 * labels)[:, None, None, None]
    + draws.normal(size=(40, 8, 8, 1), scale=40)
  )
  return {"images": images.clip(0, 255).astype(np.uint8), "labels": labels}


def test_two_blobs():
  """In 80 steps the distance in the features of one network falls to a tenth."""
  still = {"new_every": 1000, "num_networks": 1, "optimizer": SGD | {"lr": 0.0}}
  method, res = make(num_classes=2, batch_real=20, augment=None, ce_weight=0.0, **still), blobs()
  state = jax.jit(method.init)(jax.random.key(0), distil.make_slots(2), res)
  step = jax.jit(method.step)
  found = []
  for t in range(82):
    x = method.inputs(np.random.default_rng(t), t, res)
    state, metrics = step(jax.random.key(t), state, res, x)
    found.append(float(metrics["distance"]))
  assert found[-1] < 0.1 * found[1], found  # the first step had another network


def test_published_settings():
  keys = ("batch_real", "ce_weight", "new_every", "train_steps", "num_steps", "lr")
  cases = {
    ("cifar10", 1): (5000, 0.5, 5, 10),
    ("cifar10", 50): (256, 0.1, 30, 10),
    ("cifar100", 10): (256, 0.1, 30, 50),
    ("tiny_imagenet", 1): (256, 0.5, 30, 10),
    ("tiny_imagenet", 50): (256, 0.8, 30, 50),
  }
  for case, want in cases.items():
    found = methods.idm(*case).method
    assert tuple(found[key] for key in keys) == (*want, 20_000, 0.4)
  assert methods.idm("mnist", 10).method["augment"] == "color_crop_cutout_scale_rotate"


@pytest.mark.parametrize(
  ("kwargs", "message"),
  [
    ({"new_every": 0}, "'idm': new_every is 0; expected 1 or more"),
    ({"ce_weight": -1.0}, "'idm': ce_weight is -1.0; expected 0 or more"),
    ({"factor": 3}, "factor is 3, which does not divide the sides of images of 8 x 8 pixels"),
    ({"trained_networks": 3, "num_networks": 2}, "trained_networks is 3, and the queue has 2"),
    ({"optimizer": {"name": "sgd"}}, "method 'idm': optimizer: .*lr=None; expected 0 or more"),
    ({"augment": "mixup"}, "operation 'mixup' is not known"),
  ],
)
def test_invalid_arguments(kwargs, message):
  with pytest.raises(LtddError, match=message):
    make(**kwargs)
