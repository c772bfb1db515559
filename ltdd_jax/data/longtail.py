"""Long-tailed training sets: how many images each class keeps, and which.

  split = make_split(source.train_labels, 10, rule="ltdd", imbalance_factor=100)
  images = source.read("train", split.indices)

Everything here is NumPy and decided by published seeds, so a split is the same on every host; its
SHA-256 is what later stages check.
"""

import hashlib
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ltdd_jax.core.types import LtddError
from ltdd_jax.data import checks

_SEEDS = {"ltdd": 42, "ldam": 0, "counts": 42, "as_is": 0}  # the published ones, by rule
# The published subsets of CIFAR-10 by rule and imbalance factor: SHA-256 of the sorted positions in
# its archive as little-endian int64.
PUBLISHED: dict[tuple[str, float], str] = {
  ("ltdd", 10): "6e46181f86d9f00707ee0652308587d12d71207c2d68315deb8a717e946b9ba7",
  ("ltdd", 20): "6343ca42157d5af6a3458151c5aaa717c595a425e446ef2f8ab20072bbe0990a",
  ("ltdd", 50): "975816eade541d9fc2797bdf682c4aa1214a45844c18e6a42e1058145e63a755",
  ("ltdd", 100): "302d181fe341f84083a95a81ae96909817a1065e89f882ea80603e0b2d18365a",
  ("ltdd", 200): "ba680284f8480762abb2fd6b3b130f26f2d3b418783ede225015161a5c15b2ff",
  ("ldam", 10): "448d422a25745cdaddb0c8f0da49d43d297b6b29058379b9440627c227cfc243",
  ("ldam", 20): "25b714f644c8081aedf971cbc43397896e4780f553c855f29a50a56fad26e262",
  ("ldam", 50): "620184a2896675c834da5f030951948e3480f350a46537d6a4adc4451699def2",
  ("ldam", 100): "f7669c469c9ddf9afcfabc0b127018ebfa21ac9ecddbe2642455be26c359cb8d",
  ("ldam", 200): "71da1ec51fc39313a87f0b3eb37f8e2325954ce7606d7a6ccad2cef25135df4f",
}
_LONG_TAILED = 2  # largest class / average from which a source is; SVHN, the least even, has 1.89
WHY_EMPTY = (  # for messages about classes without a training image
  "Labels that skip a class, a test set with more classes, or a config.data.imbalance_factor too "
  "large for the smallest classes may be the cause."
)


class Split(NamedTuple):
  """A training set: positions into the source's training images."""

  rule: str
  imbalance_factor: float  # as asked for (ltdd, ldam), else measured: largest / smallest count
  counts: tuple[int, ...]  # (k,)
  indices: np.ndarray  # (n,) int64
  labels: np.ndarray  # (n,) int32
  sha256: str
  num_short: int = 0  # classes that keep all their images, fewer than the rule wants


def class_counts(n_max: int, num_classes: int, imbalance_factor: float | int) -> np.ndarray:
  """Returns the truncated exponential profile, (k,) int64, class 0 being the head.

  `n_c = int(n_max * (1 / IF) ** (c / (k - 1)))`, as LDAM's `imbalance_cifar.py` and LTDD have it.
  Truncation matters: rounding gives CIFAR-100 at IF 100 10,899 images instead of 10,847.

  Raises:
    LtddError: for an imbalance factor below 1 or fewer than two classes.
  """
  if not (np.isfinite(imbalance_factor) and imbalance_factor >= 1):
    raise LtddError(
      f"imbalance_factor={imbalance_factor}: expected largest / smallest class, a number >= 1 "
      "(1 keeps the set balanced, 100 keeps 1 % of the last class)."
    )
  if num_classes < 2:
    raise LtddError(f"num_classes={num_classes}: a long-tailed set needs at least 2 classes.")
  ratio = 1 / imbalance_factor
  counts = [int(n_max * ratio ** (c / (num_classes - 1))) for c in range(num_classes)]
  return np.array(counts, np.int64)


def make_split(
  train_labels: np.ndarray,
  num_classes: int,
  *,
  rule: str = "ltdd",
  imbalance_factor: float | int = 1,
  counts: Sequence[int] | np.ndarray | None = None,
  seed: int | None = None,
) -> Split:
  """Chooses the images of a long-tailed training set.

  Args:
    train_labels: (N,) integers.
    num_classes: k.
    rule: `ltdd` has counts by `class_counts`, and class by class `RandomState(42).choice(available,
      n_c)`: all classes use the same positions, and a smaller subset is a prefix of a larger one; a
      class of fewer images than its n_c, but half the average at least, keeps all of them;
      `ldam` has the same counts, and one `RandomState(0)` shuffles each class in turn and keeps its
      first n_c; `counts` has the given vector, images chosen as by `ltdd`; `as_is` has every image
      in the source's order (the data are long-tailed already).
    imbalance_factor: for `ltdd` and `ldam` only.
    counts: for `counts` only, k integers >= 0.
    seed: another seed than the published one.

  Raises:
    LtddError: for an unknown rule, an argument that the rule does not take, `ltdd` or `ldam` for a
      source that is long-tailed itself, a class with fewer images than asked for, or a bad seed.
  """
  if seed is not None and not 0 <= seed < 2**32:
    raise LtddError(f"seed={seed}: expected a whole number from 0 to 2**32 - 1, or None.")
  available = np.bincount(train_labels, minlength=num_classes)
  if len(available) != num_classes:
    raise LtddError(
      f"train_labels reach {len(available) - 1} but num_classes={num_classes}: "
      f"expected labels in [0, {num_classes})."
    )
  asked = _wanted_counts(rule, available, imbalance_factor, counts)
  wanted = np.minimum(asked, available)
  if rule == "as_is":
    indices = np.arange(len(train_labels), dtype=np.int64)
  else:
    indices = _choose(train_labels, wanted, rule, _SEEDS[rule] if seed is None else seed)
  if rule in ("counts", "as_is"):
    kept = wanted[wanted > 0]
    imbalance_factor = float(kept.max() / kept.min())
  chosen = train_labels[indices].astype(np.int32)
  return Split(
    rule=rule,
    imbalance_factor=float(imbalance_factor),
    counts=tuple(int(n) for n in wanted),
    indices=indices,
    labels=chosen,
    sha256=_digest(wanted, indices, chosen),
    num_short=int((asked > available).sum()),
  )


def _wanted_counts(rule, available, imbalance_factor, counts) -> np.ndarray:
  if rule not in _SEEDS:
    raise LtddError(
      f"split rule {rule!r} is not known. Rules: {', '.join(_SEEDS)}, and in config.data.splits "
      "matched."
    )
  if (counts is not None) != (rule == "counts"):
    raise LtddError(
      f"rule={rule!r} with counts={counts}: the vector `counts` and rule='counts' go together."
    )
  if rule in ("counts", "as_is") and imbalance_factor != 1:
    raise LtddError(
      f"rule={rule!r} with imbalance_factor={imbalance_factor}: this rule measures the imbalance, "
      "it does not set it. Leave imbalance_factor at 1, or use rule='ltdd' or 'ldam'."
    )
  if rule == "as_is":
    wanted = available.astype(np.int64)
  elif rule == "counts":
    given = list(counts)
    if len(given) != len(available) or not all(checks.is_whole(n) and n >= 0 for n in given):
      raise LtddError(f"counts={counts}: expected {len(available)} integers >= 0, one a class.")
    wanted = np.array(given, np.int64)
  else:
    mean = int(available.sum() / len(available))
    if available.max() > _LONG_TAILED * mean:
      raise LtddError(
        f"rule={rule!r}: the source is long-tailed itself ({available.max()} training images in "
        f"the largest class, {mean} on average), so this rule would cut it from the average. Use "
        "rule='as_is' with imbalance_factor=1, or rule='counts' with an explicit vector, such as "
        "data.longtail.class_counts(n_max, k, imbalance_factor)."
      )
    wanted = class_counts(mean, len(available), imbalance_factor)
  if wanted.sum() == 0:
    raise LtddError("the split has no image at all: every class count is 0.")
  short = np.flatnonzero(wanted > available)
  if rule == "ltdd":  # as LTDD's loader of ImageNet, whose smallest class has 732 of 1,281
    short = short[available[short] * _LONG_TAILED < mean]
  if len(short):
    c = short[0]
    if rule == "counts":
      advice = f"Expected counts of at most {available.tolist()}."
    else:
      advice = (
        "The exponential rules assume a balanced source of "
        f"{int(available.sum() / len(available))} images a class; use rule='as_is' for data that "
        "are long-tailed already, or rule='counts' with an explicit vector."
      )
    raise LtddError(
      f"class {c} has {available[c]} training images but the split asks for {wanted[c]} "
      f"({len(short)} class(es) are short). {advice}"
    )
  return wanted


def _choose(labels: np.ndarray, wanted: np.ndarray, rule: str, seed: int) -> np.ndarray:
  shared = np.random.RandomState(seed)
  chosen = []
  for c, n in enumerate(wanted):
    members = np.flatnonzero(labels == c)
    if rule == "ldam":
      shared.shuffle(members)
      chosen.append(members[:n])
    else:
      order = np.random.RandomState(seed)
      chosen.append(members[order.choice(len(members), n, replace=False)] if n else members[:0])
  return np.concatenate(chosen).astype(np.int64)


def _digest(counts: np.ndarray, indices: np.ndarray, labels: np.ndarray) -> str:
  """SHA-256 of sizes, counts, indices and labels as little-endian int64; the rule is not in it."""
  digest = hashlib.sha256()
  for part in ([len(counts), len(indices)], counts, indices, labels):
    digest.update(np.asarray(part).astype("<i8").tobytes())
  return digest.hexdigest()


def provenance(dataset: str, split: Split) -> str:
  """Whether the images of a split are the published ones, for a sentence; "" where there are none.

  The archive's order of CIFAR-100 is not known to us, so that its subsets are never called so.
  """
  if split.rule not in ("ltdd", "ldam") or not dataset.startswith("cifar"):
    return ""
  positions = hashlib.sha256(np.sort(split.indices).astype("<i8").tobytes()).hexdigest()
  known = PUBLISHED.get((split.rule, split.imbalance_factor)) if dataset == "cifar10" else None
  if known is None:
    return "published rule; whether the images are the published ones is not known"
  return "published split" if positions == known else "published rule, other images"


def log_prior(counts: Sequence[int] | np.ndarray) -> np.ndarray:
  """Returns log(counts / sum), (k,) float32; -inf for a class without an image."""
  counts = np.asarray(counts, np.float64)
  with np.errstate(divide="ignore"):
    return (np.log(counts) - np.log(counts.sum())).astype(np.float32)


def groups(counts: Sequence[int] | np.ndarray, rule: str = "thirds") -> dict[str, tuple[int, ...]]:
  """Assigns classes to head, mid and tail by their number of training images.

  Args:
    counts: (k,) training images.
    rule: `counts(a,b)` has head n > a, tail n < b, mid between; `counts(100,20)` is Kang et al.'s.
      `thirds` has, by descending count (ties by class number), k // 3 classes in head and tail, the
      rest in mid: 3/4/3 for ten classes. Of two classes the larger is the head and the smaller the
      tail; a single class is mid.

  Raises:
    LtddError: for another rule.
  """
  counts = np.asarray(counts)
  order = np.argsort(-counts, kind="stable")
  match = re.fullmatch(r"counts\((\d+),\s*(\d+)\)", rule)
  if match:
    high, low = int(match[1]), int(match[2])
    if high < low - 1:
      raise LtddError(f"group rule {rule!r}: a class may be head and tail; expected a >= b - 1.")
    parts = (order[counts[order] > high], order[counts[order] < low])
  elif rule == "thirds":
    third = max(len(order) // 3, 1) if len(order) > 1 else 0
    parts = (order[:third], order[len(order) - third :])
  else:
    raise LtddError(f"group rule {rule!r} is not known. Use 'counts(100,20)' or 'thirds'.")
  head, tail = (tuple(sorted(int(c) for c in part)) for part in parts)
  mid = tuple(c for c in range(len(counts)) if c not in head and c not in tail)
  return {"head": head, "mid": mid, "tail": tail}


def bins(counts: Sequence[int] | np.ndarray, most: int) -> tuple[np.ndarray, ...]:
  """Classes by descending number of training images, in at most `most` bins of neighbours."""
  order = np.argsort(-np.asarray(counts), kind="stable")
  return tuple(np.array_split(order, min(len(order), most)))
