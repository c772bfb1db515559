"""The two terms of the bound, estimated.

With p_tr(x|y) = p_te(x|y) and p_tr(y) != p_te(y), the risk of a model trained on a distilled set
exceeds the optimum by

    KL(p_te(y|x) || p_dd(y|x))  +  KL(p_te(x) || p_dd(x))  +  const,

the first averaged over x (Jiang et al., NeurIPS 2025). `te` is the test distribution, `dd` the
distilled set with its soft labels. Neither term can be measured; each function here says what it
estimates instead, and what has to hold for that to be the term.

  conditional_kl(reference_logits, label_logits, classes, k)   # against a reference posterior
  log_loss(label_logits, classes, k)                           # against held-out labels
  gaussian_marginal(x, y), knn_marginal(x, y)                  # in a space of features
  project = pca(features, 8)                                   # that space, made smaller

NumPy, float64, natural logarithms.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy import special

from ltdd_jax.core.types import LtddError
from ltdd_jax.labels.by_class import check_rows, class_means


class Conditional(NamedTuple):
  """A mean over images, in all and by class."""

  total: float  # mean over all images: classes count by their numbers of images
  per_class: np.ndarray  # (k,) NaN for a class without an image
  standard_error: float  # of the total, over images; teachers are taken as given


class Marginal(NamedTuple):
  """A divergence between two sets of feature vectors."""

  value: float
  shrinkage: float  # of the covariance of q, 0 if there is none


# ---- the conditional term ----


def conditional_kl(
  reference_logits: np.ndarray,
  label_logits: np.ndarray,
  classes: np.ndarray,
  num_classes: int,
  views: int = 1,
) -> Conditional:
  """Mean over x of KL(reference(y|x) || labels(y|x)).

  It is the conditional term if (1) the reference is p_te(y|x), (2) the images are drawn from
  p_te(x), and (3) the labels are p_dd(y|x) there: calibrated teacher logits on held-out images. In
  practice (1) is a teacher trained on balanced data, with its own errors. With images from the
  distilled set in place of (2) it is the same integrand averaged over p_dd(x).

  Args:
    reference_logits: (n, k) of the reference.
    label_logits: (n, k) of what writes the labels, after calibration.
    classes: (n,) by which the result is split.
    num_classes: k.
    views: of each image: the rows are a view of all images, then the next.

  Raises:
    LtddError: shapes or classes that do not fit, or logits that are not finite.
  """
  check_rows("reference_logits", reference_logits, classes, num_classes)
  check_rows("label_logits", label_logits, classes, num_classes)
  log_p, log_q = _log_p(reference_logits), _log_p(label_logits)
  return _mean((np.exp(log_p) * (log_p - log_q)).sum(-1), classes, num_classes, views)


def log_loss(label_logits: np.ndarray, classes: np.ndarray, num_classes: int) -> Conditional:
  """Mean of -log labels(y|x) over held-out pairs (x, y).

  In expectation it is KL(p_te(y|x) || labels(y|x)) + H(y|x), for any labels. The entropy of y given
  x is a constant of the data set, so differences between label sources are differences of the
  conditional term, but its zero is not known.

  Args:
    label_logits: (n, k) of what writes the labels, after calibration, on held-out images.
    classes: (n,) their labels.
    num_classes: k.

  Raises:
    LtddError: shapes or classes that do not fit, or logits that are not finite.
  """
  check_rows("label_logits", label_logits, classes, num_classes)
  return _mean(-_log_p(label_logits)[np.arange(len(classes)), classes], classes, num_classes)


def _log_p(logits: np.ndarray) -> np.ndarray:
  return special.log_softmax(np.asarray(logits, np.float64), -1)


def _mean(rows: np.ndarray, classes: np.ndarray, num_classes: int, views: int = 1) -> Conditional:
  images = rows.reshape(views, -1).mean(0)  # views of one image are no independent samples
  error = images.std(ddof=1) / np.sqrt(len(images)) if len(images) > 1 else np.nan
  return Conditional(float(rows.mean()), class_means(rows, classes, num_classes), float(error))


# ---- the marginal term ----


def pca(features: np.ndarray, dims: int) -> Callable[[np.ndarray], np.ndarray]:
  """Makes the projection on the `dims` directions in which features (n, f) vary most, whitened.

  A divergence after any map is at most the divergence before it (data processing), so what is
  measured after a projection is a lower bound of KL(p_te(x) || p_dd(x)). Whitening is a bijection
  and changes neither.

  Raises:
    LtddError: fewer directions with any variance than asked for.
  """
  features = np.asarray(features, np.float64)
  mean = features.mean(0)
  _, scale, axes = np.linalg.svd(features - mean, full_matrices=False)
  rank = int((scale > 1e-9 * max(scale[0], 1e-300)).sum())
  if not 1 <= dims <= rank:
    raise LtddError(
      f"dims is {dims}; expected 1 to {rank}, the number of directions in which the "
      f"{len(features)} feature vectors of {features.shape[1]} numbers vary"
    )
  basis = axes[:dims].T / (scale[:dims] / np.sqrt(len(features)))
  return lambda x: (np.asarray(x, np.float64) - mean) @ basis


def gaussian_kl(
  mean_p: np.ndarray, cov_p: np.ndarray, mean_q: np.ndarray, cov_q: np.ndarray
) -> float:
  """KL(N(mean_p, cov_p) || N(mean_q, cov_q)) in closed form.

      1/2 [ tr(C_q^-1 C_p) + (m_q - m_p)' C_q^-1 (m_q - m_p) - d + log det C_q - log det C_p ]

  Raises:
    LtddError: a covariance that is not positive definite.
  """
  try:
    root_p, root_q = np.linalg.cholesky(cov_p), np.linalg.cholesky(cov_q)
  except np.linalg.LinAlgError as error:
    raise LtddError(
      "a covariance is singular: the vectors do not vary in every dimension. Use fewer dimensions"
    ) from error
  shape = np.linalg.solve(root_q, root_p)
  shift = np.linalg.solve(root_q, mean_q - mean_p)
  log_ratio = np.log(np.diag(root_q)).sum() - np.log(np.diag(root_p)).sum()
  return float(0.5 * ((shape**2).sum() + (shift**2).sum() - len(mean_p)) + log_ratio)


def gaussian_marginal(x: np.ndarray, y: np.ndarray) -> Marginal:
  """KL(p(x) || q(y)) from samples x (n, d) of the test set and y (m, d) of the distilled set, as if
  both were Gaussian: for other distributions neither a lower nor an upper bound of theirs.

  Covariances are (1 - s) C + s tr(C)/d I with Ledoit and Wolf's s (2004; scikit-learn's), which
  goes to 0 as samples grow. It makes covariances rounder: with few vectors it usually makes the
  divergence too small.

  Raises:
    LtddError: samples that do not fit, or singular covariances.
  """
  x, y = _samples(x, y)
  (cov_p, _), (cov_q, share) = _covariance(x), _covariance(y)
  return Marginal(gaussian_kl(x.mean(0), cov_p, y.mean(0), cov_q), share)


def _covariance(x: np.ndarray) -> tuple[np.ndarray, float]:
  from sklearn.covariance import ledoit_wolf_shrinkage  # takes a second to import

  centred = x - x.mean(0)
  share = float(ledoit_wolf_shrinkage(centred, assume_centered=True))
  cov = centred.T @ centred / (len(x) - 1)
  return (1 - share) * cov + share * np.trace(cov) / len(cov) * np.eye(len(cov)), share


def knn_marginal(x: np.ndarray, y: np.ndarray, *, neighbours: int = 5) -> Marginal:
  """KL(p(x) || q(y)) from distances to nearest neighbours.

      (d / n) sum_i log( nu_k(i) / rho_k(i) ) + log( m / (n - 1) )

  rho_k(i) is the distance from x_i to its k-th neighbour among the other x, nu_k(i) among the y.
  Source: Wang, Kulkarni and Verdu, IEEE Transactions on Information Theory 55 (2009). Consistent
  for densities; the error falls slowly in high dimension, and views of few images are no sample of
  a density, but clusters. Negative values are estimates of about zero.

  Args:
    x: (n, d) from p, the test set.
    y: (m, d) from q, the distilled set.
    neighbours: k; more is steadier, and more biased where classes are tight clusters of few points.

  Raises:
    LtddError: samples that do not fit or have fewer than k + 1 vectors, or k copies of a vector.
  """
  from sklearn.neighbors import NearestNeighbors  # takes a second to import

  x, y = _samples(x, y)
  if not 1 <= neighbours <= min(len(x) - 1, len(y)):
    raise LtddError(
      f"neighbours is {neighbours}; expected 1 to {min(len(x) - 1, len(y))} for {len(x)} and "
      f"{len(y)} vectors"
    )
  nearest = lambda data: NearestNeighbors(n_neighbors=neighbours).fit(data)
  rho = nearest(x).kneighbors()[0][:, -1]  # without an argument a point is not its own neighbour
  nu = nearest(y).kneighbors(x)[0][:, -1]
  if (copies := int(((rho == 0) | (nu == 0)).sum())) > 0:
    raise LtddError(
      f"{copies} vectors have {neighbours} copies or more, so that their distance to the next is "
      "0; expected samples of a density. Drop the copies, or use more neighbours"
    )
  value = x.shape[1] * np.mean(np.log(nu) - np.log(rho)) + np.log(len(y) / (len(x) - 1))
  return Marginal(float(value), 0.0)


def _samples(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
  if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1] or min(len(x), len(y)) < 2:
    raise LtddError(
      f"samples have shapes {x.shape} and {y.shape}; expected (n, d) and (m, d), two or more "
      "vectors"
    )
  if not (np.isfinite(x).all() and np.isfinite(y).all()):
    raise LtddError("samples have values that are not finite")
  return x, y
