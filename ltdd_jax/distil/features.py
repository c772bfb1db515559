"""Forward passes of the teachers over many images, a fixed number at a time.

Memory does not grow with the number of images beyond what is kept of each. Everything is pure and
jittable: `lax.map` over chunks, of which the last is filled up with repetitions that are cut off.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ltdd_jax.data import augment, stream
from ltdd_jax.distil.base import Env, Resources
from ltdd_jax.models import taps


def in_chunks(fn: Callable[[Int[Array, " b"]], Any], count: int, size: int) -> Any:
  """Maps a function over the numbers 0, ..., count - 1, `size` of them at a time.

  `fn` gives a tree of arrays (b, ...) of numbers (b,); the result has arrays (count, ...).
  """
  size = min(size, count)
  chunks = -(-count // size)
  numbers = jnp.minimum(jnp.arange(chunks * size, dtype=jnp.int32), count - 1)
  out = jax.lax.map(fn, numbers.reshape(chunks, size))
  return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:count], out)


def real_images(env: Env, res: Resources, rows: Int[Array, "*b"]) -> Float[Array, "*b h w c"]:
  """Returns the training images of these rows, normalised."""
  return augment.normalize(stream.take(res["images"], rows), env.mean, env.std)


def mean_logits(
  env: Env, teachers: tuple[Any, ...], images: Float[Array, "b h w c"]
) -> Float[Array, "b k"]:
  """Returns the teachers' mean logits, each in eval mode."""
  logits = [
    teacher.model.apply(variables, images, train=False)
    for teacher, variables in zip(env.teachers, teachers, strict=True)
  ]
  return jnp.stack(logits).mean(0)


def features(env: Env, res: Resources, chunk_size: int) -> Float[Array, "n f"]:
  """Returns the penultimate features of all training images: see `models.taps.features`.

  Those of several teachers are put side by side, each divided by the root mean square of its
  features' norms: all have an equal say in distances. With one teacher it is but a change of unit.
  """

  def chunk(rows):
    x = real_images(env, res, rows)
    pairs = zip(env.teachers, res["teachers"], strict=True)
    return tuple(taps.features(o.model, v, x)[1].astype(jnp.float32) for o, v in pairs)

  parts = in_chunks(chunk, len(res["images"]), chunk_size)
  scale = lambda x: jnp.sqrt(jnp.maximum(jnp.square(x).sum(1).mean(), 1e-12))
  return jnp.concatenate([part / scale(part) for part in parts], axis=1)
