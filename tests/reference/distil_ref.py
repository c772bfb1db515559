"""Terms of methods' objectives in float64 NumPy with loops, written from their formulas."""

import math

import numpy as np

from tests.reference import statistics_ref


def norm(x):
  return math.sqrt(sum(float(v) ** 2 for v in np.ravel(x)))


def batch_statistics(maps, kind, q):
  """Mean and variance of each channel, and of each tile for a convolution, over all images."""
  found = []
  for cut in (statistics_ref.channels, lambda x: statistics_ref.tiles(x, q)):
    parts = [cut(x) for x in maps]
    values = [np.concatenate([np.ravel(p[i]) for p in parts]) for i in range(len(parts[0]))]
    found += [np.array([v.mean() for v in values]), np.array([v.var() for v in values])]
    if kind != "conv":
      break
  return found


def class_statistics(maps, labels, kind, q, within_image):
  """The same of each class; `within_image`, with the mean of the variances within an image."""
  found = {}
  for c in sorted(set(labels)):
    mine = [x for x, y in zip(maps, labels, strict=True) if y == c]
    found[c] = batch_statistics(mine, kind, q)
    if within_image:
      each = [batch_statistics([x], kind, q) for x in mine]
      for i in range(1, len(found[c]), 2):
        found[c][i] = sum(e[i] for e in each) / len(each)
  return found


def running_mean(history, momentum, unbiased):
  """e <- m e + (1 - m) s from zero, over all of `history`; divided by 1 - m^n if unbiased."""
  e = 0 * history[0]
  for s in history:
    e = momentum * e + (1 - momentum) * s
  return e / (1 - momentum ** len(history)) if unbiased else e


def distance(targets, stats):
  return sum(norm(t - s) for t, s in zip(targets, stats, strict=True))


def densification(images, labels, temperature):
  """sum_c sum_j q_j (log q_j - log p_j) over the eigenvalues of each class's Gram matrix."""
  total = 0.0
  for c in sorted(set(labels)):
    z = [np.ravel(x).astype(np.float64) for x, y in zip(images, labels, strict=True) if y == c]
    values = np.linalg.eigvalsh([[float(a @ b) for b in z] for a in z])
    log_p, log_q = log_softmax(values), log_softmax(values / temperature)
    total += sum(math.exp(q) * (q - p) for p, q in zip(log_p, log_q, strict=True))
  return total


def log_softmax(x):
  top = max(x)
  return [v - top - math.log(sum(math.exp(u - top) for u in x)) for v in x]


def flatness(logits, slow, temperature):
  """Kullback-Leibler divergence of softmaxes, divided by the number of their entries."""
  total = 0.0
  for row, slow_row in zip(np.float64(logits), np.float64(slow), strict=True):
    p, q = log_softmax(row / temperature), log_softmax(slow_row / temperature)
    total += sum(math.exp(a) * (a - b) for a, b in zip(p, q, strict=True))
  return total / np.size(logits)


def crop_scale(t, length, curriculum, smallest=0.08):
  if t >= length:
    return smallest
  share = {
    "cosine": 0.5 * (1 + math.cos(math.pi * t / length)),
    "linear": 1 - t / length,
    "step": 1.0,
  }[curriculum]
  return smallest + (1 - smallest) * share
