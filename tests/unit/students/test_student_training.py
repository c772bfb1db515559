"""Students: kinds of labels, seeds, evaluation."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ltdd_jax import calibrate
from ltdd_jax.core.types import LtddError
from ltdd_jax.labels import label as label_lib
from ltdd_jax.labels import sources as label_sources
from ltdd_jax.students import train as student_training
from ltdd_jax.training import loop, losses, many
from tests import small

QUIET = loop.Session(show_progress=False)
IMAGES, LABELS = small.images(6), np.array([0, 1, 2, 0, 1, 2], np.int32)
VIEWS = {"crop_scale": (0.5, 1.0)}
LOG_PRIOR = np.log(small.COUNTS / small.COUNTS.sum()).astype(np.float32)


def train(supervision, **kwargs):
  kwargs = {
    "model": small.NET | {"norm": "batch"},
    "num_epochs": 4,
    "batch_size": 4,
    "optimizer": {"name": "sgd", "lr": 0.05},
    "schedule": {"name": "cosine"},
    "loss": {"name": "mse_ce", "ce_weight": 0.1},
    "views": VIEWS,
    "view_key": label_lib.view_key(0, "a"),
    "num_seeds": 2,
    "evaluations": 2,
    "eval_batch_size": 4,
    "session": QUIET,
  } | kwargs
  return student_training.train_students(
    "student/a", IMAGES, LABELS, supervision, small.held_out(), small.SPEC, **kwargs
  )


@pytest.fixture(scope="module")
def store():
  return label_lib.label_images(
    "a", IMAGES, LABELS, (small.teacher(),), small.SPEC, num_epochs=4, views=VIEWS,
    dtype="float32", session=QUIET,
  )  # fmt: skip


def adsa_like(tau):
  calibrator = calibrate.make_calibrator("fixed", tau=tau)
  params = calibrator.fit(np.zeros((6, 3), np.float32), LABELS, LOG_PRIOR)
  return {"calibrator": calibrator, "params": params, "log_prior": LOG_PRIOR}


class Scanned(loop.Session):
  def steps_per_call(self):
    return 4


def test_views_are_the_same_in_a_program_of_their_own_and_in_the_step(store):
  supervision = label_sources.Supervision("stored", logits=store.store.logits(), **adsa_like(0.5))
  apart = train(supervision)
  inside = train(supervision, session=Scanned(show_progress=False))
  np.testing.assert_array_equal(apart.correct, inside.correct)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
    apart.variables, inside.variables,
  )  # fmt: skip


def test_kinds_of_labels_share_the_program_of_the_views(store, monkeypatch):
  seen, jit = [], jax.jit

  def look(fn, **kwargs):
    fn = jit(fn, **kwargs)

    def call(*args):
      seen.append(fn.lower(*args).as_text())
      return fn(*args)

    return call

  over_inputs = many._over_inputs
  monkeypatch.setattr(many, "_over_inputs", lambda fn: look(over_inputs(fn)))
  hard = label_sources.Supervision()
  for supervision in (
    hard,
    label_sources.Supervision("stored", logits=store.store.logits(), **adsa_like(0.5)),
  ):
    train(supervision, num_epochs=1, num_seeds=1, evaluations=1)
  assert len(seen) == 2
  assert len(set(seen)) == 1


def test_all_test_images_are_counted_once():
  result = train(label_sources.Supervision())
  assert result.correct.shape == (2, 2, 3)
  assert result.total.tolist() == [3, 3, 3]
  assert result.steps.tolist() == [3, 6]
  assert (result.correct <= result.total).all()
  np.testing.assert_array_equal(result.confusion.sum(2), [result.total] * 2)
  np.testing.assert_array_equal(
    np.diagonal(result.confusion, axis1=1, axis2=2), result.correct[:, -1]
  )


def test_vmap_equals_one_by_one(store):
  """With averaged parameters, which are what is scored and kept."""
  supervision = label_sources.Supervision("stored", logits=store.store.logits())
  one, many = (train(supervision, parallel=p, ema=0.5) for p in ("loop", "vmap"))
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), one.variables, many.variables
  )
  np.testing.assert_array_equal(one.correct, many.correct)


def test_an_encoded_store_teaches_what_its_decoded_logits_do():
  encoded = label_lib.label_images(
    "a", IMAGES, LABELS, (small.teacher(),), small.SPEC, num_epochs=3, views=VIEWS,
    dtype="uint8", top_k=2, session=QUIET,
  )  # fmt: skip
  one = train(label_sources.stored(encoded.store, **adsa_like(0.7)), parallel="vmap")
  two = train(label_sources.Supervision("stored", logits=encoded.store.logits(), **adsa_like(0.7)))
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), one.variables, two.variables
  )


def test_hard_weight_mixes_soft_and_hard_loss(key):
  logits = jax.random.normal(key, (2, 3))
  target = student_training.Target(
    jnp.array([0, 1]), jnp.array([2, 2]), jnp.array([0.25, 1.0]), 2 * logits
  )
  loss = functools.partial(student_training.soft_loss, loss_fn=losses.make_soft_loss("kl"))
  soft, hard = loss(logits, target), student_training.hard_loss(logits, target)
  np.testing.assert_allclose(
    loss(logits, target, hard_weight=0.3), 0.7 * soft + 0.3 * hard, rtol=1e-6
  )
  assert float(soft) != float(hard)


@pytest.mark.parametrize("label_epochs", [4, 2])  # of 4 epochs: with 2, students go round again
def test_labels_on_line_equal_those_of_the_store(store, label_epochs):
  logits, kwargs = store.store.logits()[:label_epochs], {"label_epochs": label_epochs}
  stored = train(label_sources.Supervision("stored", logits=logits, **adsa_like(0.7)), **kwargs)
  online = label_sources.Supervision("online", teachers=(small.teacher(),), **adsa_like(0.7))
  online = train(online, **kwargs)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), stored.variables, online.variables
  )


def test_calibration_changes_what_students_learn(store):
  plain, adjusted = (
    train(
      label_sources.Supervision("stored", logits=store.store.logits(), **adsa_like(tau)),
      num_seeds=1,
    )
    for tau in (0.0, 3.0)
  )
  one, two = (jax.tree.leaves(r.variables["params"])[0] for r in (plain, adjusted))
  assert np.abs(one - two).max() > 1e-3


def test_hard_loss_weighs_both_classes(key):
  logits = jax.random.normal(key, (2, 3))
  target = student_training.Target(
    jnp.array([0, 1]), jnp.array([2, 2]), jnp.array([0.25, 1.0]), None
  )
  log_p = np.asarray(jax.nn.log_softmax(logits))
  want = -np.mean([0.25 * log_p[0, 0] + 0.75 * log_p[0, 2], log_p[1, 1]])
  np.testing.assert_allclose(student_training.hard_loss(logits, target), want, rtol=1e-6)


def test_students_of_another_name_share_no_draws():
  """A probe of seed 0 is no student of seed 1, nor of seed 0."""
  kernels = [
    train(label_sources.Supervision(), num_seeds=1, evaluations=1, **kwargs).variables["params"][
      "conv0"
    ]["kernel"]
    for kwargs in ({}, {"seed": 1}, {"key_name": "probe"})
  ]
  for a, b in itertools.combinations(kernels, 2):
    assert not np.allclose(a, b)


@pytest.mark.parametrize(
  ("kwargs", "message"),
  [
    ({"optimizer": {"name": "sdg", "lr": 0.1}}, "Did you mean 'sgd'"),
    ({"loss": {"name": "mse"}}, "mse"),
    ({"model": {"name": "convmet"}}, "convnet"),
  ],
)
def test_parts_that_cannot_be_made_are_refused(kwargs, message):
  with pytest.raises(LtddError, match=message):
    train(label_sources.Supervision("stored", logits=np.zeros((1, 6, 3))), **kwargs)
