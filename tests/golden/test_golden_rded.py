"""RDED against loops in float64. Random draws (order of images, boxes) are read from the pool."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from ltdd_jax import distil
from ltdd_jax.data import crops
from ltdd_jax.distil import features, patches, selection
from tests import small
from tests.reference import rded_ref as ref

BOXES = [(0, 0, 8, 8), (1, 1, 5, 7), (3, 0, 4, 4), (2, 2, 3, 3), (7, 7, 1, 1)]


@pytest.mark.parametrize("side", [8, 4, 2, 1])
def test_crop_shrink(side):
  image = np.random.RandomState(0).rand(8, 8, 3).astype(np.float32)
  shrink = jax.jit(lambda box: crops.crop_shrink(jnp.asarray(image), box, (side, side)))
  for box in BOXES:
    got = shrink(tuple(jnp.int32(v) for v in box))
    np.testing.assert_allclose(got, ref.shrunk_crop(image, box, side), atol=1e-5)


def test_crop_shrink_equals_pillow_and_crop_resize():
  image = np.random.RandomState(1).rand(8, 8, 1).astype(np.float32)
  views = jax.jit(lambda x, box: (
    crops.crop_shrink(x, box, (4, 4)), crops.crop_shrink(x, box, (8, 8)),
    crops.crop_resize(x, box),
  ))  # fmt: skip
  for box in BOXES:
    top, left, height, width = box
    traced = tuple(jnp.int32(v) for v in box)
    cut = Image.fromarray(image[top : top + height, left : left + width, 0])
    theirs = np.asarray(cut.resize((4, 4), Image.Resampling.BILINEAR))
    half, same, resized = views(jnp.asarray(image), traced)
    np.testing.assert_allclose(half[..., 0], theirs, atol=1e-5)
    np.testing.assert_allclose(same, resized, atol=1e-5)


WANT = np.array([2, 1, 3])  # images: 7, 3 and 1
SEED = 3
FACTOR, CROPS, POOL = 2, 3, 4


def logits(canvases):
  x = jnp.asarray(np.stack(canvases), jnp.float32)
  return np.asarray(features.mean_logits(small.env(), (small.teacher().variables,), x))


def best_patches():
  """Patches of each class in the order of use, from the draws that the key stands for."""
  options = patches.PatchOptions(FACTOR, CROPS, POOL, 7)
  res, env, side = small.resources(), small.env(), small.SIDE // FACTOR
  order_key, crop_key = jax.random.split(jax.random.key(SEED))
  rows_of_all = selection.by_class(res["labels"], small.K, order_key).rows
  draw = jax.jit(lambda c, e: patches.draw_box(crop_key, options, env, c, e))
  x = (res["images"] / 255 - np.array(small.SPEC.mean)) / np.array(small.SPEC.std)
  out = []
  for c in range(small.K):
    rows = [int(r) for r in np.asarray(rows_of_all) if res["labels"][r] == c]
    image_of = [rows[e // CROPS % len(rows)] for e in range(CROPS * POOL)]
    cut = [ref.shrunk_crop(x[r], draw(c, e), side) for e, r in enumerate(image_of)]
    z = logits([ref.padded(p, small.SIDE) for p in cut])
    scores = [ref.cross_entropy(row, c) for row in z]
    out.append([cut[e] for e in ref.best_first(scores, image_of)])
  return out


def test_rded():
  """Classes with more images than the pool, and with fewer images than patches (1 for 12)."""
  kwargs = {"factor": FACTOR, "num_crops": CROPS, "pool": POOL}
  slots = small.slots(*WANT)
  method = distil.make_method(small.env(), "rded", **kwargs, chunk_size=7)
  synth = jax.jit(method.init)(jax.random.key(SEED), slots, small.resources())
  best = best_patches()
  for image, c, r in zip(synth.images, slots.labels, slots.rank, strict=True):
    expected = ref.mosaic(best[c], r, WANT[c], FACTOR)
    np.testing.assert_allclose(image, expected, atol=2e-5)
