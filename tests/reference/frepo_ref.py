"""FRePo (Zhou et al., NeurIPS 2022), section 3, in float64 on a ConvNet of its layout."""

import numpy as np

from tests.reference import dm_ref


def features(images, variables):
  """Convolution, ReLU and 2x2 average; before all but the first a norm with running moments."""
  x, params, stats = np.float64(images), variables["params"], variables["batch_stats"]
  for i in range(sum(name.startswith("conv") for name in params)):
    if i:
      p, s = ({k: np.float64(v) for k, v in t[f"norm{i}"].items()} for t in (params, stats))
      x = (x - s["mean"]) / np.sqrt(s["var"] + 1e-5) * p["scale"] + p["bias"]
    p = params[f"conv{i}"]
    x = np.maximum(dm_ref.conv(x, np.float64(p["kernel"]), np.float64(p["bias"])), 0)
    x = (x[:, ::2, ::2] + x[:, 1::2, ::2] + x[:, ::2, 1::2] + x[:, 1::2, 1::2]) / 4
  return x.reshape(len(x), -1)


def predictions(real, prototypes, labels):
  kernel = prototypes @ prototypes.T
  ridge = 1e-6 * np.trace(kernel) / len(kernel) * np.eye(len(kernel))
  return real @ prototypes.T @ np.linalg.inv(kernel + ridge) @ np.float64(labels)


def terms(images, labels, real, targets, variables, flip):
  """The regression's loss and that of the margin."""
  if flip:
    images, labels = np.concatenate([images, images[:, :, ::-1]]), np.concatenate([labels, labels])
  found = predictions(features(real, variables), features(images, variables), labels)
  regression = np.mean([0.5 * (p - t) @ (p - t) for p, t in zip(found, targets, strict=True)])
  margin = 0.0
  for row in labels:
    first, second = sorted(row)[::-1][:2]
    margin -= min(first - second, 1 / len(row)) / len(labels)
  return regression, margin


def lamb(param, grads, lrs):
  """You et al., ICLR 2020, as optax has it: one trust ratio for the array."""
  m = v = 0.0
  for t, (g, lr) in enumerate(zip(grads, lrs, strict=True), 1):
    m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
    step = m / (1 - 0.9**t) / (np.sqrt(v / (1 - 0.999**t)) + 1e-6)
    param = param - lr * np.linalg.norm(param) / np.linalg.norm(step) * step
  return param
