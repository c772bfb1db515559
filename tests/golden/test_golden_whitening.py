"""ZCA whitening against float64 NumPy, and as images pass through a run with it."""

import jax
import numpy as np
import pytest

from ltdd_jax.data import augment, whitening
from tests.reference import whitening_ref as ref

EPS = 0.1


def images(channels, n=40):
  """Of correlated pixels, 3 x 4."""
  rng = np.random.RandomState(0)
  mixed = rng.normal(size=(n, 12 * channels)) @ rng.normal(size=(12 * channels,) * 2)
  levels = 128 + 30 * mixed / mixed.std()
  return levels.clip(0, 255).astype(np.uint8).reshape(n, 3, 4, channels)


def made(x, eps=EPS):
  arrays = whitening.fit(x, eps)
  return whitening.Whitening((0.5,) * x.shape[-1], lambda: arrays)


@pytest.mark.parametrize("chunk", [1000, 7])
@pytest.mark.parametrize("channels", [1, 3])
def test_fit_and_whiten(channels, chunk, monkeypatch):
  monkeypatch.setattr(whitening, "_CHUNK", chunk)
  x = images(channels)
  rows = x.reshape(len(x), -1) / 255
  mean, matrix, inverse = ref.zca(rows, EPS)
  std = made(x)
  for found, want in zip(std.arrays(), (mean.reshape(x.shape[1:]), matrix, inverse), strict=True):
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, want, atol=1e-6)
  got = augment.normalize(x, (0.4,) * channels, std)
  np.testing.assert_allclose(got.reshape(len(x), -1), (rows - mean) @ matrix, atol=1e-5)


@pytest.mark.parametrize("eps", [EPS, 1e-8])
def test_covariance_of_whitened_images(eps):
  """Eigenvalues s become s / (s + eps): as good as 1 for a small eps."""
  x = images(1, 200)
  s = np.linalg.eigvalsh(np.cov(x.reshape(len(x), -1).T / 255))
  white = np.asarray(made(x, eps).whiten(augment.to_pixels(x))).reshape(len(x), -1)
  covariance = np.cov(white.T.astype(np.float64))
  np.testing.assert_allclose(np.linalg.eigvalsh(covariance), s / (s + eps), rtol=1e-3)
  if eps < 1e-3:
    np.testing.assert_allclose(covariance, np.eye(12), atol=1e-2)


@pytest.mark.parametrize("channels", [1, 3])
def test_inverse_gives_the_images_back(channels):
  x, mean = images(channels), (0.4,) * channels
  std = made(x)
  back = jax.jit(lambda x: augment.denormalize(augment.normalize(x, mean, std), mean, std))
  np.testing.assert_array_equal(back(x), x)
  pixels = augment.denormalize_pixels(augment.normalize(x[0], mean, std), mean, std)
  np.testing.assert_allclose(pixels, x[0] / 255, atol=1e-5)


def test_clamping_is_of_pixels():
  x = images(1)
  std = made(x)
  inside = augment.normalize(x, (0.4,), std)
  np.testing.assert_allclose(augment.clip_to_pixels(inside, (0.4,), std), inside, atol=1e-5)
  got = std.unwhiten(augment.clip_to_pixels(10 * inside, (0.4,), std))
  np.testing.assert_allclose(got, np.clip(std.unwhiten(10 * inside), 0, 1), atol=1e-5)


def test_one_image_has_a_covariance_of_0():
  arrays = whitening.fit(images(1, 1), EPS)
  np.testing.assert_allclose(arrays.matrix, np.eye(12) * EPS**-0.5, atol=1e-6)
