"""Batch statistics of a trained teacher, recomputed by one pass."""

import flax.linen as nn
import jax
import numpy as np
import pytest

from ltdd_jax import models
from ltdd_jax.core.types import LtddError, Teacher
from ltdd_jax.data import augment, feed, stream
from ltdd_jax.data.sources import open_source
from ltdd_jax.teachers import recalibrate
from ltdd_jax.training import loop
from tests import small

TRAINING = recalibrate.Training(
  small.train_data(), small.SPEC, (), 4, 3, loop.Session(show_progress=False)
)


def test_statistics_are_the_mean_over_batches_and_parameters_stay():
  """Eleven images in three batches of four: the last holds one image of the next permutation."""
  teacher, data = small.teacher(), small.train_data()
  layer = {"params": teacher.variables["params"]["conv0"]}
  sampler = feed.BatchSampler(3, "recalibrate/a", 11, 4)
  means, variances = [], []
  for t in range(3):
    x = augment.normalize(data.images[sampler(t)], small.SPEC.mean, small.SPEC.std)
    conv = nn.Conv(4, (3, 3), padding=1).apply(layer, x)
    means.append(np.asarray(conv, np.float64).mean((0, 1, 2)))
    variances.append(np.asarray(conv, np.float64).var((0, 1, 2)))
  derived = recalibrate.make_step("recalibrate_bn")(teacher, TRAINING)
  found = derived.variables["batch_stats"]["norm0"]
  np.testing.assert_allclose(found["mean"], np.mean(means, axis=0), atol=1e-5)
  np.testing.assert_allclose(found["var"], np.mean(variances, axis=0), rtol=1e-4)
  assert derived.variables["params"] is teacher.variables["params"]
  assert (derived.name, derived.model) == (teacher.name, teacher.model)


def test_images_on_disk_are_read_as_in_training():
  data = small.train_data()
  arrays = {"images": np.asarray(data.images), "labels": np.asarray(data.labels)}
  arrays = {f"{split}_{k}": v for split in ("train", "test") for k, v in arrays.items()}
  source = open_source("arrays", arrays=arrays)
  on_disk = data._replace(images=stream.HostImages(source, "train", np.arange(len(data.labels))))
  derive = lambda training: recalibrate.make_step("recalibrate_bn")(
    small.teacher(), training
  ).variables["batch_stats"]
  read = TRAINING._replace(data=on_disk, session=TRAINING.session.reading(on_disk.images))
  jax.tree.map(np.testing.assert_array_equal, derive(read), derive(TRAINING))
  cropped = derive(read._replace(scale=(0.1, 0.3)))
  assert abs(cropped["norm0"]["var"] - derive(TRAINING)["norm0"]["var"]).max() > 1e-4


@pytest.mark.parametrize("size", [2, 4, 50])
def test_by_class_every_class_has_the_same_weight_and_every_image_within_it(size):
  teacher, data = small.teacher(), small.train_data()
  step = recalibrate.make_step("recalibrate_bn_by_class", batch_size=size)
  found = step(teacher, TRAINING).variables["batch_stats"]["norm0"]
  layer = {"params": teacher.variables["params"]["conv0"]}
  x = augment.normalize(data.images, small.SPEC.mean, small.SPEC.std)
  conv = np.asarray(nn.Conv(4, (3, 3), padding=1).apply(layer, x), np.float64)
  classes = [conv[data.labels == c] for c in np.unique(data.labels)]
  np.testing.assert_allclose(
    found["mean"], np.mean([c.mean((0, 1, 2)) for c in classes], 0), atol=1e-5
  )
  if size == 50:  # a class is one batch, filled up with images that do not count
    np.testing.assert_allclose(
      found["var"], np.mean([c.var((0, 1, 2)) for c in classes], 0), rtol=1e-4
    )


def test_the_size_of_a_batch_is_an_argument():
  whole = recalibrate.make_step("recalibrate_bn", batch_size=11)(small.teacher(), TRAINING)
  parts = recalibrate.make_step("recalibrate_bn")(small.teacher(), TRAINING)
  stats = [t.variables["batch_stats"]["norm0"]["var"] for t in (whole, parts)]
  assert not np.allclose(*stats)
  with pytest.raises(LtddError, match="batch_size is 0; expected 1 or more"):
    recalibrate.make_step("recalibrate_bn", batch_size=0)


def test_a_network_without_batch_norm_is_refused():
  model = models.make_model(num_classes=small.K, image_shape=small.SPEC.image_shape, **small.NET)
  variables = models.init_variables(model, jax.random.key(0), small.SPEC.image_shape)
  with pytest.raises(LtddError, match="needs a network with batch norm, and teacher 'plain' has"):
    recalibrate.recalibrate_bn()(Teacher("plain", model, variables), TRAINING)


@pytest.mark.parametrize("name", sorted(models.MODELS))
def test_every_network_with_batch_norm_can_forget(name):
  """With `bn_momentum=0` running statistics are those of the batch."""
  model = models.make_model(name, num_classes=3, image_shape=(32, 32, 3))
  shapes = jax.eval_shape(lambda k: models.init_variables(model, k, (32, 32, 3)), jax.random.key(0))
  if shapes["batch_stats"]:
    assert model.clone(bn_momentum=0.0).bn_momentum == 0.0
