"""Trajectory matching in float64 on a network of two layers, with gradients written out.

MTT: Cazenave et al., CVPR 2022, algorithm 1 and equation 5. TESLA: Cui et al., ICML 2023, with the
parameters of the inner loop as constants.
"""

import numpy as np


def softmax(z):
  e = np.exp(z - z.max(1, keepdims=True))
  return e / e.sum(1, keepdims=True)


def gradient(theta, x, logits, hidden):
  """By theta = (w1, w2), of the mean over b of -sum softmax(logits) log softmax(tanh(x w1) w2)."""
  d, k = x.shape[1], logits.shape[1]
  w1, w2 = theta[: d * hidden].reshape(d, hidden), theta[d * hidden :].reshape(hidden, k)
  a = np.tanh(x @ w1)
  error = (softmax(a @ w2) - softmax(logits)) / len(x)
  by_w1 = x.T @ ((error @ w2.T) * (1 - a**2))
  return np.concatenate([by_w1.ravel(), (a.T @ error).ravel()])


def view(x, i):
  """Inner step i sees the images in a view of its own."""
  return x * (1 + 0.3 * i)


def path(start, x, logits, rate, steps, hidden):
  """Parameters theta_0, ..., theta_N and gradients g_0, ..., g_{N-1}."""
  thetas, grads = [start], []
  for i in range(steps):
    grads.append(gradient(thetas[-1], view(x, i), logits, hidden))
    thetas.append(thetas[-1] - rate * grads[-1])
  return thetas, grads


def loss(start, target, x, logits, rate, steps, hidden):
  last = path(start, x, logits, rate, steps, hidden)[0][-1]
  return ((last - target) ** 2).sum() / ((start - target) ** 2).sum()


def tesla_terms(start, target, x, logits, rate, steps, hidden, matched=None):
  """Returns s(x', logits'), whose gradient at (x, logits) is TESLA's, and its gradient by the rate.

  s has the parameters of the inner loop, G and the rate as constants. Only the first `matched`
  parameters are compared, all for None.
  """
  thetas, grads = path(start, x, logits, rate, steps, hidden)
  counted = np.arange(len(start)) < (len(start) if matched is None else matched)
  total, scale = sum(grads) * counted, (((start - target) * counted) ** 2).sum()
  weights = 2 * counted * (rate * (target - start) + rate**2 * total) / scale
  s = lambda x, logits: sum(
    weights @ gradient(thetas[i], view(x, i), logits, hidden) for i in range(steps)
  )
  return s, -2 * total @ (start - rate * total - target) / scale


def slope(fn, x, way, step=1e-5):
  """Of fn at x along a direction, by central differences."""
  return (fn(x + step * way) - fn(x - step * way)) / (2 * step)
