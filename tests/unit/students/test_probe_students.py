"""Probe students: which training images they have not seen, and what they say of these."""

import numpy as np
import pytest

from ltdd_jax.core.types import ArrayData
from ltdd_jax.labels.sources import Supervision
from ltdd_jax.students import probe
from ltdd_jax.training import loop
from tests import small

LOG_PRIOR = np.log(small.COUNTS / small.COUNTS.sum()).astype(np.float32)


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_training_images_in_the_distilled_set_are_left_out(dtype):
  data = small.train_data()
  distilled = np.concatenate([data.images[[0, 8]], small.images(2, 5)])
  if dtype == "float32":  # as `config.distil.dtype` stores them
    distilled = distilled.astype(np.float32) / 255
  found = probe.unseen(data, distilled)
  keep = np.setdiff1d(np.arange(len(data.labels)), [0, 8])
  np.testing.assert_array_equal(found.images, data.images[keep])
  np.testing.assert_array_equal(found.labels, data.labels[keep])


@pytest.mark.parametrize("log_prior", [np.full(3, -np.log(3)), LOG_PRIOR])
def test_no_student_is_trained_where_it_would_be_of_no_use(log_prior):
  """Classes are equally frequent; or all images of two classes of three have been seen."""
  data = small.train_data()
  logits, labels = probe.unseen_logits(
    "probe/a", data.images[3:], data.labels[3:], Supervision(), ArrayData(*data), log_prior,
    small.SPEC, session=loop.Session(show_progress=False),
  )  # fmt: skip
  assert (logits.shape, labels.shape) == ((0, 3), (0,))
