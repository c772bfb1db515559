"""Views of distilled images, recomputed from keys, and the logits that teachers give them.

A *view* of image i in label epoch e is a pure function of (key, e, i): a crop, a flip, and a mix
with another image. Nothing of it is stored. The label store holds only the teachers' logits of the
views, `logits[e, i]`, as float16; a calibration, a temperature or a target prior can be changed
after the fact. (Released pipelines store crop, flip, permutation and box beside the logits, FKD.)
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ltdd_jax import loop, rng
from ltdd_jax import mesh as mesh_lib
from ltdd_jax.data import augment
from ltdd_jax.data.specs import DatasetSpec
from ltdd_jax.types import Leaf, LtddError, Teacher


class Views(NamedTuple):
  """A batch of views."""

  images: Leaf  # (b, h, w, c) float32, normalised
  labels: Leaf  # (b,) int32, of the image itself
  partner_labels: Leaf  # (b,) int32, of the image mixed in
  weight: Leaf  # (b,) float32, share of the image itself


ViewFn = Callable[[jax.Array, jax.Array, jax.Array, jax.Array, jax.Array], Views]


def view_fn(
  spec: DatasetSpec,
  *,
  crop_scale: tuple[float, float] | None = (0.08, 1.0),
  padding: int = 0,
  crop_ratio: tuple[float, float] = (3 / 4, 4 / 3),
  flip: bool = True,
  mix: str | None = "cutmix",
  mix_alpha: float = 1.0,
) -> ViewFn:
  """Makes the function that recomputes views.

  The crop is torchvision's RandomResizedCrop, the mix is CutMix or mixup with a partner drawn
  uniformly from all images, cropped and flipped as its own view of the same epoch is. In what we
  differ: published code draws one box and one permutation for a batch; here each view has its own,
  so that views do not depend on how batches are put together.

  Args:
    spec: facts of the data set.
    crop_scale: least and largest share of the image in a crop, or None for no crop.
    padding: black pixels on every side for a random crop of the image's own size, before that.
    crop_ratio: least and largest aspect ratio.
    flip: whether to flip left to right with probability 1/2.
    mix: "cutmix", "mixup" or None.
    mix_alpha: parameter of the Beta(alpha, alpha) distribution of the share.

  Returns:
    `fn(key, images (n,h,w,c) uint8, labels (n,), indices (b,), epochs (b,)) -> Views`.

  Raises:
    LtddError: an unknown mix.
  """
  if mix not in ("cutmix", "mixup", None):
    raise LtddError(f"config.relabel.views.mix is {mix!r}; expected 'cutmix', 'mixup' or None")
  height, width, _ = spec.image_shape

  def single(key: jax.Array, image: jax.Array) -> jax.Array:
    """Crops and flips one image (h, w, c) in [0, 1]."""
    if padding:
      pad_key = jax.random.fold_in(key, 0)
      image = augment.random_crop(pad_key, image[None], padding=padding)[0]
    crop_key, flip_key = jax.random.split(key)
    if crop_scale is not None:
      box = augment.rrc_box(crop_key, height, width, tuple(crop_scale), tuple(crop_ratio))
      image = augment.crop_resize(image, box)
    if flip:
      image = jnp.where(jax.random.bernoulli(flip_key), image[:, ::-1], image)
    return image

  def views(
    key: jax.Array, images: jax.Array, labels: jax.Array, indices: jax.Array, epochs: jax.Array
  ) -> Views:
    image_key, mix_key = (jax.random.fold_in(key, purpose) for purpose in range(2))
    first = epochs * images.shape[0]  # views are numbered: epoch e, image i is e n + i
    if mix is None:
      partner, weight = indices, jnp.ones(indices.shape, jnp.float32)
      own = jax.vmap(single)(_keys(image_key, first + indices), _pixels(images, indices))
    else:
      keys = jax.vmap(jax.random.split)(_keys(mix_key, first + indices))
      draw = lambda k: jax.random.randint(k, (), 0, images.shape[0])
      partner = jax.vmap(draw)(keys[:, 0])
      both = jnp.concatenate([indices, partner])
      numbers = jnp.concatenate([first, first]) + both
      own, other = jnp.split(jax.vmap(single)(_keys(image_key, numbers), _pixels(images, both)), 2)
      own, weight = jax.vmap(mix_pair)(keys[:, 1], own, other)
    normalised = augment.normalize_pixels(own, spec.mean, spec.std)
    return Views(normalised, labels[indices], labels[partner], weight)

  def mix_pair(key: jax.Array, own: jax.Array, other: jax.Array) -> tuple[jax.Array, jax.Array]:
    if mix == "cutmix":
      inside, weight = augment.cutmix_box(key, height, width, mix_alpha)
      return jnp.where(inside[..., None], other, own), weight
    weight = jax.random.beta(key, mix_alpha, mix_alpha)
    return weight * own + (1 - weight) * other, weight

  return views


def _keys(key: jax.Array, numbers: jax.Array) -> jax.Array:
  return jax.vmap(lambda number: jax.random.fold_in(key, number))(numbers)


def _pixels(images: jax.Array, rows: jax.Array) -> jax.Array:
  return images[rows].astype(jnp.float32) / 255.0


def labeler_logits(models: Sequence[Any], variables: Sequence[Any], images: jax.Array) -> jax.Array:
  """Mean over teachers of their logits (b, k), in eval mode: average first, then calibrate."""
  logits = [m.apply(v, images, train=False) for m, v in zip(models, variables, strict=True)]
  return jnp.mean(jnp.stack(logits), axis=0)


class LabelStore(NamedTuple):
  """Logits of views (and of the plain images), with what is needed to recompute the views."""

  logits: np.ndarray  # (e, n, k) float16 or float32
  clean_logits: np.ndarray  # (n, k) float32, of the images without augmentation


def view_key(seed: int, source: str) -> jax.Array:
  """The key of all views of an image source; relabelling and students use the same."""
  return rng.key_for(seed, "views", source)


def relabel(
  name: str,
  images: np.ndarray,
  labels: np.ndarray,
  teachers: tuple[Teacher, ...],
  spec: DatasetSpec,
  *,
  num_epochs: int,
  views: dict[str, Any],
  dtype: str = "float16",
  batch_size: int = 500,
  seed: int = 0,
  session: loop.Session | None = None,
) -> LabelStore:
  """Labels `num_epochs` views of every distilled image.

  Args:
    name: of the image source.
    images: (n,h,w,c) uint8.
    labels: (n,) int32.
    teachers: those that label; a soft label is the mean of their logits.
    spec: facts of the data set.
    num_epochs: label epochs; a student of more epochs goes round again.
    views: keyword arguments of `view_fn`.
    dtype: "float16" or "float32".
    batch_size: views in one pass.
    seed: the run's seed.
    session: devices, checkpoints, progress.

  Raises:
    LtddError: an unknown dtype, fewer than one epoch, or logits that are not finite in the dtype.
  """
  if dtype not in ("float16", "float32"):
    raise LtddError(f"config.relabel.dtype is {dtype!r}; expected 'float16' or 'float32'")
  if num_epochs < 1:
    raise LtddError(f"config.relabel.num_epochs is {num_epochs}; expected 1 or more")
  session = session or loop.Session()
  n = len(labels)
  views_of = view_fn(spec, **views)
  everywhere = mesh_lib.replicated(session.mesh)
  consts = mesh_lib.put(
    {"images": images, "labels": labels, "variables": tuple(t.variables for t in teachers)},
    everywhere,
  )
  consts["key"] = view_key(seed, name)
  networks = tuple(t.model for t in teachers)
  total = num_epochs * n
  size = min(batch_size, total)

  def step_fn(store, consts, start):
    flat = (start + jnp.arange(size, dtype=jnp.int32)) % total  # the last batch wraps round
    batch = views_of(consts["key"], consts["images"], consts["labels"], flat % n, flat // n)
    shown = mesh_lib.split_batch(session.mesh, batch.images)
    logits = labeler_logits(networks, consts["variables"], shown).astype(store.dtype)
    return store.at[flat].set(logits), {"max_logit": jnp.max(jnp.abs(logits))}  # inf: too large

  store = mesh_lib.put(jnp.zeros((total, spec.num_classes), dtype), everywhere)
  store = loop.run(
    step_fn,
    store,
    consts,
    num_steps=-(-total // size),
    session=session,
    name=f"relabel/{name}",
    inputs=lambda t: np.int32(t * size),
    advice=f"logits may not fit into {dtype}: set config.relabel.dtype='float32'",
  )
  logits = np.asarray(jax.device_get(store)).reshape(num_epochs, n, -1)
  clean = _clean_logits(consts, networks, spec, min(batch_size, n))
  return LabelStore(logits, clean)


def _clean_logits(
  consts: dict[str, Any], networks: tuple[Any, ...], spec: DatasetSpec, size: int
) -> np.ndarray:
  """Logits of the plain images, in batches of one size."""

  @jax.jit
  def label(consts, rows):
    pixels = augment.normalize_pixels(_pixels(consts["images"], rows), spec.mean, spec.std)
    return labeler_logits(networks, consts["variables"], pixels)

  n = len(consts["labels"])
  parts = [
    label(consts, (start + np.arange(size, dtype=np.int32)) % n) for start in range(0, n, size)
  ]
  return np.concatenate(jax.device_get(parts))[:n]
