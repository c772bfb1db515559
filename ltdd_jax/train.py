"""The one supervised step: teachers and students differ only in the functions they pass to it."""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from ltdd_jax import mesh as mesh_lib
from ltdd_jax import models, schedules
from ltdd_jax.types import TrainState

BatchFn = Callable[[Any, Any, jax.Array], tuple[jax.Array, Any]]
LossFn = Callable[[jax.Array, Any], jax.Array]


def make_tx(
  optimizer: Mapping[str, Any], schedule: Mapping[str, Any], num_steps: int
) -> optax.GradientTransformation:
  """Makes an optimiser from its config {name, lr, **kwargs} and its schedule's {name, **kwargs}."""
  optimizer = dict(optimizer)
  lr = optimizer.pop("lr")
  rate = schedules.make_schedule(num_steps=num_steps, lr=lr, **schedule)
  return schedules.make_optimizer(schedule=rate, **optimizer)


def init_state(
  model: nn.Module, tx: optax.GradientTransformation, key: jax.Array, image_shape: tuple[int, ...]
) -> TrainState:
  """Makes the state of an untrained network; jit-compiled by the caller or not at all."""
  variables = models.init_variables(model, key, image_shape)
  params = variables["params"]
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    params=params,
    batch_stats=variables.get("batch_stats", {}),
    opt_state=tx.init(params),
  )


def train_step(
  state: TrainState,
  consts: dict[str, Any],
  x: Any,
  *,
  apply_fn: Callable[..., Any],
  tx: optax.GradientTransformation,
  batch_fn: BatchFn,
  loss_fn: LossFn,
  mesh: jax.sharding.Mesh | None = None,
) -> tuple[TrainState, dict[str, jax.Array]]:
  """Takes one optimiser step.

  Args:
    state: the network and its optimiser.
    consts: arrays that do not change; `consts["key"]` is the key of the whole run, from which the
      key of this step is derived.
    x: what `batch_fn` needs to find this step's batch, such as indices (b,).
    apply_fn: the model's `apply`.
    tx: the optimiser.
    batch_fn: `(consts, x, key) -> (images (b,h,w,c) normalised, target pytree)`.
    loss_fn: `(logits (b,k), target) -> scalar`.
    mesh: devices to split the batch over; None under `vmap`.

  Returns:
    The next state, and {"loss": scalar}.
  """
  key = jax.random.fold_in(consts["key"], state.step)
  images, target = batch_fn(consts, x, key)
  if mesh is not None:
    images, target = mesh_lib.split_batch(mesh, (images, target))

  def objective(params: Any) -> tuple[jax.Array, Any]:
    variables = {"params": params, "batch_stats": state.batch_stats}
    logits, updated = apply_fn(variables, images, train=True, mutable=["batch_stats"])
    return loss_fn(logits, target), updated.get("batch_stats", {})

  (loss, batch_stats), grads = jax.value_and_grad(objective, has_aux=True)(state.params)
  updates, opt_state = tx.update(grads, state.opt_state, state.params)
  state = TrainState(
    step=state.step + 1,
    params=optax.apply_updates(state.params, updates),
    batch_stats=batch_stats,
    opt_state=opt_state,
  )
  return state, {"loss": loss}
