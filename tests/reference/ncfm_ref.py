"""NCFM's discrepancy (Wang et al., CVPR 2025) in float64 with complex numbers."""

import numpy as np

from tests.reference import dm_ref, dsa_ref, multi_formation_ref


def features(images, labels, ops, numbers, params):
  """Of norm 1, of images in the views of their classes: one operation after the other."""
  seen = []
  for x, y in zip(np.float64(images), labels, strict=True):
    for op, own in zip(ops, numbers[y], strict=True):
      x = dsa_ref.apply(op, x, own)
    seen.append(x)
  found = dm_ref.features(np.stack(seen), params, "instance")
  return found / np.linalg.norm(found, axis=1, keepdims=True)


def characteristic(features, t):
  """E exp(i <t, g>) for each t."""
  return np.exp(1j * np.float64(features) @ np.float64(t).T).mean(0)


def discrepancy(p, q, amplitude, phase):
  """300 E sqrt(a amplitudes + b phases) of one class."""
  amplitudes = (abs(p) - abs(q)) ** 2
  phases = 2 * (abs(p) * abs(q) - p.real * q.real - p.imag * q.imag)
  return 300 * np.sqrt(amplitude * amplitudes + phase * phases).mean()


def loss(pixels, labels, real, ops, numbers, params, t, weights, mean, std):
  """Sum over the classes with images; `real` has the characteristic function of each class."""
  seen, own = (multi_formation_ref.decode(pixels, 2) - mean) / std, list(labels) * 4
  found = features(seen, own, ops, numbers, params)
  of = lambda c: characteristic(found[[i for i, y in enumerate(own) if y == c]], t)
  return sum(discrepancy(real[c], of(c), *weights) for c in sorted(set(own)))
