"""Images that stay where they are, and batches that are read ahead."""

import io
import os
import signal
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from ltdd_jax.core import mesh as mesh_lib
from ltdd_jax.core import rng
from ltdd_jax.core.types import LtddError
from ltdd_jax.data import crops, feed, images, sources, stream

INDICES = np.arange(39, 0, -1)


@pytest.fixture(scope="module")
def source():
  return make_source()


def make_source():
  draws = np.random.default_rng(0)
  pixels = draws.integers(0, 256, (50, 8, 8, 3), np.uint8)
  labels = np.arange(50) % 2
  arrays = {"train_images": pixels[:40], "train_labels": labels[:40]}
  arrays |= {"test_images": pixels[40:], "test_labels": labels[40:]}
  return sources.open_source("arrays", arrays=arrays)


def of(source, workers=0):
  return stream.HostImages(source, "train", INDICES, workers)


def batches(source, workers, scale):
  sampler = feed.BatchSampler(0, "a", len(INDICES), 16)
  rows_of = lambda t: (sampler(t), sampler.epoch(t))
  return stream.batches(
    of(source, workers), rows_of, 6, seed=0, path="x", mesh=mesh_lib.make_mesh(), scale=scale
  )


def test_rows_are_read_as_from_an_array(source):
  found, whole = of(source), source.read("train", INDICES)
  assert (found.shape, found.dtype, found.ndim, len(found)) == (whole.shape, np.uint8, 4, 39)
  rows = np.array([[3, 4], [38, 0]])
  np.testing.assert_array_equal(found[rows], whole[rows])
  np.testing.assert_array_equal(found[2:5], whole[2:5])
  np.testing.assert_array_equal(found[7], whole[7])
  np.testing.assert_array_equal(jax.jit(lambda x, r: x[r])(found, rows), whole[rows])
  np.testing.assert_array_equal(jax.jit(jax.vmap(lambda r: found[r]))(rows), whole[rows])
  np.testing.assert_array_equal(stream.take(found, rows), stream.take(whole, jnp.asarray(rows)))
  mask = np.arange(39) % 3 == 0
  np.testing.assert_array_equal(found[mask][:], whole[mask])


def test_all_images_at_once_are_refused(source):
  for whole in (np.asarray, jnp.asarray, np.array):
    with pytest.raises(LtddError, match=r"39 images stay on disk .*stream_workers=0.*expected|Exp"):
      whole(of(source))


SCALES = (None, (0.08, 1.0))


@pytest.mark.parametrize("scale", SCALES)
def test_batches_are_functions_of_the_step_alone(source, scale):
  found = batches(source, 0, scale)
  straight = [found(t) for t in range(6)]
  for t in (4, 5, 2):  # a run that goes on at step 4, and one that goes back
    jax.tree.map(np.testing.assert_array_equal, found(t), straight[t])
  found.close()
  sampler = feed.BatchSampler(0, "a", 39, 16)
  np.testing.assert_array_equal(straight[3].rows, sampler(3))
  np.testing.assert_array_equal(straight[3].epochs, sampler.epoch(3))
  if scale is None:
    np.testing.assert_array_equal(straight[3].pixels, of(source)[sampler(3)])
  else:
    draws = rng.np_rng(0, "x", "crop", 3).spawn(16)
    np.testing.assert_array_equal(straight[3].pixels, of(source).crops(sampler(3), draws, scale))
    assert (straight[3].pixels != of(source)[sampler(3)]).any()


def compare_workers():
  """Run as a program: functions that the type checker of the tests wraps cannot be sent."""
  source = make_source()
  for scale in SCALES:
    here, there = batches(source, 0, scale), batches(source, 2, scale)
    for t in range(6):
      found = there(t)
      jax.tree.map(np.testing.assert_array_equal, here(t), found)
      assert type(found.pixels) is np.ndarray


def test_workers_give_the_same_batches():
  code = "from tests.unit.data import test_stream; test_stream.compare_workers()"
  subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


def test_a_worker_that_died_is_explained():
  made = stream.Prefetched(lambda t: os.kill(os.getpid(), signal.SIGKILL), 3, workers=1)
  with pytest.raises(LtddError, match=r"has died .*exit code -9.*stream_workers is 1\. Maybe mem"):
    made(0)


def test_crops_are_of_the_image_as_it_is_stored(source):
  tall = np.random.default_rng(1).integers(0, 256, (30, 12, 3), np.uint8)
  file = io.BytesIO()
  Image.fromarray(tall).save(file, "PNG")
  stored = source._replace(stored=lambda split, number: (f"{split}{number}", file.getvalue()))
  one = lambda: np.random.default_rng(2).spawn(1)
  found = images.read_crops(stored, "train", np.array([5]), one(), (0.5, 0.6))
  box = crops.draw_box(one()[0], 30, 12, (0.5, 0.6))
  top, left, height, width = box
  assert 0.4 < height * width / (30 * 12) < 0.7
  cut = Image.fromarray(tall[top : top + height, left : left + width])
  np.testing.assert_array_equal(found[0], cut.resize((8, 8), Image.Resampling.BILINEAR))
  broken = source._replace(stored=lambda split, number: ("a.jpg", b"no image"))
  with pytest.raises(LtddError, match=r"a\.jpg: cannot be read as an image .*Repair or delete it"):
    images.read_crops(broken, "train", np.array([5]), one(), (0.5, 0.6))


def test_boxes_are_distributed_as_those_of_the_device():
  here = [crops.draw_box(np.random.default_rng(i), 40, 60) for i in range(2000)]
  there = jax.vmap(lambda k: jnp.stack(crops.rrc_box(k, 40, 60)))(
    jax.random.split(jax.random.key(0), 2000)
  )
  here, there = np.array(here), np.asarray(there)
  assert (here[:, :2] >= 0).all()
  assert (here[:, :2] + here[:, 2:] <= [40, 60]).all()
  np.testing.assert_allclose(here.mean(0), there.mean(0), rtol=0.06)
  np.testing.assert_allclose(here.std(0), there.std(0), rtol=0.06)
  assert crops.draw_box(np.random.default_rng(0), 10, 1000, (1.0, 1.0)) == (0, 493, 10, 13)


def test_the_crop_that_reading_takes_over(source):
  crop, flip = {"name": "random_resized_crop", "scale": (0.5, 1)}, {"name": "random_flip"}
  assert stream.split_augment(of(source), [crop, flip]) == ((0.5, 1), [flip])
  assert stream.split_augment(of(source), [flip, crop]) == (None, [flip, crop])
  assert stream.split_augment(np.zeros(3), [crop, flip]) == (None, [crop, flip])
  assert stream.split_augment(of(source), ()) == (None, ())
  alike = crop | {"shared": True}
  assert stream.split_augment(of(source), [alike, flip]) == (None, [alike, flip])
