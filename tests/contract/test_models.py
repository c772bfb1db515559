"""What every network of `MODELS` must do. Nothing here compiles a network: shapes and traces."""

import jax
import jax.extend
import jax.numpy as jnp
import pytest

from ltdd_jax import models

SHAPE = (32, 32, 3)
K = 7


@pytest.fixture(params=sorted(models.MODELS), scope="module")
def model(request):
  return models.make_model(request.param, num_classes=K, image_shape=SHAPE)


@pytest.fixture(scope="module")
def variables(model):
  key = jax.ShapeDtypeStruct((), jax.random.key(0).dtype)
  return jax.eval_shape(lambda k: models.init_variables(model, k, SHAPE), key)


def images(b=4):
  return jax.ShapeDtypeStruct((b, *SHAPE), jnp.float32)


def test_abstract_init(variables):
  assert sorted(variables) == ["batch_stats", "params"]
  assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(variables))


def test_train_mode_keeps_the_structure(model, variables):
  run = lambda v, x: model.apply(v, x, train=True, mutable=["batch_stats"])
  logits, updated = jax.eval_shape(run, variables, images())
  assert logits.shape == (4, K)
  assert updated.get("batch_stats", {}) == variables["batch_stats"]


def test_eval_mode_gives_float32_logits_changes_nothing_and_is_traced_once(model, variables):
  traces = []

  @jax.jit
  def step(v, x):
    traces.append(None)
    return model.apply(v, x, train=False)

  for _ in range(3):
    logits = jax.eval_shape(step, variables, images())
  assert len(traces) == 1
  assert (logits.shape, logits.dtype) == ((4, K), jnp.float32)


def test_seeds_vmap(model, variables):
  keys = jax.ShapeDtypeStruct((2,), jax.random.key(0).dtype)
  init = jax.vmap(lambda k: models.init_variables(model, k, SHAPE))
  stacked = jax.eval_shape(init, keys)
  assert jax.tree.map(lambda x: x.shape[1:], stacked) == jax.tree.map(lambda x: x.shape, variables)
  run = jax.vmap(lambda v, x: model.apply(v, x, train=False), (0, None))
  assert jax.eval_shape(run, stacked, images()).shape == (2, 4, K)


def test_bfloat16_keeps_variables_gradients_and_logits_float32(model, variables):
  """All convolutions and products of a training step are of bfloat16, and nothing else changes."""
  network = models.computing_in(model, "bfloat16")
  key = jax.ShapeDtypeStruct((), jax.random.key(0).dtype)
  init = jax.eval_shape(lambda k: models.init_variables(network, k, SHAPE), key)
  assert init == variables

  def loss(params, rest, x):
    run = network.apply({"params": params, **rest}, x, train=True, mutable=["batch_stats"])
    return run[0].sum(), run

  rest = {"batch_stats": variables["batch_stats"]}
  grad = jax.grad(loss, has_aux=True)
  traced, found = jax.make_jaxpr(grad, return_shape=True)(variables["params"], rest, images())
  assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {jnp.dtype(jnp.float32)}
  dtypes = {
    operand.aval.dtype
    for equation in equations(traced.jaxpr)
    if equation.primitive.name in ("conv_general_dilated", "dot_general")
    for operand in equation.invars
  }
  assert dtypes == {jnp.dtype(jnp.bfloat16)}


def equations(jaxpr):
  """All equations of a program, those of inner ones too."""
  for equation in jaxpr.eqns:
    yield equation
    for inner in jax.extend.core.jaxprs_in_params(equation.params):
      yield from equations(inner)
