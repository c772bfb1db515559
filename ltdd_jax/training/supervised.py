"""The one supervised step: teachers and students differ in the batch and objective they pass.

An objective is

    objective(apply_fn, params, batch_stats, batch, key, progress) -> loss, (batch_stats, metrics)

with batch = (images, target). It may look at several views, features and heads; `of_logits` makes
one of a loss on the logits. `progress` is the share of the training done, in [0, 1).
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from ltdd_jax import models
from ltdd_jax.core import mesh as mesh_lib
from ltdd_jax.core.types import TrainState
from ltdd_jax.data import augment, stream
from ltdd_jax.data.specs import DatasetSpec

BatchFn = Callable[[Any, Any, jax.Array], tuple[jax.Array, Any]]
Objective = Callable[..., tuple[jax.Array, tuple[Any, dict[str, jax.Array]]]]

LOOKAHEAD_STEPS, LOOKAHEAD_DECAY = 5, 0.95**5

# Folded into a run's key for the keys of objectives, and of what is drawn once; never a step.
_OBJECTIVE, _ONCE = 0xFFFFFFFF, 0xFFFFFFFE


def init_state(
  model: nn.Module,
  tx: optax.GradientTransformation,
  key: jax.Array,
  image_shape: tuple[int, ...],
  ema: bool = False,
  *,
  lookahead: bool = False,
  images: jax.Array | None = None,
) -> TrainState:
  """Makes the state of an untrained network.

  With `ema` it has an average of the parameters, with `lookahead` a slow copy of parameters and
  batch statistics. `images` as in `models.init_variables`.
  """
  variables = models.init_variables(model, key, image_shape, images)
  params = variables["params"]
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    params=params,
    batch_stats=variables["batch_stats"],
    opt_state=tx.init(params),
    ema=jax.tree.map(jnp.copy, params) if ema else None,  # a copy: states are donated
    slow=jax.tree.map(jnp.copy, variables) if lookahead else None,
  )


def init_on_images(
  key: jax.Array,
  consts: Any,
  *,
  images_of: Callable[[Any], jax.Array],
  model: nn.Module,
  tx: optax.GradientTransformation,
  spec: DatasetSpec,
  **kwargs: bool,
) -> TrainState:
  """`init_state` of a network that may look at the images of its training: `many.train`'s `init`.

  `images_of` finds the stored images (n,h,w,c) in `consts`; `kwargs` are `ema` and `lookahead`.
  """
  images = None
  if models.uses_images(model):
    images = augment.normalize(images_of(consts), spec.mean, spec.std)
  return init_state(model, tx, key, spec.image_shape, images=images, **kwargs)


def of_logits(loss_fn: Callable[[jax.Array, Any], jax.Array]) -> Objective:
  """Makes an objective of a loss `(logits (b,k), target) -> scalar`; of views, all count alike."""

  def objective(apply_fn, params, batch_stats, batch, key, progress):
    del key, progress
    images, target = batch
    if images.ndim == 5:
      target = jax.tree.map(lambda x: jnp.concatenate([x] * len(images)), target)
      images = images.reshape(-1, *images.shape[2:])
    variables = {"params": params, "batch_stats": batch_stats}
    logits, updated = apply_fn(variables, images, train=True, mutable=["batch_stats"])
    return loss_fn(logits, target), (updated.get("batch_stats", {}), {})

  return objective


def image_batch(
  consts: dict[str, Any],
  x: jax.Array | tuple[jax.Array, jax.Array] | stream.Streamed,
  key: jax.Array,
  *,
  spec: DatasetSpec,
  augment_fn: Any,
  views: int = 1,
  partners: np.ndarray | None = None,
) -> tuple[jax.Array, Any]:
  """Takes rows of `consts["data"]`, augments pixels in [0, 1] as PIL pipelines do, and normalises.

  `x` is rows (b,), or a pair of rows and the passes (b,) that they belong to, from 0. With passes,
  "alternating_flip" alternates: from pass to pass, or from view to view if there are several. Or it
  is a batch that was read for this step, with its pixels.

  Returns:
    Images (b,h,w,c), or (v,b,h,w,c) of several views, each with its own draws; and labels (b,).
    With `partners`, weights (k,) of images of each class, each image has a partner, drawn with
    replacement: images (2v,b,h,w,c), the last v of partners, and (labels (b,), their labels (b,)).
  """
  data, pixels_of = consts["data"], lambda rows: consts["data"].images[rows]
  if isinstance(x, stream.Streamed):
    indices, epochs = x.rows, x.epochs
    pixels_of = lambda rows: x.pixels if rows is x.rows else data.images[rows]
  else:
    indices, epochs = x if isinstance(x, tuple) else (x, None)
  rows, keys = [indices] * views, [key]
  flips: list[jax.Array | None] = [None] * views
  if epochs is not None:
    coins = _coins(consts["key"], indices)
    flips = [coins ^ ((epochs * views + i) % 2 == 1) for i in range(views)]
  if views > 1 or partners is not None:
    keys = list(jax.random.split(key, views if partners is None else 2 * views + 1))
  if partners is not None:
    others = _draw(keys.pop(), jnp.asarray(partners, jnp.float32)[data.labels], len(indices))
    rows += [others] * views
    flips += [None] * views
  view = lambda k, r, flip: augment_fn(k, pixels_of(r).astype("float32") / 255.0, flip)
  pixels = [view(*each) for each in zip(keys, rows, flips, strict=True)]
  images = pixels[0] if len(pixels) == 1 else jnp.stack(pixels)
  images = augment.normalize_pixels(images, spec.mean, spec.std)
  own = data.labels[indices]
  return images, own if partners is None else (own, data.labels[others])


def _coins(key: jax.Array, rows: jax.Array) -> jax.Array:
  """Each row's coin (b,), the same in every pass."""
  key = jax.random.fold_in(key, jnp.uint32(_ONCE))
  return jax.vmap(lambda row: jax.random.bernoulli(jax.random.fold_in(key, row)))(rows)


def _draw(key: jax.Array, weights: jax.Array, count: int) -> jax.Array:
  """Draws rows (b,) in proportion to their weights (n,)."""
  up_to = jnp.cumsum(weights)
  rows = jnp.searchsorted(up_to, jax.random.uniform(key, (count,)) * up_to[-1], side="right")
  return jnp.minimum(rows, len(weights) - 1)


def train_step(
  state: TrainState,
  consts: dict[str, Any],
  x: Any,
  *,
  apply_fn: Callable[..., Any],
  tx: optax.GradientTransformation,
  batch_fn: BatchFn,
  objective: Objective,
  num_steps: int,
  mesh: jax.sharding.Mesh | None = None,
  ema: float | None = None,
  lookahead: bool = False,
  value_and_grad: Callable[..., Any] = jax.value_and_grad,
) -> tuple[TrainState, dict[str, jax.Array]]:
  """Takes one optimiser step.

  Args:
    state: the network and its optimiser.
    consts: what does not change: `batch_fn`'s arrays, and "key", of which those of the steps are.
    x: what `batch_fn` needs to find this step's batch, such as indices (b,).
    apply_fn: the model's `apply`.
    tx: from `optimizers.make_optimizer`.
    batch_fn: `(consts, x, key) -> (images (b,h,w,c) or (v,b,h,w,c) normalised, target pytree)`.
    objective: see the module.
    num_steps: of the whole training.
    mesh: devices to split the batch over, or None.
    ema: decay d of `e = d e + (1 - d) params`, taken after the update: EDC's, d = 0.99, which
      starts at the initial parameters and has no bias correction. Batch statistics are not
      averaged. None if the state has no average.
    lookahead: see `look_ahead`; the state has a slow copy.
    value_and_grad: JAX's, or one that makes another direction of the gradient, such as `gsam`'s.

  Returns:
    The next state, and {"loss": scalar} with the objective's metrics.
  """
  key = jax.random.fold_in(consts["key"], state.step)
  objective_key = jax.random.fold_in(
    jax.random.fold_in(consts["key"], jnp.uint32(_OBJECTIVE)), state.step
  )
  images, target = batch_fn(consts, x, key)
  images = mesh_lib.split_batch(mesh, images, axis=images.ndim - 4)
  batch = images, mesh_lib.split_batch(mesh, target)
  loss_of = lambda params: objective(
    apply_fn, params, state.batch_stats, batch, objective_key, state.step / num_steps
  )
  (loss, (batch_stats, metrics)), grads = value_and_grad(loss_of, has_aux=True)(state.params)
  updates, opt_state = tx.update(grads, state.opt_state, state.params)
  params = optax.apply_updates(state.params, updates)
  state = TrainState(
    step=state.step + 1,
    params=params,
    batch_stats=batch_stats,
    opt_state=opt_state,
    ema=None if ema is None else optax.incremental_update(params, state.ema, 1 - ema),
    slow=state.slow,
  )
  return look_ahead(state, num_steps) if lookahead else state, {"loss": loss} | metrics


def look_ahead(state: TrainState, num_steps: int) -> TrainState:
  """Moves the slow copy towards the network and the network to the slow copy, after step k.

      k = 5, 10, ...:  slow = d slow + (1 - d) net,   d = .95^5 (k / num_steps)^3,   net = slow
      k = num_steps:   net = slow

  Parameters and batch statistics both; the optimiser's state stays. So the steps after the last
  multiple of five are thrown away. Airbench's (Jordan, 2024) form of Lookahead (Zhang et al.,
  NeurIPS 2019).
  """
  k, fast = state.step, state.variables
  due = k % LOOKAHEAD_STEPS == 0
  decay = LOOKAHEAD_DECAY * (k / num_steps) ** 3
  pull = lambda s, f: jnp.where(due, f + decay.astype(f.dtype) * (s - f), s)
  slow = jax.tree.map(pull, state.slow, fast)
  take = due | (k == num_steps)
  fast = jax.tree.map(lambda s, f: jnp.where(take, s, f), slow, fast)
  return dataclasses.replace(state, slow=slow, **fast)
