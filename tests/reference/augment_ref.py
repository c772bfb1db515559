"""Views in float64 NumPy with loops, written from their definitions, not from the code."""

import math

import numpy as np


def resized_crop(image, box):
  """Bilinear resize of a box to the image's size: half-pixel centres, edges repeated."""
  h, w, c = image.shape
  top, left, height, width = (int(v) for v in box)
  crop = np.asarray(image, np.float64)[top : top + height, left : left + width]
  out = np.zeros((h, w, c))
  for i in range(h):
    for j in range(w):
      y = (i + 0.5) * height / h - 0.5
      x = (j + 0.5) * width / w - 0.5
      y0, x0 = math.floor(y), math.floor(x)
      for dy, wy in ((0, 1 - (y - y0)), (1, y - y0)):
        for dx, wx in ((0, 1 - (x - x0)), (1, x - x0)):
          row = min(max(y0 + dy, 0), height - 1)
          column = min(max(x0 + dx, 0), width - 1)
          out[i, j] += wy * wx * crop[row, column]
  return out


def rrc_size(areas, aspects, h, w, ratio):
  """The size of torchvision's RandomResizedCrop for given draws: (height, width, fitted)."""
  for area, aspect in zip(areas, aspects, strict=True):
    width, height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
    if 0 < width <= w and 0 < height <= h:
      return height, width, True
  if w / h < min(ratio):
    return round(w / min(ratio)), w, False
  if w / h > max(ratio):
    return h, round(h * max(ratio)), False
  return h, w, False


def cutmix_mask(lam, row, column, h, w):
  """The box of CutMix (Yun et al. 2019, eq. 2): true where the partner shows."""
  cut_h, cut_w = int(h * math.sqrt(1 - lam)), int(w * math.sqrt(1 - lam))
  mask = np.zeros((h, w), bool)
  for i in range(max(row - cut_h // 2, 0), min(row + cut_h // 2, h)):
    for j in range(max(column - cut_w // 2, 0), min(column + cut_w // 2, w)):
      mask[i, j] = True
  return mask


def windows(image, padding):
  """Every window that a padded crop may cut: {(row, column): window}."""
  h, w, c = image.shape
  canvas = np.zeros((h + 2 * padding, w + 2 * padding, c))
  canvas[padding : padding + h, padding : padding + w] = image
  steps = range(2 * padding + 1)
  return {(i, j): canvas[i : i + h, j : j + w] for i in steps for j in steps}


def rolled(image, dy, dx):
  """`out[i, j] = image[i - dy, j - dx]`, indices in a circle."""
  h, w, _ = image.shape
  out = np.zeros_like(image)
  for i in range(h):
    for j in range(w):
      out[i, j] = image[(i - dy) % h, (j - dx) % w]
  return out
