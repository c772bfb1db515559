"""IDM (Zhao et al., CVPR 2023) in float64 with loops, on a ConvNet with instance norm."""

import numpy as np

from tests.reference import dm_ref, dsa_ref


def enlarged(part, factor):
  """Bilinear with half-pixel centres, the edge repeated."""
  u, v, c = part.shape
  out = np.zeros((u * factor, v * factor, c))
  for i, j in np.ndindex(*out.shape[:2]):
    y, x = (np.clip((p + 0.5) / factor - 0.5, 0, n - 1) for p, n in ((i, u), (j, v)))
    for a, b in np.ndindex(u, v):
      out[i, j] += max(0, 1 - abs(y - a)) * max(0, 1 - abs(x - b)) * part[a, b]
  return out


def decode(images, factor):
  """First the upper left parts of all images, then those to the right of them, row by row."""
  n, h, w, _ = images.shape
  u, v = h // factor, w // factor
  return np.stack([
    enlarged(np.float64(images[i, a * u : (a + 1) * u, b * v : (b + 1) * v]), factor)
    for a, b in np.ndindex(factor, factor) for i in range(n)
  ])  # fmt: skip


def logits(features, params):
  p = params["classifier"]
  return features @ np.float64(p["kernel"]) + np.float64(p["bias"])


def cross_entropy(rows, labels):
  shifted = rows - rows.max(1, keepdims=True)
  return np.log(np.exp(shifted).sum(1)) - shifted[np.arange(len(labels)), labels]


def terms(images, labels, real_means, views, params, factor):
  """Distance and cross-entropy, each the sum over the classes with images."""
  seen, own = decode(images, factor), list(labels) * factor**2
  if views is not None:
    pairs = zip(seen, own, strict=True)
    seen = np.stack([dsa_ref.apply(views[y][0], x, views[y][1]) for x, y in pairs])
  features = dm_ref.features(seen, params, "instance")
  ce = cross_entropy(logits(features, params), own)
  distance = total = 0.0
  for c in sorted(set(own)):
    mine = np.array([i for i, y in enumerate(own) if y == c])
    gap = features[mine].mean(0) - real_means[c]
    distance, total = distance + gap @ gap, total + ce[mine].mean()
  return distance, total
