"""Learning-rate schedules and optimisers of teachers and students, by name.

  tx = make_optimizer({"name": "adamw", "lr": 1e-3}, {"name": "smooth", "zeta": 2.0}, 3000)

Schedules move at every step. The published code moves them once an epoch: give `steps_per_epoch`
for that.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
import optax.contrib

from ltdd_jax.core import registry
from ltdd_jax.core.types import LtddError
from ltdd_jax.models.airbench import WHITENING_BIAS

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


def warmup_cosine(*, warmup: float = 0.05, start: float = 0.01, end: float = 0.0) -> Multiplier:
  """Linear from `start` to 1 over the share `warmup` of the training, then a cosine to `end`.

  The teacher and student stages of SRe2L on Tiny-ImageNet: 5 epochs, from 0.01. FRePo's students:
  500 steps from 0, to 0.01.
  """
  if not 0 < warmup < 1:
    raise LtddError(f"schedule 'warmup_cosine': warmup={warmup}; expected a share in (0, 1).")
  registry.check_at_least("schedule 'warmup_cosine': ", 0, start=start, end=end)
  return optax.warmup_cosine_decay_schedule(start, 1.0, warmup, 1.0, end)


def triangle(*, start: float = 0.2, warmup: float = 0.23, end: float = 0.07) -> Multiplier:
  """Linear from `start` to 1 over the share `warmup` of the training, then linear to `end`.

  Airbench's. In what we differ: its peak lies on the step before that share, ours on the share.
  """
  if not 0 < warmup < 1:
    raise LtddError(f"schedule 'triangle': warmup={warmup}; expected a share in (0, 1).")
  registry.check_at_least("schedule 'triangle': ", 0, start=start, end=end)
  up = lambda t: start + (1 - start) * t / warmup
  down = lambda t: 1 + (end - 1) * (t - warmup) / (1 - warmup)
  return lambda t: jnp.where(t < warmup, up(t), down(t))


SCHEDULES: dict[str, Callable[..., Multiplier]] = {
  "constant": constant,
  "cosine": cosine,
  "smooth": smooth,
  "linear": linear,
  "ssrs": ssrs,
  "multistep": multistep,
  "triangle": triangle,
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
  whole: float = num_steps
  if steps_per_epoch is not None:
    _positive(name, steps_per_epoch=steps_per_epoch)
    # The last step may reach beyond the last epoch: shares are those of whole epochs.
    whole = max(1, math.floor(num_steps / steps_per_epoch + 1e-6)) * steps_per_epoch
  multiplier = registry.make("schedule", SCHEDULES, name, kwargs)

  def schedule(step):
    step = jnp.asarray(step, jnp.float32)
    if steps_per_epoch is not None:
      step = jnp.floor((step + 0.5) / steps_per_epoch) * steps_per_epoch
    return lr * multiplier(jnp.clip(step / whole, 0, 1))

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


class Peak(NamedTuple):
  """What `airbench_sgd` and `muon` convert their units by."""

  lr: float  # that the schedule's factor multiplies
  batch_size: int  # images in a step


def airbench_sgd(
  schedule: optax.Schedule,
  peak: Peak,
  *,
  momentum: float = 0.85,
  weight_decay: float = 0.0153,
  norm_bias_scale: float = 64.0,
  freeze_whitening: int | None = 144,
) -> optax.GradientTransformation:
  """Nesterov SGD in groups, with rate and decay in airbench's units (Jordan, 2024).

  These are LR and WD for 1,024 examples of a *summed* loss. For the mean over a batch of B images
  they come to

      lr = LR B / S,   S = 1024 (1 + 1 / (1 - momentum)),   g' = g + (WD / LR) p

  so LR = 11.5 is lr = 1.5 at B = 1024. Biases of norms have `norm_bias_scale` times the rate and
  one over that of the decay of the gradient, so that they decay alike.

  Args:
    schedule: of LR.
    peak: LR and B.
    momentum: in [0, 1).
    weight_decay: WD; 0 or more.
    norm_bias_scale: above 0.
    freeze_whitening: step from which the bias of airbench's whitening layer stays, or None.

  Raises:
    LtddError: an argument out of range, or an `lr` of 0.
  """
  _check_decay(weight_decay)
  rate = _converted(schedule, peak, momentum)
  _check_scale(norm_bias_scale, freeze_whitening)
  decay = weight_decay / peak.lr
  frozen = lambda step: rate(step) * (step < freeze_whitening)
  rates = {
    "norm_bias": lambda step: norm_bias_scale * rate(step),
    "whitening": rate if freeze_whitening is None else frozen,
    "other": rate,
  }
  decays = {"norm_bias": decay / norm_bias_scale, "whitening": decay, "other": decay}
  groups = {
    name: sgd(rates[name], momentum=momentum, weight_decay=decays[name], nesterov=True)
    for name in rates
  }
  return optax.partition(groups, _groups)


def muon(
  schedule: optax.Schedule,
  peak: Peak,
  *,
  filter_lr: float = 0.24,
  filter_momentum: float = 0.6,
  momentum: float = 0.85,
  weight_decay: float = 0.0153,
  norm_bias_scale: float = 64.0,
  freeze_whitening: int | None = 144,
) -> optax.GradientTransformation:
  """Muon (Jordan et al., 2024) for the filters of convolutions, `airbench_sgd` for all else.

      m = filter_momentum m + g,   p -= filter_lr f orthogonal(g + filter_momentum m)

  f is the schedule's factor, and `orthogonal` three iterations of Newton and Schulz on the filters
  as rows of a matrix. Their rate needs no conversion: it does not depend on the scale of the loss.

  In what we differ from airbench's script: filters are not scaled to unit norm at each step, the
  iterations are in float32, and m is Adam's, corrected for its bias (`optax.contrib.muon`), which
  in the first steps gives it less weight beside g; the rates of the other groups keep to one
  schedule, and the head has no rate of its own.

  The other arguments, and what is raised, are as of `airbench_sgd`.
  """
  if filter_lr <= 0:
    raise LtddError(f"optimizer 'muon': filter_lr is {filter_lr}; expected a positive number")
  registry.check_share("optimizer 'muon': ", below_one=True, filter_momentum=filter_momentum)
  others = airbench_sgd(
    schedule,
    peak,
    momentum=momentum,
    weight_decay=weight_decay,
    norm_bias_scale=norm_bias_scale,
    freeze_whitening=freeze_whitening,
  )
  numbers = optax.contrib.MuonDimensionNumbers(reduction_axis=(0, 1, 2), output_axis=3)
  is_filter = lambda p: p.ndim == 4
  filters = optax.contrib.scale_by_muon(
    ns_steps=3,
    beta=filter_momentum,
    weight_dimension_numbers=lambda params: jax.tree.map(lambda _: numbers, params),
  )
  rate = lambda step: filter_lr * schedule(step) / peak.lr
  return optax.partition(
    {
      True: optax.chain(filters, optax.scale_by_learning_rate(rate)),
      False: others,
    },
    lambda params: jax.tree.map(is_filter, params),
  )


def _converted(schedule: optax.Schedule, peak: Peak, momentum: float) -> optax.Schedule:
  """The rate of a mean loss, of airbench's rate of a summed one."""
  if not peak.lr > 0:
    raise LtddError(f"optimizer: lr is {peak.lr}; expected a positive number, such as 11.5")
  registry.check_share("optimizer: ", below_one=True, momentum=momentum)
  scale = peak.batch_size / (1024 * (1 + 1 / (1 - momentum)))
  return lambda step: schedule(step) * scale


def _check_scale(norm_bias_scale: float, freeze_whitening: int | None) -> None:
  if norm_bias_scale <= 0:
    raise LtddError(
      f"optimizer: norm_bias_scale is {norm_bias_scale}; expected a positive number, such as 64"
    )
  if freeze_whitening is not None:
    registry.check_at_least("optimizer: ", 0, freeze_whitening=freeze_whitening)


def _groups(params: Any) -> Any:
  """The group of `airbench_sgd` of each tensor: "norm_bias", "whitening" or "other"."""

  def group(path: Any, _: Any) -> str:
    names = [str(getattr(part, "key", part)) for part in path]
    if names[-1] == WHITENING_BIAS:
      return "whitening"
    in_norm = names[-1] == "bias" and any("norm" in name.lower() for name in names[-2:-1])
    return "norm_bias" if in_norm else "other"

  return jax.tree_util.tree_map_with_path(group, params)


OPTIMIZERS: dict[str, Callable[..., optax.GradientTransformation]] = {
  "sgd": sgd,
  "adam": adam,
  "adamw": adamw,
  "airbench_sgd": airbench_sgd,
  "muon": muon,
}
BY_BATCH = ("airbench_sgd", "muon")  # their rates are for so many images: they take a `Peak`


def make_optimizer(
  optimizer: Mapping[str, Any],
  schedule: Mapping[str, Any],
  num_steps: int,
  steps_per_epoch: float | None = None,
  batch_size: int = 1024,
) -> optax.GradientTransformation:
  """Makes an optimiser from its config {name, lr, **kwargs} and its schedule's {name, **kwargs}.

  A schedule with `per_epoch` True moves once in `steps_per_epoch` steps, which may be a fraction.
  `batch_size` is for those of `BY_BATCH`, whose units do not depend on it.

  Raises:
    LtddError: an unknown or missing name or argument, or one out of range.
  """
  optimizer, schedule = {"name": None, "lr": None, **optimizer}, {"name": None, **schedule}
  if schedule.pop("per_epoch", False):
    if steps_per_epoch is None:
      raise LtddError(
        f"schedule {schedule['name']!r}: per_epoch is True, which students alone have; expected "
        "False or none, since this schedule moves at every step"
      )
    schedule["steps_per_epoch"] = steps_per_epoch
  name, lr = optimizer.pop("name"), optimizer.pop("lr")
  rate = make_schedule(num_steps=num_steps, lr=lr, **schedule)
  args = (rate, Peak(lr, batch_size)) if name in BY_BATCH else (rate,)
  made = registry.make("optimizer", OPTIMIZERS, name, optimizer, *args)
  registry.check_share("optimizer: ", below_one=True, momentum=optimizer.get("momentum", 0))
  return made


def _check_decay(weight_decay: float) -> None:
  if weight_decay < 0:
    raise LtddError(f"optimizer: weight_decay={weight_decay}; expected 0 or more.")


def _mask(weight_decay: float, decay: str) -> Callable[[Any], Any] | None:
  """Says which tensors decay; None is all."""
  _check_decay(weight_decay)
  if decay not in ("all", "kernels"):
    raise LtddError(f"optimizer: decay={decay!r}; expected 'all' or 'kernels'.")
  return None if decay == "all" else lambda params: jax.tree.map(lambda p: p.ndim > 1, params)
