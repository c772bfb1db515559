"""ADSA in float64 NumPy, with loops, from the formulas in the docstring of `ltdd_jax.adsa`."""

import math

import numpy as np


def log_prior(counts):
  """log pi_c = log(n_c / sum n)."""
  return [math.log(n / sum(counts)) for n in counts]


def align(logits, counts, tau):
  """f(x) - tau log pi, row by row."""
  lp = log_prior(counts)
  return np.array([[z - tau * lp[c] for c, z in enumerate(row)] for row in logits.tolist()])


def probability(row, label):
  """softmax(row)_label."""
  top = max(row)
  return math.exp(row[label] - top) / sum(math.exp(z - top) for z in row)


def confidence(logits, labels, counts, tau):
  """q_c(tau), NaN for classes without an image."""
  sums, numbers = [0.0] * len(counts), [0] * len(counts)
  for row, label in zip(align(logits, counts, tau).tolist(), labels.tolist(), strict=True):
    sums[label] += probability(row, label)
    numbers[label] += 1
  return np.array([s / n if n else math.nan for s, n in zip(sums, numbers, strict=True)])


def objective(logits, labels, counts, tau):
  """Population standard deviation over the classes that have an image."""
  q = [x for x in confidence(logits, labels, counts, tau) if not math.isnan(x)]
  mean = sum(q) / len(q)
  return math.sqrt(sum((x - mean) ** 2 for x in q) / len(q))


def minimise(logits, labels, counts, lo, hi, points=61, criterion="confidence"):
  """A grid, then golden section between the neighbours of its best point: (tau, objective)."""
  value = lambda tau: CRITERIA[criterion](logits, labels, counts, tau)
  grid = np.linspace(lo, hi, points)
  best = int(np.argmin([value(t) for t in grid]))
  a, b = grid[max(best - 1, 0)], grid[min(best + 1, points - 1)]
  ratio = (math.sqrt(5) - 1) / 2
  while b - a > 1e-7:
    c, d = b - ratio * (b - a), a + ratio * (b - a)
    a, b = (a, d) if value(c) < value(d) else (c, b)
  return (a + b) / 2, value((a + b) / 2)


def weights(labels):
  """Weights of rows that give every class with an image the same weight; they sum to one."""
  labels = labels.tolist()
  present = len(set(labels))
  return [1 / (present * labels.count(label)) for label in labels]


def masses(logits, labels, counts, tau):
  """Mean predicted probability of each class, times the number of classes with an image."""
  out = [0.0] * len(counts)
  rows = align(logits, counts, tau).tolist()
  for row, weight in zip(rows, weights(labels), strict=True):
    for c in range(len(counts)):
      out[c] += weight * probability(row, c)
  present = set(labels.tolist())
  return np.array([len(present) * m if c in present else math.nan for c, m in enumerate(out)])


def marginal(logits, labels, counts, tau):
  """Population standard deviation of `masses`."""
  return float(np.nanstd(masses(logits, labels, counts, tau)))


def nll(logits, labels, counts, tau):
  """Mean of -log p_y, every class weighted equally."""
  rows = align(logits, counts, tau).tolist()
  return -sum(
    w * math.log(probability(row, y))
    for row, y, w in zip(rows, labels.tolist(), weights(labels), strict=True)
  )


CRITERIA = {"confidence": objective, "marginal": marginal, "nll": nll}
