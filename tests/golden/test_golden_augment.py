"""Augmentations against float64 NumPy and Pillow.

Random views are checked without a second random stream: the oracle lists what a view may be, or
takes the drawn box, and the view must be one of them. Tolerance 2e-6: two passes of float32
interpolation of numbers near 1.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from ltdd_jax.data import augment, crops
from ltdd_jax.data import views as views_lib
from tests.reference import augment_ref as ref

B, H, W, C = 6, 8, 10, 3
ATOL = 2e-6


@pytest.fixture
def images():
  return np.random.RandomState(0).uniform(0, 1, (B, H, W, C)).astype(np.float32)


@pytest.fixture
def batch(images):
  return jnp.asarray(images)


BOXES = [(0, 0, 8, 10), (2, 3, 4, 5), (0, 9, 8, 1), (7, 0, 1, 10), (1, 2, 7, 3), (3, 3, 1, 1)]


@pytest.mark.parametrize("box", BOXES)
def test_crop_resize_is_the_bilinear_resize_of_the_box_alone(images, batch, box):
  view = crops.crop_resize(batch[0], tuple(jnp.int32(v) for v in box))
  np.testing.assert_allclose(view, ref.resized_crop(images[0], box), atol=ATOL)


@pytest.mark.parametrize("box", BOXES)
def test_crop_resize_equals_pillow(images, batch, box):
  top, left, height, width = box
  view = crops.crop_resize(batch[0], tuple(jnp.int32(v) for v in box))
  for c in range(C):
    cut = Image.fromarray(images[0, top : top + height, left : left + width, c])
    expected = np.asarray(cut.resize((W, H), Image.Resampling.BILINEAR))
    np.testing.assert_allclose(view[..., c], expected, atol=ATOL)


def test_random_resized_crop_of_each_image_is_its_own_box(images, batch, key):
  crop = jax.jit(lambda k: crops.random_resized_crop(k, batch, scale=(0.2, 0.9)))
  views = crop(jax.random.clone(key))
  draw = jax.jit(jax.vmap(lambda k: crops.rrc_box(k, H, W, scale=(0.2, 0.9))))
  boxes = np.stack(draw(jax.random.split(key, B)), 1)
  assert len(np.unique(boxes, axis=0)) == B
  for view, image, box in zip(views, images, boxes, strict=True):
    np.testing.assert_allclose(view, ref.resized_crop(image, box), atol=ATOL)


def test_shared_random_resized_crop_uses_one_box(images, batch, key):
  crop = jax.jit(lambda k: crops.random_resized_crop(k, batch, shared=True))
  views = crop(jax.random.clone(key))
  box = jax.jit(lambda k: crops.rrc_box(k, H, W))(key)
  for view, image in zip(views, images, strict=True):
    np.testing.assert_allclose(view, ref.resized_crop(image, box), atol=ATOL)


@pytest.mark.parametrize(("h", "w"), [(32, 32), (8, 10), (4, 40)])
def test_size_of_the_box_is_the_first_try_that_fits(h, w):
  rng = np.random.RandomState(1)
  ratio = (3 / 4, 4 / 3)
  first_fit = jax.jit(crops.first_fit, static_argnums=(2, 3))
  for _ in range(200):
    areas = (h * w * rng.uniform(0.05, 1.6, 10)).astype(np.float32)
    aspects = np.exp(rng.uniform(np.log(0.3), np.log(3), 10)).astype(np.float32)
    height, width, fits = first_fit(areas, aspects, h, w)
    expected = ref.rrc_size(areas.astype(np.float64), aspects.astype(np.float64), h, w, ratio)
    if not fits:
      _, _, height, width = crops.central_box(h, w, ratio)
    assert (int(height), int(width), bool(fits)) == expected


def test_boxes_have_torchvisions_distribution():
  """Means of 4,000 boxes against the loop with NumPy's draws; 4 standard errors."""
  n, h, w, scale, ratio = 4000, 24, 32, (0.08, 1.0), (3 / 4, 4 / 3)
  keys = jax.random.split(jax.random.key(3), n)
  boxes = np.stack(jax.jit(jax.vmap(lambda k: crops.rrc_box(k, h, w)))(keys), 1)
  rng = np.random.RandomState(4)
  expected = []
  for _ in range(n):
    areas = h * w * rng.uniform(*scale, 10)
    aspects = np.exp(rng.uniform(*np.log(ratio), 10))
    height, width, fits = ref.rrc_size(areas, aspects, h, w, ratio)
    top = rng.randint(0, h - height + 1) if fits else (h - height) // 2
    left = rng.randint(0, w - width + 1) if fits else (w - width) // 2
    expected.append((top, left, height, width))
  error = np.sqrt((boxes.var(0) + np.var(expected, 0)) / n)
  assert (np.abs(boxes.mean(0) - np.mean(expected, 0)) < 4 * error).all()
  assert (boxes[:, 0] + boxes[:, 2] <= h).all()
  assert (boxes[:, 1] + boxes[:, 3] <= w).all()


@pytest.mark.parametrize("shared", [False, True])
def test_random_crop_is_one_of_the_windows(images, batch, shared, key):
  views = np.asarray(crops.random_crop(key, batch, padding=2, shared=shared))
  found = []
  for view, image in zip(views, images, strict=True):
    matches = [at for at, w in ref.windows(image, 2).items() if np.array_equal(view, w)]
    assert len(matches) == 1
    found += matches
  assert (len(set(found)) == 1) == shared


def test_every_window_is_equally_likely(key):
  image = jnp.arange(1, 17, dtype=jnp.float32).reshape(1, 4, 4, 1)
  one = jax.jit(jax.vmap(lambda k: crops.random_crop(k, image, padding=1)[0]))
  views = np.asarray(one(jax.random.split(key, 2700)))
  counts = [
    (views == w).all((1, 2, 3)).sum() for w in ref.windows(np.asarray(image[0]), 1).values()
  ]
  assert sum(counts) == 2700
  assert np.square(np.array(counts) - 300).sum() / 300 < 26  # chi-square, 8 degrees, p = 0.001


@pytest.mark.parametrize("shared", [False, True])
def test_random_flip_mirrors_or_not(images, batch, shared, key):
  views = np.asarray(crops.random_flip(key, batch, shared=shared))
  flipped = [np.array_equal(v, x[:, ::-1]) for v, x in zip(views, images, strict=True)]
  kept = [np.array_equal(v, x) for v, x in zip(views, images, strict=True)]
  assert all(a != b for a, b in zip(flipped, kept, strict=True))
  assert (len(set(flipped)) == 1) == shared


@pytest.mark.parametrize("shared", [False, True])
def test_random_roll_is_a_shift_in_the_range(images, batch, shared, key):
  views = np.asarray(crops.random_roll(key, batch, low=-1, high=2, shared=shared))
  found = []
  for view, image in zip(views, images, strict=True):
    shifts = [(dy, dx) for dy in range(-1, 3) for dx in range(-1, 3)]
    matches = [s for s in shifts if np.array_equal(view, ref.rolled(image, *s))]
    assert len(matches) == 1
    found += matches
  assert (len(set(found)) == 1) == shared


def test_roll_reaches_both_ends_of_its_range():
  image = jnp.arange(49, dtype=jnp.float32).reshape(1, 7, 7, 1)
  roll = jax.jit(jax.vmap(lambda k: crops.random_roll(k, image, low=-1, high=1)[0, 0, 0, 0]))
  corners = np.unique(roll(jax.random.split(jax.random.key(1), 200)))
  expected = [
    ref.rolled(np.asarray(image[0]), dy, dx)[0, 0, 0] for dy in (-1, 0, 1) for dx in (-1, 0, 1)
  ]
  np.testing.assert_array_equal(corners, np.unique(expected))


def test_cutmix_mask_for_every_centre_and_many_lambdas():
  box_mask = jax.jit(views_lib.box_mask, static_argnums=(3, 4))
  for lam in (0.0, 0.03, 0.33, 0.5, 0.81, 0.99, 1.0):
    for row in (0, 1, 4, 7):
      for column in (0, 3, 9):
        mask, weight = box_mask(jnp.float32(lam), row, column, H, W)
        expected = ref.cutmix_mask(float(np.float32(lam)), row, column, H, W)
        np.testing.assert_array_equal(mask, expected)
        assert weight == pytest.approx(1 - expected.mean(), abs=1e-6)


@pytest.fixture
def mixed(batch, key):
  """Mixes each image with the next one: (views, shares of their own)."""
  keys = jax.random.split(key, B)
  mix = lambda fn, alpha: jax.vmap(lambda *x: fn(*x, alpha))(keys, batch, jnp.roll(batch, -1, 0))
  return lambda fn, alpha: [np.asarray(x) for x in mix(fn, alpha)]


@pytest.mark.parametrize("alpha", [1.0, 0.5])
def test_cutmix_shows_the_partner_in_a_box_and_states_what_is_left(images, mixed, alpha):
  views, weight = mixed(views_lib.cutmix, alpha)
  for i in range(B):
    own = (views[i] == images[i]).all(-1)
    other = (views[i] == images[(i + 1) % B]).all(-1)
    assert (own ^ other).all()
    assert weight[i] == pytest.approx(own.mean(), abs=1e-6)
    rows, columns = np.flatnonzero(other.any(1)), np.flatnonzero(other.any(0))
    assert other.sum() == len(rows) * len(columns)
  assert len(set(weight.tolist())) > 1


def test_mixup_is_the_stated_mixture(images, mixed):
  views, weight = mixed(views_lib.mixup, 0.8)
  share = weight.astype(np.float64)[:, None, None, None]
  other = np.roll(images, -1, 0)
  np.testing.assert_allclose(views, share * images + (1 - share) * other, atol=ATOL)
  assert len(set(weight.tolist())) == B


@pytest.mark.parametrize("alpha", [0.8, 1.0])
def test_shares_have_the_stated_moments(alpha):
  """Beta(a, a) has mean 1/2 and variance 1 / (4 (2a + 1)); 4 standard errors of 3,000 draws."""
  image = jnp.zeros((1, 1, 1))
  draw = jax.jit(jax.vmap(lambda k: views_lib.mixup(k, image, image, alpha)[1]))
  draws = np.asarray(draw(jax.random.split(jax.random.key(5), 3000)))
  assert abs(draws.mean() - 0.5) < 4 * draws.std() / np.sqrt(3000)
  assert draws.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.08)


@pytest.mark.parametrize("alpha", [0.8, 1.0])
def test_boxes_of_cutmix_have_the_stated_mean_area(alpha):
  """Area of unclipped boxes is 1 - lambda; clipped ones are compared with the reference's."""
  image = jnp.zeros((H, W, 1))
  draw = jax.jit(jax.vmap(lambda k: views_lib.cutmix(k, image, image, alpha)[1]))
  weights = np.asarray(draw(jax.random.split(jax.random.key(6), 3000)), np.float64)
  rng = np.random.RandomState(7)
  draw = lambda: (rng.beta(alpha, alpha), rng.randint(0, H), rng.randint(0, W))
  expected = [1 - ref.cutmix_mask(*draw(), H, W).mean() for _ in range(3000)]
  error = np.sqrt((weights.var() + np.var(expected)) / 3000)
  assert abs(weights.mean() - np.mean(expected)) < 4 * error


def test_normalize_and_back():
  pixels = np.arange(256, dtype=np.uint8).repeat(3).reshape(1, 16, 16, 3)
  mean, std = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
  x = augment.normalize(pixels, mean, std)
  np.testing.assert_allclose(x, (pixels / 255 - np.array(mean)) / np.array(std), atol=ATOL)
  np.testing.assert_array_equal(augment.denormalize(x, mean, std), pixels)


def test_denormalize_truncates_and_clips():
  levels = np.array([-3.0, 0.4, 0.9, 128.99, 254.6, 300.0], np.float32).reshape(1, 1, 6, 1)
  x = jnp.asarray((levels / 255 - 0.5) / 0.25)
  assert augment.denormalize(x, (0.5,), (0.25,)).ravel().tolist() == [0, 0, 0, 128, 254, 255]


def test_clip_to_pixels(images):
  mean, std = np.array([0.4, 0.5, 0.6]), np.array([0.2, 0.25, 0.3])
  x = 9 * images - 4
  expected = np.clip(x, -mean / std, (1 - mean) / std)
  np.testing.assert_allclose(
    augment.clip_to_pixels(jnp.asarray(x), tuple(mean), tuple(std)), expected, atol=ATOL
  )


LINEAR = {
  "random_crop": lambda k, x, s: crops.random_crop(k, x, padding=2, shared=s),
  "random_flip": lambda k, x, s: crops.random_flip(k, x, shared=s),
  "random_resized_crop": lambda k, x, s: crops.random_resized_crop(k, x, shared=s),
  "random_roll": lambda k, x, s: crops.random_roll(k, x, low=-2, high=2, shared=s),
  "cutmix": lambda k, x, s: views_lib.cutmix(k, x[0], x[1], 1.0)[0],
  "mixup": lambda k, x, s: views_lib.mixup(k, x[0], x[1], 0.8)[0],
}


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("name", LINEAR)
def test_gradients_are_the_transpose(images, name, shared, key):
  """All of these are linear in the images: <v, A x> = <A' v, x>."""
  view = lambda x: LINEAR[name](jax.random.clone(key), x, shared)
  out, pullback = jax.vjp(jax.jit(view), jnp.asarray(images))
  v = np.random.RandomState(2).randn(*out.shape).astype(np.float32)
  assert np.vdot(v, out) == pytest.approx(np.vdot(pullback(v)[0], images), rel=1e-4, abs=1e-3)
