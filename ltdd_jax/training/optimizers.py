"""Learning-rate schedules and optimisers of teachers and students, by name.

  tx = make_optimizer({"name": "adamw", "lr": 1e-3}, {"name": "smooth", "zeta": 2.0}, 3000)

Schedules move at every step. The published code moves them once an epoch: give `steps_per_epoch`
for that.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from ltdd_jax.core import registry
from ltdd_jax.core.types import LtddError

Multiplier = Callable[[jax.Array], jax.Array]  # share of the training done, in [0, 1] -> factor


def constant() -> Multiplier:
  """1."""
  return jnp.ones_like


def cosine() -> Multiplier:
  """(1 + cos(pi t)) / 2."""
  return smooth(zeta=1.0)


def smooth(*, zeta: float = 2.0) -> Multiplier:
  """(1 + cos(pi t / zeta)) / 2: at zeta = 2 it ends at 1/2. RDED, and EDC for its students."""
  _positive("smooth", zeta=zeta)
  return lambda t: 0.5 * (1 + jnp.cos(jnp.pi * t / zeta))


def linear(*, zeta: float = 1.0) -> Multiplier:
  """1 - t / zeta. EDC on ImageNet uses zeta = 2."""
  if zeta < 1:
    raise LtddError(f"schedule 'linear': zeta={zeta}; expected 1 or more.")
  return lambda t: 1 - t / zeta


def ssrs(*, zeta: float = 2.0) -> Multiplier:
  """`smooth` up to t = 5/6, then (1 + cos(5 pi / (6 zeta))) / 2 times 6 (1 - t) / 6.

  EDC's schedule of that name; it jumps at 5/6, where the last factor is 1/6.
  """
  first = smooth(zeta=zeta)
  return lambda t: jnp.where(t < 5 / 6 + 1e-6, first(t), first(jnp.asarray(5 / 6)) * (1 - t))


def multistep(*, milestones: Sequence[float] = (0.5,), factor: float = 0.1) -> Multiplier:
  """`factor` to the number of milestones passed; milestones are shares of the training.

  DC: (0.5,) and 0.1. IDC and DREAM: (2/3, 5/6) and 0.2. EDC: (0.8, 0.9, 0.95) and 0.5.
  """
  _positive("multistep", factor=factor)
  if not all(0 < m < 1 for m in milestones):
    raise LtddError(
      f"schedule 'multistep': milestones={tuple(milestones)}; expected shares of the training "
      "between 0 and 1."
    )
  # t may come out a rounding error below the milestone that it stands for.
  passed = lambda t: sum(jnp.where(t > m - 1e-6, 1.0, 0.0) for m in milestones)
  return lambda t: factor ** passed(t)  # type: ignore[return-value] # there is a milestone


def warmup_cosine(*, warmup: float = 0.05, start: float = 0.01) -> Multiplier:
  """Linear from `start` to 1 over the share `warmup` of the training, then a cosine to 0.

  The teacher and student stages of SRe2L on Tiny-ImageNet: 5 epochs, from 0.01.
  """
  if not 0 < warmup < 1:
    raise LtddError(f"schedule 'warmup_cosine': warmup={warmup}; expected a share in (0, 1).")
  return optax.warmup_cosine_decay_schedule(start, 1.0, warmup, 1.0)


SCHEDULES: dict[str, Callable[..., Multiplier]] = {
  "constant": constant,
  "cosine": cosine,
  "smooth": smooth,
  "linear": linear,
  "ssrs": ssrs,
  "multistep": multistep,
  "warmup_cosine": warmup_cosine,
}


def make_schedule(
  name: str, num_steps: int, lr: float, *, steps_per_epoch: float | int | None = None, **kwargs: Any
) -> optax.Schedule:
  """Makes `schedule(step) -> learning rate` by its name.

  Args:
    name: a key of `SCHEDULES`.
    num_steps: steps of the whole training, N; later steps get the value at N.
    lr: what the factor is multiplied by.
    steps_per_epoch: when given, the factor moves once an epoch (it may be a fraction: n / b).
    **kwargs: of that schedule.

  Raises:
    LtddError: an unknown name or argument, or one out of range.
  """
  _positive(name, num_steps=num_steps)
  if lr is None or lr < 0:
    raise LtddError(f"schedule {name!r}: lr={lr}; expected 0 or more.")
  if steps_per_epoch is not None:
    _positive(name, steps_per_epoch=steps_per_epoch)
  multiplier = registry.make("schedule", SCHEDULES, name, kwargs)

  def schedule(step):
    step = jnp.asarray(step, jnp.float32)
    if steps_per_epoch is not None:
      step = jnp.floor((step + 0.5) / steps_per_epoch) * steps_per_epoch
    return lr * multiplier(jnp.clip(step / num_steps, 0, 1))

  return schedule


def _positive(name: str, **values: float | int) -> None:
  for key, value in values.items():
    if value <= 0:
      raise LtddError(f"schedule {name!r}: {key}={value}; expected a positive number.")


def sgd(
  schedule: optax.Schedule,
  *,
  momentum: float = 0.9,
  weight_decay: float = 0.0,
  nesterov: bool = False,
  decay: str = "all",
) -> optax.GradientTransformation:
  """SGD as PyTorch has it: g += wd p; m = momentum m + g; p -= lr m.

  With `nesterov`, p -= lr (g + momentum m). `decay` says which tensors the weight decay applies to:
  "all", or "kernels", those of more than one dimension (neither biases nor scales of
  normalisation), as the students of SRe2L on ImageNet, G-VBSM, RDED and EDC have it.
  """
  decayed = optax.add_decayed_weights(weight_decay, _mask(weight_decay, decay))
  return optax.chain(decayed, optax.sgd(schedule, momentum or None, nesterov))


def adam(
  schedule: optax.Schedule, *, weight_decay: float = 0.0, decay: str = "all"
) -> optax.GradientTransformation:
  """Adam, with weight decay added to the gradient as PyTorch has it. `decay` as in `sgd`."""
  decayed = optax.add_decayed_weights(weight_decay, _mask(weight_decay, decay))
  return optax.chain(decayed, optax.adam(schedule))


def adamw(
  schedule: optax.Schedule, *, weight_decay: float = 0.01, decay: str = "all"
) -> optax.GradientTransformation:
  """AdamW: p -= lr (m / (sqrt(v) + eps) + wd p). `decay` as in `sgd`."""
  mask = _mask(weight_decay, decay)
  return optax.adamw(schedule, weight_decay=weight_decay, mask=mask)


OPTIMIZERS: dict[str, Callable[..., optax.GradientTransformation]] = {
  "sgd": sgd,
  "adam": adam,
  "adamw": adamw,
}


def make_optimizer(
  optimizer: Mapping[str, Any],
  schedule: Mapping[str, Any],
  num_steps: int,
  steps_per_epoch: float | None = None,
) -> optax.GradientTransformation:
  """Makes an optimiser from its config {name, lr, **kwargs} and its schedule's {name, **kwargs}.

  A schedule with `per_epoch` True moves once in `steps_per_epoch` steps, which may be a fraction.

  Raises:
    LtddError: an unknown or missing name or argument, or one out of range.
  """
  optimizer, schedule = {"name": None, "lr": None, **optimizer}, {"name": None, **schedule}
  if schedule.pop("per_epoch", False):
    schedule["steps_per_epoch"] = steps_per_epoch
  rate = make_schedule(num_steps=num_steps, lr=optimizer.pop("lr"), **schedule)
  made = registry.make("optimizer", OPTIMIZERS, optimizer.pop("name"), optimizer, rate)
  registry.check_share("optimizer: ", below_one=True, momentum=optimizer.get("momentum", 0))
  return made


def _mask(weight_decay: float, decay: str) -> Callable[[Any], Any] | None:
  """Says which tensors decay; None is all."""
  if weight_decay < 0:
    raise LtddError(f"optimizer: weight_decay={weight_decay}; expected 0 or more.")
  if decay not in ("all", "kernels"):
    raise LtddError(f"optimizer: decay={decay!r}; expected 'all' or 'kernels'.")
  return None if decay == "all" else lambda params: jax.tree.map(lambda p: p.ndim > 1, params)
