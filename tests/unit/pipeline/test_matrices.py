"""Matrices of the report: bins by hand; a run's matrices come from its artefacts."""

import numpy as np

from ltdd_jax.data import longtail
from ltdd_jax.pipeline import matrices


def test_classes_go_from_head_to_tail_in_bins():
  members = longtail.bins([1, 9, 5, 5], 2)
  assert [m.tolist() for m in members] == [[1, 2], [3, 0]]
  assert [m.tolist() for m in longtail.bins([1, 9, 5], 10)] == [[1], [2], [0]]


def test_bins_average_rows_and_sum_columns():
  matrix = np.array([[0.5, 0.2, 0.3], [0.1, 0.7, 0.2], [0.0, 0.4, 0.6]])
  members = (np.array([0, 1]), np.array([2]))
  np.testing.assert_allclose(
    matrices.binned(matrix, members), [[0.75, 0.25], [0.4, 0.6]], rtol=1e-6
  )


def test_a_class_without_images_is_left_out_and_a_bin_without_any_is_nan():
  matrix = np.array([[np.nan] * 3, [0.1, 0.7, 0.2], [np.nan] * 3])
  members = (np.array([0, 1]), np.array([2]))
  np.testing.assert_allclose(
    matrices.binned(matrix, members), [[0.8, 0.2], [np.nan, np.nan]], rtol=1e-6
  )
