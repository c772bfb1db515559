"""The self-test of leakage: copies are found, and images of the same distribution are not."""

import numpy as np
import pytest

from ltdd_jax.core.types import LtddError
from ltdd_jax.report import leakage
from tests import small


def noise(n, seed, k=3):
  images = np.random.RandomState(seed).randint(0, 256, (n, 4, 4, 3)).astype(np.uint8)
  return images, np.arange(n) % k


TRAIN, TEST = noise(300, 0), noise(200, 1)


@pytest.mark.parametrize("block", [1, 7, 1024])
def test_nearest_is_that_of_all_pairs(block):
  (images, labels), (train, train_labels) = noise(20, 2), TRAIN
  found = leakage.nearest(images, labels, train, train_labels, block=block)
  x, y = (a.reshape(len(a), -1).astype(float) / 255 for a in (images, train))
  for i, c in enumerate(labels):
    d = np.linalg.norm(y - x[i], axis=1)
    d[train_labels != c] = np.inf
    assert found.row[i] == d.argmin()
    assert found.distance[i] == pytest.approx(d.min(), rel=1e-6)  # float32


def test_by_hand_and_a_class_without_training_images():
  train, labels = np.array([[0.0, 0.0], [3.0, 4.0]], np.float32), np.array([0, 1])
  found = leakage.nearest(np.array([[3.0, 0.0]] * 3, np.float32), np.arange(3), train, labels)
  assert found.distance.tolist() == [3, 4, np.inf]
  assert found.row.tolist() == [0, 1, -1]


def test_copies_have_distance_0_and_score_1():
  rows = np.arange(30)
  found = leakage.self_test(TRAIN[0][rows], TRAIN[1][rows], *TRAIN, *TEST)
  assert (found.nearest.distance == 0).all()
  np.testing.assert_array_equal(found.nearest.row, rows)
  assert (found.membership, found.auc, found.nearer_to_train, found.distance) == (1, 1, 1, 0)


def test_copies_stored_as_float_pixels_too():
  rows = np.arange(30)
  copies = TRAIN[0][rows].astype(np.float32) / np.float32(255)
  assert leakage.self_test(copies, TRAIN[1][rows], *TRAIN, *TEST).distance == 0


def test_unseen_images_have_what_is_expected():
  found = leakage.self_test(*noise(3000, 3), *TRAIN, *TEST)
  assert found.nearer_expected == pytest.approx(0.6, abs=0.001)  # 100 to 66 or 67 of a class
  assert found.membership == pytest.approx(0.05, abs=0.04)  # of 67 test images of each class
  assert found.auc == pytest.approx(0.5, abs=0.05)
  assert found.nearer_to_train == pytest.approx(0.6, abs=0.03)  # three deviations
  assert found.distance == pytest.approx(found.test_distance, rel=0.01)


def test_smooth_images_look_like_members_but_are_not_nearer_to_training_images():
  """All of a class have the same nearest image, so that one draw of the data says little."""
  images, labels = noise(30, 4)
  images = (0.2 * images + 0.4 * 255).astype(np.uint8)
  draw = lambda seed: (*noise(60, 2 * seed), *noise(30, 2 * seed + 1))
  found = [leakage.self_test(images, labels, *draw(seed)) for seed in range(100, 140)]
  assert all(f.membership == 1 for f in found)
  assert found[0].nearer_expected == pytest.approx(2 / 3)
  nearer = np.mean([f.nearer_to_train for f in found])
  assert nearer == pytest.approx(2 / 3, abs=0.13)  # three deviations of 120 draws


def test_classes_are_compared_one_by_one():
  """The class of one training image has far test images; its copy is no nearer than others'."""
  train = np.array([[0.0], [10.0], [20.0]], np.float32), np.array([0, 0, 1])
  test = np.array([[1.0], [11.0], [120.0], [220.0]], np.float32), np.array([0, 0, 1, 1])
  found = leakage.self_test(
    np.array([[2.0], [25.0]], np.float32), np.array([0, 1]), *train, *test, percentile=50
  )
  assert found.nearest.distance.tolist() == [2, 5]
  assert (found.membership, found.auc) == (0.5, 0.5)
  assert found.test_distance == (1 + 150) / 2
  assert found.nearer_to_train == 0.5  # 1 of a test image; 5 of a training image
  assert found.nearer_expected == pytest.approx((2 / 4 + 1 / 3) / 2)


def test_features_of_unit_length_compare_cosines():
  x = leakage.unit(np.array([[3.0, 4.0], [0.0, 0.0]], np.float32))
  np.testing.assert_allclose(x, [[0.6, 0.8], [0, 0]], rtol=1e-6)


def test_what_the_self_test_refuses():
  with pytest.raises(LtddError, match="percentile is 0; expected a number above 0 and below 100"):
    leakage.self_test(*TEST, *TRAIN, *TEST, percentile=0)
  images, labels = small.images(4), np.array([0, 1, 2, 2])
  with pytest.raises(LtddError, match=r"classes \[2\] of the 4 distilled images have no test im"):
    leakage.self_test(images, labels, images, labels, images[:2], labels[:2])
  with pytest.raises(LtddError, match=r"classes \[1\] of .* have no training image"):
    leakage.self_test(images, labels, images[::3], labels[::3], images, labels)
