"""Label sources: labels of images, where views mix two of them, against NumPy."""

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from ltdd_jax import calibrate
from ltdd_jax.core.types import LtddError
from ltdd_jax.data import views as views_lib
from ltdd_jax.labels import sources as label_sources
from tests import small

IMAGES, LABELS = small.images(5), np.array([0, 1, 2, 0, 1], np.int32)
LOGITS = np.random.RandomState(3).standard_normal((1, 5, 3)).astype(np.float32)
LOG_PRIOR = np.log(small.COUNTS / small.COUNTS.sum()).astype(np.float32)


def shifted(tau):
  calibrator = calibrate.make_calibrator("fixed", tau=tau)
  params = calibrator.fit(LOGITS, LABELS, LOG_PRIOR)
  return {"calibrator": calibrator, "params": params, "log_prior": LOG_PRIOR}


@pytest.mark.parametrize("mix", ["cutmix", "mixup", None])
@pytest.mark.parametrize("tau", [0.0, 0.7])
def test_labels_of_images_are_mixed_as_probabilities(mix, tau, key):
  indices, epochs = jnp.array([4, 0, 2, 2]), jnp.array([0, 1, 2, 3])  # one label epoch for all
  views = views_lib.view_fn(small.SPEC, mix=mix)(key, IMAGES, LABELS, indices, epochs)
  supervision = label_sources.Supervision("stored", logits=LOGITS, per_view=False, **shifted(tau))
  got = supervision.logits_of(supervision.arrays(), views, indices, epochs)
  calibrated = LOGITS[0] - tau * (LOG_PRIOR - LOG_PRIOR.mean())
  own, other = (scipy.special.softmax(calibrated[i], -1) for i in (indices, views.partners))
  weight = np.asarray(views.weight)[:, None]
  want = weight * own + (1 - weight) * other
  np.testing.assert_allclose(scipy.special.softmax(got, -1), want, atol=1e-5)
  whole = weight[:, 0] == 1  # nothing mixed in: the logits as they are
  assert whole.all() == (mix is None)
  np.testing.assert_allclose(got[whole], calibrated[indices][whole], atol=1e-5)


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_the_level_of_logits_is_mixed_as_well(weight, key):
  """Losses on raw logits see it: an image mixed with itself keeps its logits."""
  indices, epochs = jnp.array([3, 0]), jnp.array([0, 0])
  views = views_lib.view_fn(small.SPEC)(key, IMAGES, LABELS, indices, epochs)
  views = views._replace(weight=jnp.full(2, weight))
  logits = 10.0 + LOGITS
  supervision = label_sources.Supervision("stored", logits=logits, per_view=False)
  of = lambda v: supervision.logits_of(supervision.arrays(), v, indices, epochs)
  same = of(views._replace(partners=indices))
  np.testing.assert_allclose(same, logits[0, indices], rtol=1e-6)
  level = lambda rows: scipy.special.logsumexp(logits[0, rows], -1)
  want = weight * level(indices) + (1 - weight) * level(views.partners)
  np.testing.assert_allclose(scipy.special.logsumexp(of(views), -1), want, rtol=1e-6)


def test_labels_of_views_are_not_mixed_again(key):
  logits = np.concatenate([LOGITS, 2 * LOGITS])
  indices, epochs = jnp.array([1, 3]), jnp.array([0, 3])  # epoch 3 goes round to label epoch 1
  views = views_lib.view_fn(small.SPEC, mix="mixup")(key, IMAGES, LABELS, indices, epochs)
  supervision = label_sources.Supervision("stored", logits=logits)
  got = supervision.logits_of(supervision.arrays(), views, indices, epochs)
  np.testing.assert_array_equal(got, logits[[0, 1], [1, 3]])


def test_hard_labels_have_no_logits(key):
  views = views_lib.view_fn(small.SPEC)(key, IMAGES, LABELS, jnp.arange(2), jnp.arange(2))
  supervision = label_sources.Supervision()
  assert supervision.arrays() == {}
  assert supervision.logits_of({}, views, jnp.arange(2), jnp.arange(2)) is None


@pytest.mark.parametrize(
  ("kwargs", "message"),
  [
    ({"aggregate": "max"}, "aggregate is 'max'; expected one of 'mean'"),
    ({"batch_norm": "no"}, "batch_norm is 'no'; expected one of 'eval', 'train'"),
  ],
)
def test_bad_options_are_refused(kwargs, message):
  with pytest.raises(LtddError, match=message):
    label_sources.teacher(**kwargs)
