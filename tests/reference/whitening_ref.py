"""ZCA whitening in float64 (kornia's `ZCAWhitening`, as MTT uses it)."""

import numpy as np


def zca(pixels, eps):
  """Mean, T and its inverse of rows (n, d): unbiased covariance, eps added to eigenvalues."""
  mean = pixels.mean(0)
  sigma = np.zeros((pixels.shape[1],) * 2)
  for x in pixels:
    sigma += np.outer(x - mean, x - mean) / (len(pixels) - 1)
  u, s, _ = np.linalg.svd(sigma)
  return mean, u @ np.diag((s + eps) ** -0.5) @ u.T, u @ np.diag((s + eps) ** 0.5) @ u.T
