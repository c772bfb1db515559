import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ltdd_jax.core.types import LtddError
from ltdd_jax.data import augment, crops


@pytest.fixture
def images(key):
  return jax.random.normal(jax.random.clone(key), (4, 8, 8, 3))


def test_compose_chains_in_order_and_is_deterministic(images, key):
  specs = ({"name": "random_crop", "padding": 1}, {"name": "random_flip"})
  once = augment.compose(specs)(jax.random.clone(key), images)
  again = jax.jit(augment.compose(specs))(jax.random.clone(key), images)
  np.testing.assert_array_equal(once, again)
  crop = crops.random_crop(jax.random.fold_in(key, 0), images, padding=1)
  both = crops.random_flip(jax.random.fold_in(key, 1), crop)
  np.testing.assert_array_equal(once, both)


def test_compose_of_nothing_is_the_identity(images, key):
  assert augment.compose([])(key, images) is images


def test_compose_takes_every_registered_name(images, key):
  needed = {"random_crop": {"padding": 1}, "random_roll": {"low": -1, "high": 1}}
  needed |= {"random_translate": {"padding": 1}, "cutout": {"size": 2}}
  specs = [{"name": name, **needed.get(name, {})} for name in augment.AUGMENTS]
  assert augment.compose(specs)(key, images).shape == images.shape


@pytest.mark.parametrize(
  ("spec", "message"),
  [
    ({"name": "random_corp"}, "'random_corp' is not known. Did you mean 'random_crop'?"),
    ({"name": "random_crop", "pading": 4}, "unexpected key 'pading'. Did you mean 'padding'?"),
    (
      {"name": "random_crop"},
      "augmentation random_crop: missing key 'padding'. random_crop takes (*, padding: int",
    ),
    ({"name": "random_translate", "padding": -1}, "padding is -1; expected a whole number >= 0"),
    ({"name": "cutout", "size": 0}, "cutout: size is 0; expected a whole number >= 1"),
    ({"name": "alternating_flip", "flipped": None}, "unexpected key 'flipped'"),
    ({"padding": 4}, "augmentation None is not known."),
    ({"name": "random_flip", "beta": 1}, "random_flip takes (*, shared: bool = False"),
    ({"name": "random_crop", "padding": -4}, "padding is -4; expected a whole number >= 0"),
    ({"name": "random_resized_crop", "scale": (2, 3)}, "scale is (2, 3); expected a pair"),
    ({"name": "random_resized_crop", "scale": 0.5}, "scale is 0.5"),
    ({"name": "random_roll", "low": 2, "high": 1}, "low is 2 and high 1; expected low <= high"),
  ],
)
def test_compose_says_what_is_wrong(spec, message):
  with pytest.raises(LtddError) as error:
    augment.compose([spec])
  assert message in str(error.value)


def test_a_square_larger_than_images_is_refused(images, key):
  with pytest.raises(LtddError, match="cutout: size is 9; expected 8 or less"):
    augment.compose([{"name": "cutout", "size": 9}])(key, images)


def test_a_flip_without_passes_is_random(images, key):
  alternating = augment.compose([{"name": "alternating_flip"}])(jax.random.clone(key), images)
  random = augment.compose([{"name": "random_flip"}])(key, images)
  np.testing.assert_array_equal(alternating, random)


def test_compose_does_not_change_the_config():
  spec = {"name": "random_flip"}
  augment.compose([spec])
  assert spec == {"name": "random_flip"}


def test_resized_crop_of_full_scale_is_the_identity_on_square_images(key):
  image = jax.random.normal(jax.random.key(1), (1, 32, 32, 3))
  view = jax.jit(jax.vmap(lambda k: crops.random_resized_crop(k, image, scale=(1.0, 1.0))[0]))
  views = view(jax.random.split(key, 1000))
  np.testing.assert_array_equal(views, jnp.broadcast_to(image, views.shape))


def test_the_scale_of_a_resized_crop_may_be_traced(images, key):
  crop = jax.jit(lambda k, low: crops.random_resized_crop(k, images, scale=(low, 1.0)))
  assert crop(jax.random.clone(key), 0.1).shape == images.shape
  assert crop(key, 0.5).shape == images.shape
  assert crop._cache_size() == 1


@pytest.mark.parametrize(
  ("h", "w", "box"),
  [(8, 8, (0, 0, 8, 8)), (30, 10, (8, 0, 13, 10)), (10, 30, (0, 8, 10, 13))],
)
def test_fallback_box_is_central_with_the_aspect_clipped(h, w, box):
  assert crops.central_box(h, w, (3 / 4, 4 / 3)) == box


def test_views_can_be_made_image_by_image_from_their_own_keys(images, key):
  keys = jax.random.split(jax.random.clone(key), 4)
  one = lambda k, image: crops.crop_resize(image, crops.rrc_box(k, 8, 8))
  batch = crops.random_resized_crop(key, images)
  np.testing.assert_allclose(jax.vmap(one)(keys, images), batch, atol=1e-6)


def test_views_work_under_vmap_over_seeds(images, key):
  views = jax.vmap(augment.compose([{"name": "random_flip"}]), in_axes=(0, None))(
    jax.random.split(key, 3), images
  )
  assert views.shape == (3, *images.shape)
