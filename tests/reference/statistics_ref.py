"""Statistics of activations in float64 NumPy with loops, written from their definitions."""

import math

import numpy as np


def resize_up(image, q):
  """A map (h, w, c), resized to the next multiples of q: half-pixel centres, edges repeated."""
  h, w, c = image.shape
  tall, wide = math.ceil(h / q) * q, math.ceil(w / q) * q
  out = np.zeros((tall, wide, c))
  for i in range(tall):
    for j in range(wide):
      y, x = (i + 0.5) * h / tall - 0.5, (j + 0.5) * w / wide - 0.5
      y, x = max(y, 0.0), max(x, 0.0)
      y0, x0 = math.floor(y), math.floor(x)
      y1, x1 = min(y0 + 1, h - 1), min(x0 + 1, w - 1)
      upper = (1 - (x - x0)) * image[y0, x0] + (x - x0) * image[y0, x1]
      lower = (1 - (x - x0)) * image[y1, x0] + (x - x0) * image[y1, x1]
      out[i, j] = (1 - (y - y0)) * upper + (y - y0) * lower
  return out


def tiles(image, q):
  """The tiles of a map, row by row, each (q, q, c)."""
  image = resize_up(np.asarray(image, np.float64), q)
  found = []
  for top in range(0, image.shape[0], q):
    for left in range(0, image.shape[1], q):
      found.append(image[top : top + q, left : left + q])
  return found


def channels(image):
  """The channels of a map, each (h, w)."""
  return [np.asarray(image, np.float64)[..., i] for i in range(image.shape[-1])]


def of_set(parts):
  """Mean, within, between and the variance of all values, of parts[image][position]."""
  rows = []
  for position in range(len(parts[0])):
    values = [image[position] for image in parts]
    means = [v.mean() for v in values]
    within = sum(v.var() for v in values) / len(values)
    between = sum((m - sum(means) / len(means)) ** 2 for m in means) / len(means)
    rows.append((sum(means) / len(means), within, between, np.concatenate(values).var()))
  return np.array(rows).T


def by_class(maps, labels, k, cut):
  """`of_set` of the images of each class, (4, k, d); zeros for a class without images."""
  size = len(cut(maps[0]))
  out = np.zeros((4, k, size))
  for c in range(k):
    chosen = [cut(x) for x, y in zip(maps, labels, strict=True) if y == c]
    if chosen:
      out[:, c] = of_set(chosen)
  return out
