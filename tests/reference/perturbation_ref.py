"""The perturbation study by plain loops, float64, from its definitions."""

import numpy as np


def softmax_mean(logits):
  """(e, n, k) -> (n, k)."""
  e, n, k = logits.shape
  out = np.zeros((n, k))
  for t in range(e):
    for i in range(n):
      z = [np.exp(float(v)) for v in logits[t, i]]
      for j in range(k):
        out[i, j] += z[j] / sum(z) / e
  return out


def class_mean(values, labels, c):
  rows = [values[i] for i in range(len(labels)) if labels[i] == c]
  return sum(rows) / len(rows)


def matrix(values, labels, k):
  return np.array([class_mean(values, labels, c) for c in range(k)])


def resampled(values, labels, c, weights):
  """Bootstrap class means of class c, deviations times sqrt(n / (n - 1))."""
  rows = [values[i] for i in range(len(labels)) if labels[i] == c]
  n, mean = len(rows), class_mean(values, labels, c)
  out = []
  for shares in weights:
    draw = sum(w * row for w, row in zip(shares, rows, strict=True))
    out.append(mean + np.sqrt(n / (n - 1)) * (draw - mean))
  return np.array(out)
