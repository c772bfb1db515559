"""Coresets in float64 NumPy with loops over images, written from the definitions.

All take the features (n_c, f) of one class and the number of slots, and return positions in the
class, one for each slot.
"""

import numpy as np


def evenly(chosen, num_slots):
  """Repeats a list of all images of a class in the same order until it fills the slots."""
  return [chosen[r % len(chosen)] for r in range(num_slots)]


def herding(x, num_slots):
  """iCaRL (Rebuffi et al. 2017), algorithm 4, without taking an image twice."""
  x = np.asarray(x, np.float64)
  mean, chosen = x.mean(0), []
  for r in range(min(num_slots, len(x))):
    scores = []
    for i in range(len(x)):
      running = (x[i] + sum((x[j] for j in chosen), np.zeros_like(mean))) / (r + 1)
      scores.append(np.inf if i in chosen else np.linalg.norm(mean - running))
    chosen.append(int(np.argmin(scores)))
  return evenly(chosen, num_slots)


def k_center(x, num_slots):
  """Farthest-point traversal (Gonzalez 1985) from the image nearest the mean."""
  x = np.asarray(x, np.float64)
  chosen = [int(np.argmin([np.linalg.norm(v - x.mean(0)) for v in x]))]
  for _ in range(1, min(num_slots, len(x))):
    gaps = [
      -1.0 if i in chosen else min(np.linalg.norm(x[i] - x[j]) for j in chosen)
      for i in range(len(x))
    ]
    chosen.append(int(np.argmax(gaps)))
  return evenly(chosen, num_slots)


def lloyd(x, centres, num_iterations):
  """Lloyd's iterations; a centre without images stays."""
  x, centres = np.asarray(x, np.float64), np.array(centres, np.float64)
  for _ in range(num_iterations):
    owner = [int(np.argmin([np.linalg.norm(v - c) for c in centres])) for v in x]
    for j in range(len(centres)):
      mine = [v for v, o in zip(x, owner, strict=True) if o == j]
      if mine:
        centres[j] = np.mean(mine, axis=0)
  return centres


def nearest_distances(x, centres, chosen):
  """Least distance to each centre in turn, of the images not yet chosen at that turn."""
  return [
    min(np.linalg.norm(x[i] - c) for i in range(len(x)) if i not in chosen[:j])
    for j, c in enumerate(centres)
  ]
