"""What every objective of `OBJECTIVES` must do, and a toy one with two views and a metric."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ltdd_jax import models
from ltdd_jax.core.types import LtddError
from ltdd_jax.models import taps
from ltdd_jax.teachers import objectives
from ltdd_jax.teachers import train as teacher_training
from ltdd_jax.training import loop, losses
from tests import small


def two_views(class_counts, *, weight: float = 0.5):
  """Cross-entropy of the first view, and the distance of the features of both."""
  del class_counts
  model = small.teacher().model

  def objective(apply_fn, params, batch_stats, batch, key, progress):
    (first, second), labels = batch
    variables = {"params": params, "batch_stats": batch_stats}
    logits, updated = apply_fn(variables, first, train=True, mutable=["batch_stats"])
    seen = [taps.features(model, variables, x)[1] for x in (first, second)]
    apart = jnp.square(seen[0] - seen[1]).mean()
    noise = 1e-3 * jax.random.normal(key, ())
    loss = losses.cross_entropy(logits, labels) + weight * progress * apart + noise
    return loss, (updated["batch_stats"], {"apart": apart})

  return objective


@pytest.fixture(params=[*objectives.OBJECTIVES, "two_views"])
def case(request, monkeypatch):
  """Name and number of views."""
  monkeypatch.setitem(objectives.OBJECTIVES, "two_views", two_views)
  views = objectives.make_objective(small.COUNTS, name=request.param).views
  return request.param, views or (2 if request.param == "two_views" else 1)


def batch_of(views, partners):
  own = jnp.array([0, 1, 2, 0])
  shape = (2 * views if partners else views, 4, 8, 8, 1)
  images = jnp.asarray(np.random.RandomState(0).normal(size=shape), jnp.float32)
  return images if len(images) > 1 else images[0], (own, own[::-1]) if partners else own


@functools.cache
def compiled(name):
  """The objective and its gradient, compiled once for all tests; and whether it has partners."""
  objective = objectives.make_objective(small.COUNTS, name=name)
  call = functools.partial(objective.loss, objective.network(small.teacher().model).apply)
  return jax.jit(jax.value_and_grad(call, has_aux=True)), objective.partners is not None


def run(name, views, variables, key, progress=0.5):
  """Returns (loss, (batch_stats, metrics)), gradient."""
  objective, partners = compiled(name)
  batch = batch_of(views, partners)
  return objective(variables["params"], variables["batch_stats"], batch, key, progress)


@functools.cache
def variables_of(name):
  """Those of the network that an objective trains: with its heads, if it has any."""
  objective = objectives.make_objective(small.COUNTS, name=name)
  if not objective.own:
    return small.teacher().variables
  network = objective.network(small.teacher().model)
  return models.init_variables(network, jax.random.key(1), small.SPEC.image_shape)


def test_is_a_float32_scalar_that_keeps_the_structure(case, key):
  variables = variables_of(case[0])
  (loss, (batch_stats, metrics)), _ = run(*case, variables, key)
  assert (loss.shape, loss.dtype) == ((), jnp.float32)
  shapes = lambda tree: jax.tree.map(jnp.shape, tree)
  assert shapes(batch_stats) == shapes(variables["batch_stats"])
  assert all(jnp.isfinite(m).all() and m.shape == () for m in metrics.values())


def test_is_deterministic_and_has_a_gradient(case, key):
  variables = variables_of(case[0])
  ((one, _), grads), ((two, _), _) = (run(*case, variables, jax.random.clone(key)) for _ in "ab")
  assert one == two
  assert all(jnp.isfinite(g).all() for g in jax.tree.leaves(grads))
  assert any(jnp.abs(g).max() > 0 for g in jax.tree.leaves(grads))


@pytest.mark.parametrize(("parallel", "dtype"), [("loop", "float32"), ("vmap", "bfloat16")])
def test_teachers_train_with_it(case, parallel, dtype):
  name, views = case
  trained = teacher_training.train_teachers(
    small.train_data(),
    small.SPEC,
    small.COUNTS,
    models={k: small.NET | {"norm": "batch"} for k in ("a", "b")},
    num_epochs=1,
    batch_size=4,
    optimizer={"name": "sgd", "lr": 0.05},
    schedule={"name": "cosine"},
    objective={"name": name},
    augment=({"name": "random_flip"},),
    views=views,
    derive=({"name": "recalibrate_bn"},),
    parallel=parallel,
    compute_dtype=dtype,
    session=loop.Session(show_progress=False),
  )
  assert [t.name for t in trained] == ["a", "b"]
  assert all(np.isfinite(x).all() for x in jax.tree.leaves([t.variables for t in trained]))
  kept = jax.tree.map(np.shape, small.teacher().variables["params"])
  assert jax.tree.map(np.shape, trained[0].variables["params"]) == kept


@pytest.mark.parametrize(
  ("kwargs", "message"),
  [
    ({"name": "balanced_sofmax"}, "Did you mean 'balanced_softmax'"),
    ({"name": "logit_adjusted", "ta": 1.0}, "Did you mean 'tau'"),
    ({"name": "cross_entropy", "tau": 1.0}, "tau"),
    ({"name": "cross_entropy", "label_smoothing": 1.0}, "label_smoothing is 1.0"),
    ({"name": "class_balanced", "beta": 1.0}, "beta is 1.0"),
    ({"name": "balanced_softmax", "class_counts": [5, 0, 1]}, "class 1 has 0 training images"),
    ({"name": "rldd", "class_counts": [5, 0, 1]}, "class 1 has 0 training images"),
    ({"name": "rldd", "views": 1}, "config.teacher.views is 1; objective 'rldd' looks at 2"),
    ({"name": "rldd", "q": 1.5}, "q is 1.5"),
    ({"name": "rldd_released", "gamma": -1.0}, "gamma is -1.0"),
  ],
)
def test_errors(kwargs, message):
  counts = kwargs.pop("class_counts", [5, 3, 1])
  with pytest.raises(LtddError, match=message):
    objectives.make_objective(counts, **kwargs)


def test_cross_entropy_takes_an_empty_class():
  objectives.make_objective([5, 0, 1], name="cross_entropy")
