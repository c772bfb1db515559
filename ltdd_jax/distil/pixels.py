"""The loop of all methods that optimise pixels against frozen teachers.

A method is a start, an objective and constants; `sre2l` and `gvbsm_edc` have the published ones.
The optimiser is the same in SRe2L, CDA, G-VBSM and EDC: Adam (beta 0.5, 0.9) on the images
alone, new for each batch of images, `lr_t = lr/2 (1 + cos(pi t / T))`, and after every step each
pixel is clamped to its valid range.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from ltdd_jax.core.registry import check_at_least
from ltdd_jax.core.types import Distilled, Leaf, Slots
from ltdd_jax.data import augment
from ltdd_jax.distil.base import Env, Method, Resources
from ltdd_jax.distil.initial_images import Start

Metrics = dict[str, jax.Array]


@flax.struct.dataclass
class PixelState:
  """Images that are being optimised."""

  step: Leaf  # [] int32, of this batch of images
  images: Leaf  # (n, h, w, c) float32, normalised
  labels: Leaf  # (n,) int32
  opt_state: Any
  running: Any = None  # for each teacher, running statistics, which go on from batch to batch
  slow: Leaf = None  # (n, h, w, c) running mean of the images


# images, state, key, res, turn -> loss and (metrics, the new `running`)
Objective = Callable[
  [jax.Array, PixelState, jax.Array, Resources, int], tuple[jax.Array, tuple[Metrics, Any]]
]


def pixel_method(
  name: str,
  env: Env,
  start: Start,
  objective: Objective,
  *,
  num_steps: int,
  lr: float,
  needs: tuple[str, ...] = ("teachers",),
  turns: int = 1,
  running: Callable[[Resources], Any] | None = None,
  slow_decay: float | None = None,
) -> Method:
  """Makes a method of a start and an objective.

  Args:
    name: of the method, for messages.
    env: static facts.
    start: makes the images to start from, see `initial_images`.
    objective: is minimised over the images.
    num_steps: T, for each batch of images.
    lr: base learning rate, in units of normalised pixels.
    needs: resources of the objective.
    turns: programs that take turns; the objective is told which it is.
    running: makes the running statistics that the objective starts with.
    slow_decay: decay of a running mean of the images, `state.slow`, or None for none. It is moved
      after the objective is computed and before the images are.
  """
  check_at_least(f"method {name!r}: ", 1, num_steps=num_steps)
  check_at_least(f"method {name!r}: ", 0, lr=lr)
  tx = optax.adam(optax.cosine_decay_schedule(lr, num_steps), b1=0.5, b2=0.9)

  def init(key: jax.Array, slots: Slots, res: Resources) -> PixelState:
    images = start.draw(key, slots, res)
    return PixelState(
      step=jnp.zeros((), jnp.int32),
      images=images,
      labels=jnp.asarray(slots.labels, jnp.int32),
      opt_state=tx.init(images),
      running=running(res) if running else None,
      slow=None if slow_decay is None else jnp.array(images),  # both are donated: no alias
    )

  def step(
    key: jax.Array, state: PixelState, res: Resources, x: Any, *, turn: int = 0
  ) -> tuple[PixelState, Metrics]:
    del x
    grad_fn = jax.grad(objective, has_aux=True)
    grads, (metrics, running) = grad_fn(state.images, state, key, res, turn)
    slow = state.slow
    if slow_decay is not None:
      slow = slow_decay * slow + (1 - slow_decay) * state.images
    updates, opt_state = tx.update(grads, state.opt_state, state.images)
    images = optax.apply_updates(state.images, updates)
    images = augment.clip_to_pixels(images, env.mean, env.std)
    new = dataclasses.replace(
      state, step=state.step + 1, images=images, opt_state=opt_state, running=running, slow=slow
    )
    return new, metrics

  return Method(
    init,
    step,
    read,
    needs=start.needs_with(*needs),
    num_steps=num_steps,
    real_images="images" in start.needs,
    turns=turns,
    carry=carry if running else None,
    notes=start.notes,
  )


def read(state: PixelState) -> Distilled:
  """The images as they stand: the last iterate is the result."""
  return Distilled(state.images, state.labels)


def carry(fresh: PixelState, last: PixelState) -> PixelState:
  """New images and a new optimiser, with the running statistics that the last batch left."""
  return dataclasses.replace(fresh, running=last.running)
