"""The inner loop of trajectory matching: a network trained on distilled images, and its gradient.

  loss, (by_learned, by_rate) = exact(loss_fn, start, target, learned, rate, num_steps=30)
  loss, (by_learned, by_rate) = constant_memory(loss_fn, start, target, learned, rate, num_steps=30)

`loss_fn(theta, learned, i)` is the loss of a network with the parameters theta (p,) on the images,
views and labels of inner step i. From theta_0 = start N steps of SGD follow,

    theta_{i+1} = theta_i - rate g_i,   g_i = d loss_fn(theta_i, learned, i) / d theta

and both functions return, for the parameters `target` of an expert some epochs after `start`,

    L = ||theta_N - target||^2 / ||start - target||^2

with its gradients by `learned`, a pytree of arrays, and by `rate`. They differ in these. Both are
pure and jittable, and run in any precision.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

InnerLoss = Callable[[jax.Array, Any, jax.Array], jax.Array]
Vector = Float[Array, " p"]
Scalar = Float[Array, ""]
Matched = tuple[Scalar, tuple[Any, Scalar]]  # L and its gradients by `learned` and `rate`


def matching_loss(last: Vector, start: Vector, target: Vector) -> Scalar:
  """Computes L, which is 1 where nothing was learned (Cazenave et al., CVPR 2022, eq. 5)."""
  return jnp.square(last - target).sum() / jnp.square(start - target).sum()


def step_bytes(loss_fn: InnerLoss, start: Any, learned: Any, *, exact: bool) -> int:
  """Counts the bytes that the way back through an inner step keeps until its gradient is computed.

  Args:
    loss_fn: see the module.
    start: theta_0, or its shape.
    learned: a pytree of arrays, or of their shapes.
    exact: of `exact`; otherwise of `constant_memory`.
  """

  def kept(theta: jax.Array, learned: Any) -> Any:
    i = jnp.int32(0)
    if exact:
      return jax.vjp(lambda at, x: _slope(loss_fn, theta, at, x, i), theta, learned)[1]
    return jax.vjp(lambda x: jax.grad(loss_fn)(theta, x, i), learned)[1]

  leaves = jax.tree.leaves(jax.eval_shape(kept, start, learned))
  return sum(x.size * x.dtype.itemsize for x in leaves)


def _slope(loss_fn: InnerLoss, way: Vector, theta: Vector, learned: Any, i: jax.Array) -> Scalar:
  """way . g_i, the derivative of the loss in this direction."""
  return jax.jvp(lambda theta: loss_fn(theta, learned, i), (theta,), (way,))[1]


def exact(
  loss_fn: InnerLoss,
  start: Vector,
  target: Vector,
  learned: Any,
  rate: Scalar,
  *,
  num_steps: int,
) -> Matched:
  """Computes L and its exact gradients: MTT (Cazenave et al., CVPR 2022).

  The first pass keeps all theta_i. On the way back, with a = dL / d theta_{i+1}, each step adds

      -rate d(a . g_i) / d learned   and   -a . g_i   to the gradients, and
      -rate d(a . g_i) / d theta_i   to a

  where a . g_i is a derivative in one direction: no gradient of a gradient is taken. Memory is that
  of one step, and of N vectors of parameters; each theta_i is computed once.

  Args:
    loss_fn: see the module.
    start: theta_0.
    target: of the expert, not equal to `start`.
    learned: a pytree of arrays.
    rate: learning rate of the inner loop.
    num_steps: N.
  """

  def forward(theta, i):
    return theta - rate * jax.grad(loss_fn)(theta, learned, i), theta

  def backward(state, at):
    way, by_learned, by_rate = state
    theta, i = at
    slope = lambda theta, learned: _slope(loss_fn, way, theta, learned, i)
    value, (by_theta, term) = jax.value_and_grad(slope, (0, 1))(theta, learned)
    by_learned = jax.tree.map(lambda total, x: total - rate * x, by_learned, term)
    return (way - rate * by_theta, by_learned, by_rate - value), None

  numbers = jnp.arange(num_steps)
  last, thetas = jax.lax.scan(forward, start, numbers)
  loss, way = jax.value_and_grad(matching_loss)(last, start, target)
  state = way, jax.tree.map(jnp.zeros_like, learned), jnp.zeros_like(rate)
  (_, *grads), _ = jax.lax.scan(backward, state, (thetas, numbers), reverse=True)
  return loss, tuple(grads)


def constant_memory(
  loss_fn: InnerLoss,
  start: Vector,
  target: Vector,
  learned: Any,
  rate: Scalar,
  *,
  num_steps: int,
  factor: float = 2.0,
  matched: int | None = None,
) -> Matched:
  """Computes L and gradients of it in memory that does not grow with N: TESLA (Cui et al., 2023).

  With G = sum_i g_i, theta_N - target = start - rate G - target. If the theta_i are taken as
  constants, the gradients are

      by learned   sum_i d/d learned [ 2 (rate (target - start) + rate^2 G) . g_i ] / D
      by rate      d/d rate ||start - rate G - target||^2 / D,   D = ||start - target||^2

  A first loop makes G; a second one makes the theta_i again and adds up the terms. They are exact
  for N = 1; for more steps they leave out that later g_i depend on earlier steps (ICML 2023,
  section 3.2).

  Args:
    loss_fn: see the module, as the other arguments, which are those of `exact`.
    start: theta_0.
    target: of the expert.
    learned: a pytree of arrays.
    rate: of the inner loop.
    num_steps: N.
    factor: 2 as derived; the released code loses it and has 1, in the gradient by `learned` alone.
    matched: so many first entries of theta are in L. The others move in the inner loop all the
      same. None for all.
  """
  numbers, some = jnp.arange(num_steps), slice(matched)
  scale = jnp.square(start[some] - target[some]).sum()

  def forward(state, i):
    theta, total = state
    grad = jax.grad(loss_fn)(theta, learned, i)
    return (theta - rate * grad, total + grad), None

  zero = jnp.zeros_like(start)
  (last, total), _ = jax.lax.scan(forward, (start, zero), numbers)
  weights = factor * (rate * (target - start) + jnp.square(rate) * total) / scale
  if matched is not None:
    weights = weights.at[matched:].set(0)

  def backward(state, i):
    theta, by_learned = state
    grad, pull = jax.vjp(lambda x: jax.grad(loss_fn)(theta, x, i), learned)
    (term,) = pull(weights)
    return (theta - rate * grad, jax.tree.map(jnp.add, by_learned, term)), None

  none = jax.tree.map(jnp.zeros_like, learned)
  (_, by_learned), _ = jax.lax.scan(backward, (start, none), numbers)
  by_rate = -2 * jnp.vdot(total[some], (start - rate * total - target)[some]) / scale
  return matching_loss(last[some], start[some], target[some]), (by_learned, by_rate)
