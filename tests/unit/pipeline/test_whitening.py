"""A run with whitened images: what is stored, fingerprints, bad input."""

import re

import numpy as np
import pytest

from ltdd_jax import pipeline
from ltdd_jax.artefacts.workdir import Workdir
from ltdd_jax.core.types import LtddError
from ltdd_jax.data import whitening
from ltdd_jax.pipeline import check, graph
from ltdd_jax.pipeline.context import Context
from tests import small


def config_of(folder, whiten, method=None):
  method = method or {"name": "random"}
  config = small.run_config(folder, {"mine": method}, {"plain": {"name": "none"}})
  config["data"]["whiten"] = whiten
  config["teacher"]["num_epochs"] = config["student"]["num_epochs"] = 1
  config["student"]["hard_labels"] = False
  return check.check(config)


def stages_of(config):
  return {s.name: s for s in graph.make_stages(Context(config))}


def test_every_fingerprint_changes_with_it_and_none_without(tmp_path):
  off, on, more = (stages_of(config_of(tmp_path, x)) for x in (None, 0.1, 0.2))
  assert "whiten" not in off["data"].config["data"]
  for name in off:
    assert len({s[name].fingerprint for s in (off, on, more)}) == 3


def test_a_run_stores_pixels_and_its_networks_see_whitened_images(tmp_path):
  config = config_of(tmp_path, 0.1)
  pipeline.run(config, tmp_path / "run", show_progress=False)
  work, data = Workdir(tmp_path / "run"), small.train_data()
  arrays = work.load("data").arrays
  fitted = whitening.fit(data.images, 0.1)
  for name, want in fitted._asdict().items():
    np.testing.assert_array_equal(arrays[f"whitening_{name}"], want)
  images = work.load("distil/mine").arrays["images"]
  real = {image.tobytes() for image in data.images}
  assert all(image.tobytes() in real for image in images)
  (teacher,) = Context(config, work).teachers()
  flat = (images / 255 - fitted.mean).reshape(len(images), -1) @ fitted.matrix
  want = teacher.model.apply(teacher.variables, flat.reshape(images.shape), train=False)
  found = work.load("label/mine/teacher").arrays["clean_logits"]
  np.testing.assert_allclose(found, want, atol=1e-4)


@pytest.mark.parametrize("whiten", [0.0, -1.0])
def test_a_number_that_is_not_positive(tmp_path, whiten):
  with pytest.raises(
    LtddError, match=r"whiten is \S+; expected a number > 0, such as 0.1, or None"
  ):
    check.check_with_data(Context(config_of(tmp_path, whiten)))


def test_images_that_are_too_large():
  whitening.check(0.1, (64, 64, 1))
  match = re.escape("64x64x3: a matrix of 12,288 x 12,288 numbers (0.6 GB) in each compiled")
  with pytest.raises(LtddError, match=match):
    whitening.check(0.1, (64, 64, 3))


@pytest.mark.parametrize(
  ("method", "what"),
  [
    ({"name": "rded"}, "method 'rded'"),
    ({"name": "ncfm", "batch_real": 4, "num_frequencies": 16}, "multi-formation"),
  ],
)
def test_methods_that_make_images_of_parts_are_refused(tmp_path, method, what):
  with pytest.raises(LtddError, match=f"{what} makes images of parts of others, .*whiten=None"):
    check.check_with_data(Context(config_of(tmp_path, 0.1, method)))
