"""RDED in float64 NumPy with loops, written from the method sheet: score, select, put together."""

import math

import numpy as np


def shrunk_crop(image, box, side):
  """Anti-aliased bilinear resize of a box to side x side: a hat of half width max(step, 1)."""
  top, left, height, width = (int(v) for v in box)
  crop = np.asarray(image, np.float64)[top : top + height, left : left + width]

  def weights(length):
    step, rows = length / side, []
    for i in range(side):
      centre = (i + 0.5) * step
      hat = [max(0.0, 1 - abs(j + 0.5 - centre) / max(step, 1)) for j in range(length)]
      rows.append([v / math.fsum(hat) for v in hat])
    return np.array(rows)

  rows, columns = weights(height), weights(width)
  out = np.zeros((side, side, crop.shape[-1]))
  for i in range(side):
    for j in range(side):
      for y in range(height):
        for x in range(width):
          out[i, j] += rows[i, y] * columns[j, x] * crop[y, x]
  return out


def padded(patch, side):
  """A patch in the middle of side x side zeros."""
  gap = (side - len(patch)) // 2
  out = np.zeros((side, side, patch.shape[-1]))
  out[gap : gap + len(patch), gap : gap + len(patch)] = patch
  return out


def cross_entropy(logits, label):
  logits = np.asarray(logits, np.float64)
  return math.log(math.fsum(math.exp(v - logits.max()) for v in logits)) - (
    logits[label] - logits.max()
  )


def best_first(scores, image_of):
  """Candidates in the order of use: the best of each image by score, then the second bests, ..."""
  order, left = [], sorted(range(len(scores)), key=lambda e: scores[e])
  while left:
    used, later = set(), []
    for e in left:
      if image_of[e] in used:
        later.append(e)
      else:
        used.add(image_of[e])
        order.append(e)
    left = later
  return order


def mosaic(patches, number, ipc, factor):
  """Image `number` of a class: cell r, row by row, is patch r * ipc + number."""
  side = len(patches[0])
  out = np.zeros((factor * side, factor * side, patches[0].shape[-1]))
  for r in range(factor**2):
    i, j = r // factor * side, r % factor * side
    out[i : i + side, j : j + side] = patches[r * ipc + number]
  return out
