"""torchvision's RandAugment operations in float64 with loops, from their definitions.

Pixels of `image` (h, w, c) are whole numbers 0..255; `m` is the magnitude with its sign.
"""

import math

import numpy as np


def moved(image, source):
  """Takes each pixel (x, y) from the nearest of `source(x + 1/2, y + 1/2)`, black outside."""
  h, w, _ = image.shape
  out = np.zeros_like(image)
  for y in range(h):
    for x in range(w):
      sx, sy = source(x + 0.5, y + 0.5)
      if 0 <= math.floor(sx) < w and 0 <= math.floor(sy) < h:
        out[y, x] = image[math.floor(sy), math.floor(sx)]
  return out


def rotate(image, m):
  """Turns counter-clockwise about the centre; y points down."""
  h, w, _ = image.shape
  t = math.radians(m)

  def source(x, y):
    x, y = x - w / 2, y - h / 2
    return (
      math.cos(t) * x - math.sin(t) * y + w / 2, math.sin(t) * x + math.cos(t) * y + h / 2
    )  # fmt: skip

  return moved(image, source)


def blend(base, image, factor):
  return np.clip(np.trunc(base + factor * (image - base) + 1e-9), 0, 255)


def grey(image):
  """ITU-R 601-2 luma in 65536ths, rounded."""
  if image.shape[-1] == 1:
    return image
  r, g, b = np.moveaxis(image, -1, 0)
  return np.floor((19595 * r + 38470 * g + 7471 * b) / 65536 + 0.5)[..., None]


def smooth(image):
  """Mean of the 3x3 neighbours with the centre weighing 5; borders are kept."""
  out = image.astype(float)
  for y in range(1, image.shape[0] - 1):
    for x in range(1, image.shape[1] - 1):
      total = image[y - 1 : y + 2, x - 1 : x + 2].sum((0, 1)) + 4 * image[y, x]
      out[y, x] = np.floor(total / 13 + 0.5)
  return out


def auto_contrast(image):
  out = image.astype(float)
  for c in range(image.shape[-1]):
    low, high = image[..., c].min(), image[..., c].max()
    if high > low:
      out[..., c] = np.trunc((image[..., c] - low) * 255 / (high - low) + 1e-9)
  return out


def equalize(image):
  """Levels by their rank, as PIL: the step leaves out the pixels of the top level."""
  out = image.astype(float)
  for c in range(image.shape[-1]):
    x = image[..., c]
    step = int((x < x.max()).sum()) // 255
    for y in range(x.shape[0]) if step else ():
      for z in range(x.shape[1]):
        out[y, z, c] = min(255, (step // 2 + int((x < x[y, z]).sum())) // step)
  return out


def apply(name, image, sign):
  """The operation at bin 9 of 31, with sign 1 or -1 if it has one."""
  h, w, _ = image.shape
  image = np.asarray(image, float)
  factor = 1 + 0.27 * sign
  by_x, by_y = (sign * math.trunc(150 / 331 * n * 0.3) for n in (w, h))
  return {
    "identity": lambda: image,
    "shear_x": lambda: moved(image, lambda x, y: (x + 0.09 * sign * y, y)),
    "shear_y": lambda: moved(image, lambda x, y: (x, y + 0.09 * sign * x)),
    "translate_x": lambda: moved(image, lambda x, y: (x - by_x, y)),
    "translate_y": lambda: moved(image, lambda x, y: (x, y - by_y)),
    "rotate": lambda: rotate(image, 9 * sign),
    "brightness": lambda: blend(0, image, factor),
    "color": lambda: blend(grey(image), image, factor),
    "contrast": lambda: blend(math.floor(grey(image).mean() + 0.5), image, factor),
    "sharpness": lambda: blend(smooth(image), image, factor),
    "posterize": lambda: image - image % 2,
    "solarize": lambda: np.where(image < 178.5, image, 255 - image),
    "auto_contrast": lambda: auto_contrast(image),
    "equalize": lambda: equalize(image),
  }[name]()
