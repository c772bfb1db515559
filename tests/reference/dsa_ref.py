"""DSA's operations in float64 with loops (Zhao and Bilen, ICML 2021), strengths as published."""

import math

import numpy as np


def moved(image, source):
  """Takes each pixel (i, j) from `source(i, j)`, bilinear, zero outside."""
  h, w, _ = image.shape
  out = np.zeros_like(image)
  for i, j in np.ndindex(h, w):
    y, x = source(i, j)
    for a in (math.floor(y), math.floor(y) + 1):
      for b in (math.floor(x), math.floor(x) + 1):
        if 0 <= a < h and 0 <= b < w:
          out[i, j] += (1 - abs(y - a)) * (1 - abs(x - b)) * image[a, b]
  return out


def affine(image, theta):
  """affine_grid and grid_sample, align_corners=False: coordinates -1..1 are the image's edges."""
  h, w, _ = image.shape

  def source(i, j):
    x, y = theta @ ((2 * j + 1) / w - 1, (2 * i + 1) / h - 1)
    return ((y + 1) * h - 1) / 2, ((x + 1) * w - 1) / 2

  return moved(image, source)


def color(image, u):
  x = image + (u[0] - 0.5)
  mean = x.mean(2, keepdims=True)
  x = (x - mean) * 2 * u[1] + mean
  return (x - x.mean()) * (u[2] + 0.5) + x.mean()


def crop(image, u):
  h, w, _ = image.shape
  sides = int(h / 8 + 0.5), int(w / 8 + 0.5)
  by = [math.floor(a * (2 * s + 1)) - s for a, s in zip(u[:2], sides, strict=True)]
  return moved(image, lambda i, j: (i + by[0], j + by[1]))


def cutout(image, u):
  h, w, _ = image.shape
  kh, kw = int(h / 2 + 0.5), int(w / 2 + 0.5)
  top, left = math.floor(u[0] * (h + 1 - kh % 2)), math.floor(u[1] * (w + 1 - kw % 2))
  out = image.copy()
  for i, j in np.ndindex(kh, kw):
    out[min(max(i + top - kh // 2, 0), h - 1), min(max(j + left - kw // 2, 0), w - 1)] = 0
  return out


def apply(name, image, u):
  image, u = np.asarray(image, np.float64), np.asarray(u, np.float64)
  s, t = 1 / 1.2 + u * (1.2 - 1 / 1.2), math.radians(15 * (2 * u[0] - 1))
  turn = np.array([[math.cos(t), -math.sin(t)], [math.sin(t), math.cos(t)]])
  return {
    "color": lambda: color(image, u),
    "crop": lambda: crop(image, u),
    "cutout": lambda: cutout(image, u),
    "flip": lambda: image[:, ::-1] if u[0] < 0.5 else image,
    "scale": lambda: affine(image, np.array([[s[0], 0], [0, s[1]]])),
    "rotate": lambda: affine(image, turn),
  }[name]()
