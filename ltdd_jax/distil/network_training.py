"""Networks that a method draws and trains for itself, inside its jitted step.

network = draw_network(model, tx, env, key)              # parameters, and their optimiser's state
network = train(tx, network, 10, loss_fn)                # loss_fn(params, i) of update i
"""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Float32, Int, Int32, Key

from ltdd_jax import models
from ltdd_jax.data import views
from ltdd_jax.distil.base import Env

Params = Any
NetworkState = tuple[Params, Any]  # parameters, and the state of their optimiser
Rows = tuple[  # of training images of each update, and weights
  Int32[Array | np.ndarray, "u b"], Float32[Array | np.ndarray, "u b"]
]


def make_network(env: Env, network: Mapping[str, Any]) -> nn.Module:
  """Makes a network {name, **kwargs} of `models.make_model` for the images and classes of a run."""
  model = models.make_model(
    **{"name": "", **network}, num_classes=env.num_classes, image_shape=env.image_shape
  )
  return models.computing_in(model, env.compute_dtype)


def draw_network(
  model: nn.Module, tx: optax.GradientTransformation, env: Env, key: Key[Array, ""]
) -> NetworkState:
  """Draws a random network, with an optimiser that has not moved."""
  params = models.init_variables(model, key, env.image_shape)["params"]
  return params, tx.init(params)


def member(tree: Any, number: Int[Array, ""]) -> Any:
  """Takes one of several networks, whose arrays have a leading axis in `tree`."""
  return jax.tree.map(lambda x: x[number], tree)


def with_member(tree: Any, number: Int[Array, ""], one: Any) -> Any:
  """Puts one network in the place of another, see `member`."""
  return jax.tree.map(lambda x, new: x.at[number].set(new), tree, one)


def train(
  tx: optax.GradientTransformation,
  network: NetworkState,
  num_updates: int,
  loss_fn: Callable[[Params, Int[Array, ""]], jax.Array],
) -> NetworkState:
  """Minimises `loss_fn(params, i)` over the parameters, update i = 0, 1, ..."""

  def update(i: jax.Array, network: NetworkState) -> NetworkState:
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


def batch_rows(
  key: Key[Array, ""], i: jax.Array | int, n: int, size: int, short: str
) -> tuple[Int[Array, " b"], Float[Array, " b"]]:
  """Returns the rows of n images in batch i, and their weights: 0 for the places left over.

  Random permutations of the images are cut into batches, a new one when all images were used. If n
  does not divide by the size, the `short` batch of each is the "first" or the "last".
  """
  batches = -(-n // size)
  order = jax.random.permutation(jax.random.fold_in(key, i // batches), n)
  place = (i % batches) * size + jnp.arange(size)
  if short == "first":
    place -= batches * size - n
  there = (place >= 0) & (place < n)
  return order[jnp.clip(place, 0, n - 1)], there.astype(jnp.float32)


def draw_batches(rng: np.random.Generator, total: int, num_images: int, batch_size: int) -> Rows:
  """Draws rows of `num_images` of `total` images without replacement, in batches.

  The last batch is filled up as long as there are images; places without one have weight 0.
  """
  size = min(batch_size, total)
  batches = -(-min(num_images, total) // size)
  place = np.arange(batches * size).reshape(batches, size)
  rows = rng.permutation(total)[np.minimum(place, total - 1)]
  return rows.astype(np.int32), (place < total).astype(np.float32)
