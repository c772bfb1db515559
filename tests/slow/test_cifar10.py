"""By hand, on the real CIFAR-10: `LTDD_DATA_DIR=FOLDER pytest -m slow -n 0 tests/slow`."""

import os

import numpy as np
import pytest

from ltdd_jax.data import longtail, sources

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cifar10():
  return sources.open_source("cifar10", data_dir=os.environ.get("LTDD_DATA_DIR"))


@pytest.mark.parametrize(
  ("imbalance_factor", "total"), [(10, 20431), (20, 17023), (50, 13996), (100, 12406), (200, 11203)]
)
def test_totals_of_the_long_tailed_splits(cifar10, imbalance_factor, total):
  split = longtail.make_split(
    cifar10.train_labels, 10, rule="ltdd", imbalance_factor=float(imbalance_factor)
  )
  assert len(split.indices) == total


def test_mean_of_the_pixels_is_that_of_the_table(cifar10):
  images = cifar10.read("train", np.arange(50_000)).reshape(-1, 3) / 255.0
  np.testing.assert_allclose(images.mean(0), cifar10.spec.mean, atol=1e-3)


@pytest.mark.parametrize(("rule", "factor"), longtail.PUBLISHED)
def test_published_subsets(cifar10, rule, factor):
  """Of rule `ltdd` at 100 the hash is published; the others follow from the same order."""
  split = longtail.make_split(cifar10.train_labels, 10, rule=rule, imbalance_factor=factor)
  assert longtail.provenance("cifar10", split) == "published split"
