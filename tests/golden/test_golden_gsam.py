"""GSAM against NumPy and the differences that define it, in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ltdd_jax.training import gsam
from tests.reference import gsam_ref as ref
from tests.reference import mtt_ref

D, HIDDEN, K = 4, 3, 3
DRAWS = np.random.RandomState(0)
X, Y = DRAWS.normal(size=(5, D)), DRAWS.normal(size=(5, K))
CURVATURE, SLOPE = np.diag([1.0, 4.0, 0.5]) + 0.3, np.array([1.0, -2.0, 0.7])


def network(theta):
  """Soft cross-entropy of a network of two layers, and something else."""
  w1, w2 = theta["w1"], theta["w2"]
  log_p = jax.nn.log_softmax(jnp.tanh(X @ w1) @ w2)
  return -(jax.nn.softmax(Y) * log_p).sum(1).mean(), {"first": w1[0, 0]}


def network_gradient(vector):
  return mtt_ref.gradient(vector, X, Y, HIDDEN)


def quadratic(theta):
  w = theta["w"]
  return 0.5 * w @ CURVATURE @ w + SLOPE @ w, {}


def quadratic_gradient(w):
  return CURVATURE @ w + SLOPE


CASES = {
  "quadratic": (quadratic, quadratic_gradient, {"w": DRAWS.normal(size=3)}),
  "network": (
    network,
    network_gradient,
    {"w1": DRAWS.normal(size=(D, HIDDEN)), "w2": DRAWS.normal(size=(HIDDEN, K))},
  ),
}


def vector(tree):
  return np.concatenate([np.ravel(tree[k]) for k in sorted(tree)])


@functools.cache
def compute(case, rho, alpha):
  fn, _, params = CASES[case]
  with jax.enable_x64(True):
    found = jax.jit(gsam.value_and_grad(fn, has_aux=True, rho=rho, alpha=alpha))(params)
    return jax.tree.map(np.asarray, found)


@pytest.mark.parametrize("case", CASES)
def test_direction(case):
  fn, gradient, params = CASES[case]
  (value, aux), found = compute(case, 0.3, 0.7)
  want = ref.direction(gradient, vector(params), 0.3, 0.7)
  np.testing.assert_allclose(vector(found), want, rtol=1e-10, atol=1e-12)
  with jax.enable_x64(True):
    plain, _ = fn(params)
  np.testing.assert_allclose(value, plain, rtol=1e-12)  # at the parameters themselves
  if aux:
    assert aux["first"] == params["w1"][0, 0]


def test_what_it_goes_down():
  """The loss at w + e, for a constant e; alpha adds what narrows the gap at first order."""
  _, gradient, params = CASES["network"]
  w, rho = vector(params), 0.3
  e = ref.perturbation(gradient, w, rho)
  np.testing.assert_allclose(np.linalg.norm(e / np.abs(w)), rho)
  loss = lambda v: float(network_loss(v))
  sharp = vector(compute("network", rho, 0.0)[1])
  removed = (sharp - vector(compute("network", rho, 0.7)[1])) / 0.7
  for seed in range(3):
    way = np.random.RandomState(seed).normal(size=w.shape)
    np.testing.assert_allclose(sharp @ way, mtt_ref.slope(loss, w + e, way), rtol=1e-6)
  np.testing.assert_allclose(removed @ sharp, 0, atol=1e-10)
  gap = lambda v: loss(v + e) - loss(v)
  assert mtt_ref.slope(gap, w, removed) < 0  # descent goes along it, up: less of a gap


def network_loss(v):
  z = np.tanh(X @ v[: D * HIDDEN].reshape(D, HIDDEN)) @ v[D * HIDDEN :].reshape(HIDDEN, K)
  return -(mtt_ref.softmax(Y) * np.log(mtt_ref.softmax(z))).sum(1).mean()


def test_without_a_radius_it_is_the_gradient():
  _, gradient, params = CASES["network"]
  found = vector(compute("network", 0.0, 0.7)[1])
  np.testing.assert_allclose(found, gradient(vector(params)), rtol=1e-9, atol=1e-12)
