"""Resources: what a method may need, which stage makes it, and how it is loaded.

A method names entries of `RESOURCES` in its `needs`. The stages of a run are the closure of what
its image sources, label sources and calibrators need: nobody keeps lists of names by hand.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ltdd_jax.core import rng
from ltdd_jax.pipeline import continued
from ltdd_jax.pipeline.context import Context


class Resource(NamedTuple):
  """One resource, as a function of the run and the name of an image source."""

  stage: str  # that makes it
  load: Callable[[Context, str], Any]
  shapes: Callable[[Context, str], Any]  # what `load` gives, before the stage has run
  where: str = "device"  # or "host": for `Method.inputs` alone


def _image_shapes(ctx: Context, images: str) -> jax.ShapeDtypeStruct:
  n = len(ctx.split(ctx.split_name(images)).labels)
  return jax.ShapeDtypeStruct((n, *ctx.source.spec.image_shape), jnp.uint8)


def _file(ctx: Context, images: str) -> dict[str, np.ndarray] | None:
  file = ctx.file(images)
  return file and file.arrays


def _init_set(ctx: Context, images: str) -> dict[str, np.ndarray] | None:
  found = continued.init_set(ctx, images)
  return found and {"images": found.images, "labels": found.labels}


def _classifier_experts(ctx: Context, images: str) -> np.ndarray:
  split = ctx.split_name(images)
  last = ctx.classifiers(split)[:, -1]
  return np.concatenate([ctx.trajectories(split)[:, -1, : -last.shape[1]], last], 1)


def _classifier_expert_shapes(ctx: Context, images: str) -> jax.ShapeDtypeStruct:
  ctx.classifier_shapes()  # which refuses a run without
  return RESOURCES["experts"].shapes(ctx, images)


RESOURCES: dict[str, Resource] = {
  "images": Resource(  # (N, h, w, c) uint8, the training images of the source's split
    "data", lambda ctx, images: ctx.train_data(ctx.split_name(images)).images, _image_shapes
  ),
  "labels": Resource(  # (N,) int32, their classes
    "data",
    lambda ctx, images: ctx.train_data(ctx.split_name(images)).labels,
    lambda ctx, images: ctx.split(ctx.split_name(images)).labels,
  ),
  "teachers": Resource(  # a tuple of variables, one for each network of `Env.teachers`
    "teacher",
    lambda ctx, images: tuple(t.variables for t in ctx.teachers(ctx.teacher_names(images))),
    lambda ctx, images: tuple(ctx.variable_shapes(t.model) for t in ctx.env(images).teachers),
  ),
  "initial_teachers": Resource(  # the same networks before their training, likewise
    "teacher",
    lambda ctx, images: ctx.initial_teachers(ctx.teacher_names(images)),
    lambda ctx, images: tuple(ctx.variable_shapes(t.model) for t in ctx.env(images).teachers),
  ),
  "statistics": Resource(  # a tuple of `teachers.statistics.Statistics`, likewise
    "statistics",
    lambda ctx, images: ctx.statistics(ctx.teacher_names(images)),
    lambda ctx, images: ctx.statistics_shapes(ctx.teacher_names(images)),
  ),
  "trajectories": Resource(  # (experts, epochs + 1, p), see `teachers.trajectories`
    "trajectories",
    lambda ctx, images: ctx.trajectories(ctx.split_name(images)),
    lambda ctx, images: ctx.trajectory_shapes(),
    where="host",
  ),
  "experts": Resource(  # (experts, p), where they end
    "trajectories",
    lambda ctx, images: np.array(ctx.trajectories(ctx.split_name(images))[:, -1]),
    lambda ctx, images: jax.ShapeDtypeStruct(ctx.trajectory_shapes().shape[::2], np.float32),
  ),
  "classifiers": Resource(  # (experts, epochs + 1, c), see `trajectories.train_classifiers`
    "trajectories",
    lambda ctx, images: ctx.classifiers(ctx.split_name(images)),
    lambda ctx, images: ctx.classifier_shapes(),
    where="host",
  ),
  "classifier_experts": Resource(  # (experts, p), the experts with the classifiers where they end
    "trajectories", _classifier_experts, _classifier_expert_shapes
  ),
  "key": Resource(  # a random key that all batches of images of the source share
    "data",
    lambda ctx, images: rng.key_for(ctx.config["seed"], "distil", images),
    lambda ctx, images: jax.eval_shape(lambda: jax.random.key(0)),
  ),
  "file": Resource("data", _file, _file),  # the arrays of a distilled set from elsewhere
  "init_set": Resource("data", _init_set, _init_set),  # images and labels that a method starts from
}
