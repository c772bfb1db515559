"""Teachers that share an architecture: together and one by one they come to the same."""

import dataclasses

import jax
import numpy as np
import pytest

from ltdd_jax.artefacts import checkpoint
from ltdd_jax.core.types import LtddError
from ltdd_jax.teachers import train as teacher_training
from ltdd_jax.training import loop
from tests import small

FLIP = ({"name": "random_flip"},)
QUIET = loop.Session(show_progress=False)
NET = small.NET | {"norm": "batch", "width": 2}
MODELS = {"b": NET, "wide": NET | {"width": 3}, "a": NET}


def train_teachers(parallel, session=QUIET, models=MODELS, num_epochs=2, **kwargs):
  return teacher_training.train_teachers(
    small.train_data(),
    small.SPEC,
    small.COUNTS,
    models=models,
    parallel=parallel,
    session=session,
    **{
      "num_epochs": num_epochs,
      "batch_size": 4,
      "optimizer": {"name": "sgd", "lr": 0.05, "momentum": 0.9},
      "schedule": {"name": "cosine"},
      "objective": {"name": "cross_entropy"},
      "augment": FLIP,
    }
    | kwargs,
  )


@pytest.fixture(scope="module")
def one_by_one():
  return train_teachers("loop")


@pytest.fixture(scope="module")
def at_once():
  return train_teachers("vmap")


def test_at_once_equals_one_by_one(one_by_one, at_once):
  assert [t.name for t in at_once] == [t.name for t in one_by_one] == ["a", "b", "wide"]
  for x, y in zip(at_once, one_by_one, strict=True):
    # Float32; the convolutions of one program are grouped, and sums are taken in another order.
    close = lambda p, q: np.testing.assert_allclose(p, q, rtol=1e-4, atol=1e-5)
    jax.tree.map(close, x.variables, y.variables)


def test_teachers_of_one_architecture_differ_by_their_keys(one_by_one):
  a, b, _ = one_by_one
  assert a.model is b.model
  kernels = [t.variables["params"]["conv0"]["kernel"] for t in (a, b)]
  assert not np.allclose(*kernels)


def test_a_teacher_does_not_depend_on_the_others(one_by_one):
  """Bit for bit, though the step was compiled for another."""
  (alone,) = train_teachers("auto", models={"b": NET})
  jax.tree.map(np.testing.assert_array_equal, alone.variables, one_by_one[1].variables)


def test_initial_variables_are_those_before_the_training():
  still = {"optimizer": {"name": "sgd", "lr": 0.0}, "num_epochs": 1}
  trained = train_teachers("loop", models={"b": NET, "a": NET}, **still)
  networks = {t.name: t.model for t in trained}
  initial = teacher_training.initial_variables(
    small.train_data(),
    small.SPEC,
    small.COUNTS,
    networks=networks,
    objective={"name": "cross_entropy"},
  )
  for teacher in trained:
    both = (teacher.variables["params"], initial[teacher.name]["params"])
    jax.tree.map(np.testing.assert_array_equal, *both)


@pytest.mark.parametrize("then", ["vmap", "auto"])  # by itself a CPU trains one after another
def test_at_once_goes_on_where_it_stopped(at_once, tmp_path, monkeypatch, then):
  models = {"a": NET, "b": NET}
  session = dataclasses.replace(QUIET, scratch=tmp_path, checkpoint_seconds=0.0)
  calls = iter([False, True])
  monkeypatch.setattr(checkpoint, "stop_requested", lambda: next(calls, False))
  with pytest.raises(checkpoint.Interrupted, match=r"teacher/a\+1: stopped after step 2"):
    train_teachers("vmap", session, models)
  resumed = train_teachers(then, session, models)
  for x, y in zip(at_once[:2], resumed, strict=True):
    jax.tree.map(np.testing.assert_array_equal, x.variables, y.variables)


def test_two_views_train_another_teacher(one_by_one):
  (two,) = train_teachers("auto", models={"a": NET}, views=2)
  kernels = [t.variables["params"]["conv0"]["kernel"] for t in (two, one_by_one[0])]
  assert not np.allclose(*kernels)


def test_derived_teachers_have_a_checkpoint_for_each_step(tmp_path):
  """With a folder for work in progress the second step begins at its beginning."""
  derive = ({"name": "recalibrate_bn"}, {"name": "recalibrate_bn_by_class"})
  found = []
  for scratch in (None, tmp_path):
    session = dataclasses.replace(QUIET, scratch=scratch)
    found += train_teachers("loop", session, {"a": NET}, derive=derive)
  jax.tree.map(np.testing.assert_array_equal, *(teacher.variables for teacher in found))


@pytest.mark.parametrize(
  ("kwargs", "message"),
  [
    ({"num_epochs": 0}, r"config\.teacher\.num_epochs is 0; expected 1 or more"),
    ({"num_steps": 0}, r"config\.teacher\.num_steps is 0; expected 1 or more"),
    ({"batch_size": 0}, r"config\.teacher\.batch_size is 0; expected 1 or more"),
    ({"views": 0}, r"config\.teacher\.views is 0; expected 1 or more"),
    ({"optimizer": {"name": "sgd"}}, "lr=None; expected 0 or more"),
    ({"objective": {"name": "cross_entopy"}}, "Did you mean 'cross_entropy'"),
    ({"derive": ({"name": "recalibrate"},)}, "Did you mean 'recalibrate_bn'"),
  ],
)
def test_bad_arguments_are_refused_before_work(kwargs, message):
  with pytest.raises(LtddError, match=message):
    train_teachers("auto", models={"a": NET}, **kwargs)


@pytest.mark.parametrize("lr", [1e8, 1e10])  # of infinite logits, of infinite batch statistics
def test_a_teacher_that_is_not_finite_is_refused(lr):
  with pytest.raises(LtddError, match=r"teacher/a: its .* after the last step.*teacher\.optimizer"):
    train_teachers("auto", models={"a": NET}, optimizer={"name": "sgd", "lr": lr}, num_epochs=1)


def test_unknown_way():
  with pytest.raises(LtddError, match=r"teacher\.parallel is 'all'; expected one of 'auto'"):
    train_teachers("all")
