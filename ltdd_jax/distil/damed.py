"""DAMED: trajectory matching on a long tail, with a second kind of experts for the classifier.

The experts' backbones come from the long-tailed set, and their classifiers from balanced batches:
`config.trajectories.classifier_epochs`. See `trajectory_matching`.
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ltdd_jax.core.registry import check_at_least
from ltdd_jax.core.types import LtddError
from ltdd_jax.data import dsa
from ltdd_jax.distil import inner_loop
from ltdd_jax.distil.base import Env, Method, Resources
from ltdd_jax.distil.ftd_datm import labelled_images
from ltdd_jax.distil.trajectory_matching import (
  Options,
  Pair,
  Phases,
  draw_pair,
  expert_network,
  matching,
)
from ltdd_jax.models.flat import flat_params

VERSION = 1


def damed(
  env: Env,
  /,
  *,
  num_steps: int = 10_000,
  inner_steps: int = 80,
  classifier_steps: int = 80,
  inner_batch_size: int | None = 500,
  expert_epochs: int = 2,
  min_start_epoch: int = 0,
  first_max_start_epoch: int | None = None,
  max_start_epoch: int = 20,
  growth_steps: int = 1000,
  backbone_weight: float = 0.5,
  classifier_weight: float = 1.0,
  lr: float = 100.0,
  momentum: float = 0.5,
  lr_labels: float = 2.0,
  momentum_labels: float = 0.9,
  student_lr: float = 0.01,
  lr_lr: float = 1e-5,
  augment: str | None = dsa.STRATEGY,
  init: str | Mapping[str, Any] = "predicted",
) -> Method:
  """DAMED, "Distilling Long-tailed Datasets" (Zhao et al., CVPR 2025): DATM in two phases.

      L = backbone_weight L_1 + classifier_weight L_2

  L_1 is the matching loss of `inner_loop` over all layers but the classifier, after an inner loop
  with the weighted loss mean_b sum_c w_c q_bc (-log p_bc), w_c = n_c / N: a network that is as
  biased as the experts are, so that the images need not be. The classifier moves along, and does
  not count. L_2 is that of a classifier alone, on the backbone where an expert ends: it starts
  where the expert's does and is to be, without weights, where the classifier expert
  (`teachers.trajectories.train_classifiers`) is after `expert_epochs` epochs. The two experts of a
  step are independent. Gradients are those of TESLA, in memory that does not grow with the steps.

  Start epochs of L_1, images, soft labels q and the rate are drawn and learned as in `datm`,
  without its threshold. The images at the start, and their labels, are those of `datm` by the
  classifier experts.

  In what we differ from the released code: as `datm`; where one classifier expert predicts too few
  images of a class, further ones are asked, and images of a class that none predicts start from
  real ones, not from noise; it whitens with statistics of its own for
  experts and images, and its gradients depend on the number of GPUs. The paper also adjusts the
  logits of the first loss, which no published config has.

  Args:
    env: as the other arguments, see `datm`.
    num_steps: of SGD on images, labels and rate.
    inner_steps: N of the first phase.
    classifier_steps: N of the second phase.
    inner_batch_size: images in an inner step, or None for all.
    expert_epochs: M of both.
    min_start_epoch: the first epoch to start from.
    first_max_start_epoch: T, exclusive; None for max_start_epoch from the first step on.
    max_start_epoch: T+, exclusive.
    growth_steps: steps until T+.
    backbone_weight: of L_1; it falls with the imbalance.
    classifier_weight: of L_2; it rises with the imbalance.
    lr: of the images.
    momentum: of images and rate.
    lr_labels: of the logits.
    momentum_labels: of theirs.
    student_lr: the rate of the inner loop at the start.
    lr_lr: the rate at which it is learned.
    augment: strategy of `dsa.dsa`, or None.
    init: "predicted" by the classifier experts, "real", or a set, as in `datm`.

  Raises:
    LtddError: as `mtt`; from `inputs`, too few epochs of classifier experts.
  """
  options = Options(
    num_steps, inner_steps, inner_batch_size, expert_epochs, max_start_epoch, lr, momentum,
    student_lr, lr_lr, augment, init, min_start_epoch, first_max_start_epoch, growth_steps,
    lr_labels, momentum_labels,
  )  # fmt: skip
  where = "method 'damed': "
  check_at_least(where, 1, classifier_steps=classifier_steps)
  check_at_least(where, 0, backbone_weight=backbone_weight, classifier_weight=classifier_weight)
  initial = labelled_images("damed", env, init, "classifier_experts")
  _, size = expert_network("damed", env)
  backbone = flat_params(env.expert(), env.image_shape).num_features  # type: ignore[misc]

  def inputs(rng: np.random.Generator, t: int, host: Resources) -> tuple[Pair, Pair]:
    representation = draw_pair("damed", options, size, rng, t, host)
    return representation, draw_classifiers(rng, expert_epochs, host)

  def gradient(
    loss_fn: Any, x: Any, learned: dict[str, Any], rate: jax.Array, res: Resources
  ) -> inner_loop.Matched:
    whole, last = x
    weights = class_weights(res["labels"], env.num_classes)
    features = last[0][:backbone]

    def of_classifier(classifier: jax.Array, learned: Any, i: jax.Array) -> jax.Array:
      return loss_fn(jnp.concatenate([features, classifier]), learned, i + inner_steps)

    biased = functools.partial(loss_fn, class_weights=weights)
    first = inner_loop.constant_memory(
      biased, whole[0], whole[1], learned, rate, num_steps=inner_steps, matched=backbone
    )
    start, target = (vector[backbone:] for vector in last)
    second = inner_loop.constant_memory(
      of_classifier, start, target, learned, rate, num_steps=classifier_steps
    )
    add = lambda a, b: backbone_weight * a + classifier_weight * b
    return jax.tree.map(add, first, second)

  phases = Phases(("classifiers", "classifier_experts"), inputs, gradient)
  return matching("damed", env, options, inner_loop.constant_memory, first=initial, phases=phases)


def class_weights(labels: Int[Array | np.ndarray, " N"], k: int) -> Float[Array, " k"]:
  """Returns the share of each class in the training set, w of `damed`: they sum to 1."""
  return jnp.bincount(jnp.asarray(labels), length=k) / len(labels)


def draw_classifiers(rng: np.random.Generator, epochs: int, host: Resources) -> Pair:
  """Draws an expert; returns its vectors with the classifier at the start and after `epochs`."""
  classifiers, snapshots = host["classifiers"], host["trajectories"]
  experts, count, _ = classifiers.shape
  if epochs >= count:
    raise LtddError(
      f"method 'damed': expert_epochs is {epochs}, but the classifier experts have {count - 1} "
      f"epochs; lower it, or raise config.trajectories.classifier_epochs to {epochs}"
    )
  expert = rng.integers(experts)
  features = snapshots[expert, -1, : -classifiers.shape[2]]
  row = lambda e: np.concatenate([features, classifiers[expert, e]]).astype(np.float32)
  return row(0), row(epochs)
