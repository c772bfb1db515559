"""Networks that a method draws and trains for itself, inside its jitted step.

network = draw_network(model, tx, env, key)              # parameters, and their optimiser's state
network = train(tx, network, 10, loss_fn)                # loss_fn(params, i) of update i
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Int32, Key

from ltdd_jax import models
from ltdd_jax.data import views
from ltdd_jax.distil.base import Env

Params = Any
Network = tuple[Params, Any]  # parameters, and the state of their optimiser
Rows = tuple[np.ndarray, np.ndarray]  # (u, b) int32, and float32 weights


def draw_network(
  model: nn.Module, tx: optax.GradientTransformation, env: Env, key: Key[Array, ""]
) -> Network:
  """Draws a random network, with an optimiser that has not moved."""
  params = models.init_variables(model, key, env.image_shape)["params"]
  return params, tx.init(params)


def train(
  tx: optax.GradientTransformation,
  network: Network,
  num_updates: int,
  loss_fn: Callable[[Params, Int[Array, ""]], jax.Array],
) -> Network:
  """Minimises `loss_fn(params, i)` over the parameters, update i = 0, 1, ..."""

  def update(i: jax.Array, network: Network) -> Network:
    params, opt_state = network
    updates, opt_state = tx.update(jax.grad(loss_fn)(params, i), opt_state, params)
    return optax.apply_updates(params, updates), opt_state

  return jax.lax.fori_loop(0, num_updates, update, network)


def cutmix_batch(
  key: Key[Array, ""], images: Float[Array, "b h w c"], share: float = 0.5
) -> tuple[Float[Array, "b h w c"], Int32[Array, " b"], Float[Array, ""]]:
  """CutMix with one box for the batch, with probability `share`; else the images as they are.

  Returns:
    Images, the numbers of their partners, and the share of an image that is its own.
  """
  b, h, w, _ = images.shape
  mix_key, partner_key, lam_key, row_key, column_key = jax.random.split(key, 5)
  partner = jax.random.permutation(partner_key, b).astype(jnp.int32)
  row = jax.random.randint(row_key, (), 0, h)
  column = jax.random.randint(column_key, (), 0, w)
  inside, own = views.box_mask(jax.random.uniform(lam_key), row, column, h, w)
  mixing = jax.random.bernoulli(mix_key, share)
  mixed = jnp.where((inside & mixing)[None, :, :, None], images[partner], images)
  return mixed, partner, jnp.where(mixing, own, 1.0)


def draw_batches(rng: np.random.Generator, total: int, num_images: int, batch_size: int) -> Rows:
  """Draws rows of `num_images` of `total` images without replacement, in batches.

  The last batch is filled up as long as there are images; places without one have weight 0.
  """
  size = min(batch_size, total)
  batches = -(-min(num_images, total) // size)
  place = np.arange(batches * size).reshape(batches, size)
  rows = rng.permutation(total)[np.minimum(place, total - 1)]
  return rows.astype(np.int32), (place < total).astype(np.float32)
