"""Statistics by class and tile against float64 NumPy loops.

Tolerance 1e-5 relative: float32 has 1.2e-7, and sums here are of some hundred terms.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ltdd_jax.models import taps
from ltdd_jax.teachers import statistics
from tests.reference import statistics_ref as ref

K, Q = 4, 4
LABELS = np.array([0, 0, 1, 0, 0, 3, 3, 0, 3])  # five images, one, none, three
COUNTS = np.bincount(LABELS, minlength=K)


def close(actual, expected, rtol=1e-5, atol=1e-6):
  np.testing.assert_allclose(np.asarray(actual), expected, rtol=rtol, atol=atol)


def draw(h, w, c=2, loc=0.0):
  return (np.random.RandomState(0).randn(len(LABELS), h, w, c) + loc).astype(np.float32)


def computed(maps, labels=LABELS, mask=None, kind="conv"):
  member = np.eye(K, dtype=np.float32)[labels]
  member = member if mask is None else member * np.asarray(mask, np.float32)[:, None]
  inputs = (taps.LayerInput("a", jnp.asarray(maps), kind),)
  return statistics.of_batch(inputs, jnp.asarray(member), Q)


@pytest.mark.parametrize("shape", [(8, 8), (8, 12), (6, 9), (2, 2), (1, 1)])
def test_tiles(shape):
  maps = draw(*shape)
  expected = [[tile.reshape(-1) for tile in ref.tiles(x, Q)] for x in maps]
  close(statistics.tiles(jnp.asarray(maps), Q), expected, atol=1e-5)


def test_tiles_go_row_by_row_and_hold_every_pixel_once():
  image = np.arange(32 * 32 * 3, dtype=np.float32).reshape(1, 32, 32, 3)
  found = statistics.tiles(jnp.asarray(image), 4)
  assert found.shape == (1, 64, 48)
  assert found[0, 1, 0] == image[0, 0, 4, 0]
  assert found[0, 8, 0] == image[0, 4, 0, 0]
  assert np.unique(found).size == image.size
  close(found.mean(-1).mean(), image.mean(dtype=np.float64))


@functools.cache
def expected(h, w):
  maps = draw(h, w)
  tiles = lambda image: ref.tiles(image, Q)
  return tuple(ref.by_class(maps, LABELS, K, cut) for cut in (ref.channels, tiles))


def compare(found, h, w):
  channels, tiles = expected(h, w)
  (layer,) = found.layers
  close(found.counts, COUNTS)
  for moments, values in ((layer.channels, channels), (layer.tiles, tiles)):
    for got, want in zip(moments, values[:3], strict=True):
      close(got, want)


@pytest.mark.parametrize("shape", [(8, 8), (6, 6)])
def test_a_batch(shape):
  compare(jax.jit(computed)(draw(*shape)), *shape)


def test_merging_parts_in_any_order_is_the_whole():
  maps = draw(8, 8)
  parts = [computed(maps[i : i + 3], LABELS[i : i + 3]) for i in (0, 3, 6)]
  nothing = jax.tree.map(jnp.zeros_like, parts[0])
  merge = jax.jit(statistics.merge)
  compare(merge(merge(merge(nothing, parts[0]), parts[1]), parts[2]), 8, 8)
  compare(merge(parts[2], merge(parts[1], merge(parts[0], nothing))), 8, 8)


def test_images_that_do_not_count_change_nothing():
  maps = np.concatenate([draw(8, 8), np.full((2, 8, 8, 2), 1e6, np.float32)])
  compare(computed(maps, [*LABELS, 0, 2], [True] * len(LABELS) + [False] * 2), 8, 8)


def test_a_large_mean_costs_no_digits():
  maps = draw(8, 8, loc=1000.0)
  parts = [computed(maps[i : i + 3], LABELS[i : i + 3]) for i in (0, 3, 6)]
  (layer,) = functools.reduce(statistics.merge, parts).layers
  mean, within, between, total = ref.by_class(maps, LABELS, K, ref.channels)
  close(layer.channels.mean, mean, rtol=1e-6)
  # A mean of 1000 has an error of 3e-5, which enters `between` times twice the distance of means.
  close(layer.channels.within, within, rtol=1e-4)
  close(layer.channels.between, between, rtol=1e-3, atol=1e-5)
  close(statistics.per_class(layer).var, total, rtol=1e-4)


def test_pooled_is_the_variance_of_all_values():
  maps = draw(8, 8)
  found = computed(maps)
  target = statistics.pooled(found.layers[0], found.counts)
  close(target.mean, maps.astype(np.float64).mean((0, 1, 2)))
  close(target.var, maps.astype(np.float64).var((0, 1, 2)))
  flat = np.array([[t.reshape(-1) for t in ref.tiles(x, Q)] for x in maps])
  close(target.tile_mean, flat.mean((0, 2)))
  close(target.tile_var, flat.var((0, 2)))
  close(target.tile_mean.mean(), target.mean.mean())


def test_pooled_as_the_mean_over_batches():
  """All 81 batches of two images, drawn with replacement."""
  maps = draw(8, 8)
  found = computed(maps)
  target = statistics.pooled(found.layers[0], found.counts, batch=2)
  flat = np.array([[t.reshape(-1) for t in ref.tiles(x, Q)] for x in maps])
  pairs = [[i, j] for i in range(len(maps)) for j in range(len(maps))]
  close(target.var, np.mean([maps[p].astype(np.float64).var((0, 1, 2)) for p in pairs], 0))
  close(target.tile_var, np.mean([flat[p].var((0, 2)) for p in pairs], 0))


def test_pooled_with_equal_weights_is_that_of_balanced_data():
  maps = draw(8, 8)
  (layer,) = computed(maps).layers
  mean, _, _, total = ref.by_class(maps, LABELS, K, ref.channels)
  there = [0, 1, 3]
  target = statistics.pooled(layer, jnp.asarray(np.minimum(COUNTS, 1), jnp.float32))
  close(target.mean, mean[there].mean(0))
  close(target.var, total[there].mean(0) + mean[there].var(0))


def test_both_variances_of_a_class():
  (layer,) = computed(draw(8, 8)).layers
  (mean, within, _, total), (tile_mean, tile_within, _, tile_total) = expected(8, 8)
  for got, want in (
    (statistics.per_class(layer), (mean, total, tile_mean, tile_total)),
    (statistics.per_class(layer, within_image=True), (mean, within, tile_mean, tile_within)),
  ):
    for a, b in zip(got, want, strict=True):
      close(a, b)
  close(statistics.per_class(layer).var[1], within[1])  # one image: nothing between images


def test_batch_norms_have_no_tiles():
  found = computed(draw(8, 8), kind="batch_norm")
  (layer,) = statistics.merge(found, found).layers
  assert layer.tiles is None
  assert statistics.pooled(layer, found.counts).tile_var is None
  assert statistics.per_class(layer).tile_mean is None
