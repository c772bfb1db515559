"""Gradient matching in float64: gradients by central differences, distances with loops.

DC: Zhao, Mopuri and Bilen, ICLR 2021, equation 9 (the sum over output units); DREAM: its released
code, squared differences of the kernels of convolutions.
"""

import copy
import math

import numpy as np

from tests.reference import dm_ref


def cross_entropy(images, label, params):
  """The mean over the images, all of one class."""
  layer = params["classifier"]
  logits = dm_ref.features(images, params, "instance") @ layer["kernel"] + layer["bias"]
  logits = logits - logits.max(1, keepdims=True)
  return float(np.mean(np.log(np.exp(logits).sum(1)) - logits[:, label]))


def gradients(images, label, params, step=1e-5):
  """By each kernel; biases and norms do not count in either method."""
  params, out = copy.deepcopy(params), {}
  for name in (name for name, layer in params.items() if "kernel" in layer):
    kernel = params[name]["kernel"]
    out[name] = np.zeros_like(kernel)
    for at in np.ndindex(kernel.shape):
      value, ends = kernel[at], []
      for moved in (value + step, value - step):
        kernel[at] = moved
        ends.append(cross_entropy(images, label, params))
      kernel[at] = value
      out[name][at] = (ends[0] - ends[1]) / (2 * step)
  return out


def cosine_distance(a, b):
  total = 0.0
  for name in a:
    for unit in range(a[name].shape[-1]):
      x, y = a[name][..., unit].ravel(), b[name][..., unit].ravel()
      total += 1 - (x @ y) / (math.sqrt(x @ x) * math.sqrt(y @ y) + 1e-6)
  return total


def squared_distance(a, b):
  return sum(float(np.sum((a[name] - b[name]) ** 2)) for name in a if name != "classifier")
