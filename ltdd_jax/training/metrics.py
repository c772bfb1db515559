"""Count correct predictions class by class; every test image counts once.

step = make_eval_step(model.apply, spec.mean, spec.std, spec.num_classes)     # compiled once
counts = run_eval(step, variables, images_uint8, labels, batch_size=256)
counts.top1(), counts.per_class(), group_means(counts.per_class(), groups)
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from ltdd_jax.core import mesh as mesh_lib
from ltdd_jax.core.types import Leaf, LtddError
from ltdd_jax.data import augment


@flax.struct.dataclass
class ClassCounts:
  """Correct predictions and images of each class: sums that merge. Seeds may lead `correct`."""

  correct: Leaf  # (k,) or (s, k) int32
  total: Leaf  # (k,) int32

  @classmethod
  def empty(cls, num_classes: int) -> "ClassCounts":
    """Makes the counts of no image, neutral in `merge`."""
    return cls(jnp.zeros(num_classes, jnp.int32), jnp.zeros(num_classes, jnp.int32))

  @classmethod
  def from_batch(
    cls,
    logits: Float[Array, "*s b k"],
    labels: Int[Array, "b"],
    mask: Bool[Array, "b"],
    num_classes: int,
  ) -> "ClassCounts":
    """Counts one batch. A row of NaN counts as wrong; the first of equal logits is the prediction.

    Args:
      logits: (b, k) or (s, b, k).
      labels: (b,) class numbers.
      mask: (b,) bool, False for images that do not count.
      num_classes: k.
    """
    member = (labels[:, None] == jnp.arange(num_classes)[None]) & mask[:, None]
    predicted = jnp.argmax(logits, axis=-1)
    labels = jnp.broadcast_to(labels, predicted.shape)
    right = (predicted == labels) & ~jnp.isnan(logits).any(-1)
    right = right[..., None] & jnp.broadcast_to(member, (*right.shape, num_classes))
    return cls(right.sum(-2, dtype=jnp.int32), member.sum(0, dtype=jnp.int32))

  def merge(self, other: "ClassCounts") -> "ClassCounts":
    """Adds two counts; one with a seed axis and one without it give one with it."""
    shape = jnp.broadcast_shapes(jnp.shape(self.correct), jnp.shape(other.correct))
    correct = jnp.broadcast_to(self.correct, shape) + jnp.broadcast_to(other.correct, shape)
    return ClassCounts(correct, self.total + other.total)

  def per_class(self) -> np.ndarray:
    """Computes the accuracy of each class on the host: (k,) or (s, k), NaN without images."""
    correct, total = np.asarray(self.correct), np.asarray(self.total)
    return np.where(total > 0, correct / np.maximum(total, 1), np.nan)

  def top1(self) -> np.ndarray:
    """Computes the accuracy over all images on the host: () or (s,), NaN without images."""
    correct, total = np.asarray(self.correct).sum(-1), np.asarray(self.total).sum()
    return np.where(total > 0, correct / np.maximum(total, 1), np.nan)


EvalStep = Callable[..., ClassCounts]


def make_eval_step(
  apply_fn: Callable[..., jax.Array],
  mean: Sequence[float],
  std: Sequence[float],
  num_classes: int,
  *,
  seeds: bool = False,
  mesh: jax.sharding.Mesh | None = None,
) -> EvalStep:
  """Makes the compiled step of an evaluation. Make it once for each model: it holds the cache.

  Args:
    apply_fn: `model.apply`.
    mean: (c,) of pixels in [0, 1].
    std: (c,).
    num_classes: k.
    seeds: whether each variable has a leading axis of seeds, all of which see each batch.
    mesh: devices to split each batch over.

  Returns:
    `step(variables, images (n,h,w,c) uint8, labels (n,), first, size) -> ClassCounts` of the images
    from `first` on, at most `size` (static) of them. Where fewer are left, the batch is filled up
    with the images before `first`, and these are masked.
  """

  def step(variables, images, labels, first, size):
    start = jnp.minimum(first, len(images) - size)
    batch = jax.lax.dynamic_slice_in_dim(images, start, size)
    batch = batch if mesh is None else mesh_lib.split_batch(mesh, batch)
    batch = augment.normalize(batch, mean, std)
    predict = lambda v: apply_fn(v, batch, train=False)
    # One after another: vmap makes grouped convolutions, three times as slow on CPU.
    logits = jax.lax.map(predict, variables) if seeds else predict(variables)
    labels = jax.lax.dynamic_slice_in_dim(labels, start, size)
    return ClassCounts.from_batch(logits, labels, start + jnp.arange(size) >= first, num_classes)

  return jax.jit(step, static_argnames="size")


def run_eval(
  step: EvalStep, variables: Any, images: jax.Array, labels: jax.Array, batch_size: int
) -> ClassCounts:
  """Counts a whole test set in batches of one size; the remainder counts, and counts once.

  Args:
    step: from `make_eval_step`.
    variables: of the model, or of several with a leading axis of seeds.
    images: (n, h, w, c) uint8, on the device.
    labels: (n,) class numbers, on the device.
    batch_size: images in one step, clamped to n.

  Raises:
    LtddError: no images, or another number of labels.
  """
  n = len(images)
  if not n or n != len(labels) or batch_size < 1:
    raise LtddError(
      f"evaluation: {n} images, {len(labels)} labels and batch_size={batch_size}; expected at "
      "least one image, one label for each, and a batch of at least 1."
    )
  size = min(batch_size, n)
  counts = [step(variables, images, labels, first, size=size) for first in range(0, n, size)]
  return functools.reduce(ClassCounts.merge, counts)


def evaluate(
  apply_fn: Callable[..., jax.Array],
  variables: Any,
  images: jax.Array,
  labels: jax.Array,
  *,
  mean: Sequence[float],
  std: Sequence[float],
  batch_size: int,
  num_classes: int,
  seeds: bool = False,
) -> ClassCounts:
  """Evaluates once; see `make_eval_step` and `run_eval`, which repeated evaluations should use."""
  step = make_eval_step(apply_fn, mean, std, num_classes, seeds=seeds)
  return run_eval(step, variables, images, labels, batch_size)


def group_means(
  per_class: np.ndarray, groups: Mapping[str, Sequence[int]]
) -> dict[str, np.ndarray]:
  """Averages accuracies over groups of classes.

  Args:
    per_class: (k,) or (s, k); classes without test images are NaN and left out.
    groups: names and their classes, such as `longtail.groups` gives.

  Returns:
    () or (s,) for each group; NaN for one without classes.
  """
  return {name: _mean_of_known(np.asarray(per_class)[..., list(c)]) for name, c in groups.items()}


def _mean_of_known(values: np.ndarray) -> np.ndarray:
  known = np.isfinite(values)
  count = known.sum(-1)
  return np.where(count > 0, np.where(known, values, 0).sum(-1) / np.maximum(count, 1), np.nan)
