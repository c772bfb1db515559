"""DM's loss in float64 with loops: Zhao and Bilen, WACV 2023, equation 5, on a ConvNet."""

import numpy as np

from tests.reference import dsa_ref


def conv(x, kernel, bias):
  """3x3, zeros outside."""
  n, h, w, _ = x.shape
  padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
  out = np.zeros((n, h, w, len(bias)))
  for i, j in np.ndindex(h, w):
    out[:, i, j] = np.tensordot(padded[:, i : i + 3, j : j + 3], kernel, 3) + bias
  return out


def normalised(x, scale, bias, norm):
  """Over each image by itself ("instance") or over all of them ("batch")."""
  axes = (1, 2) if norm == "instance" else (0, 1, 2)
  mean, var = x.mean(axes, keepdims=True), x.var(axes, keepdims=True)
  return (x - mean) / np.sqrt(var + 1e-5) * scale + bias


def features(images, params, norm):
  """Blocks of convolution, norm, ReLU and 2x2 average; the last one flattened."""
  x = np.asarray(images, np.float64)
  for block in range(sum(name.startswith("conv") for name in params)):
    p = params[f"conv{block}"]
    x = conv(x, np.float64(p["kernel"]), np.float64(p["bias"]))
    p = params[f"norm{block}"]
    x = np.maximum(normalised(x, np.float64(p["scale"]), np.float64(p["bias"]), norm), 0)
    x = (x[:, ::2, ::2] + x[:, 1::2, ::2] + x[:, ::2, 1::2] + x[:, 1::2, 1::2]) / 4
  return x.reshape(len(x), -1)


def means(images, labels, views, params, norm):
  """The mean feature of each class that occurs; views are (name of the operation, numbers)."""
  classes = sorted(set(labels))
  seen = [dsa_ref.apply(views[y][0], x, views[y][1]) for x, y in zip(images, labels, strict=True)]
  found = features(np.stack(seen), params, norm)
  return {c: sum(f for f, y in zip(found, labels, strict=True) if y == c) / labels.count(c)
          for c in classes}  # fmt: skip


def loss(images, labels, real, real_labels, views, params, norm):
  """Both lists of labels hold the same classes."""
  a = means(images, labels, views, params, norm)
  b = means(real, real_labels, views, params, norm)
  return sum(float((a[c] - b[c]) @ (a[c] - b[c])) for c in a)
