"""Statistics of a network's activations on the training set, class by class.

  target = pooled(layer, statistics.counts)        # of all images: what G-VBSM matches
  target = per_class(layer, within_image=True)     # of each class: what EDC's released code has
  x_tiles = tiles(x, 4)                            # (b, p, 4 * 4 * c), for the same of a batch

For the input of every batch norm and convolution there are three numbers for each class and
channel: the mean, the mean variance within an image, and the variance between images of their
means, and for convolutions also for each tile of q x q pixels and all channels. All images have the
same number of pixels, so the three give mean and variance of any union of classes exactly.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ltdd_jax.core.types import Leaf
from ltdd_jax.models import taps

LAYERS = (nn.BatchNorm, nn.Conv)


class Moments(NamedTuple):
  """Of each class's values in d channels or tiles; zeros for a class without images."""

  mean: Leaf  # (k, d)
  within: Leaf  # (k, d) mean of the biased variance within an image
  between: Leaf  # (k, d) biased variance of the images' means


@flax.struct.dataclass
class LayerStatistics:
  """Statistics of one layer's input."""

  path: str = flax.struct.field(pytree_node=False)  # as `taps.LayerInput.path`
  kind: str = flax.struct.field(pytree_node=False)  # "batch_norm" or "conv"
  channels: Leaf  # Moments
  tiles: Leaf = None  # Moments, None for batch norms


@flax.struct.dataclass
class Statistics:
  """Statistics of one network, of its batch norms and convolutions in the order of calls."""

  tile: int = flax.struct.field(pytree_node=False)  # q
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
  layer: LayerStatistics, counts: Float[Array | np.ndarray, " k"], *, batch: int | None = None
) -> Target:
  """Computes mean and variance of the images of all classes as one set.

      mean = sum_c w_c m_c,   var = sum_c w_c (within_c + between_c + (m_c - mean)^2),
      w_c = counts_c / sum counts

  Args:
    layer: of one layer.
    counts: (k,) weights of the classes: `Statistics.counts`, or 1 for each class with images, which
      no longer favours large classes.
    batch: images in the batches whose mean variance is wanted, which on average lacks 1 / batch of
      the variance of the images' means: the released code of G-VBSM and EDC has batches of 64 (256
      on ImageNet). None is one set of all.
  """
  weight = (counts / jnp.maximum(counts.sum(), 1))[:, None]
  share = 1.0 if batch is None else 1 - 1 / batch

  def pool(m: Moments) -> tuple[jax.Array, jax.Array]:
    mean = (weight * m.mean).sum(0)
    of_means = m.between + jnp.square(m.mean - mean[None])
    return mean, (weight * (m.within + share * of_means)).sum(0)

  return Target(*pool(layer.channels), *(pool(layer.tiles) if layer.tiles else ()))


def per_class(layer: LayerStatistics, *, within_image: bool = False) -> Target:
  """Gives mean and variance of each class, zeros for a class without images.

  The variance is that of all pixels of a class, or, as EDC's released code has it, the mean of the
  variances `within_image`.
  """
  of = lambda m: (m.mean, m.within if within_image else m.within + m.between)
  return Target(*of(layer.channels), *(of(layer.tiles) if layer.tiles else ()))


def tiles(x: Float[Array, "b h w c"], q: int) -> Float[Array, "b p n"]:
  """Cuts maps into tiles of q x q pixels, in rows from the upper left.

  A map whose height or width is no multiple of q is resized up to the next one, bilinearly with
  half-pixel centres. Source: `ConvFeatureHook` of G-VBSM's and EDC's released code.

  q is 4 for images of 32 and 64 pixels, 16 for 224; n = q * q * c, p = ceil(h / q) * ceil(w / q).
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
  return Statistics(tile, member.sum(0), tuple(_of_layer(x, member, tile) for x in inputs))


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
  share = (b.counts / jnp.maximum(a.counts + b.counts, 1))[:, None]

  def both(x: Moments, y: Moments) -> Moments:
    mean, within, between = (u + (v - u) * share for u, v in zip(x, y, strict=True))
    between += jnp.square(y.mean - x.mean) * (share * (1 - share))
    return Moments(mean, within, between)

  is_moments = lambda x: isinstance(x, Moments)
  layers = jax.tree.map(both, a.layers, b.layers, is_leaf=is_moments)
  return Statistics(a.tile, a.counts + b.counts, layers)


def _of_layer(layer: taps.LayerInput, member: jax.Array, tile: int) -> LayerStatistics:
  x = layer.value.astype(jnp.float32)
  b, c = x.shape[0], x.shape[-1]
  channels = _by_class(x.reshape(b, -1, c).transpose(0, 2, 1), member)
  in_tiles = _by_class(tiles(x, tile), member) if layer.kind == "conv" else None
  return LayerStatistics(layer.path, layer.kind, channels, in_tiles)


def _by_class(x: Float[Array, "b d n"], member: Float[Array, "b k"]) -> Moments:
  """Moments of n values for each image and each of d channels or tiles."""
  mean = x.mean(-1)
  within = jnp.square(x - mean[..., None]).mean(-1)
  share = (member / jnp.maximum(member.sum(0), 1)[None]).T
  dot = lambda a, b: jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)
  class_mean = dot(share, mean)
  between = dot(share, jnp.square(mean - dot(member, class_mean)))
  return Moments(class_mean, dot(share, within), between)


# ---- how they are stored ----


def to_tree(statistics: Statistics) -> dict[str, Any]:
  """Makes a tree of dicts and lists of arrays, as artefacts hold them; see `from_tree`."""
  layers = []
  for layer in statistics.layers:
    in_tiles = layer.tiles._asdict() if layer.tiles else {}
    layers.append(layer.channels._asdict() | {f"tile_{k}": v for k, v in in_tiles.items()})
  return {"counts": statistics.counts, "layers": layers}


def from_tree(tree: Any, layers: Sequence[Sequence[str]], tile: int) -> Statistics:
  """Reads what `to_tree` made, given (path, kind) of each layer and q."""
  found = []
  for (path, kind), arrays in zip(layers, tree["layers"], strict=True):
    in_tiles = _moments(arrays, "tile_") if kind == "conv" else None
    found.append(LayerStatistics(path, kind, _moments(arrays), in_tiles))
  return Statistics(tile, tree["counts"], tuple(found))


def _moments(arrays: Mapping[str, Any], prefix: str = "") -> Moments:
  return Moments(*(arrays[prefix + name] for name in Moments._fields))


def num_bytes(statistics: Statistics) -> int:
  """Counts the bytes of statistics, or of their shapes."""
  return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(statistics))
