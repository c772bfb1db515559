"""Records of views: what they say is what the views are."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ltdd_jax.core.types import LtddError
from ltdd_jax.data import augment, crops, view_records
from ltdd_jax.data import views as views_lib
from tests import small

N = 5
IMAGES, LABELS = small.images(N), np.array([0, 1, 2, 0, 1], np.int32)
SPEC = small.SPEC


def replay(records, mix):
  """Views (n, h, w, c) of one label epoch, from its records; by plain loops."""
  own = []
  for image, crop, flip in zip(IMAGES, records.crop, records.flip, strict=True):
    pixels = crops.crop_resize(jnp.asarray(image, jnp.float32) / 255, tuple(map(jnp.asarray, crop)))
    own.append(np.asarray(pixels)[:, ::-1] if flip else np.asarray(pixels))
  out = []
  for i, image in enumerate(own):
    other, share = own[records.partner[i]], records.weight[i]
    image = image.copy()
    if mix == "cutmix":
      top, left, bottom, right = records.box[i]
      image[top:bottom, left:right] = other[top:bottom, left:right]
      assert share == pytest.approx(1 - (bottom - top) * (right - left) / 64)
    elif mix == "mixup":
      image = share * image + (1 - share) * other
    out.append(image)
  return augment.normalize_pixels(jnp.asarray(np.stack(out)), SPEC.mean, SPEC.std)


@pytest.mark.parametrize(
  "views",
  [
    {},
    {"mix": "mixup", "mix_alpha": 0.8},
    {"mix": None, "crop_scale": (0.5, 1.0)},
    {"mix_prob": 0.5, "flip": False, "crop_scale": None},
  ],
  ids=str,
)
def test_records_give_the_same_views(key, views):
  indices = np.arange(N, dtype=np.int32)
  records_of = jax.jit(view_records.record_fn(SPEC.image_shape, N, **views))
  views_of = jax.jit(views_lib.view_fn(SPEC, **views))
  mixed = 0
  for epoch in (0, 3):
    epochs = np.full(N, epoch, np.int32)
    want = views_of(key, IMAGES, LABELS, indices, epochs)
    records = jax.tree.map(np.asarray, records_of(key, indices, epochs))
    np.testing.assert_array_equal(records.partner, want.partners)
    np.testing.assert_array_equal(records.weight, want.weight)
    got = replay(records, views.get("mix", "cutmix"))
    # Rounding: the compiler may fuse crop, mix and normalisation.
    np.testing.assert_allclose(got, want.images, atol=2e-5)
    mixed += int((records.partner != indices).sum())
  assert (mixed > 0) == (views.get("mix", "cutmix") is not None)


@pytest.mark.parametrize(
  ("views", "message"),
  [
    ({"rand_augment": True}, "views have rand_augment=True"),
    ({"padding": 4}, "padding=4, which .*; expected padding=0 in config.label.views"),
    ({"dsa": "flip"}, "dsa='flip'"),
    ({"parts": 2}, "parts=2"),
  ],
)
def test_views_that_records_do_not_describe(views, message):
  with pytest.raises(LtddError, match=message):
    view_records.record_fn(SPEC.image_shape, N, **views)
  off = {"rand_augment": False, "padding": 0, "dsa": None, "parts": 1, "dsa_combined": False}
  assert view_records.record_fn(SPEC.image_shape, N, **off)


@pytest.mark.parametrize("side", [8, 7])  # 1/7 is rounded: a box of the whole image moves bits
@pytest.mark.parametrize(
  "views",
  [
    {},
    {"mix": "mixup", "mix_alpha": 0.8},
    {"mix": None},
    {"mix_prob": 0.5, "flip": False, "crop_scale": None},
  ],
  ids=str,
)
def test_replayed_views_have_the_bits_of_those_of_the_key(key, views, side):
  spec = SPEC._replace(image_shape=(side, side, 1), mean=(0.43,), std=(0.27,))
  images, n = IMAGES[:, :side, :side], np.arange(N, dtype=np.int32)
  records_of = jax.jit(view_records.record_fn(spec.image_shape, N, **views))
  records = [records_of(key, n, np.full(N, epoch, np.int32)) for epoch in range(3)]
  records = jax.tree.map(lambda *x: np.stack(x), *records)
  kwargs = view_records.facts_of(records, views.get("mix", "cutmix"), spec.image_shape)
  batch = np.array([4, 0, 0, 2], np.int32), np.array([2, 1, 0, 2], np.int32)
  want = jax.jit(view_records.view_fn(spec, key, views))(key, images, LABELS, *batch)
  got = jax.jit(view_records.view_fn(spec, records, kwargs))(records, images, LABELS, *batch)
  if kwargs["mix"] == "mixup":  # a weighted sum: the tests' compiler may fuse it in another way
    np.testing.assert_allclose(got.images, want.images, atol=1e-6)
    got, want = got._replace(images=0), want._replace(images=0)
  jax.tree.map(np.testing.assert_array_equal, got, want)


def test_records_in_artefacts():
  records = view_records.Records(*range(5))
  arrays = view_records.to_arrays(records)
  assert sorted(arrays) == ["view_box", "view_crop", "view_flip", "view_partner", "view_weight"]
  assert view_records.from_arrays(arrays) == records
