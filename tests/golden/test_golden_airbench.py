"""Airbench's network, optimiser, Lookahead and views against float64 NumPy."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ltdd_jax import models
from ltdd_jax.core.types import ArrayData, TrainState
from ltdd_jax.data import augment, crops
from ltdd_jax.models.airbench import dirac_init, whitening_kernel
from ltdd_jax.training import optimizers, supervised
from tests import small
from tests.reference import airbench_ref as ref

KEY = jax.ShapeDtypeStruct((), jax.random.key(0).dtype)
SHAPE = (19, 17, 3)  # odd sides at several pools


def images(n=6):
  draws = np.random.RandomState(0)
  x = draws.normal(size=(n, *SHAPE)).cumsum(1).cumsum(2)  # neighbours are alike
  return ((x - x.mean()) / x.std()).astype(np.float32)


def network(**kwargs):
  kwargs = {"widths": (4, 5, 5), "num_classes": 7, "image_shape": SHAPE} | kwargs
  return models.make_model("airbench", **kwargs)


def test_parameters_are_those_of_the_published_networks():
  """Filters of the whitening layer count there; scales of norms do not exist."""
  counts = {}
  for widths, depth in ((64, 256, 256), 2), ((128, 384, 512), 3), ((32, 64, 64), 2):
    model = models.make_model(
      "airbench", num_classes=10, image_shape=(32, 32, 3), widths=widths, depth=depth
    )
    found = jax.eval_shape(lambda k, m=model: models.init_variables(m, k, (32, 32, 3)), KEY)
    counts[widths] = models.count_params(found["params"]) + 2 * 2 * 3 * 24
  assert counts == {(64, 256, 256): 1971640, (128, 384, 512): 9915704, (32, 64, 64): 146424}


def test_whitened_patches_are_white():
  """M of the patches becomes lambda / (lambda + 5e-4), near 1; float32 eigenvectors."""
  x = images()
  kernel = np.asarray(whitening_kernel(jnp.asarray(x)), np.float64)
  assert kernel.shape == (2, 2, 3, 24)
  filters = kernel.reshape(12, 24)
  np.testing.assert_array_equal(filters[:, :12], -filters[:, 12:])
  patches = ref.patches(x)
  moment = patches.T @ patches / len(patches)
  values = np.linalg.eigvalsh(moment)[::-1]
  white = filters[:, :12].T @ moment @ filters[:, :12]
  np.testing.assert_allclose(white, np.diag(values / (values + 5e-4)), atol=2e-4)
  norms = np.square(filters[:, :12]).sum(0)
  np.testing.assert_allclose(norms, 1 / (values + 5e-4), rtol=2e-3)


def test_the_kernel_is_that_of_the_images_given():
  model, x = network(), jnp.asarray(images())
  variables = models.init_variables(model, jax.random.key(0), SHAPE, x)
  kernel = variables["batch_stats"]["whitening_kernel"]
  np.testing.assert_allclose(kernel, whitening_kernel(x), rtol=1e-4, atol=1e-4)
  blank = models.init_variables(model, jax.random.key(0), SHAPE)
  jax.tree.map(np.testing.assert_array_equal, variables["params"], blank["params"])
  size = np.abs(np.asarray(blank["batch_stats"]["whitening_kernel"])).reshape(12, 24).sum(0)
  np.testing.assert_allclose(size, (1 + 5e-4) ** -0.5, rtol=1e-5)


def test_images_do_not_matter_to_networks_that_do_not_look_at_them():
  model = models.make_model("convnet", num_classes=2, image_shape=(4, 4, 1), depth=1, width=2)
  assert not models.uses_images(model)
  assert models.uses_images(network())
  with_images = models.init_variables(model, jax.random.key(0), (4, 4, 1), jnp.ones((3, 4, 4, 1)))
  without = models.init_variables(model, jax.random.key(0), (4, 4, 1))
  jax.tree.map(np.testing.assert_array_equal, with_images, without)


@pytest.mark.parametrize(("c", "d"), [(5, 5), (3, 5), (5, 3)])
def test_convolutions_begin_as_identities(c, d):
  kernel = dirac_init(jax.random.key(0), (3, 3, c, d))
  x = np.random.RandomState(1).normal(size=(2, 6, 6, c))
  same = min(c, d)
  out = ref.conv(x, np.asarray(kernel, np.float64), 1)
  np.testing.assert_array_equal(out[..., :same], x[..., :same])
  bound = (9 * c) ** -0.5
  rest = np.asarray(kernel)[..., same:]
  assert np.all(np.abs(rest) <= bound)
  assert rest.size == 0 or rest.std() > bound / 3


@pytest.mark.parametrize("depth", [2, 3])
def test_logits(depth):
  model, x = network(depth=depth), images()
  variables = models.init_variables(model, jax.random.key(1), SHAPE, jnp.asarray(x))
  draws = np.random.RandomState(2)
  variables = jax.tree.map(
    lambda v: v + draws.uniform(0, 0.3, v.shape).astype(np.float32), variables
  )
  found = jax.jit(lambda v, x: model.apply(v, x, train=False))(variables, x)
  wide = jax.tree.map(lambda v: np.asarray(v, np.float64), variables)
  np.testing.assert_allclose(found, ref.logits(wide, x.astype(np.float64), depth), rtol=2e-4)


def test_no_gradient_gets_to_the_whitening_kernel():
  model, x = network(), jnp.asarray(images())
  variables = models.init_variables(model, jax.random.key(1), SHAPE, x)
  loss = lambda stats: model.apply(
    {"params": variables["params"], "batch_stats": stats}, x, train=False
  ).sum()
  grads = jax.jit(jax.grad(loss))(variables["batch_stats"])
  assert not np.any(grads["whitening_kernel"])
  assert np.any(grads["block0_norm0"]["mean"])


def tree(values):
  """{name: array} as the parameters of a network."""
  return {
    "block0_norm0": {"bias": values["norm"]},
    "whitening_bias": values["whitening"],
    "classifier": {"kernel": values["head"]},
  }


@pytest.mark.parametrize("batch", [1024, 512])
def test_steps_on_a_mean_loss_equal_those_on_a_summed_one(batch):
  """Four steps, the whitening bias frozen from the third; in float64 the rounding alone differs."""
  draws = np.random.RandomState(3)
  shapes = {"norm": (3,), "whitening": (4,), "head": (3, 2)}
  draw = lambda scale: {k: scale * draws.normal(size=s) for k, s in shapes.items()}
  params, grads = draw(1.0), [draw(100.0) for _ in range(4)]
  kwargs = {"lr": 11.5, "momentum": 0.85}
  expected = ref.summed_steps(params, grads, wd=0.0153, batch=batch, freeze=2, **kwargs)
  with jax.enable_x64(True):
    tx = optimizers.make_optimizer(
      {"name": "airbench_sgd", "weight_decay": 0.0153, "freeze_whitening": 2, **kwargs},
      {"name": "constant"},
      4,
      batch_size=batch,
    )
    found = jax.tree.map(jnp.asarray, tree(params))
    state = tx.init(found)
    for grad in grads:
      mean = jax.tree.map(lambda g: jnp.asarray(g) / batch, tree(grad))
      updates, state = tx.update(mean, state, found)
      found = optax.apply_updates(found, updates)
  # The schedule is float32.
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), found, tree(expected))


def test_triangle():
  schedule = optimizers.make_schedule("triangle", 100, 1.0)
  found = jax.vmap(schedule)(jnp.arange(100))
  np.testing.assert_allclose(found, ref.triangle(100, 0.2, 0.23, 0.07), rtol=1e-5)
  assert float(schedule(100)) == pytest.approx(0.07)


@pytest.mark.parametrize("num_steps", [15, 13])
def test_look_ahead(num_steps):
  """Of parameters and statistics; 13 steps throw three away."""
  changes = np.random.RandomState(4).normal(size=num_steps)
  number = lambda x: {"params": {"w": jnp.float32(x)}, "batch_stats": {"m": jnp.float32(2 * x)}}
  state = TrainState(jnp.int32(0), **number(0.5), opt_state=(), slow=number(0.5))
  for change in changes:
    state = TrainState(
      state.step + 1,
      {"w": state.params["w"] + np.float32(change)},
      {"m": state.batch_stats["m"] + np.float32(2 * change)},
      (),
      slow=state.slow,
    )
    state = supervised.look_ahead(state, num_steps)
  expected = ref.look_ahead(changes, num_steps, 0.5)
  np.testing.assert_allclose(state.params["w"], expected, rtol=1e-5)
  np.testing.assert_allclose(state.batch_stats["m"], 2 * expected, rtol=1e-5)


@pytest.mark.parametrize("views", [1, 2, 3])
def test_an_image_is_never_the_same_in_two_passes(views):
  """Nor in two views of a pass; half of the images begin mirrored."""
  n = 40
  pixels = small.images(n)
  consts = {"data": ArrayData(jnp.asarray(pixels), jnp.zeros(n, jnp.int32))}
  fn = augment.compose([{"name": "alternating_flip"}])
  seen = []
  for epoch in range(3):
    rows = np.random.RandomState(epoch).permutation(n).astype(np.int32)
    found, _ = supervised.image_batch(
      consts | {"key": jax.random.key(5)},
      (jnp.asarray(rows), jnp.full(n, epoch)),
      jax.random.key(epoch),
      spec=small.SPEC,
      augment_fn=fn,
      views=views,
    )
    found = np.asarray(found).reshape(views, n, -1)
    plain = np.asarray(augment.normalize(pixels, small.SPEC.mean, small.SPEC.std))[rows]
    flat = lambda x: x.reshape(1, n, -1)
    mirrored = np.isclose(found, flat(plain[:, :, ::-1])).all(-1)
    np.testing.assert_array_equal(mirrored, ~np.isclose(found, flat(plain)).all(-1))
    order = np.argsort(rows)
    seen += [view[order] for view in mirrored]
  assert 8 < seen[0].sum() < 32
  for before, after in itertools.pairwise(seen):
    np.testing.assert_array_equal(after, ~before)


def test_translations_reflect():
  x = np.random.RandomState(6).normal(size=(50, 6, 5, 2)).astype(np.float32)
  found = np.asarray(crops.random_translate(jax.random.key(7), jnp.asarray(x), padding=2))
  corners = set()
  for image, view in zip(x, found, strict=True):
    canvas = np.pad(image, ((2, 2), (2, 2), (0, 0)), mode="reflect")
    places = [
      (i, j)
      for i in range(5)
      for j in range(5)
      if np.array_equal(canvas[i : i + 6, j : j + 5], view)
    ]
    assert places
    corners.update(places)
  assert {i for i, _ in corners} == {j for _, j in corners} == set(range(5))


def test_cutout_covers_a_square_with_the_mean_colour():
  x = np.random.RandomState(8).uniform(0, 1, (60, 8, 7, 3)).astype(np.float32)
  fill = (0.25, 0.5, 0.75)
  fn = augment.compose([{"name": "cutout", "size": 3}], fill)
  found = np.asarray(fn(jax.random.key(9), jnp.asarray(x)))
  corners = set()
  for image, view in zip(x, found, strict=True):
    covered = (view == np.float32(fill)).all(-1)
    top, left = np.argwhere(covered)[0]
    assert covered.sum() == covered[top : top + 3, left : left + 3].sum() == 9
    np.testing.assert_array_equal(view[~covered], image[~covered])
    corners.add((int(top), int(left)))
  assert {i for i, _ in corners} == set(range(6))
  assert {j for _, j in corners} == set(range(5))
