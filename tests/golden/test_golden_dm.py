"""DM's mean features, loss and gradient against NumPy, for classes of unequal sizes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ltdd_jax import distil, models
from ltdd_jax.data import augment, dsa
from ltdd_jax.distil.dm import distance, dm, draw_rows, draw_views, embed, real_means
from tests import small
from tests.reference import dm_ref as ref

ENV = distil.Env(small.SPEC.image_shape, 5, small.SPEC.mean, small.SPEC.std)
COUNTS = (4, 2, 5, 3, 1)  # real images
LABELS = np.array([4, 0, 0, 1, 3], np.int32)  # of distilled images: none of class 2
OPS = ("color", "rotate", "flip", "crop", "cutout")
SIZE = 4  # real images of a class in a step


@pytest.fixture(scope="module", params=["instance", "batch"])
def case(request):
  """A network of two blocks, views, real images and distilled ones."""
  draws = np.random.RandomState(0)
  model = models.make_model(
    "convnet", num_classes=5, image_shape=ENV.image_shape, depth=2, width=3, norm=request.param
  )
  variables = models.init_variables(model, jax.random.key(0), ENV.image_shape)
  numbers = draws.uniform(size=(5, 3)).astype(np.float32)
  labels = np.repeat(np.arange(5), COUNTS).astype(np.int32)
  return {
    "norm": request.param,
    "model": model,
    "variables": variables,
    "views": (jnp.asarray([dsa.OPS.index(op) for op in OPS]), jnp.asarray(numbers)),
    "ref_views": list(zip(OPS, numbers, strict=True)),
    "real": small.images(len(labels)),
    "x": draw_rows(np.random.default_rng(0), labels, 5, SIZE),
    "images": draws.normal(size=(len(LABELS), *ENV.image_shape)).astype(np.float32),
  }


@pytest.fixture(scope="module")
def targets(case):
  wanted = jnp.isin(jnp.arange(5), LABELS)
  res, together = {"images": case["real"]}, case["norm"] == "batch"
  return jax.jit(lambda x: real_means(look(case), ENV, res, x, wanted, together=together))(
    case["x"]
  )


def look(case):
  return functools.partial(embed, case["model"], case["variables"], case["views"])


def real_of_step(case):
  """The real images of the step with their labels, without class 2."""
  rows, weights = case["x"]
  kept = [(rows[c, i], c) for c, i in np.ndindex(5, SIZE) if weights[c, i] and c != 2]
  pixels = [np.asarray(augment.normalize(case["real"][row], ENV.mean, ENV.std)) for row, _ in kept]
  return pixels, [c for _, c in kept]


def ref_loss(case, images):
  params = case["variables"]["params"]
  real = real_of_step(case)
  return ref.loss(images, LABELS.tolist(), *real, case["ref_views"], params, case["norm"])


def test_mean_features_of_real_images(case, targets):
  params = case["variables"]["params"]
  means = ref.means(*real_of_step(case), case["ref_views"], params, case["norm"])
  want = np.stack([means.get(c, np.zeros(targets.shape[1])) for c in range(5)])
  np.testing.assert_allclose(targets, want, rtol=1e-4, atol=1e-5)  # float32 through two norms


def test_loss_and_gradient(case, targets):
  images = case["images"]
  loss_fn = jax.value_and_grad(lambda x: distance(look(case), x, jnp.asarray(LABELS), targets))
  loss, grads = jax.jit(loss_fn)(jnp.asarray(images))
  np.testing.assert_allclose(loss, ref_loss(case, images), rtol=1e-4)
  for seed in range(6):  # the slope in random directions
    way = np.random.RandomState(seed).normal(size=images.shape)
    slope = (ref_loss(case, images + 1e-6 * way) - ref_loss(case, images - 1e-6 * way)) / 2e-6
    np.testing.assert_allclose((np.asarray(grads) * way).sum(), slope, rtol=2e-3, atol=2e-3)


def test_a_step_is_sgd_with_momentum_of_that_gradient(key):
  """v <- m v + g and x <- x - lr v, with networks and views drawn from the key of each step."""
  network = {"name": "convnet", "depth": 1, "width": 3, "norm": "instance"}
  method = dm(ENV, num_steps=2, lr=0.3, momentum=0.5, batch_real=SIZE, network=network)
  labels = np.repeat(np.arange(5), COUNTS).astype(np.int32)
  res = {"images": jnp.asarray(small.images(len(labels))), "labels": jnp.asarray(labels)}
  state = method.init(key, distil.make_slots(5, slots_per_class=(2, 1, 1, 1, 1)), res)
  model = models.make_model(**network, num_classes=5, image_shape=ENV.image_shape)

  @jax.jit
  def gradient(key, x, batch):
    network_key, view_key = jax.random.split(key)
    variables = models.init_variables(model, network_key, ENV.image_shape)
    views = draw_views(view_key, dsa.STRATEGY, 5)
    look = functools.partial(embed, model, variables, views)
    targets = real_means(look, ENV, res, batch, jnp.ones(5, bool), together=False)
    return jax.grad(lambda x: distance(look, x, state.labels, targets))(x)

  x, velocity, step = np.asarray(state.images), 0.0, jax.jit(method.step)
  for t in range(2):
    batch = method.inputs(np.random.default_rng(t), t, {"labels": labels})
    velocity = 0.5 * velocity + np.asarray(gradient(jax.random.key(t), jnp.asarray(x), batch))
    x = x - 0.3 * velocity
    state, _ = step(jax.random.key(t), state, res, batch)
    np.testing.assert_allclose(state.images, x, rtol=1e-4, atol=1e-4)
