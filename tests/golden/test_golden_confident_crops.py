"""RLDD's choice of crops against Python loops, and its class-balanced targets against float64."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ltdd_jax import distil
from ltdd_jax.core.types import LtddError
from ltdd_jax.distil import confident_crops, features, initial_images, layer_statistics, selection
from ltdd_jax.teachers import statistics as statistics_lib
from tests import small

CROPS = 3


def chosen(scores, labels, want):
  """(image, crop) of each slot of each class, in rounds."""
  out = {}
  for c, slots in enumerate(want):
    rows = np.flatnonzero(labels == c)
    first = sorted(rows, key=lambda i: scores[i].min())
    by_round = [[(i, int(np.argsort(scores[i])[j])) for i in first] for j in range(scores.shape[1])]
    out[c] = [pair for round_ in by_round for pair in round_][:slots]
  return out


@pytest.mark.parametrize("want", [(2, 1, 1), (7, 3, 1), (20, 9, 3), (5, 0, 2)])
def test_rounds(want):
  labels = np.array([1, 0, 0, 2, 0, 1, 0, 0, 1, 0, 0])
  scores = np.random.RandomState(0).rand(len(labels), CROPS).astype(np.float32)
  by_class = selection.by_class(labels, small.K)
  slots = distil.make_slots(small.K, slots_per_class=want)
  rows = np.asarray(by_class.rows)
  place, number = confident_crops.choose(
    jnp.asarray(scores[rows]), by_class, jnp.asarray(slots.labels), jnp.asarray(slots.rank)
  )
  found = collections.defaultdict(dict)
  for c, r, p, e in zip(slots.labels, slots.rank, rows[np.asarray(place)], number, strict=True):
    found[int(c)][int(r)] = (int(p), int(e))
  for c, pairs in chosen(scores, labels, want).items():
    mine = [found[c][r] for r in range(want[c])]
    assert mine == pairs
    assert len({*mine}) == len(mine), "a crop comes twice"
    assert all(labels[i] == c for i, _ in mine)


def test_images_are_the_crops_with_the_least_loss():
  env, res, want = small.env(), small.resources(), (4, 2, 1)
  slots = distil.make_slots(small.K, slots_per_class=want)
  start = initial_images.make_start(env, {"name": "crops", "num_crops": CROPS, "chunk_size": 4})
  images = np.asarray(jax.jit(start.draw)(jax.random.key(0), slots, res))
  labels = res["labels"]
  rows = jnp.repeat(jnp.arange(len(labels)), CROPS)
  numbers = jnp.tile(jnp.arange(CROPS), len(labels))
  all_crops = jax.jit(lambda r, i: confident_crops.cut(env, res, r, i, CROPS))(rows, numbers)
  logits = jax.jit(lambda x: features.mean_logits(env, res["teachers"], x))(all_crops)
  logits = np.asarray(logits, np.float64)
  log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
  scores = -log_p[np.arange(len(rows)), labels[np.asarray(rows)]].reshape(-1, CROPS)
  pairs = chosen(scores, labels, want)
  for c, r, image in zip(slots.labels, slots.rank, images, strict=True):
    i, e = pairs[int(c)][int(r)]
    np.testing.assert_allclose(image, all_crops[i * CROPS + e], atol=1e-6)


def test_batches_of_images_share_one_set():
  env, res = small.env(), small.resources()
  slots = distil.make_slots(small.K, slots_per_class=(5, 2, 1), order="class_major")
  start = initial_images.make_start(env, {"name": "crops", "num_crops": CROPS})
  drawn = jax.jit(start.draw)
  draw = lambda seed, part: np.asarray(drawn(jax.random.key(seed), part, res))
  whole = draw(0, slots)
  for i in range(0, 8, 4):
    part = type(slots)(*(x[i : i + 4] for x in slots))
    np.testing.assert_allclose(draw(i + 1, part), whole[i : i + 4], atol=1e-6)


def test_notes_and_too_many_slots():
  notes = initial_images.make_start(small.env(), {"name": "crops", "num_crops": 2}).notes
  assert notes(np.array([7, 3, 1]), np.array([7, 3, 1])) == ()
  (said,) = notes(np.array([7, 3, 1]), np.array([4, 5, 1]))
  assert said == "class 1: 5 slots start from crops of 3 training images, up to 2 of each"
  with pytest.raises(LtddError, match=r"class 2 has 3 slots, and 2 crops of 1 .*'num_crops': 3}"):
    notes(np.array([7, 3, 1]), np.array([1, 1, 3]))
  with pytest.raises(LtddError, match=r"'num_crops': 4}"):  # which is enough for all classes
    notes(np.array([7, 3, 1]), np.array([20, 1, 4]))
  with pytest.raises(LtddError, match="num_crops is 0"):
    initial_images.make_start(small.env(), {"name": "crops", "num_crops": 0})


def test_balanced_targets_weigh_classes_alike():
  """Mean and variance of a set with the same number of images of each class that has any."""
  counts = np.array([7, 3, 0])
  stats = small.teacher_statistics(tuple(counts.tolist()))
  layer = next(x for x in stats.layers if x.kind == "conv")
  rule = layer_statistics.Rule(balanced=True)
  target = layer_statistics._overall(rule, layer, jnp.asarray(stats.counts), {})
  each = statistics_lib.per_class(layer)
  mean = np.asarray(each.mean, np.float64)[:2]
  var = np.asarray(each.var, np.float64)[:2]
  np.testing.assert_allclose(target.mean, mean.mean(0), rtol=1e-5, atol=1e-6)
  expected = var.mean(0) + np.square(mean - mean.mean(0)).mean(0)
  np.testing.assert_allclose(target.var, expected, rtol=1e-5)
