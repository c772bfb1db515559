"""Multi-formation (Kim et al., ICML 2022) with loops."""

import math

import numpy as np


def decode(images, factor, fill=0.5):
  """First parts of all images, second parts, ...: bilinear, pixel centres at halves."""
  n, h, w, c = images.shape
  u, v = math.ceil(h / factor), math.ceil(w / factor)
  padded = np.full((n, u * factor, v * factor, c), fill)
  padded[:, :h, :w] = images
  out = []
  for a, b in np.ndindex(factor, factor):
    for image in padded[:, a * u : (a + 1) * u, b * v : (b + 1) * v]:
      big = np.zeros((h, w, c))
      for i, j in np.ndindex(h, w):
        y, x = (i + 0.5) * u / h - 0.5, (j + 0.5) * v / w - 0.5
        for p in (math.floor(y), math.floor(y) + 1):
          for q in (math.floor(x), math.floor(x) + 1):
            share = (1 - abs(y - p)) * (1 - abs(x - q))
            big[i, j] += share * image[min(max(p, 0), u - 1), min(max(q, 0), v - 1)]
      out.append(big)
  return np.stack(out)
