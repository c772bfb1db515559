"""GSAM (Zhuang et al., ICLR 2022, algorithm 1) with ASAM's perturbation, in float64.

`gradient` is that of the loss, vector -> vector.
"""

import numpy as np


def perturbation(gradient, w, rho):
  """The e of length rho, in units of |w|, on which the linear part of the loss grows most."""
  g = gradient(w)
  return rho * w**2 * g / np.sqrt(((np.abs(w) * g) ** 2).sum())


def direction(gradient, w, rho, alpha):
  g, sharp = gradient(w), gradient(w + perturbation(gradient, w, rho))
  unit = sharp / np.sqrt((sharp**2).sum())
  return sharp - alpha * (g - (g @ unit) * unit)
