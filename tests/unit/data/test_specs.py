import numpy as np
import pytest

from ltdd_jax.data.specs import SPECS


@pytest.mark.parametrize("name", SPECS)
def test_facts_are_consistent(name):
  spec = SPECS[name]
  channels = spec.image_shape[-1]
  assert spec.name == name
  assert len(spec.image_shape) == 3
  assert len(spec.mean) == len(spec.std) == channels
  assert all(0 < m < 1 for m in spec.mean)
  assert all(0 < s < 0.5 for s in spec.std)
  assert spec.class_names is None or len(set(spec.class_names)) == spec.num_classes


@pytest.mark.parametrize(
  ("name", "k", "train", "test"),
  [
    ("digits", 10, 1140, 600),
    ("cifar10", 10, 50_000, 10_000),
    ("cifar100", 100, 50_000, 10_000),
    ("fashion_mnist", 10, 60_000, 10_000),
    ("svhn_cropped", 10, 73_257, 26_032),
  ],
)
def test_sizes(name, k, train, test):
  assert (SPECS[name].num_classes, SPECS[name].num_train, SPECS[name].num_test) == (k, train, test)


def test_cifar_constants_are_those_of_the_published_recipes():
  np.testing.assert_array_equal(SPECS["cifar10"].mean, (0.4914, 0.4822, 0.4465))
  np.testing.assert_array_equal(SPECS["cifar100"].std, (0.2675, 0.2565, 0.2761))
