"""The one supervised step: teachers and students differ only in the functions they pass to it."""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from ltdd_jax import models
from ltdd_jax.core import mesh as mesh_lib
from ltdd_jax.core.types import LtddError, TrainState
from ltdd_jax.models.layers import BN_MOMENTUM
from ltdd_jax.training import optimizers

BatchFn = Callable[[Any, Any, jax.Array], tuple[jax.Array, Any]]
LossFn = Callable[[jax.Array, Any], jax.Array]


def make_tx(
  optimizer: Mapping[str, Any],
  schedule: Mapping[str, Any],
  num_steps: int,
  steps_per_epoch: float | None = None,
) -> optax.GradientTransformation:
  """Makes an optimiser from its config {name, lr, **kwargs} and its schedule's {name, **kwargs}.

  A schedule with `per_epoch` True moves once in `steps_per_epoch` steps, which may be a fraction.

  Raises:
    LtddError: an unknown name or argument, or `per_epoch` where epochs are not known.
  """
  optimizer, schedule = dict(optimizer), dict(schedule)
  lr = optimizer.pop("lr")
  if schedule.pop("per_epoch", False):
    if steps_per_epoch is None:
      raise LtddError("a schedule has per_epoch=True; only config.student.schedule can have it")
    schedule["steps_per_epoch"] = steps_per_epoch
  rate = optimizers.make_schedule(num_steps=num_steps, lr=lr, **schedule)
  return optimizers.make_optimizer(schedule=rate, **optimizer)


def init_state(
  model: nn.Module,
  tx: optax.GradientTransformation,
  key: jax.Array,
  image_shape: tuple[int, ...],
  ema: bool = False,
) -> TrainState:
  """Makes the state of an untrained network; jit-compiled by the caller or not at all.

  With `ema` it holds an average of the parameters, which starts at them.
  """
  variables = models.init_variables(model, key, image_shape)
  params = variables["params"]
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    params=params,
    batch_stats=variables.get("batch_stats", {}),
    opt_state=tx.init(params),
    ema=jax.tree.map(jnp.copy, params) if ema else None,  # a copy: states are donated
  )


def check_averages(ema: float | None, bn_updates: int) -> None:
  """Raises LtddError unless `train_step` can do with both."""
  if ema is not None and not 0 <= ema < 1:
    raise LtddError(f"config.student.ema is {ema}; expected a decay in [0, 1), or None for none")
  if bn_updates not in (1, 2):
    raise LtddError(f"config.student.bn_updates is {bn_updates}; expected 1 or 2")


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
  ema: float | None = None,
  bn_updates: int = 1,
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
    ema: decay d of `e = d e + (1 - d) params`, taken after the update: EDC's, d = 0.99, which
      starts at the initial parameters and has no bias correction. Batch statistics are not
      averaged. None if the state has no average.
    bn_updates: updates of the running batch statistics by this batch: 1, or 2 as RDED has it, whose
      code runs the student a second time to log its training accuracy.

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
  if bn_updates == 2:
    batch_stats = jax.tree.map(_update_again, batch_stats, state.batch_stats)
  params = optax.apply_updates(state.params, updates)
  state = TrainState(
    step=state.step + 1,
    params=params,
    batch_stats=batch_stats,
    opt_state=opt_state,
    ema=None if ema is None else optax.incremental_update(params, state.ema, 1 - ema),
  )
  return state, {"loss": loss}


def _update_again(new: jax.Array, old: jax.Array) -> jax.Array:
  """Repeats new = m old + (1 - m) s with the same s: m new + (1 - m) s = (1 + m) new - m old."""
  return (1 + BN_MOMENTUM) * new - BN_MOMENTUM * old
