"""RLDD's teacher objectives against float64 NumPy, and against numbers of the method's sheet.

Tolerance 1e-5 relative: float32 has 1.2e-7, and sums here are of some hundred terms.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ltdd_jax import models
from ltdd_jax.core.types import ArrayData, LtddError
from ltdd_jax.teachers import debiased, objectives
from ltdd_jax.training import supervised
from tests import small

COUNTS = (5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50)
WEIGHTS = (
  0.085716, 0.129089, 0.194443, 0.292728, 0.441153, 0.663848, 0.999647, 1.506001, 2.274965, 3.412410
)  # fmt: skip
K, B, F = 4, 6, 5
NAMES = ("rldd", "rldd_released")


@pytest.mark.parametrize(
  ("counts", "weights"), [(COUNTS, WEIGHTS), ((100, 30, 10), (0.302127, 0.791577, 1.906295))]
)
def test_weights(counts, weights):
  found = debiased.class_weights(np.asarray(counts), 0.8)
  assert np.isclose(found.sum(), 1)
  np.testing.assert_allclose(len(counts) * found, weights, atol=1e-6)


def log_softmax(x):
  x = x - x.max(1, keepdims=True)
  return x - np.log(np.exp(x).sum(1, keepdims=True))


def cosine(a, b):
  return np.mean((a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1))


def outputs(random):
  draw = lambda *shape: random.normal(size=shape)
  return debiased.Outputs(draw(B, K), draw(B, K), draw(B, F), draw(B, F))


@pytest.mark.parametrize("progress", [0.0, 0.25, 0.5, 0.75, 0.995])
@pytest.mark.parametrize("name", NAMES)
def test_loss(name, progress, key):
  random = np.random.RandomState(0)
  counts = np.array([50, 20, 6, 1])
  views = [outputs(random), outputs(random)]
  if name == "rldd":
    views = [v._replace(plain=v.logits) for v in views]
  labels, partners = random.randint(0, K, (2, B))
  calls = iter(jax.tree.map(jnp.asarray, views))
  apply_fn = lambda variables, images, *, train, mutable: (next(calls), {})
  objective = objectives.make_objective(counts, name=name, q=0.7, gamma=0.5)
  batch = jnp.zeros((4, B, 8, 8, 1)), (jnp.asarray(labels), jnp.asarray(partners))
  loss, (_, metrics) = objective.loss(apply_fn, {}, {}, batch, key, progress)

  share = float(jax.random.uniform(jax.random.split(jax.random.clone(key))[0]))
  weights = counts**-0.7 / (counts**-0.7).sum() * (K if name == "rldd_released" else 1)

  def part(logits, w):
    log_p, rows = log_softmax(logits), np.arange(B)
    own, other = -w[labels] * log_p[rows, labels], -w[partners] * log_p[rows, partners]
    return np.mean(share * own + (1 - share) * other)

  plain = sum(part(v.plain, np.ones(K)) for v in views)
  weighted = sum(part(v.logits, weights) for v in views)
  a, b = views
  agreement = cosine(a.prediction, b.projection) + cosine(b.prediction, a.projection)
  if name == "rldd":
    agreement = cosine(a.projection, b.prediction) + cosine(b.projection, a.prediction)
  expected = (1 - progress**2) * plain + progress**2 * weighted - 0.5 * agreement
  np.testing.assert_allclose(loss, expected, rtol=1e-5)
  np.testing.assert_allclose(metrics["agreement"], agreement, rtol=1e-5)


@pytest.mark.parametrize(
  ("epoch", "expected"), [(0, 1.0), (50, 0.9375), (100, 0.75), (150, 0.4375), (199, 0.009975)]
)
def test_share_of_plain_cross_entropy(epoch, expected, key):
  """The published schedule, which moves once an epoch, of 200 epochs."""
  out = debiased.Outputs(jnp.zeros((B, K)), jnp.zeros((B, K)), jnp.ones((B, F)), jnp.ones((B, F)))
  objective = objectives.make_objective(np.array([1, 1, 1, 1]), name="rldd", gamma=0.0)
  zeros = jnp.zeros(B, jnp.int32)
  batch = jnp.zeros((4, B, 8, 8, 1)), (zeros, zeros)
  loss, _ = objective.loss(lambda *_, **__: (out, {}), {}, {}, batch, key, epoch / 200)
  # With equal counts the weighted part is a K-th of the plain one, 2 log K.
  np.testing.assert_allclose(loss / (2 * np.log(K)), expected + (1 - expected) / K, rtol=1e-5)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 1.0])
def test_mixed_views(share, key):
  images = jnp.asarray(np.random.RandomState(0).normal(size=(4, 3, 8, 8, 2)), jnp.float32)
  first, second = debiased.mixed(key, jnp.float32(share), images)
  x = np.asarray(images, np.float64)
  np.testing.assert_allclose(first, share * x[0] + (1 - share) * x[2], rtol=1e-5, atol=1e-6)
  row_key, column_key = jax.random.split(jax.random.clone(key))
  row, column = (int(jax.random.randint(k, (), 0, 8)) for k in (row_key, column_key))
  half = int(np.ceil(8 * np.sqrt(1 - share))) // 2
  expected = x[1].copy()
  rows, columns = slice(max(row - half, 0), row + half), slice(max(column - half, 0), column + half)
  expected[:, rows, columns] = x[3][:, rows, columns]
  np.testing.assert_allclose(second, expected, rtol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_where_gradients_stop(name):
  """The paper's prediction, and the copy's projection, of the other view is a constant."""
  released = name == "rldd_released"
  a, b = (jnp.asarray(np.random.RandomState(i).normal(size=(B, F)), jnp.float32) for i in (0, 1))
  none = jnp.zeros((B, K))
  view = lambda z, p: debiased.Outputs(none, none, z, p)
  only = lambda z, p: debiased.agree(view(z, p), view(a, b), released)
  of_z, of_p = jax.grad(only, argnums=(0, 1))(a, b)
  assert (np.abs(of_z).max() > 0, np.abs(of_p).max() > 0) == (not released, released)


@pytest.mark.parametrize("name", NAMES)
def test_heads_stand_beside_the_network(name):
  model = small.teacher().model
  objective = objectives.make_objective(small.COUNTS, name=name)
  network = objective.network(model)
  variables = models.init_variables(network, jax.random.key(0), small.SPEC.image_shape)
  images = jnp.ones((2, *small.SPEC.image_shape))
  out, _ = network.apply(variables, images, train=True, mutable=["batch_stats"])
  heads = variables["params"].pop("heads")
  assert set(heads) == {"projection", "prediction"} | ({"classifier"} if "rel" in name else set())
  alone, _ = model.apply(variables, images, train=True, mutable=["batch_stats"])
  np.testing.assert_array_equal(out.logits, alone)
  assert (out.plain is out.logits or np.array_equal(out.plain, out.logits)) == (name == "rldd")
  assert out.projection.shape == out.prediction.shape == (2, 128)


def test_partners_are_drawn_by_weight():
  """Shares of classes are in proportion to n_c^0.8."""
  labels = jnp.repeat(jnp.arange(3), jnp.array([400, 40, 4]))
  data = ArrayData(jnp.zeros((444, 8, 8, 1), jnp.uint8), labels)
  partners = np.array([400, 40, 4]) ** -0.2
  images, (own, other) = supervised.image_batch(
    {"data": data},
    jnp.zeros(4096, jnp.int32),
    jax.random.key(0),
    spec=small.SPEC,
    augment_fn=lambda key, x, flip: x,
    views=2,
    partners=partners,
  )
  assert images.shape == (4, 4096, 8, 8, 1)
  assert not own.any()
  expected = np.array([400, 40, 4]) ** 0.8
  expected /= expected.sum()
  found = np.bincount(other, minlength=3) / 4096
  np.testing.assert_allclose(found, expected, atol=4 * 0.5 / 64)  # four standard deviations


def test_a_network_without_a_dense_layer():
  import flax.linen as nn

  class Mean(nn.Module):
    @nn.compact
    def __call__(self, x, *, train):
      return x.mean((1, 2))

  network = objectives.make_objective(small.COUNTS, name="rldd").network(Mean())
  with pytest.raises(LtddError, match="Mean has no dense layer"):
    models.init_variables(network, jax.random.key(0), (8, 8, 3))
