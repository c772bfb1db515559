"""Does a distilled set give away its training images? A membership test by nearest neighbours.

  found = self_test(images, labels, train_images, train_labels, test_images, test_labels)
  found.membership            # 0.05 for images that are no nearer than unseen ones; 1 for copies

Training images and held-out ones are of the same distribution, so that what is much nearer to the
training images than the held-out ones are was copied from them. Classes are compared one by one:
test images of a small class are far from its few training images. Images are stored ones, uint8 or
float32 pixels from 0 to 1, or any vectors in their place: features, of which `unit` makes L2 a
distance of cosines.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, Num

from ltdd_jax.core.types import LtddError
from ltdd_jax.data.stream import HostImages

Images = Num[np.ndarray, "n ..."] | HostImages
Labels = Int[np.ndarray, " n"]


class Nearest(NamedTuple):
  """The nearest training image of the same class, for each image."""

  distance: np.ndarray  # (n,) float64, L2; inf for a class without training images
  row: np.ndarray  # (n,) int64, among the training images; -1 likewise


class Leakage(NamedTuple):
  """What a self-test found."""

  nearest: Nearest  # of the distilled images
  distance: float  # mean over the distilled images
  test_distance: float  # mean over the test images, each class counting as it does in the set
  membership: float  # share nearer than the percentile; percentile / 100 is expected without leaks
  auc: float  # chance that a distilled image is nearer than a test image of its class; 0.5 likewise
  nearer_to_train: float  # share whose nearest real image is a training and not a test image
  nearer_expected: float  # that share, by the numbers of images alone


def unit(vectors: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n d"]:
  """Scales vectors to length 1: L2 distances are then sqrt(2 - 2 cosine)."""
  return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def nearest(
  images: Images,
  labels: Labels,
  train: Num[np.ndarray, "N ..."] | HostImages,
  train_labels: Int[np.ndarray, " N"],
  *,
  block: int = 1024,
) -> Nearest:
  """Finds the nearest training image of the same class of each image.

  Products of `block` by `block` images find it, and its distance is then computed from the
  difference, so that a copy has distance 0 exactly.
  """
  distance, row = np.full(len(labels), np.inf), np.full(len(labels), -1)
  for c in np.unique(labels):
    own, known = np.flatnonzero(labels == c), np.flatnonzero(train_labels == c)
    if not len(known):
      continue
    middle = _vectors(train, known[:block]).mean(0)  # near the mean: small numbers round less
    for start in range(0, len(own), block):
      rows = own[start : start + block]
      x = _vectors(images, rows)
      row[rows] = known[_nearest_rows(x - middle, train, known, middle, block)]
      distance[rows] = np.linalg.norm(x - _vectors(train, row[rows]), axis=1)
  return Nearest(distance, row)


def _vectors(images: np.ndarray | HostImages, rows: np.ndarray) -> Float[np.ndarray, "b d"]:
  """Some of the images as float32 vectors; whole levels become pixels from 0 to 1."""
  levels = 255 if np.issubdtype(images.dtype, np.integer) else 1
  return images[rows].reshape(len(rows), -1).astype(np.float32) / np.float32(levels)


def _nearest_rows(
  x: np.ndarray, train: np.ndarray | HostImages, known: np.ndarray, middle: np.ndarray, block: int
) -> np.ndarray:
  """The place in `known` of the nearest row; the first of equals."""
  best, place = np.full(len(x), np.inf, np.float32), np.zeros(len(x), np.int64)
  for start in range(0, len(known), block):
    y = _vectors(train, known[start : start + block]) - middle
    squares = np.square(y).sum(1)[None] - 2 * (x @ y.T)  # and |x|^2, the same for all of a row
    least = squares.argmin(1)
    found = squares[np.arange(len(x)), least]
    place = np.where(found < best, start + least, place)
    best = np.minimum(found, best)
  return place


def self_test(
  images: Images,
  labels: Labels,
  train: Num[np.ndarray, "N ..."] | HostImages,
  train_labels: Int[np.ndarray, " N"],
  test: Num[np.ndarray, "m ..."] | HostImages,
  test_labels: Int[np.ndarray, " m"],
  *,
  percentile: float | int = 5,
) -> Leakage:
  """Compares distances of distilled images to the training set with those of test images.

  `membership` is the share of the distilled images whose distance to the nearest training image of
  their class is less than the given percentile of that distance over the test images of the class.
  `auc` counts equal distances half. Both are raised without copying by images that are smoother
  than real ones, since L2 is small to these; `nearer_to_train` is not: it compares distances of a
  distilled image to the training and to the test images of its class, and is `nearer_expected`, the
  mean of n_c / (n_c + m_c), for images that know nothing of the training images. Smooth images of
  a class may all have the same nearest image: then it is in effect one draw for each class.

  Args:
    images: the distilled ones.
    labels: their classes.
    train: the training images.
    train_labels: their classes.
    test: images that no part of the distillation saw.
    test_labels: their classes.
    percentile: above 0 and below 100.

  Raises:
    LtddError: a bad percentile, no image, or a class of the set without training or test images.
  """
  if not 0 < percentile < 100:
    raise LtddError(f"percentile is {percentile}; expected a number above 0 and below 100")
  for name, known in (("training", train_labels), ("test", test_labels)):
    missing = np.setdiff1d(labels, known)
    if len(missing) or not len(labels):
      raise LtddError(
        f"leakage: classes {missing.tolist()} of the {len(labels)} distilled images have no {name} "
        "image to compare with; expected one or more. Leave images of these classes out"
      )
  own = nearest(images, labels, train, train_labels)
  unseen = nearest(images, labels, test, test_labels)
  others = nearest(test, test_labels, train, train_labels).distance
  member, auc, means = np.zeros(len(labels)), np.zeros(len(labels)), np.zeros(len(labels))
  for c in np.unique(labels):
    mine, theirs = labels == c, others[test_labels == c]
    d = own.distance[mine]
    means[mine] = theirs.mean()
    member[mine] = d < np.percentile(theirs, percentile)
    auc[mine] = _win(d[:, None], theirs[None]).mean(1)
  share = lambda x: np.bincount(x, minlength=labels.max() + 1)[labels]
  expected = share(train_labels) / (share(train_labels) + share(test_labels))
  return Leakage(
    nearest=own,
    distance=float(own.distance.mean()),
    test_distance=float(means.mean()),
    membership=float(member.mean()),
    auc=float(auc.mean()),
    nearer_to_train=float(_win(own.distance, unseen.distance).mean()),
    nearer_expected=float(expected.mean()),
  )


def _win(a: np.ndarray, b: np.ndarray) -> np.ndarray:
  """1 where a < b, half where they are equal."""
  return (a < b) + 0.5 * (a == b)
