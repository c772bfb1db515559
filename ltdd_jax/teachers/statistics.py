"""Statistics of a network's activations on the training set, class by class.

  target = pooled(layer, statistics.counts)        # of all images: what G-VBSM matches
  target = per_class(layer, var="within_image")    # of each class: what EDC's released code has
  x_tiles = tiles(x, 4)                            # (b, p, 4 * 4 * c), for the same of a batch

For the input of every batch norm and convolution there are three numbers for each class and
channel: the mean, the mean variance within an image, and the variance between images of their
means. All images have the same number of pixels, so the three give mean and variance of any union
of classes exactly. For convolutions there are the same three of each tile of q x q pixels and all
channels. Two `Statistics` of different images merge to that of all.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ltdd_jax.core.types import Leaf, LtddError
from ltdd_jax.models import taps

LAYERS = (nn.BatchNorm, nn.Conv)
VARIANCES = ("pooled", "within_image")


@flax.struct.dataclass
class LayerStatistics:
  """Statistics of one layer's input for each of k classes; zeros for a class without images."""

  path: str = flax.struct.field(pytree_node=False)  # as `taps.LayerInput.path`
  kind: str = flax.struct.field(pytree_node=False)  # "batch_norm" or "conv"
  mean: Leaf  # (k, c) of the channel means of the class's images
  within: Leaf  # (k, c) mean of the biased variance within an image, over (h, w)
  between: Leaf  # (k, c) biased variance of the images' channel means
  tile_mean: Leaf = None  # (k, p) the same of tiles, over (q, q, c); None for batch norms
  tile_within: Leaf = None  # (k, p)
  tile_between: Leaf = None  # (k, p)


@flax.struct.dataclass
class Statistics:
  """Statistics of one network, of its batch norms and convolutions in the order of calls."""

  counts: Leaf  # (k,) float32, images seen of each class
  layers: tuple[LayerStatistics, ...]  # the first is that of the stem convolution


class Target(NamedTuple):
  """Mean and variance of each channel and tile, with a leading k if of each class."""

  mean: Leaf  # (..., c)
  var: Leaf  # (..., c)
  tile_mean: Leaf = None  # (..., p)
  tile_var: Leaf = None  # (..., p)


# ---- what they are used for ----


def pooled(
  layer: LayerStatistics, counts: Float[Array, "k"], *, batch: int | None = None
) -> Target:
  """Computes mean and variance of the images of all classes as one set.

      mean = sum_c w_c m_c,   var = sum_c w_c (within_c + between_c + (m_c - mean)^2),
      w_c = counts_c / sum counts

  In what we differ: the released code of G-VBSM and EDC stores the mean of the variances of batches
  of 64 images (256 on ImageNet), which on average lacks 1/64 of the variance of the images' means.
  `batch=64` takes that off.

  Args:
    layer: of one layer.
    counts: (k,) weights of the classes: `Statistics.counts`, or others, such as 1 for each class
      that has images, which no longer favours large classes.
    batch: images in the batches whose mean variance is wanted; None is one set of all.

  Returns:
    Vectors (c,) and (p,).
  """
  mean, var = _pool(counts, batch, layer.mean, layer.within, layer.between)
  if layer.tile_mean is None:
    return Target(mean, var)
  in_tiles = _pool(counts, batch, layer.tile_mean, layer.tile_within, layer.tile_between)
  return Target(mean, var, *in_tiles)


def per_class(layer: LayerStatistics, *, var: str = "pooled") -> Target:
  """Gives mean and variance of each class.

  Args:
    layer: of one layer.
    var: "pooled" is the variance over all pixels of a class, within images and between them;
      "within_image" leaves out the second, as EDC's released code does.

  Returns:
    Matrices (k, c) and (k, p); zeros for a class without images.

  Raises:
    LtddError: another `var`.
  """
  if var not in VARIANCES:
    raise LtddError(f"variance of class statistics is {var!r}; expected one of {VARIANCES}")
  both = var == "pooled"
  channels = layer.within + layer.between if both else layer.within
  if layer.tile_mean is None:
    return Target(layer.mean, channels)
  in_tiles = layer.tile_within + layer.tile_between if both else layer.tile_within
  return Target(layer.mean, channels, layer.tile_mean, in_tiles)


def tiles(x: Float[Array, "b h w c"], q: int) -> Float[Array, "b p n"]:
  """Cuts maps into tiles of q x q pixels, in rows from the upper left.

  A map whose height or width is no multiple of q is resized up to the next one, bilinearly with
  half-pixel centres. Source: `ConvFeatureHook` of G-VBSM's and EDC's released code.

  Args:
    x: (b, h, w, c).
    q: side of a tile; 4 for images of 32 and 64 pixels, 16 for 224.

  Returns:
    (b, p, q * q * c) with p = ceil(h / q) * ceil(w / q).
  """
  b, h, w, c = x.shape
  rows, columns = -(-h // q), -(-w // q)
  if (rows * q, columns * q) != (h, w):
    x = jax.image.resize(x, (b, rows * q, columns * q, c), "bilinear")
  x = x.reshape(b, rows, q, columns, q, c).transpose(0, 1, 3, 2, 4, 5)
  return x.reshape(b, rows * columns, q * q * c)


# ---- how they are computed ----


def of_batch(
  inputs: Sequence[taps.LayerInput], member: Float[Array, "b k"], tile: int
) -> Statistics:
  """Computes the statistics of one batch.

  Args:
    inputs: of the layers, as `taps.apply_with_inputs(..., LAYERS)` returns them.
    member: (b, k) one-hot classes; a row of zeros is an image that does not count.
    tile: q.
  """
  return Statistics(member.sum(0), tuple(_of_layer(x, member, tile) for x in inputs))


def of_images(
  model: nn.Module,
  variables: Any,
  images: Float[Array, "b h w c"],
  member: Float[Array, "b k"],
  tile: int,
) -> Statistics:
  """Runs a model in eval mode on one batch of normalised images; see `of_batch`."""
  return of_batch(taps.apply_with_inputs(model, variables, images, LAYERS)[1], member, tile)


def shapes(
  model: nn.Module, variables: Any, image_shape: Sequence[int], num_classes: int, tile: int
) -> Statistics:
  """Gives the shapes of a network's statistics, without computing; `variables` may be shapes."""
  images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
  member = jax.ShapeDtypeStruct((1, num_classes), jnp.float32)
  compute = lambda v, x, m: of_images(model, v, x, m, tile)
  return jax.eval_shape(compute, variables, images, member)


def merge(a: Statistics, b: Statistics) -> Statistics:
  """Combines the statistics of two disjoint sets of images to those of their union.

  With n = n_a + n_b and d = m_b - m_a, for each class (Chan, Golub and LeVeque, 1979)

      m = m_a + d n_b / n,   between = (n_a between_a + n_b between_b) / n + d^2 n_a n_b / n^2

  and `within` is a mean as m is. No sum of squares is formed, so large means cost no digits.
  """
  share = b.counts / jnp.maximum(a.counts + b.counts, 1)
  layers = zip(a.layers, b.layers, strict=True)
  return Statistics(
    a.counts + b.counts, tuple(_merge_layer(x, y, share[:, None]) for x, y in layers)
  )


def _of_layer(layer: taps.LayerInput, member: jax.Array, tile: int) -> LayerStatistics:
  x = layer.value.astype(jnp.float32)
  b, c = x.shape[0], x.shape[-1]
  channels = _by_class(x.reshape(b, -1, c).transpose(0, 2, 1), member)
  in_tiles = _by_class(tiles(x, tile), member) if layer.kind == "conv" else (None,) * 3
  return LayerStatistics(layer.path, layer.kind, *channels, *in_tiles)


def _by_class(x: Any, member: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Mean, within and between (k, d) of values (b, d, n), n for each of d channels or tiles."""
  mean = x.mean(-1)
  within = jnp.square(x - mean[..., None]).mean(-1)
  share = (member / jnp.maximum(member.sum(0), 1)[None]).T
  dot = lambda a, b: jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)
  class_mean = dot(share, mean)
  between = dot(share, jnp.square(mean - dot(member, class_mean)))
  return class_mean, dot(share, within), between


def _merge_layer(a: LayerStatistics, b: LayerStatistics, share: jax.Array) -> LayerStatistics:
  channels = _merge((a.mean, a.within, a.between), (b.mean, b.within, b.between), share)
  if a.tile_mean is None:
    return LayerStatistics(a.path, a.kind, *channels)
  in_tiles = _merge(
    (a.tile_mean, a.tile_within, a.tile_between),
    (b.tile_mean, b.tile_within, b.tile_between),
    share,
  )
  return LayerStatistics(a.path, a.kind, *channels, *in_tiles)


def _merge(a: Any, b: Any, share: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Merges (mean, within, between) of two sets; `share` (k, 1) is that of b in the union."""
  mean, within, between = (x + (y - x) * share for x, y in zip(a, b, strict=True))
  return mean, within, between + jnp.square(b[0] - a[0]) * (share * (1 - share))


def _pool(
  counts: Any, batch: int | None, mean: Any, within: Any, between: Any
) -> tuple[jax.Array, jax.Array]:
  weight = (counts / jnp.maximum(counts.sum(), 1))[:, None]
  pooled_mean = (weight * mean).sum(0)
  of_means = between + jnp.square(mean - pooled_mean[None])
  share = 1.0 if batch is None else 1 - 1 / batch
  return pooled_mean, (weight * (within + share * of_means)).sum(0)


# ---- how they are stored ----


def to_tree(statistics: Statistics) -> dict[str, Any]:
  """Makes a tree of dicts and lists of arrays, as artefacts hold them; see `from_tree`."""
  names = ("mean", "within", "between", "tile_mean", "tile_within", "tile_between")
  layers = [
    {name: value for name in names if (value := getattr(layer, name)) is not None}
    for layer in statistics.layers
  ]
  return {"counts": statistics.counts, "layers": layers}


def from_tree(tree: Any, layers: Sequence[Sequence[str]]) -> Statistics:
  """Reads what `to_tree` made, given (path, kind) of each layer."""
  rows = zip(layers, tree["layers"], strict=True)
  found = tuple(LayerStatistics(path, kind, **arrays) for (path, kind), arrays in rows)
  return Statistics(tree["counts"], found)


def num_bytes(statistics: Statistics) -> int:
  """Counts the bytes of statistics, or of their shapes."""
  return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(statistics))
