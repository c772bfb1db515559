"""Airbench's network and training in float64 NumPy, written from the published description."""

import math

import numpy as np

_erf = np.vectorize(math.erf)


def patches(images):
  """All patches of 2x2 pixels of images (n, h, w, c): (m, 4c), cell by cell."""
  n, h, w, _ = images.shape
  return np.array(
    [
      images[i, y : y + 2, x : x + 2].ravel()
      for i in range(n)
      for y in range(h - 1)
      for x in range(w - 1)
    ],
    np.float64,
  )


def gelu(x):
  return x * 0.5 * (1 + _erf(x / math.sqrt(2)))


def conv(x, kernel, padding):
  """A convolution (n, h, w, c) with (u, u, c, d), stride 1."""
  x = np.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
  u = len(kernel)
  n, h, w, _ = x.shape
  out = np.zeros((n, h - u + 1, w - u + 1, kernel.shape[-1]))
  for i in range(u):
    for j in range(u):
      out += x[:, i : h - u + 1 + i, j : w - u + 1 + j] @ kernel[i, j]
  return out


def pool(x):
  """Maxima of 2x2 windows; the odd last row and column are dropped."""
  n, h, w, c = x.shape
  out = np.zeros((n, h // 2, w // 2, c))
  for y in range(h // 2):
    for i in range(w // 2):
      out[:, y, i] = x[:, 2 * y : 2 * y + 2, 2 * i : 2 * i + 2].max((1, 2))
  return out


def logits(variables, x, depth):
  """Conv1, pool, norm, GELU, conv2, ...; at depth 3 the first GELU's result is added to the end."""
  params, stats = variables["params"], variables["batch_stats"]
  x = gelu(conv(x, stats["whitening_kernel"], 0) + params["whitening_bias"])
  for block in range(3):
    for i in range(depth):
      x = conv(x, params[f"block{block}_conv{i}"]["kernel"], 1)
      x = pool(x) if i == 0 else x
      norm = stats[f"block{block}_norm{i}"]
      x = (x - norm["mean"]) / np.sqrt(norm["var"] + 1e-5)
      x = x + params[f"block{block}_norm{i}"]["bias"]
      outputs = [gelu(x)] if i == 0 else [*outputs, gelu(x + outputs[0] if i == 2 else x)]
      x = outputs[-1]
  return x.max((1, 2)) @ params["classifier"]["kernel"] / 9


def summed_steps(params, grads, *, lr, wd, momentum, batch, freeze):
  """Steps of airbench's SGD on gradients of a loss that is summed over the batch.

  `params` and each of `grads` are {name: array} with the names "norm", "whitening" and others.
  """
  s = 1024 * (1 + 1 / (1 - momentum))
  lr, wd = lr / s, wd * batch / s
  params = dict(params)
  buffers = {name: np.zeros_like(value) for name, value in params.items()}
  for step, grad in enumerate(grads):
    for name in params:
      if name == "whitening" and step >= freeze:
        continue
      rate = 64 * lr if name == "norm" else lr
      g = grad[name] + wd / rate * params[name]
      buffers[name] = momentum * buffers[name] + g
      params[name] = params[name] - rate * (g + momentum * buffers[name])
  return params


def triangle(num_steps, start, share, end):
  """The factor of each step k = 0, ..., num_steps - 1."""
  peak = int(share * num_steps)
  up = [start + (1 - start) * k / peak for k in range(peak)]
  rest = num_steps - peak
  return up + [1 + (end - 1) * i / rest for i in range(rest)]


def look_ahead(changes, num_steps, first):
  """A number that each step changes by `changes[k - 1]`, after `num_steps` steps."""
  net = slow = first
  for k in range(1, num_steps + 1):
    net = net + changes[k - 1]
    if k % 5 == 0:
      decay = 0.95**5 * (k / num_steps) ** 3
      slow = decay * slow + (1 - decay) * net
      net = slow
  return slow
