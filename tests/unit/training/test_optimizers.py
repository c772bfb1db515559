import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ltdd_jax.core.types import LtddError
from ltdd_jax.training import optimizers


def test_smooth_ends_at_half():
  schedule = optimizers.make_schedule("smooth", 300, 2.0)
  np.testing.assert_allclose([schedule(0), schedule(300)], [2.0, 1.0], rtol=1e-6)


def test_ssrs_jumps():
  schedule = optimizers.make_schedule("ssrs", 6000, 1.0)
  np.testing.assert_allclose(
    [schedule(5000), schedule(5001), schedule(6000)], [0.629, 0.105, 0.0], atol=1e-3
  )


@pytest.mark.parametrize("name", sorted(optimizers.SCHEDULES))
def test_schedules_hold_after_the_end_and_trace(name):
  schedule = optimizers.make_schedule(name, 10, 0.1)
  assert jax.eval_shape(schedule, jnp.int32(3)).dtype == jnp.float32
  np.testing.assert_array_equal(schedule(15), schedule(10))


def test_milestones_are_not_a_step_late():
  """1/3 and 2/3 are no floats; the factor must change exactly at steps 1000 and 2000 of 3000."""
  schedule = optimizers.make_schedule("multistep", 3000, 1.0, milestones=(1 / 3, 2 / 3), factor=0.1)
  steps = jnp.array([999, 1000, 1999, 2000])
  np.testing.assert_allclose(jax.jit(jax.vmap(schedule))(steps), [1, 0.1, 0.1, 0.01], rtol=1e-5)


def test_epochs_of_a_fraction_of_a_step():
  """Ten images in batches of four: epochs start at steps 0, 2.5 (so 3), 5, 7.5 (8)."""
  schedule = optimizers.make_schedule("linear", 10, 1.0, steps_per_epoch=2.5)
  values = [float(schedule(i)) for i in range(8)]
  np.testing.assert_allclose(values, [1, 1, 0.75, 0.75, 0.75, 0.5, 0.5, 0.25], rtol=1e-6)


def test_a_milestone_is_not_an_epoch_late_where_the_last_step_reaches_beyond_the_epochs():
  """Four epochs of five images in batches of two: 10 steps; six in fours: 6, epoch 2 at step 3.

  Three epochs of five images in batches of two take 8 steps, 7.5 of them within the epochs.
  """
  for n, size, epochs, num_steps in ((5, 2, 4, 10), (6, 4, 4, 6), (5, 2, 3, 8), (9, 4, 3, 7)):
    schedule = optimizers.make_schedule(
      "multistep", num_steps, 1.0, steps_per_epoch=n / size, milestones=(2 / 3,), factor=0.5
    )
    at = np.arange(num_steps)
    epoch = np.floor((at + 0.5) * size / n)
    np.testing.assert_array_equal(schedule(at), np.where(3 * epoch >= 2 * epochs, 0.5, 1.0))


def made(name, lr=0.1, **kwargs):
  return optimizers.make_optimizer({"name": name, "lr": lr, **kwargs}, {"name": "constant"}, 10)


def test_decay_of_kernels_spares_vectors():
  params = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}
  grads = jax.tree.map(jnp.zeros_like, params)
  for name in ("sgd", "adam", "adamw"):
    for decay in ("all", "kernels"):
      tx = made(name, weight_decay=0.5, decay=decay)
      updates, _ = tx.update(grads, tx.init(params), params)
      assert (updates["kernel"] != 0).all()
      assert (updates["bias"] != 0).all() == (decay == "all")


def test_optimizers_vmap_over_seeds():
  """Kernels stay kernels under vmap, where biases of several seeds look like matrices."""
  params = {"kernel": jnp.ones((3, 2, 2)), "bias": jnp.ones((3, 2))}
  tx = made("sgd", weight_decay=0.5, decay="kernels")
  step = lambda p: tx.update(jax.tree.map(jnp.zeros_like, p), tx.init(p), p)[0]
  updates = jax.vmap(step)(params)
  assert (updates["bias"] == 0).all()
  np.testing.assert_allclose(updates["kernel"], jnp.full((3, 2, 2), -0.05), rtol=1e-6)


@pytest.mark.parametrize(
  ("kwargs", "message"),
  [
    ({"name": "cosin"}, "Did you mean 'cosine'"),
    ({"name": "smooth", "zet": 1.0}, "Did you mean 'zeta'"),
    ({"name": "smooth", "zeta": 0.0}, "zeta=0.0"),
    ({"name": "linear", "zeta": 0.5}, "zeta=0.5"),
    ({"name": "multistep", "milestones": (800.0,)}, "shares of the training"),
    ({"name": "warmup_cosine", "warmup": 5.0}, "warmup=5.0"),
    ({"name": "triangle", "warmup": 1.0}, "warmup=1.0"),
    ({"name": "triangle", "end": -0.1}, "end is -0.1; expected 0 or more"),
    ({"name": "cosine", "num_steps": 0}, "num_steps=0"),
    ({"name": "cosine", "lr": -1.0}, "lr=-1.0"),
    ({"name": "cosine", "steps_per_epoch": 0}, "steps_per_epoch=0"),
  ],
)
def test_schedule_errors(kwargs, message):
  with pytest.raises(LtddError, match=message):
    optimizers.make_schedule(**{"num_steps": 10, "lr": 0.1, **kwargs})


@pytest.mark.parametrize(
  ("kwargs", "message"),
  [
    ({"name": "adamm"}, "Did you mean 'adam"),
    ({"name": "sgd", "momentun": 0.9}, "Did you mean 'momentum'"),
    ({"name": "sgd", "weight_decay": -1.0}, "weight_decay=-1.0"),
    ({"name": "adamw", "decay": "some"}, "decay='some'"),
    ({"name": "sgd", "momentum": 1.0}, r"momentum is 1.0; expected a number in \[0, 1\)"),
    ({"name": "sgd", "lr": -0.1}, r"lr=-0\.1; expected 0 or more"),
    ({"name": "airbench_sgd", "lr": 0.0}, "lr is 0.0; expected a positive number, such as 11.5"),
    ({"name": "airbench_sgd", "momentum": 1.0}, r"momentum is 1.0; expected a number in \[0, 1\)"),
    ({"name": "airbench_sgd", "weight_decay": -1.0}, "weight_decay=-1.0"),
    ({"name": "airbench_sgd", "norm_bias_scale": 0.0}, "norm_bias_scale is 0.0; expected a pos"),
    ({"name": "airbench_sgd", "freeze_whitening": -1}, "freeze_whitening is -1; expected 0 or"),
    ({"name": "muon", "filter_lr": 0.0}, "filter_lr is 0.0; expected a positive number"),
    ({"name": "muon", "filter_momentum": 1.0}, "filter_momentum is 1.0; expected a number in"),
  ],
)
def test_optimizer_errors(kwargs, message):
  with pytest.raises(LtddError, match=message):
    made(**kwargs)


@pytest.mark.parametrize(
  ("optimizer", "schedule", "message"),
  [
    ({"name": "sgd"}, {"name": "cosine"}, "schedule 'cosine': lr=None; expected 0 or more"),
    ({"lr": 0.1}, {"name": "cosine"}, "unknown optimizer None.* Known: adam, adamw, airbench_sgd"),
    ({"name": "sgd", "lr": 0.1}, {}, "unknown schedule None.* Known: constant, cosine"),
    ({"name": "sgd", "lr": 0.1}, {"name": "cosine", "per_epoch": True}, "'cosine': per_epoch is T"),
  ],
)
def test_incomplete_optimizers_are_refused(optimizer, schedule, message):
  with pytest.raises(LtddError, match=message):
    optimizers.make_optimizer(optimizer, schedule, 10)
