"""One pass over a small training set: every image once, whatever the size of a batch."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ltdd_jax.artefacts import checkpoint
from ltdd_jax.core.types import LtddError, Teacher
from ltdd_jax.data import augment
from ltdd_jax.models import taps
from ltdd_jax.teachers import statistics, statistics_pass
from ltdd_jax.training import loop
from tests import small
from tests.reference import statistics_ref as ref

FLIP = ({"name": "random_flip"},)


def run(**kwargs):
  kwargs = {"tile": 4, "batch_size": 4, "session": loop.Session(show_progress=False)} | kwargs
  teachers = kwargs.pop("teachers", (small.teacher(),))
  return statistics_pass.collect(small.train_data(), small.SPEC, teachers, **kwargs)


@pytest.fixture(scope="module")
def collected():
  """Eleven images in batches of four: the last one has three."""
  return run()[0]


def test_equals_loops_over_the_activations(collected):
  data, teacher = small.train_data(), small.teacher()
  images = augment.normalize(jnp.asarray(data.images), small.SPEC.mean, small.SPEC.std)
  _, inputs = taps.apply_with_inputs(teacher.model, teacher.variables, images, statistics.LAYERS)
  assert [(x.path, x.kind) for x in collected.layers] == [
    ("conv0", "conv"), ("norm0", "batch_norm")
  ]  # fmt: skip
  np.testing.assert_array_equal(collected.counts, small.COUNTS)
  for layer, seen in zip(collected.layers, inputs, strict=True):
    expected = ref.by_class(np.asarray(seen.value), data.labels, small.K, ref.channels)
    for got, want in zip(layer.channels, expected[:3], strict=True):
      np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


def test_does_not_depend_on_the_batch_size(collected):
  (whole,) = run(batch_size=256)
  compare = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
  jax.tree.map(compare, collected, whole)


def test_is_deterministic_and_the_same_images_for_every_observer():
  twice = run(augment=FLIP, teachers=(small.teacher(), small.teacher()._replace(name="b")))
  for a, b in ((twice[0], twice[1]), (twice[0], run(augment=FLIP)[0])):
    jax.tree.map(np.testing.assert_array_equal, a, b)
  (other,) = run(augment=FLIP, seed=1)
  np.testing.assert_array_equal(other.counts, small.COUNTS)
  layers = (twice[0].layers[0], other.layers[0])
  assert not np.array_equal(*(x.tiles.mean for x in layers))  # a flip moves tiles,
  np.testing.assert_allclose(*(x.channels.mean for x in layers), atol=1e-6)  # but not the mean


def test_survives_an_artefact(collected):
  tree = statistics.to_tree(collected)
  layers = [[x.path, x.kind] for x in collected.layers]
  back = statistics.from_tree(tree, layers, 4)
  jax.tree.map(np.testing.assert_array_equal, back, collected)
  assert jax.tree.structure(back) == jax.tree.structure(collected)
  shapes = statistics.shapes(
    small.teacher().model, small.teacher().variables, small.SPEC.image_shape, small.K, 4
  )
  k, c, p, width = 3, 1, 4, 4
  assert statistics.num_bytes(shapes) == 4 * k * (1 + 3 * c + 3 * p + 3 * width)
  assert statistics.num_bytes(collected) == statistics.num_bytes(shapes)


def test_a_network_without_such_layers_is_refused(key):
  class Linear(nn.Module):
    @nn.compact
    def __call__(self, x, *, train):
      return nn.Dense(small.K)(x.reshape(len(x), -1))

  model = Linear()
  variables = model.init(key, jnp.zeros((1, *small.SPEC.image_shape)), train=False)
  with pytest.raises(LtddError, match="teacher 'flat' has neither batch norms nor convolutions"):
    run(teachers=(Teacher("flat", model, variables),))


def test_goes_on_where_it_stopped(tmp_path, monkeypatch):
  session = loop.Session(show_progress=False, scratch=tmp_path, checkpoint_seconds=0.0)
  (whole,) = run(augment=FLIP)
  with monkeypatch.context() as patch:
    patch.setattr(checkpoint, "stop_requested", lambda: True)
    with pytest.raises(checkpoint.Interrupted, match=r"statistics/a: stopped after step 1 of 3"):
      run(augment=FLIP, session=session)
  (resumed,) = run(augment=FLIP, session=session)
  jax.tree.map(np.testing.assert_array_equal, resumed, whole)
