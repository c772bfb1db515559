import numpy as np
import pytest

from ltdd_jax.core.types import LtddError
from ltdd_jax.data import feed


def test_each_index_occurs_once_an_epoch_and_batches_straddle():
  sampler = feed.BatchSampler(0, "test", num_items=10, batch_size=4)
  stream = np.concatenate([sampler(step) for step in range(5)])
  assert sorted(stream[:10]) == list(range(10))
  assert sorted(stream[10:]) == list(range(10))
  assert sampler.epoch(2).tolist() == [0, 0, 1, 1]
  assert sampler(0).dtype == np.int32


def test_a_batch_depends_on_the_step_alone():
  one, other = (feed.BatchSampler(3, "teacher", 7, 5) for _ in range(2))
  for step in range(8):
    one(step)
  for step in (6, 0, 3):
    np.testing.assert_array_equal(one(step), other(step))


def test_seeds_and_names_have_streams_of_their_own():
  first = feed.BatchSampler(0, "a", 100, 100)(0)
  assert not np.array_equal(first, feed.BatchSampler(1, "a", 100, 100)(0))
  assert not np.array_equal(first, feed.BatchSampler(0, "b", 100, 100)(0))
  assert not np.array_equal(first, feed.BatchSampler(0, "a", 100, 100)(1))


def test_a_large_batch_is_clamped():
  sampler = feed.BatchSampler(0, "test", num_items=3, batch_size=8)
  assert sorted(sampler(5)) == [0, 1, 2]
  assert feed.num_steps(3, 8, num_epochs=4) == 4


@pytest.mark.parametrize(("items", "batch"), [(0, 4), (4, 0)])
def test_an_empty_sampler_is_refused(items, batch):
  with pytest.raises(
    LtddError, match=r"sampler 'x': num_items=\d, batch_size=\d; both must be >= 1"
  ):
    feed.BatchSampler(0, "x", items, batch)


def test_num_steps():
  # CIFAR-10-LT, batch 256: the published 80/55/49/44 steps an epoch
  counts = (20431, 13996, 12406, 11203)
  assert [feed.num_steps(n, 256, num_epochs=1) for n in counts] == [80, 55, 49, 44]
  assert feed.num_steps(10, 4, num_epochs=3) == 8  # 7.5: batches straddle epochs


@pytest.mark.parametrize("length", [0, -1, 1.5])
def test_num_steps_takes_whole_positive_lengths(length):
  with pytest.raises(LtddError, match=f"num_epochs is {length}; expected a whole number >= 1"):
    feed.num_steps(10, 4, num_epochs=length)


def test_class_aware_batches_have_all_classes_equally_often():
  labels = np.array([0] * 6 + [2] * 2 + [3])  # no image of class 1
  sampler = feed.ClassAwareSampler(0, "test", labels, batch_size=6)
  assert sampler.num_items == feed.class_aware_epoch(labels) == 18
  stream = np.concatenate([sampler(step) for step in range(12)])  # six passes over the classes
  assert stream.dtype == np.int32
  turns = labels[stream].reshape(-1, 4)
  assert (turns == turns[:, :1]).all()  # four images of a class, one after another
  assert [sorted(x) for x in turns[:, 0].reshape(-1, 3)] == [[0, 2, 3]] * 6
  assert len({tuple(x) for x in turns[:, 0].reshape(-1, 3)}) > 1
  of_class_0 = stream[labels[stream] == 0]
  assert [sorted(x) for x in of_class_0.reshape(4, 6)] == [list(range(6))] * 4  # each once
  other = feed.ClassAwareSampler(0, "test", labels, batch_size=6)
  np.testing.assert_array_equal(other(7), sampler(7))
  assert not np.array_equal(feed.ClassAwareSampler(1, "test", labels, 6)(7), sampler(7))
  with pytest.raises(LtddError, match=r"sampler 'x': 0 images, batch_size=6, each=4; all must"):
    feed.ClassAwareSampler(0, "x", labels[:0], 6)
