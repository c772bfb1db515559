"""The perturbation study in numbers: which part of a soft label's bias is the teacher's, which the
images'.

Images distilled from a balanced set (b) and from an imbalanced one (i) are labelled by a teacher of
each set. With Q(images, teacher) the class-mean soft labels, (k, k) with rows for the class of the
image,

    teacher bias  T = Q(b, i) - Q(b, b)
    image bias    I = Q(i, b) - Q(b, b)
    interaction   X = Q(i, i) - Q(b, b) - T - I       what the sum of the two misses

  cells = Cells(bb, bi, ib, ii, labels_b, labels_i)   # from `by_class.mean_soft_labels`
  study = decompose(cells, num_classes=10)
  study.teacher.value, study.teacher.low, study.additivity.p_value

Everything here is a pure function of NumPy arrays, in float64. The intervals are over images: they
are conditional on the two teachers and the two training sets, and do not hold what another
teacher's seed would change.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from ltdd_jax.core import rng
from ltdd_jax.core.types import LtddError
from ltdd_jax.labels.by_class import check_rows, class_means

CELLS = {  # images first, then the teacher
  "bb": "balanced images, balanced teacher",
  "bi": "balanced images, imbalanced teacher",
  "ib": "imbalanced images, balanced teacher",
  "ii": "imbalanced images, imbalanced teacher",
}
TERMS = {"teacher": "teacher bias", "image": "image bias", "interaction": "interaction"}


class Cells(NamedTuple):
  """Mean soft label of every image in the four cells; rows of a source are the same images."""

  bb: np.ndarray  # (n, k) balanced images, balanced teacher
  bi: np.ndarray  # (n, k) balanced images, imbalanced teacher
  ib: np.ndarray  # (m, k) imbalanced images, balanced teacher
  ii: np.ndarray  # (m, k)
  labels_b: np.ndarray  # (n,) classes of the balanced images
  labels_i: np.ndarray  # (m,)


class Estimate(NamedTuple):
  """A value with the ends of its interval; NaN where there is none."""

  value: np.ndarray
  low: np.ndarray
  high: np.ndarray


class Size(NamedTuple):
  """How large a term is, beside what chance alone would make of it."""

  norm: float  # Frobenius norm, over classes that both sources have two images of
  noise: float  # root mean square norm of its bootstrap error


class Additivity(NamedTuple):
  """Test of the hypothesis X = 0; see `decompose`."""

  statistic: float  # Frobenius norm of the interaction
  p_value: float  # NaN if no class has two images in both sources
  classes: tuple[int, ...]  # those that were tested


class Decomposition(NamedTuple):
  """What `decompose` finds."""

  matrices: dict[str, np.ndarray]  # cell -> Q (k, k)
  confidence: dict[str, Estimate]  # cell -> diagonal of Q, (k,)
  teacher: Estimate  # T (k, k)
  image: Estimate  # I (k, k)
  interaction: Estimate  # X (k, k)
  mass: dict[str, Estimate]  # term -> (k,) mean of its rows: probability that classes gain or lose
  sizes: dict[str, Size]  # of the three terms
  additivity: Additivity


def resampling_weights(seed: int, source: str, c: int, n: int, num_bootstrap: int) -> np.ndarray:
  """Shares (B, n) that bootstrap samples of the n images of class c give to each of them."""
  draw = rng.np_rng(seed, "bootstrap", source, c)
  return draw.multinomial(n, np.full(n, 1 / n), size=num_bootstrap) / n


def decompose(
  cells: Cells,
  num_classes: int,
  *,
  num_bootstrap: int = 2000,
  level: float = 0.95,
  seed: int = 0,
) -> Decomposition:
  """Splits the bias of soft labels into the teacher's, the images' and their interaction.

  **Bootstrap.** Images are resampled with replacement within their class, all label epochs of an
  image together. The images of the two sources are independent samples; the same images under the
  two teachers are one draw. Deviations of class means are multiplied by sqrt(n_c / (n_c - 1)),
  without which a bootstrap of few images is too narrow. Intervals are percentiles. A class with one
  image in a source has none. That images are each other's partners in CutMix is ignored.

  **Test of additivity.** Null hypothesis: X = 0 in every class that has two images or more in both
  sources. Statistic: the Frobenius norm of X over those classes. Its null distribution is that of
  ||X* - X||, with X* of the bootstrap above, and p = (1 + #{||X* - X|| >= ||X||}) / (1 + B). It is
  conservative with many classes of few images (docs/explanation/perturbation.md).

  Args:
    cells: see `Cells`.
    num_classes: k.
    num_bootstrap: B.
    level: of the intervals.
    seed: of the bootstrap.

  Raises:
    LtddError: shapes or labels that do not fit, values that are not finite, or no bootstrap sample.
  """
  check_bootstrap("num_bootstrap", num_bootstrap)
  means = {}
  for cell in CELLS:
    values, labels = getattr(cells, cell), labels_of(cells, cell)
    check_rows(f"cell {cell}", values, labels, num_classes, f"labels_{cell[0]}")
    means[cell] = class_means(values, labels, num_classes)
  value = contrasts(means)
  tails = [(1 - level) / 2, (1 + level) / 2]
  spans = {name: np.full((2, num_classes, num_classes), np.nan) for name in TERMS}
  diagonal = {cell: np.full((2, num_classes), np.nan) for cell in CELLS}
  square = {name: np.zeros(num_bootstrap) for name in TERMS}
  mass = {name: np.zeros((num_bootstrap, num_classes)) for name in TERMS}
  tested = []
  for c in range(num_classes):
    draws = _class_draws(cells, c, num_bootstrap, seed)
    for cell in draws:
      diagonal[cell][:, c] = np.quantile(draws[cell][:, c], tails, axis=0)
    if len(draws) < len(CELLS):
      continue
    tested.append(c)
    for name, draw in contrasts(draws).items():
      spans[name][:, c] = np.quantile(draw, tails, axis=0)
      square[name] += np.square(draw - value[name][c]).sum(1)
      mass[name] += draw
  estimate = {name: Estimate(value[name], *spans[name]) for name in TERMS}
  return Decomposition(
    matrices=means,
    confidence={cell: Estimate(np.diagonal(means[cell]), *diagonal[cell]) for cell in CELLS},
    **estimate,
    mass={name: _mass(value[name], mass[name], tested, tails) for name in TERMS},
    sizes={name: _size(value[name], square[name], tested) for name in TERMS},
    additivity=_additivity(value["interaction"], square["interaction"], tested),
  )


def contrasts(cells: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Teacher bias, image bias and interaction from the values of the four cells, elementwise."""
  teacher, image = cells["bi"] - cells["bb"], cells["ib"] - cells["bb"]
  return {
    "teacher": teacher,
    "image": image,
    "interaction": cells["ii"] - cells["bb"] - teacher - image,
  }


def labels_of(cells: Cells, cell: str) -> np.ndarray:
  """The classes of the images of a cell."""
  return cells.labels_b if cell[0] == "b" else cells.labels_i


def _class_draws(cells: Cells, c: int, num_bootstrap: int, seed: int) -> dict[str, np.ndarray]:
  """Bootstrap class means (B, k) of class c in the cells that have two images of it."""
  out = {}
  for source in "bi":
    rows = (cells.labels_b if source == "b" else cells.labels_i) == c
    n = int(rows.sum())
    if n < 2:
      continue
    weights = resampling_weights(seed, source, c, n, num_bootstrap)
    for teacher in "bi":
      values = getattr(cells, source + teacher)[rows]
      mean = values.mean(0)
      out[source + teacher] = mean + np.sqrt(n / (n - 1)) * (weights @ values - mean)
  return out


def _mass(value: np.ndarray, sums: np.ndarray, tested: list[int], tails: list[float]) -> Estimate:
  if not tested:
    return Estimate(*np.full((3, value.shape[1]), np.nan))
  return Estimate(value[tested].mean(0), *np.quantile(sums / len(tested), tails, axis=0))


def _size(value: np.ndarray, square: np.ndarray, tested: list[int]) -> Size:
  if not tested:
    return Size(np.nan, np.nan)
  return Size(float(np.linalg.norm(value[tested])), float(np.sqrt(square.mean())))


def _additivity(value: np.ndarray, square: np.ndarray, tested: list[int]) -> Additivity:
  if not tested:
    return Additivity(np.nan, np.nan, ())
  statistic = np.square(value[tested]).sum()
  p_value = (1 + int((square >= statistic).sum())) / (1 + len(square))
  return Additivity(float(np.sqrt(statistic)), p_value, tuple(tested))


def check_bootstrap(name: str, num_bootstrap: int) -> None:
  """Raises LtddError for fewer than one bootstrap sample."""
  if num_bootstrap < 1:
    raise LtddError(f"{name} is {num_bootstrap}; expected 1 or more bootstrap samples")
