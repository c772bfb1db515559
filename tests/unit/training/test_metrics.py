import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ltdd_jax.core.types import LtddError
from ltdd_jax.training import metrics

K = 3
LABELS = jnp.array([0, 0, 0, 1, 1, 2, 2], jnp.int32)
FACTS = {"mean": (0.5,), "std": (0.25,), "num_classes": K}


class ReadsPixel(nn.Module):
  """Predicts the class that the first pixel holds, plus an offset that is its only parameter."""

  @nn.compact
  def __call__(self, x, *, train):
    assert not train
    offset = self.param("offset", nn.initializers.zeros, ())
    value = jnp.round((x[:, 0, 0, 0] * 0.25 + 0.5) * 255).astype(jnp.int32)
    return jax.nn.one_hot((value + offset.astype(jnp.int32)) % K, K)


def images_of(classes):
  return jnp.asarray(classes, jnp.uint8).reshape(-1, 1, 1, 1)


def variables(offset=0.0):
  return {"params": {"offset": jnp.asarray(offset)}, "batch_stats": {}}


def test_always_predicts_class_two():
  logits = jnp.tile(jnp.array([[0.0, 0.0, 1.0]]), (7, 1))
  counts = metrics.ClassCounts.from_batch(logits, LABELS, jnp.ones(7, bool), K)
  np.testing.assert_array_equal(counts.confusion, [[0, 0, 3], [0, 0, 2], [0, 0, 2]])
  np.testing.assert_array_equal(counts.correct, [0, 0, 2])
  np.testing.assert_array_equal(counts.total, [3, 2, 2])
  np.testing.assert_array_equal(counts.per_class(), [0, 0, 1])
  np.testing.assert_allclose(counts.top1(), 2 / 7)


def test_nan_is_wrong():
  counts = metrics.ClassCounts.from_batch(jnp.full((7, K), jnp.nan), LABELS, jnp.ones(7, bool), K)
  assert counts.top1() == 0
  assert np.asarray(counts.confusion).sum() == 0
  np.testing.assert_array_equal(counts.total, [3, 2, 2])


def test_classes_without_images_are_nan():
  counts = metrics.ClassCounts(jnp.array([[1, 1], [0, 0]]), jnp.array([2, 0]))
  np.testing.assert_array_equal(counts.per_class(), [0.5, np.nan])
  assert np.isnan(metrics.ClassCounts.empty(2).top1())


@pytest.mark.parametrize("batch_size", [1, 2, 3, 7, 100])
def test_every_image_counts_once(batch_size):
  """The third, fifth and last image are predicted wrongly, whatever the remainder."""
  images = images_of([0, 0, 1, 1, 2, 2, 0])
  counts = metrics.make_evaluate(ReadsPixel().apply, **FACTS)(
    variables(), images, LABELS, batch_size
  )
  np.testing.assert_array_equal(counts.confusion, [[2, 1, 0], [0, 1, 1], [1, 0, 1]])
  np.testing.assert_array_equal(counts.total, [3, 2, 2])


@pytest.mark.parametrize("batch_size", [3, 7])
def test_networks(batch_size):
  images = images_of([0, 0, 1, 1, 2, 2, 0])
  evaluate = metrics.make_evaluate(ReadsPixel().apply, **FACTS, networks=True)
  counts = evaluate(variables([0.0, 1.0]), images, LABELS, batch_size)
  assert counts.confusion.shape == (2, K, K)
  assert counts.total.shape == (K,)
  for i in range(2):
    one = metrics.make_evaluate(ReadsPixel().apply, **FACTS)(
      variables(float(i)), images, LABELS, batch_size
    )
    np.testing.assert_array_equal(counts.confusion[i], one.confusion)
    np.testing.assert_array_equal(counts.total, one.total)
    np.testing.assert_allclose(counts.per_class()[i], one.per_class())
    np.testing.assert_allclose(counts.top1()[i], one.top1())


def test_compiled_once_for_all_batches_and_variables():
  traces = []

  def apply(*args, **kwargs):
    traces.append(None)
    return ReadsPixel().apply(*args, **kwargs)

  evaluate = metrics.make_evaluate(apply, **FACTS)
  for offset in (0.0, 1.0):
    evaluate(variables(offset), images_of([0] * 7), LABELS, 3)
  assert len(traces) == 1


def test_errors():
  evaluate = metrics.make_evaluate(ReadsPixel().apply, **FACTS)
  for images, labels, size, message in (
    ([], LABELS[:0], 2, "0 images and batch_size=2"),
    ([0, 1], LABELS, 2, "2 images but 7 labels"),
    ([0] * 7, LABELS, 0, "7 images and batch_size=0"),
  ):
    with pytest.raises(LtddError, match=message):
      evaluate(variables(), images_of(images), labels, size)
