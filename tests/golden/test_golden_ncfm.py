"""NCFM's discrepancy and its gradient against NumPy, its networks, and two blobs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import methods
from ltdd_jax import distil, models
from ltdd_jax.core.types import LtddError
from ltdd_jax.data import augment, dsa
from ltdd_jax.distil import multi_formation, selection
from ltdd_jax.distil import ncfm as ncfm_fn
from ltdd_jax.distil import ncfm_released as released_fn
from ltdd_jax.distil.ncfm import discrepancy, draw_mixture, embed, waves
from ltdd_jax.students import recipes
from tests import small
from tests.golden.test_golden_idm import blobs
from tests.reference import ncfm_ref as ref

ENV = small.env()
LABELS = np.array([2, 0, 2], np.int32)  # of distilled images: none of class 1
STILL = {"name": "sgd", "lr": 0.0}


def both(p):
  """Complex numbers (k, m) as `waves` has them."""
  return jnp.asarray(np.concatenate([p.real, p.imag], 1), jnp.float32)


@pytest.mark.parametrize("weights", [(0.5, 0.5), (0.8, 0.2), (0.3, 0.6)])
def test_discrepancy_of_characteristic_functions(weights):
  draws = np.random.RandomState(0)
  t = draws.normal(size=(16, 5))
  p, q = (
    np.stack([ref.characteristic(draws.normal(size=(n, 5)), t) for n in counts])
    for counts in ((6, 2, 1), (3, 3, 3))
  )
  wanted = jnp.array([True, False, True])
  got = discrepancy(both(p), both(q), wanted, *weights)
  want = sum(ref.discrepancy(p[c], q[c], *weights) for c in (0, 2))
  np.testing.assert_allclose(got, want, rtol=1e-5)
  slope = jax.grad(lambda q: discrepancy(both(p), q, wanted, *weights))
  assert np.isfinite(slope(both(p))).all()  # where it is 0
  assert np.isfinite(slope(jnp.zeros((3, 32)))).all()


def test_loss_and_gradient():
  draws = np.random.RandomState(1)
  model = models.make_model("convnet", num_classes=3, image_shape=ENV.image_shape, depth=1, width=3)
  variables = models.init_variables(model, jax.random.key(0), ENV.image_shape)
  ops, numbers = ["color", "crop", "cutout"], draws.uniform(size=(3, 4, 3)).astype(np.float32)
  views = jnp.full(3, dsa.OPS.index("crop")), jnp.asarray(numbers)
  pixels = draws.uniform(size=(3, *ENV.image_shape)).astype(np.float32)
  t = jnp.asarray(draws.normal(size=(16, 48)), jnp.float32)
  real = np.stack([ref.characteristic(draws.normal(size=(4, 48)) / 7, t) for _ in range(3)])
  weights = (0.6, 0.4)

  def loss(x):
    seen = augment.normalize_pixels(multi_formation.decode(x, 2), ENV.mean, ENV.std)
    labels = jnp.tile(LABELS, 4)
    _, found = embed("_".join(ops), views, model, variables, seen, labels)
    mean = selection.class_means(waves(found, t), labels, 3)
    return discrepancy(both(real), mean, jnp.bincount(labels, length=3) > 0, *weights)

  want = functools.partial(
    ref.loss, labels=LABELS.tolist(), real=real, ops=ops, numbers=numbers[:, 1:], t=np.asarray(t),
    params=variables["params"], weights=weights, mean=0.4, std=0.3,
  )  # fmt: skip
  value, grads = jax.jit(jax.value_and_grad(loss))(jnp.asarray(pixels))
  np.testing.assert_allclose(value, want(pixels), rtol=1e-4)
  for seed in range(4):  # the slope in random directions
    way = np.random.RandomState(seed).normal(size=pixels.shape)
    slope = (want(pixels + 1e-6 * way) - want(pixels - 1e-6 * way)) / 2e-6
    np.testing.assert_allclose((np.asarray(grads) * way).sum(), slope, rtol=2e-3, atol=2e-2)


def test_networks_are_drawn_and_mixed():
  tree = lambda x: {"params": {"w": jnp.float32(x)}, "batch_stats": {"mean": jnp.float32(x)}}
  res = {"teachers": (tree(1), tree(3)), "initial_teachers": (tree(0), tree(2))}
  trained, mixed = jax.jit(jax.vmap(lambda key: draw_mixture(key, res)))(jax.random.split(
    jax.random.key(0), 400))  # fmt: skip
  which, share = np.asarray(trained["params"]["w"]), np.asarray(mixed["params"]["w"])
  assert abs((which == 3).mean() - 0.5) < 0.1
  np.testing.assert_array_equal(mixed["batch_stats"]["mean"], which)  # as after the training
  np.testing.assert_array_equal(trained["batch_stats"]["mean"], which)
  down = which - share  # uniform on [0, 1)
  assert (down >= 0).all()
  assert (down < 1).all()
  assert abs(down.mean() - 0.5) < 0.05


def test_sampler_ascends_and_the_rate_is_halved_on_a_plateau():
  """Images stay, and every step has the same draws: the loss can only rise by psi."""
  kwargs = {"batch_real": 8, "num_frequencies": 32, "augment": None, "calibration": 0.0}
  method = ncfm_fn(ENV, optimizer=STILL, patience=1, sampler_lr=1e-4, **kwargs)
  res, slots = small.resources(), small.slots(1, 1, 1)
  state, step = jax.jit(method.init)(jax.random.key(0), slots, res), jax.jit(method.step)
  x = method.inputs(np.random.default_rng(0), 0, res)
  found, first = [], np.asarray(state.images)
  for _ in range(5):
    state, metrics = step(jax.random.key(1), state, res, x)
    found.append((float(metrics["match"]), float(metrics["scale"])))
  losses, scales = zip(*found, strict=True)
  assert all(np.diff(losses) > 0)
  assert scales == (1, 1, 0.5, 0.5, 0.25)  # of two steps without a new best, each time
  np.testing.assert_allclose(state.images, first, atol=1e-6)


def test_two_blobs():
  """In 100 steps the discrepancy in the features of one network falls to half of the first five's.

  It cannot fall to 0: eight parts are matched with 20 images.
  """
  method = released_fn(
    ENV, batch_real=20, num_frequencies=64, augment=None, calibration=0.0,
    optimizer={"name": "adamw", "lr": 0.02},
  )  # fmt: skip
  res = small.resources() | blobs()
  res["initial_teachers"] = res["teachers"]
  state = jax.jit(method.init)(jax.random.key(0), small.slots(2, 2, 0), res)
  found, step = [], jax.jit(method.step)
  for t in range(100):
    x = method.inputs(np.random.default_rng(t), t, res)
    state, metrics = step(jax.random.key(t), state, res, x)
    found.append(float(metrics["match"]))
  assert np.mean(found[-10:]) < 0.5 * np.mean(found[:5])
  pixels = augment.denormalize_pixels(method.read(state).images, ENV.mean, ENV.std)
  assert -1e-6 <= pixels.min() <= pixels.max() <= 1 + 1e-6


def test_published_settings():
  paper, code = (methods.METHODS[name]("cifar100", 10) for name in ("ncfm", "ncfm_released"))
  assert len(paper.teacher["models"]) == 20
  assert paper.method["optimizer"] == {"name": "sgd", "lr": 0.01, "momentum": 0.5}
  assert "optimizer" not in methods.ncfm("cifar10", 10).method
  assert code.method == paper.method | {"name": "ncfm_released"}
  resolve = functools.partial(recipes.resolve, "ncfm_eval", model={"name": "convnet"})
  epochs = [resolve(dataset=name, ipc=10)["student"]["num_epochs"] for name in ("cifar10", "tiny")]
  assert epochs == [8000, 1200]


@pytest.mark.parametrize(
  ("kwargs", "message"),
  [
    ({"num_frequencies": 40}, "num_frequencies is 40; expected a multiple of 16"),
    ({"num_frequencies": 0}, "num_frequencies is 0; expected 1 or more"),
    ({"phase": -1.0}, "'ncfm': phase is -1.0; expected 0 or more"),
    ({"factor": 5}, "factor is 5, which cuts images of 8 x 8"),
    ({"augment": "colour"}, "operation 'colour' is not known"),
    ({"optimizer": {"lr": 0.1}}, "'ncfm': optimizer: unknown optimizer None"),
  ],
)
def test_invalid_arguments(kwargs, message):
  with pytest.raises(LtddError, match=message):
    ncfm_fn(ENV, **kwargs)


def test_teachers_of_two_architectures_are_refused():
  other = models.make_model("convnet", num_classes=3, image_shape=ENV.image_shape, depth=2)
  networks = (*ENV.teachers, distil.Network("b", other))
  with pytest.raises(LtddError, match="'b' is of another architecture than 'a'"):
    released_fn(ENV._replace(teachers=networks))
