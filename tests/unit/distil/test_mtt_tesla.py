"""MTT and TESLA as methods: what they draw, what a step moves, going on after a stop, errors."""

import jax
import numpy as np
import pytest

from configs import methods
from ltdd_jax import distil
from ltdd_jax.core import files
from ltdd_jax.core.types import LtddError
from ltdd_jax.distil.run import run_method
from ltdd_jax.training import loop
from tests import small
from tests.contract.test_methods import TRAJECTORIES

ONE = TRAJECTORIES | {"inner_steps": 1, "lr": 1.0, "momentum": 0.0}
SLOTS = small.slots(2, 1, 1)


def make(name="tesla", **kwargs):
  return distil.make_method(small.env(0), name, **ONE | kwargs)


def first_step(name, **kwargs):
  method, res = make(name, **kwargs), small.resources()
  state = jax.jit(method.init)(jax.random.key(0), SLOTS, res)
  x = method.inputs(np.random.default_rng(0), 0, res)
  new, metrics = jax.jit(method.step)(jax.random.key(1), state, res, x)
  return np.asarray(new.images - state.images), new.student_lr - state.student_lr, metrics


def test_one_inner_step_is_that_of_mtt_and_the_code_moves_images_half_as_far():
  exact, constant, released = map(first_step, ("mtt", "tesla", "tesla_released"))
  assert np.abs(exact[0]).max() > 1e-5
  np.testing.assert_allclose(constant[0], exact[0], rtol=1e-3, atol=1e-6)
  np.testing.assert_allclose(2 * released[0], exact[0], rtol=1e-3, atol=1e-6)
  for other in (constant, released):
    np.testing.assert_allclose(other[1], exact[1], rtol=1e-3)
    np.testing.assert_allclose(other[2]["loss"], exact[2]["loss"], rtol=1e-6)


def test_experts_and_epochs_are_drawn_within_their_range():
  draw, rows = make(max_start_epoch=3).inputs, np.arange(2 * 4 * 243, dtype=np.float32)
  host = {"trajectories": rows.reshape(2, 4, 243)}
  seen = set()
  for seed in range(60):
    start, target = draw(np.random.default_rng(seed), 0, host)
    np.testing.assert_array_equal(target, start + 243)  # an epoch later, of the same expert
    seen.add(int(start[0]) // 243)
  assert seen == {0, 1, 2, 4, 5, 6}
  pair = draw(np.random.default_rng(0), 7, host)
  np.testing.assert_array_equal(pair, draw(np.random.default_rng(0), 8, host))


def test_a_stopped_run_ends_with_the_same_bits(tmp_path):
  method, env = make("ftd", num_steps=4), small.env(0)  # whose state is that of MTT, and a mean
  common = ("mine", method, env, SLOTS, small.resources())
  whole = run_method(*common, on_host=("trajectories",), session=loop.Session(show_progress=False))

  def stop(rng, t, host):
    if t == 2:
      raise KeyboardInterrupt
    return method.inputs(rng, t, host)

  session = loop.Session(
    scratch=files.path(tmp_path), checkpoint_seconds=0, log_every=1, show_progress=False
  )
  with pytest.raises(KeyboardInterrupt):
    run_method(
      "mine", method._replace(inputs=stop), *common[2:], on_host=("trajectories",), session=session
    )
  again = run_method(*common, on_host=("trajectories",), session=session)
  assert whole.arrays.keys() == {"images", "labels", "student_lr"}
  jax.tree.map(np.testing.assert_array_equal, again.arrays, whole.arrays)


def test_published_settings():
  config = methods.mtt("cifar10", 10)
  assert {k: config.method[k] for k in ("inner_steps", "max_start_epoch", "lr", "lr_lr")} == {
    "inner_steps": 30, "max_start_epoch": 20, "lr": 100.0, "lr_lr": 1e-5
  }  # fmt: skip
  assert (config.trajectories["num_experts"], config.trajectories["num_epochs"]) == (100, 50)
  one, released = (f("cifar10", 1).method["lr"] for f in (methods.tesla, methods.tesla_released))
  assert (one, released) == (500, 1000)
  assert methods.mtt("cifar100", 50).method["inner_batch_size"] == 125
  assert "flip" not in methods.mtt("mnist", 10).trajectories["augment"]


@pytest.mark.parametrize(
  ("kwargs", "message"),
  [
    ({"inner_steps": 0}, "'tesla': inner_steps is 0; expected 1 or more"),
    ({"max_start_epoch": 0}, "max_start_epoch is 0; expected 1 or more"),
    ({"inner_batch_size": 0}, "inner_batch_size is 0; expected 1 or more"),
    ({"lr_lr": -1.0}, "lr_lr is -1.0; expected 0 or more"),
    ({"student_lr": 0.0}, "student_lr is 0.0; expected a positive number"),
    ({"momentum": 1.0}, r"momentum is 1.0; expected a number in \[0, 1\)"),
    ({"init": "rded"}, "'init' of method .*: 'rded'. .*: imported, noise, real"),
    ({"augment": "color_cutmix"}, "operation 'cutmix' is not known"),
  ],
)
def test_invalid_arguments(kwargs, message):
  with pytest.raises(LtddError, match=message):
    make(**kwargs)


@pytest.mark.parametrize("name", ["mtt", "tesla"])
def test_planned_memory_is_that_of_the_program(name):
  kwargs = {"expert_epochs": 1, "max_start_epoch": 1, "augment": None, "inner_steps": 9}
  method = distil.make_method(small.env(), name, **kwargs)
  res = {need: small.resources()[need] for need in method.needs}
  state = jax.eval_shape(method.init, jax.random.key(0), small.slots(20, 20, 20), res)
  x = method.inputs(np.random.default_rng(0), 0, res)
  program = jax.jit(method.step).lower(jax.random.key(0), state, {}, x).compile()
  found = program.memory_analysis().temp_size_in_bytes
  assert 0.7 * found < method.memory(60) < 1.3 * found
