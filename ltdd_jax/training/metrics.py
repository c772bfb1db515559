"""Count predictions class by class; every test image counts once.

evaluate = make_evaluate(model.apply, spec.mean, spec.std, spec.num_classes)    # compiled once
counts = evaluate(variables, images_uint8, labels, 256)
counts.top1(), counts.per_class()
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from ltdd_jax.core import mesh as mesh_lib
from ltdd_jax.core.types import Leaf, LtddError
from ltdd_jax.data import augment
from ltdd_jax.training import forward, many


@flax.struct.dataclass
class ClassCounts:
  """Predictions and images of each class: sums that merge. Seeds may lead `confusion`."""

  confusion: Leaf  # (k, k) or (s, k, k) int32: images of a class (row) predicted as another
  total: Leaf  # (k,) int32; more than a row of `confusion` sums to where predictions are NaN

  @property
  def correct(self) -> Leaf:
    """Correct predictions of each class, (k,) or (s, k)."""
    return jnp.diagonal(self.confusion, axis1=-2, axis2=-1)

  @classmethod
  def empty(cls, num_classes: int) -> "ClassCounts":
    """Makes the counts of no image, neutral in `merge`."""
    zeros = functools.partial(jnp.zeros, dtype=jnp.int32)
    return cls(zeros((num_classes, num_classes)), zeros(num_classes))

  @classmethod
  def from_batch(
    cls,
    logits: Float[Array, "*s b k"],
    labels: Int[Array, "b"],
    mask: Bool[Array, "b"],
    num_classes: int,
  ) -> "ClassCounts":
    """Counts the images of one batch whose mask is True.

    A row of NaN is no prediction, and so wrong; the first of equal logits is the prediction.
    """
    zeros = jnp.zeros((num_classes, num_classes), jnp.int32)

    def table(logits: jax.Array) -> jax.Array:
      counted = mask & ~jnp.isnan(logits).any(-1)
      return zeros.at[labels, jnp.argmax(logits, -1)].add(counted.astype(jnp.int32))

    confusion = jnp.vectorize(table, signature="(b,k)->(k,k)")(logits)
    total = jnp.zeros(num_classes, jnp.int32).at[labels].add(mask.astype(jnp.int32))
    return cls(confusion, total)

  def merge(self, other: "ClassCounts") -> "ClassCounts":
    """Adds two counts; one with a seed axis and one without it give one with it."""
    shape = jnp.broadcast_shapes(jnp.shape(self.confusion), jnp.shape(other.confusion))
    own, others = (jnp.broadcast_to(x.confusion, shape) for x in (self, other))
    return ClassCounts(own + others, self.total + other.total)

  def per_class(self) -> np.ndarray:
    """Computes the accuracy of each class on the host: (k,) or (s, k), NaN without images."""
    correct, total = np.asarray(self.correct), np.asarray(self.total)
    return np.where(total > 0, correct / np.maximum(total, 1), np.nan)

  def top1(self) -> np.ndarray:
    """Computes the accuracy over all images on the host: () or (s,), NaN without images."""
    correct, total = np.asarray(self.correct).sum(-1), np.asarray(self.total).sum()
    return np.where(total > 0, correct / np.maximum(total, 1), np.nan)


def make_evaluate(
  apply_fn: Callable[..., jax.Array],
  mean: Sequence[float],
  std: augment.Std,
  num_classes: int,
  *,
  networks: bool = False,
  mesh: jax.sharding.Mesh | None = None,
) -> Callable[..., ClassCounts]:
  """Makes a function that scores a whole test set. Make it once for each model: it is compiled.

  Args:
    apply_fn: `model.apply`.
    mean: (c,) of the data set.
    std: (c,) of the data set, or its whitening.
    num_classes: k.
    networks: whether the variables have a leading axis of networks.
    mesh: the devices; all by default.

  Returns:
    `evaluate(variables, images (n,h,w,c) uint8, labels (n,), batch_size)`. Every image counts
    once. It raises LtddError without images, or for another number of labels.
  """
  mesh = mesh or mesh_lib.make_mesh()

  def predict(variables: Any, images: jax.Array, *, mesh: jax.sharding.Mesh | None) -> jax.Array:
    pixels = mesh_lib.split_batch(mesh, augment.normalize(images, mean, std))
    return apply_fn(variables, pixels, train=False)

  several = many.over_networks(predict, (0, None), mesh)

  @jax.jit
  def step(consts: Any, rows: jax.Array, counts: jax.Array) -> ClassCounts:
    variables, images, labels = consts
    batch = images[rows]
    logits = several(variables, batch) if networks else predict(variables, batch, mesh=mesh)
    return ClassCounts.from_batch(logits, labels[rows], counts, num_classes)

  def evaluate(
    variables: Any, images: jax.Array, labels: jax.Array, batch_size: int
  ) -> ClassCounts:
    if len(images) != len(labels):
      raise LtddError(f"evaluation: {len(images)} images but {len(labels)} labels")
    consts = (variables, images, labels)
    parts = forward.over_images(step, consts, len(images), batch_size)
    return functools.reduce(ClassCounts.merge, parts)

  return evaluate
