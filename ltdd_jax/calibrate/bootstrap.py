"""How sure tau is: a bootstrap over distilled images."""

import numpy as np

from ltdd_jax import adsa
from ltdd_jax.adsa import Rows
from ltdd_jax.calibrate import criteria, streaming
from ltdd_jax.core import rng

LEVEL = (2.5, 97.5)  # percentiles of the interval
LEAST = 20  # replicates: with fewer, percentiles are no interval of 95 %
GRID = 31  # taus of a pass
_COPIES = 4  # of the masses of a chunk, some on their way from the device
_DRAWS = 3  # arrays on the way from draws of images to their weights
_MOST = 2**28  # numbers that are held: 2 GB


def interval(
  rows: Rows, log_prior: np.ndarray, fit: adsa.AdsaResult, criterion: str, replicates: int
) -> np.ndarray:
  """The 95 % percentile interval of tau, (2,), as of `replicate_taus`; 0 for a uniform prior."""
  if fit.status == "uniform":
    return np.zeros(2)
  return np.percentile(replicate_taus(rows, log_prior, fit, criterion, replicates), LEVEL)


def replicate_taus(
  rows: Rows, log_prior: np.ndarray, fit: adsa.AdsaResult, criterion: str, replicates: int
) -> np.ndarray:
  """The tau of each bootstrap replicate, (b,) float64.

  A replicate draws, within each class, as many images as there are, with replacement; an image, the
  last leading axis of the logits, comes with all its label epochs. Its tau is found as `adsa.fit`
  finds it, in two passes over the logits: on a grid of the range that the fit searched, then on one
  of the range of the first answers. Departures from the mean of a class of n images are multiplied
  by sqrt(n / (n - 1)), without which a bootstrap of few images is too sure.

  Returns NaN where a class has one image: nothing is known then of the luck of its draw.

  Raises:
    ValueError: labels that give an image different classes in different epochs.
  """
  labels = _image_labels(rows)
  if 1 in np.bincount(labels):
    return np.full(replicates, np.nan)
  least = (
    adsa.COLLAPSED * np.nanmean(fit.confidence_before) if criterion == "confidence" else -np.inf
  )
  first, last = lo, hi = fit.curve[[0, -1], 0]
  for _ in range(2):
    taus = np.linspace(lo, hi, GRID)
    means = _replicate_masses if criterion == "marginal" else _replicate_means
    draw = rng.np_rng(0, "adsa", "bootstrap")
    q = means(rows, log_prior, taus, labels, draw, replicates, criterion)
    found = np.array([_lowest(taus, one, criterion, least) for one in q])
    step = taus[1] - taus[0]
    lo, hi = max(first, found.min() - step), min(last, found.max() + step)
  return found


def _lowest(taus: np.ndarray, q: np.ndarray, criterion: str, least: float) -> float:
  """The tau of class means (g, k), where their mean is not below `least`, if it is anywhere."""
  healthy = np.nanmean(q, 1) >= least
  allowed = healthy if healthy.any() else True
  return adsa.lowest(taus, criteria.smooth(q, criterion), allowed)[0]


def _image_labels(rows: Rows) -> np.ndarray:
  labels = rows.labels.reshape(-1, rows.lead[-1])
  if np.any(labels != labels[0]):
    raise ValueError(
      "bootstrap needs one class for each image, but some images (the last leading axis of the "
      "logits) have several over the label epochs. Give labels (n,), or bootstrap=0."
    )
  return labels[0]


def check_size(rows: Rows, criterion: str, replicates: int) -> None:
  """Raises ValueError if a bootstrap would hold more than 2 GB of numbers."""
  images = rows.lead[-1]
  numbers, copies = (replicates, _COPIES) if criterion == "marginal" else (GRID, 1)
  largest = int(rows.counts.max()) * images // rows.n  # class, whose draws are made at once
  per_replicate = copies * GRID * rows.k + _DRAWS * largest
  total = images * numbers + replicates * per_replicate
  if total > _MOST:
    raise ValueError(
      f"bootstrap holds {numbers} numbers for each of {images:,} images, and {per_replicate:,} for "
      f"each of {replicates:,} replicates, {8 * total / 1e9:.1f} GB. If these are several views of "
      "fewer images, give the logits as (epochs, images, classes); else take fewer replicates, or "
      "bootstrap=0."
    )


def _draws(generator: np.random.Generator, count: int, replicates: int) -> np.ndarray:
  """Weights of `count` >= 2 images in each replicate, (b, count) float64, with sum `count`."""
  drawn = generator.multinomial(count, np.full(count, 1 / count), replicates)
  return 1 + np.sqrt(count / (count - 1)) * (drawn - 1)


def _replicate_means(rows, log_prior, taus, labels, draw, replicates, criterion) -> np.ndarray:
  """Class means of p_y or -log p_y in each replicate, (b, g, k), NaN without an image."""
  scores = criteria.image_scores(rows, log_prior, taus, criterion)
  out = np.full((replicates, len(taus), rows.k), np.nan)
  for c in np.unique(labels):
    members = np.flatnonzero(labels == c)
    out[:, :, c] = _draws(draw, len(members), replicates) @ scores[members] / len(members)
  return out


def _replicate_masses(rows, log_prior, taus, labels, draw, replicates, criterion) -> np.ndarray:
  """Mean masses times the number of classes in each replicate, (b, g, k), NaN without an image."""
  del criterion
  weights = np.empty((replicates, len(labels)))
  for c in np.unique(labels):
    members = np.flatnonzero(labels == c)
    weights[:, members] = _draws(draw, len(members), replicates)
  masses = criteria.predicted_masses(rows, log_prior, taus, weights)
  keep = streaming.present(rows)
  masses *= keep.sum()
  masses[..., ~keep] = np.nan
  return masses
