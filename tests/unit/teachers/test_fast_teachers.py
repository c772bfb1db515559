"""Airbench's teachers: the recipe learns, resumes, and leaves what it must."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.teachers import TEACHERS
from ltdd_jax.artefacts import checkpoint
from ltdd_jax.core.types import ArrayData, LtddError
from ltdd_jax.data import augment
from ltdd_jax.data.specs import DatasetSpec
from ltdd_jax.models.airbench import whitening_kernel
from ltdd_jax.teachers import recalibrate
from ltdd_jax.teachers import train as teacher_training
from ltdd_jax.training import loop

SIDE, COUNTS = 12, np.array([60, 30, 12])
SPEC = DatasetSpec(
  name="blobs",
  num_classes=3,
  image_shape=(SIDE, SIDE, 3),
  mean=(0.5, 0.5, 0.5),
  std=(0.25, 0.25, 0.25),
  num_train=102,
  num_test=90,
  class_names=("a", "b", "c"),
)
QUIET = loop.Session(show_progress=False)
NET = {"name": "airbench", "widths": (8, 16, 16)}


def blobs(counts, seed):
  """Images of noise with one bright square; its colour is the class, its place is random."""
  draws, labels = np.random.RandomState(seed), np.repeat(np.arange(3), counts).astype(np.int32)
  images = draws.randint(60, 160, (len(labels), SIDE, SIDE, 3))
  for image, label in zip(images, labels, strict=True):
    y, x = draws.randint(0, SIDE - 4, 2)
    image[y : y + 4, x : x + 4, label] = 240
  return ArrayData(images.astype(np.uint8), labels)


def train(session=QUIET, **changes):
  recipe = TEACHERS["fast94"] | {"models": {"a": NET}, "batch_size": 64, "num_steps": 120}
  (teacher,) = teacher_training.train_teachers(
    blobs(COUNTS, 0), SPEC, COUNTS, session=session, **recipe | changes
  )
  return teacher


@pytest.fixture(scope="module")
def teacher():
  return train()


def test_fast94_learns(teacher):
  """The tail too: its class has 12 of 102 images."""
  counts = teacher_training.evaluate(teacher, blobs([30, 30, 30], 1), SPEC)
  assert np.asarray(counts.correct).min() >= 27


def test_the_whitening_filters_stay_those_of_the_training_set(teacher):
  data = blobs(COUNTS, 0)
  wanted = whitening_kernel(augment.normalize(data.images, SPEC.mean, SPEC.std))
  found = teacher.variables["batch_stats"]["whitening_kernel"]
  np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-3)
  training = recalibrate.Training(data, SPEC, (), 32, 0, QUIET)
  for name in recalibrate.DERIVE:
    stats = recalibrate.make_step(name)(teacher, training).variables["batch_stats"]
    np.testing.assert_array_equal(stats["whitening_kernel"], found)
    assert not np.allclose(
      stats["block0_norm0"]["mean"], teacher.variables["batch_stats"]["block0_norm0"]["mean"]
    )


def test_it_goes_on_where_it_stopped(teacher, tmp_path, monkeypatch):
  """Slow copies, coins of flips and the frozen bias among them; steps win over 40 epochs."""
  session = dataclasses.replace(QUIET, scratch=tmp_path, checkpoint_seconds=0.0, log_every=10)
  calls = iter([False, True])
  monkeypatch.setattr(checkpoint, "stop_requested", lambda: next(calls, False))
  with pytest.raises(checkpoint.Interrupted, match="of 120"):
    train(session)
  jax.tree.map(np.testing.assert_array_equal, train(session).variables, teacher.variables)


def test_the_bias_of_the_whitening_layer_is_frozen(teacher):
  optimizer = TEACHERS["fast94"]["optimizer"]
  frozen = train(num_steps=5, derive=(), optimizer=optimizer | {"freeze_whitening": 0})
  assert not np.any(frozen.variables["params"]["whitening_bias"])
  assert np.any(teacher.variables["params"]["whitening_bias"])


def test_lookahead_wants_as_many_steps_as_it_waits_for():
  with pytest.raises(LtddError, match="lookahead is True with 4 steps in all; expected 5 or more"):
    train(num_steps=4)


def test_muon_learns():
  data = blobs([30, 30, 30], 1)
  teacher = train(optimizer={"name": "muon", "lr": 11.5})
  assert int(jnp.sum(teacher_training.evaluate(teacher, data, SPEC).correct)) >= 81
