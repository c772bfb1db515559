import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ltdd_jax.core.types import LtddError
from ltdd_jax.training import losses


def test_uniform_logits_cost_log_k():
  loss = losses.cross_entropy(jnp.zeros((3, 4)), jnp.array([0, 1, 3]))
  np.testing.assert_allclose(loss, np.log(4), rtol=1e-6)


def test_rows_are_the_terms_of_the_mean():
  logits, labels = jnp.array([[2.0, 0.0], [0.0, 1.0]]), jnp.array([0, 0])
  rows = losses.cross_entropy_rows(logits, labels)
  np.testing.assert_allclose(rows, [np.log1p(np.exp(-2)), np.log1p(np.exp(1))], rtol=1e-6)
  np.testing.assert_allclose(rows.mean(), losses.cross_entropy(logits, labels))


def test_class_weights():
  np.testing.assert_allclose(losses.class_weights([100, 10, 1], 0.0), [1, 1, 1])
  weights = losses.class_weights([100, 10, 1], 0.999)
  np.testing.assert_allclose(weights.sum(), 3, rtol=1e-6)
  assert weights[2] > weights[1] > weights[0]
  near_one = losses.class_weights([100, 10, 1], 1 - 1e-9)
  np.testing.assert_allclose(near_one / near_one[2], [0.01, 0.1, 1], rtol=1e-5)


def test_kl_of_equal_logits_is_zero_with_zero_gradient():
  logits = jnp.array([[3.0, -1.0, 0.5]])
  loss_fn = losses.make_soft_loss("kl", temperature=4.0)
  value, grad = jax.value_and_grad(loss_fn)(logits, logits, jnp.array([0]))
  np.testing.assert_allclose(value, 0, atol=1e-7)
  np.testing.assert_allclose(grad, jnp.zeros_like(grad), atol=1e-7)


def test_extreme_logits_stay_finite():
  logits, targets = jnp.array([[1e4, -1e4, 0.0]]), jnp.array([[-1e4, 1e4, 0.0]])
  labels = jnp.array([1])
  for name in losses.SOFT_LOSSES:
    fn = losses.make_soft_loss(name)
    value, grad = jax.value_and_grad(fn)(logits, targets, labels)
    assert jnp.isfinite(value), name
    assert jnp.isfinite(grad).all(), name


@pytest.mark.parametrize("name", sorted(losses.SOFT_LOSSES))
def test_soft_losses_are_float32_scalars(name):
  logits = jax.ShapeDtypeStruct((4, 3), jnp.float16)
  labels = jax.ShapeDtypeStruct((4,), jnp.int32)
  out = jax.eval_shape(losses.make_soft_loss(name), logits, logits, labels)
  assert (out.shape, out.dtype) == ((), jnp.float32)


@pytest.mark.parametrize(
  ("kwargs", "message"),
  [
    ({"name": "mse"}, "Did you mean 'mse_ce'"),
    ({"name": "kl", "temprature": 2.0}, "Did you mean 'temperature'"),
    ({"name": "kl", "temperature": 0.0}, "temperature=0.0"),
    ({"name": "mse_ce", "ce_weight": -1.0}, "ce_weight=-1.0"),
  ],
)
def test_soft_errors(kwargs, message):
  with pytest.raises(LtddError, match=message):
    losses.make_soft_loss(**kwargs)
