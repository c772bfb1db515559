"""Random views of a batch, made on the device inside the jitted step.

  augment = compose([dict(name="random_crop", padding=4), dict(name="random_flip")])
  views = augment(key, normalize(images_uint8, spec.mean, spec.std))

Functions take the key first, then float32 NHWC images; shapes never depend on data and gradients
flow to the images. The augmentations live in `crops`.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num, UInt8

from ltdd_jax.core import config as config_lib
from ltdd_jax.core.types import LtddError
from ltdd_jax.data import checks, crops
from ltdd_jax.data.whitening import Whitening

Std = Sequence[float] | Whitening  # (c,); or the image is whitened
Augment = Callable[..., Float[Array, "b h w c"]]  # key, images (b,h,w,c), flipped (b,) or None


def to_pixels(images: Num[Array | np.ndarray, "*n h w c"]) -> Float[Array, "*n h w c"]:
  """Returns stored images as float32 pixels: whole levels in [0, 1], floats as they are."""
  images = jnp.asarray(images)
  whole = jnp.issubdtype(images.dtype, jnp.integer)
  return images.astype(jnp.float32) / 255 if whole else images


def normalize(
  images: Num[Array | np.ndarray, "*n h w c"], mean: Sequence[float], std: Std
) -> Float[Array, "*n h w c"]:
  """Returns `(images / 255 - mean) / std` of stored images, float32; see `to_pixels`."""
  return normalize_pixels(to_pixels(images), mean, std)


def normalize_pixels(
  pixels: Float[Array, "*n h w c"], mean: Sequence[float], std: Std
) -> Float[Array, "*n h w c"]:
  """Returns `(pixels - mean) / std` of pixels in [0, 1], as augmentations leave them."""
  if isinstance(std, Whitening):
    return std.whiten(pixels)
  return (pixels - _channels(mean, pixels.ndim)) / _channels(std, pixels.ndim)


def denormalize_pixels(
  images: Float[Array, "*n h w c"], mean: Sequence[float], std: Std
) -> Float[Array, "*n h w c"]:
  """Returns float32 pixels of normalised images: 0 is black, 1 is white, and more is possible."""
  if isinstance(std, Whitening):
    return std.unwhiten(images)
  return images * _channels(std, images.ndim) + _channels(mean, images.ndim)


def denormalize(
  images: Float[Array, "*n h w c"], mean: Sequence[float], std: Std
) -> UInt8[Array, "*n h w c"]:
  """Returns uint8 pixels: clipped to the range and truncated, not rounded, as the papers' code.

  A thousandth of a level is added first, a tenth to whitened images, so that a pixel which float32
  puts just below its own whole number comes back as itself: `denormalize(normalize(x)) == x`.
  """
  pixels = denormalize_pixels(images, mean, std)
  slack = 0.1 if isinstance(std, Whitening) else 1e-3
  return jnp.clip(255 * pixels + slack, 0, 255).astype(jnp.uint8)


def clip_to_pixels(
  images: Float[Array, "*n h w c"], mean: Sequence[float], std: Std
) -> Float[Array, "*n h w c"]:
  """Clamps normalised images to what a pixel in [0, 1] can be (after each step of a method)."""
  if isinstance(std, Whitening):
    return std.whiten(jnp.clip(std.unwhiten(images), 0, 1))
  middle, scale = _channels(mean, images.ndim), _channels(std, images.ndim)
  return jnp.clip(images, -middle / scale, (1 - middle) / scale)


def _channels(values: Sequence[float], ndim: int) -> Float[Array, "..."]:
  return jnp.asarray(values, jnp.float32).reshape((1,) * (ndim - 1) + (-1,))


AUGMENTS: dict[str, Callable[..., Any]] = {
  "alternating_flip": crops.alternating_flip,
  "cutout": crops.cutout,
  "random_crop": crops.random_crop,
  "random_flip": crops.random_flip,
  "random_resized_crop": crops.random_resized_crop,
  "random_roll": crops.random_roll,
  "random_translate": crops.random_translate,
}


def compose(specs: Iterable[Mapping[str, Any]], fill: Sequence[float] | None = None) -> Augment:
  """Chains augmentations by name; each draws from its own fold of the key.

  Args:
    specs: mappings with `name` and keyword arguments, e.g. `dict(name="random_crop", padding=4)`.
    fill: the colour of what "cutout" covers: the mean of pixels, or None for 0, that of normalised
      images.

  Returns:
    A function of a key, a batch and, for "alternating_flip", those flipped (b,) if that is known;
    with no specs, the identity.

  Raises:
    LtddError: for an unknown name or argument, with the nearest known one, or a bad number.
  """
  steps = [_bind(dict(spec)) for spec in specs]

  def augment(key, images, flipped=None):
    colour = None if fill is None else jnp.asarray(fill, jnp.float32)
    context = {crops.cutout: (colour,), crops.alternating_flip: (flipped,)}
    for position, (fn, kwargs) in enumerate(steps):
      step_key = jax.random.fold_in(key, position)
      images = fn(step_key, images, *context.get(fn, ()), **kwargs)
    return images

  return augment


def _bind(spec: dict[str, Any]) -> tuple[Callable[..., Any], dict[str, Any]]:
  name = spec.pop("name", None)
  if name not in AUGMENTS:
    hint, known = config_lib.suggest(str(name), AUGMENTS), ", ".join(AUGMENTS)
    raise LtddError(
      f"augmentation {name!r} is not known. {hint}{' ' if hint else ''}Known: {known}."
    )
  where = f"augmentation {name}"
  config_lib.bind(where, AUGMENTS[name], spec)
  for argument, value in spec.items():
    checks.check(f"{where}: {argument}", argument, value)
  if name == "random_roll" and spec["low"] > spec["high"]:
    raise LtddError(f"{where}: low is {spec['low']} and high {spec['high']}; expected low <= high")
  return AUGMENTS[name], spec
