"""Calibrators in float64 NumPy with loops and SciPy, from the formulas of
docs/reference/calibrators.md.

Independent of the package: nothing is streamed, gradients are SciPy's differences, and minima are
found by Nelder-Mead or fixed-point iterations.
"""

import math

import numpy as np
from scipy import optimize

from tests.reference import adsa_ref


def softmax(row):
  """exp(x_c) / sum_j exp(x_j) of a list."""
  top = max(row)
  exps = [math.exp(x - top) for x in row]
  return [e / sum(exps) for e in exps]


def probabilities(logits, bias):
  """softmax(f_n - b) of each row."""
  return [softmax([z - b for z, b in zip(row, bias, strict=True)]) for row in logits.tolist()]


def confidences(logits, labels, bias):
  """q_c: mean over rows of class c of p(c | x_n)."""
  sums, numbers = [0.0] * len(bias), [0] * len(bias)
  for p, label in zip(probabilities(logits, bias), labels.tolist(), strict=True):
    sums[label] += p[label]
    numbers[label] += 1
  return [s / n if n else math.nan for s, n in zip(sums, numbers, strict=True)]


def masses(logits, labels, bias):
  """Mean of p(c | x_n) over rows, each class of y_n weighted equally."""
  out = [0.0] * len(bias)
  for p, w in zip(probabilities(logits, bias), adsa_ref.weights(labels), strict=True):
    out = [m + w * x for m, x in zip(out, p, strict=True)]
  return out


def variance(logits, labels, bias):
  """mean over c of (q_c - mean q)^2."""
  q = confidences(logits, labels, bias)
  return sum((x - sum(q) / len(q)) ** 2 for x in q) / len(q)


def potential(logits, labels, bias):
  """mean over n of logsumexp(f_n - b), plus the mean of b."""
  total = sum(bias) / len(bias)
  for row, w in zip(logits.tolist(), adsa_ref.weights(labels), strict=True):
    x = [z - b for z, b in zip(row, bias, strict=True)]
    total += w * (max(x) + math.log(sum(math.exp(v - max(x)) for v in x)))
  return total


def adsa_vector(logits, labels, counts, tau, criterion, strength):
  """argmin of D(b) + strength * mean (b - tau log pi)^2 over b."""
  data = variance if criterion == "confidence" else potential
  anchor = [tau * x for x in adsa_ref.log_prior(counts)]

  def objective(bias):
    penalty = sum((b - a) ** 2 for b, a in zip(bias, anchor, strict=True)) / len(bias)
    return data(logits, labels, bias) + strength * penalty

  options = {"xatol": 1e-7, "fatol": 1e-13, "maxiter": 20000, "maxfev": 20000}
  found = optimize.minimize(objective, anchor, method="BFGS", options={"gtol": 1e-9})
  found = optimize.minimize(objective, found.x, method="Nelder-Mead", options=options)
  return found.x - found.x.mean()


def em(logits, labels, counts, smoothing=0.0, iterations=20000):
  """Saerens et al.: w <- mean of softmax(f + log w - log pi), mixed with a uniform prior;
  returns log pi - log w, centred."""
  prior = adsa_ref.log_prior(counts)
  w = [math.exp(x) for x in prior]
  for _ in range(iterations):
    bias = [p - math.log(x) for p, x in zip(prior, w, strict=True)]
    new = [(m + smoothing / len(w)) / (1 + smoothing) for m in masses(logits, labels, bias)]
    if max(abs(a - b) for a, b in zip(new, w, strict=True)) < 1e-13:
      break
    w = new
  bias = np.array(prior) - np.log(w)
  return bias - bias.mean()


def prior_matching(logits, labels, iterations=20000):
  """log b_c <- log b_c + log(K m_c) until masses are uniform; returns log b, centred."""
  k = logits.shape[1]
  bias = [0.0] * k
  for _ in range(iterations):
    mass = masses(logits, labels, bias)
    bias = [b + math.log(k * m) for b, m in zip(bias, mass, strict=True)]
    if max(abs(k * m - 1) for m in mass) < 1e-12:
      break
  return np.array(bias) - np.mean(bias)


def log_loss(logits, labels):
  """Mean of -log softmax(f_n)_y, each class weighted equally."""
  return sum(
    -w * math.log(softmax(row)[y])
    for row, y, w in zip(logits.tolist(), labels.tolist(), adsa_ref.weights(labels), strict=True)
  )


def temperature(logits, labels):
  """The T between 1/100 and 100 with the least log-loss."""
  found = optimize.minimize_scalar(
    lambda x: log_loss(logits / math.exp(x), labels),
    bounds=(-math.log(100), math.log(100)),
    method="bounded",
    options={"xatol": 1e-9},
  )
  return math.exp(found.x)


def scaled(logits, scale, bias):
  """a (f - mean f) - b."""
  return (logits - logits.mean(1, keepdims=True)) * scale - bias


def vector_scaling(logits, labels, strength):
  """argmin of the log-loss plus strength * (mean (a - 1)^2 + mean b^2): (a, b)."""
  k = logits.shape[1]

  def objective(x):
    a, b = x[:k], x[k:]
    penalty = sum((v - 1) ** 2 for v in a) / k + sum(v**2 for v in b) / k
    return log_loss(scaled(logits, a, b), labels) + strength * penalty

  start = np.concatenate([np.ones(k), np.zeros(k)])
  x = optimize.minimize(objective, start, method="BFGS", options={"gtol": 1e-8}).x
  return x[:k], x[k:]


def bootstrap(logits, labels, counts, draws, criterion):
  """tau of each replicate, in which image i of logits (e, n, k) counts draws[b][i] times."""
  taus = []
  for times in draws:
    chosen = np.repeat(np.arange(len(labels)), np.asarray(times, int))
    rows = logits[:, chosen].reshape(-1, logits.shape[2])
    y = np.tile(labels[chosen], len(logits))
    taus.append(adsa_ref.minimise(rows, y, counts, 0, 3, 31, criterion)[0])
  return np.array(taus)


def best_within(logits, labels, counts, head, max_drop, criterion="confidence"):
  """The best tau of a fine grid on [0, 3] at which head confidence fell by max_drop at most."""
  prior = np.array(adsa_ref.log_prior(counts))
  value = adsa_ref.CRITERIA[criterion]
  best = (math.inf, 0.0)
  at_zero = np.mean([confidences(logits, labels, 0 * prior)[c] for c in head])
  for tau in np.linspace(0, 3, 601):
    q = confidences(logits, labels, tau * prior)
    if at_zero - np.mean([q[c] for c in head]) <= max_drop:
      best = min(best, (value(logits, labels, counts, tau), tau))
  return best[1]
