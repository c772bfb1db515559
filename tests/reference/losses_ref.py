"""Losses, activation moments and schedules in float64 NumPy, with loops, from the formulas."""

import math

import numpy as np


def log_softmax(row):
  """log(exp(x_i) / sum_j exp(x_j)) of one row."""
  top = max(row)
  log_sum = top + math.log(sum(math.exp(x - top) for x in row))
  return [x - log_sum for x in row]


def cross_entropy(logits, labels, smoothing=0.0):
  """-(1/B) sum_b sum_k t_bk log p_bk, with t = (1 - e) onehot + e / K."""
  total = 0.0
  for row, label in zip(logits, labels, strict=True):
    for k, value in enumerate(log_softmax(row)):
      total -= ((1 - smoothing) * (k == label) + smoothing / len(row)) * value
  return total / len(labels)


def logit_adjusted(logits, labels, counts, tau, smoothing=0.0):
  """Menon et al. 2021, eq. 10; tau = 1 is the balanced softmax, Ren et al. 2020, eq. 4:
  p_k = n_k exp(f_k) / sum_j n_j exp(f_j)."""
  shifted = [
    [f + tau * math.log(n / sum(counts)) for f, n in zip(row, counts, strict=True)]
    for row in logits
  ]
  return cross_entropy(shifted, labels, smoothing)


def class_balanced(logits, labels, counts, beta):
  """Cui et al. 2019: w_c = (1 - beta) / (1 - beta^n_c), scaled to sum to K; mean of w_y CE_b."""
  raw = [(1 - beta) / (1 - beta**n) for n in counts]
  weights = [w * len(counts) / sum(raw) for w in raw]
  rows = [weights[y] * cross_entropy([row], [y]) for row, y in zip(logits, labels, strict=True)]
  return sum(rows) / len(rows)


def kl(student, teacher, temperature, squared):
  """(1/B) sum_b sum_k q (log q - log p) with both softmaxes at temperature T; times T^2 or not."""
  total = 0.0
  for s, t in zip(student, teacher, strict=True):
    log_p = log_softmax([x / temperature for x in s])
    log_q = log_softmax([x / temperature for x in t])
    total += sum(math.exp(q) * (q - p) for p, q in zip(log_p, log_q, strict=True))
  return total / len(student) * (temperature**2 if squared else 1)


def mse_ce(student, teacher, labels, weight):
  """(1/BK) sum_bk (s - t)^2 + w CE."""
  total = 0.0
  for s, t in zip(student, teacher, strict=True):
    total += sum((a - b) ** 2 for a, b in zip(s, t, strict=True))
  return total / np.size(student) + weight * cross_entropy(student, labels)


def moments(x):
  """Mean and biased variance of each channel of x (b, h, w, c) over b, h and w."""
  means, variances = [], []
  for c in range(x.shape[-1]):
    values = [float(v) for v in x[..., c].ravel()]
    mean = sum(values) / len(values)
    means.append(mean)
    variances.append(sum((v - mean) ** 2 for v in values) / len(values))
  return np.array(means), np.array(variances)


def bn_penalty(layers, first_multiplier):
  """SRe2L: kappa R_1 + sum_{l>=2} R_l, R_l = ||rv - v||_2 + ||rm - m||_2.

  `layers` holds (activations (b,h,w,c), running mean, running variance) of each batch norm.
  """
  total = 0.0
  for i, (x, running_mean, running_var) in enumerate(layers):
    mean, var = moments(x)
    distance = math.sqrt(sum((running_var - var) ** 2)) + math.sqrt(sum((running_mean - mean) ** 2))
    total += distance * (first_multiplier if i == 0 else 1)
  return total


def factor(name, i, n, **kw):
  """Multiplier of the learning rate at step i of n, as the published code defines it."""
  if name == "constant":
    return 1.0
  if name == "cosine":
    return 0.5 * (1 + math.cos(math.pi * i / n))
  if name == "smooth":
    return 0.5 * (1 + math.cos(math.pi * i / (kw["zeta"] * n)))
  if name == "linear":
    return 1 - i / (kw["zeta"] * n)
  if name == "ssrs":
    if i <= 5 * n / 6:
      return factor("smooth", i, n, zeta=kw["zeta"])
    return 0.5 * (1 + math.cos(5 * math.pi / (6 * kw["zeta"]))) * (6 * n - 6 * i) / (6 * n)
  if name == "multistep":
    return kw["factor"] ** sum(i >= m * n for m in kw["milestones"])
  w = kw["warmup"] * n
  if i < w:
    start = kw.get("start", 0.01)
    return start + (1 - start) * i / w
  end = kw.get("end", 0.0)
  return end + (1 - end) * 0.5 * (1 + math.cos(math.pi * (i - w) / (n - w)))


def sgd(param, grads, lrs, momentum, weight_decay, nesterov):
  """PyTorch's SGD on one number."""
  buffer = 0.0
  for grad, lr in zip(grads, lrs, strict=True):
    g = grad + weight_decay * param
    buffer = momentum * buffer + g
    param = param - lr * (g + momentum * buffer if nesterov else buffer)
  return param


def adam(param, grads, lrs, weight_decay, decoupled):
  """PyTorch's Adam and AdamW on one number; beta 0.9 and 0.999, epsilon 1e-8."""
  m = v = 0.0
  for t, (grad, lr) in enumerate(zip(grads, lrs, strict=True), start=1):
    g = grad if decoupled else grad + weight_decay * param
    if decoupled:
      param = param - lr * weight_decay * param
    m = 0.9 * m + 0.1 * g
    v = 0.999 * v + 0.001 * g * g
    param = param - lr * (m / (1 - 0.9**t)) / (math.sqrt(v / (1 - 0.999**t)) + 1e-8)
  return param
