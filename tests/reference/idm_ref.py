"""IDM (Zhao et al., CVPR 2023) in float64 with loops, on a ConvNet with instance norm."""

import numpy as np

from tests.reference import dm_ref, dsa_ref, multi_formation_ref


def logits(features, params):
  p = params["classifier"]
  return features @ np.float64(p["kernel"]) + np.float64(p["bias"])


def cross_entropy(rows, labels):
  shifted = rows - rows.max(1, keepdims=True)
  return np.log(np.exp(shifted).sum(1)) - shifted[np.arange(len(labels)), labels]


def terms(images, labels, real_means, views, params, factor):
  """Distance and cross-entropy, each the sum over the classes with images."""
  seen, own = multi_formation_ref.decode(images, factor), list(labels) * factor**2
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
