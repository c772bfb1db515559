"""MTT and TESLA: images on which a network moves as experts did on the real ones.

method = mtt(env, inner_steps=30, expert_epochs=2, max_start_epoch=20)
x = method.inputs(rng, t, {"trajectories": snapshots})   # two vectors of one expert, on the host
state, metrics = method.step(key, state, {}, x)

The experts are the resource "trajectories" (`teachers.trajectories`), on the split of the image
source. The learning rate of the inner loop is learned with the images, and is that of students.
"""

import functools
from collections.abc import Mapping
from typing import Any

from ltdd_jax.data import dsa
from ltdd_jax.distil import inner_loop
from ltdd_jax.distil.base import Env, Method
from ltdd_jax.distil.trajectory_matching import Options, matching

VERSION = 1


def mtt(
  env: Env,
  /,
  *,
  num_steps: int = 5000,
  inner_steps: int = 30,
  inner_batch_size: int | None = None,
  expert_epochs: int = 2,
  max_start_epoch: int = 20,
  lr: float = 100.0,
  momentum: float = 0.5,
  student_lr: float = 1e-3,
  lr_lr: float = 1e-5,
  augment: str | None = dsa.STRATEGY,
  init: str | Mapping[str, Any] = "real",
) -> Method:
  """MTT (Cazenave et al., CVPR 2022): trajectory matching, with the exact gradient.

  Each step takes an expert and a start epoch t in 0, ..., max_start_epoch - 1. From the expert's
  parameters after epoch t, `inner_steps` steps of SGD on the distilled images in views of DSA
  should lead to where the expert is after `expert_epochs` more epochs on real ones:

      L = ||theta_N - theta*_{t+M}||^2 / ||theta*_t - theta*_{t+M}||^2

  Then SGD moves images and rate. Labels are hard; images are not clamped. See `inner_loop.exact`
  for the gradient and its memory.

  In what we differ from the released code: experts are drawn with replacement, as it does with all
  of them in memory; images are normalised and not whitened; a class with fewer images than slots
  starts from each of them several times; the code makes one step more. A rate that falls to 0 or
  below stops the run, where the code goes on with gradient ascent. Views of square images are the
  same with either `align_corners`.

  Args:
    env: static facts; `env.expert` makes the network of the trajectories.
    num_steps: of SGD on the images.
    inner_steps: N.
    inner_batch_size: images in an inner step, or None for all.
    expert_epochs: M.
    max_start_epoch: of t, exclusive.
    lr: of the images, in units of normalised pixels.
    momentum: of both optimisers.
    student_lr: the rate of the inner loop at the start.
    lr_lr: the rate at which it is learned.
    augment: strategy of `dsa.dsa`, without "flip" for digits; None for no views.
    init: "real" (training images, drawn without replacement), "noise", N(0, 1), or
      {"name": "imported", "path": SET, ...}, see `initial_images`.

  Raises:
    LtddError: an argument out of range, or a network that `flat_params` refuses; from `inputs`,
      trajectories that are too short or of another network.
  """
  options = Options(
    num_steps, inner_steps, inner_batch_size, expert_epochs, max_start_epoch, lr, momentum,
    student_lr, lr_lr, augment, init,
  )  # fmt: skip
  return matching("mtt", env, options, inner_loop.exact)


def tesla(
  env: Env,
  /,
  *,
  num_steps: int = 5000,
  inner_steps: int = 30,
  inner_batch_size: int | None = None,
  expert_epochs: int = 2,
  max_start_epoch: int = 20,
  lr: float = 100.0,
  momentum: float = 0.5,
  student_lr: float = 1e-3,
  lr_lr: float = 1e-5,
  augment: str | None = dsa.STRATEGY,
  init: str | Mapping[str, Any] = "real",
  expert_labels: bool = False,
) -> Method:
  """TESLA (Cui et al., ICML 2023): MTT in memory that does not grow with the inner steps.

  As `mtt`, with the gradient of `inner_loop.constant_memory`, which is not quite that of L.

  Args:
    env: as in `mtt`, and likewise what is not named here.
    expert_labels: whether the images' labels are, in each step, the probabilities that the expert
      gives them after epoch t + M, without views, as TESLA has it on ImageNet. The logits of the
      last step are the set's soft labels.

  Raises:
    LtddError: as `mtt`.
  """
  options = Options(
    num_steps, inner_steps, inner_batch_size, expert_epochs, max_start_epoch, lr, momentum,
    student_lr, lr_lr, augment, init,
  )  # fmt: skip
  return matching("tesla", env, options, inner_loop.constant_memory, expert_labels=expert_labels)


def tesla_released(
  env: Env,
  /,
  *,
  num_steps: int = 5000,
  inner_steps: int = 30,
  inner_batch_size: int | None = None,
  expert_epochs: int = 2,
  max_start_epoch: int = 20,
  lr: float = 100.0,
  momentum: float = 0.5,
  student_lr: float = 1e-3,
  lr_lr: float = 1e-5,
  augment: str | None = dsa.STRATEGY,
  init: str | Mapping[str, Any] = "real",
  expert_labels: bool = False,
) -> Method:
  """TESLA as its released code computes it; the arguments are those of `tesla`.

  The gradient by the images lacks the factor 2, so that `lr` is twice that of `tesla`.
  """
  options = Options(
    num_steps, inner_steps, inner_batch_size, expert_epochs, max_start_epoch, lr, momentum,
    student_lr, lr_lr, augment, init,
  )  # fmt: skip
  gradient = functools.partial(inner_loop.constant_memory, factor=1.0)
  return matching("tesla_released", env, options, gradient, expert_labels=expert_labels)
