"""DREAM: gradient matching with representative real images, and several images in one slot.

method = dream(env, factor=2, num_clusters=128)
x = method.inputs(rng, t, {"labels": labels})            # rows that the network is trained on
state, metrics = method.step(key, state, {"images": images, "labels": labels}, x)

`multi_formation.decode(images, 2)` gives the images that a set of factor 2 stands for.
"""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int32, Key

from ltdd_jax.core.registry import check_at_least, check_share
from ltdd_jax.core.types import Distilled, LtddError, Slots
from ltdd_jax.data import augment as augment_lib
from ltdd_jax.data import crops, stream
from ltdd_jax.data import dsa as dsa_lib
from ltdd_jax.distil import features as features_lib
from ltdd_jax.distil import gradient_matching as gm
from ltdd_jax.distil import initial_images, multi_formation, selection
from ltdd_jax.distil.base import Env, Method, Notes, Resources
from ltdd_jax.distil.dm import CONVNET
from ltdd_jax.distil.network_training import (
  NetworkState,
  Params,
  Rows,
  cutmix_batch,
  draw_batches,
  draw_network,
  train,
)
from ltdd_jax.distil.representatives import Representatives, representatives
from ltdd_jax.models import convolution, taps
from ltdd_jax.training import losses, optimizers

VERSION = 1


class Options(NamedTuple):
  """The arguments of `dream`."""

  num_steps: int
  lr: float
  momentum: float
  factor: int
  num_clusters: int
  interval: int
  num_iterations: int
  batch_distilled: int
  network: Mapping[str, Any]
  steps_per_network: int
  network_images: int
  network_batch: int
  network_lr: float
  augment: str | None
  network_augment: str | None
  chunk_size: int


def dream(
  env: Env,
  /,
  *,
  num_steps: int = 200_000,
  lr: float = 5e-3,
  momentum: float = 0.5,
  factor: int = 2,
  num_clusters: int = 128,
  interval: int = 10,
  num_iterations: int = 20,
  batch_distilled: int = 128,
  network: Mapping[str, Any] = CONVNET,
  steps_per_network: int = 100,
  network_images: int = 2000,
  network_batch: int = 128,
  network_lr: float = 0.01,
  augment: str | None = "color_crop_cutout",
  network_augment: str | None = "color_crop",
  chunk_size: int = 500,
  init: str | Mapping[str, Any] = "real",
) -> Method:
  """DREAM (Liu et al., ICCV 2023): the gradients of images near the centres of a class's clusters.

      L_c = || grad_theta l(A(x_c)) - grad_theta l(A(decode(s_c))) ||^2

  where l is the mean cross-entropy, theta the kernels of the network's convolutions, x_c the
  representatives of the class in the features of the network (`representatives`), chosen anew every
  `interval` steps, and decode IDC's (`multi_formation`). A step goes through the classes, and after
  each SGD moves the images: those of the other classes too, by their momentum. Then the network is
  trained on training images with CutMix in half of the updates (SGD, momentum 0.9, weight decay
  5e-4). After `steps_per_network` steps a new random one is drawn, and pixels are clamped to
  [0, 1].

  Images start from the real ones nearest the centres of factor^2 clusters for each slot
  (`selection.k_means`), made small.

  In what we differ from the released code: classes may have unequal numbers of slots, and fewer
  images than clusters; features are of normalised images, as the network sees them; Lloyd's
  iterations are of a fixed number, and a centre without images stays; Tiny-ImageNet's
  representatives are chosen as the others'; networks with batch norm are refused.

  Args:
    env: static facts; teachers are not used.
    num_steps: T = 2,000 networks of 100 steps.
    lr: of the images, in units of pixels in [0, 1]: 5e-3 (images per class / 10) (side / 32)^2.
    momentum: of the images' SGD, which goes on from network to network.
    factor: a slot holds factor x factor small images; 1 for one.
    num_clusters: representatives of a class; at least as many as its slots.
    interval: steps for which they are kept.
    num_iterations: of Lloyd's.
    batch_distilled: decoded images of a class in a step; of more a random subset is taken.
    network: {name, **kwargs} of `models.make_model`.
    steps_per_network: steps on one network.
    network_images: training images, of all classes, that the network is trained on after a step,
      in whole batches.
    network_batch: in one update.
    network_lr: of its SGD.
    augment: strategy of `dsa.apply_combined` for matching, the same for real and distilled images.
    network_augment: strategy for its training, each image by itself.
    chunk_size: images in one forward pass for features.
    init: "real" as above, or {"name": "imported", "path": SET, ...}, see `initial_images`: a set of
      the same `factor`.

  Raises:
    LtddError: an argument out of range, and from `notes`: more slots of a class than clusters.
  """
  options = Options(
    num_steps, lr, momentum, factor, num_clusters, interval, num_iterations, batch_distilled,
    network, steps_per_network, network_images, network_batch, network_lr, augment,
    network_augment, chunk_size,
  )  # fmt: skip
  _check(env, options)
  matching = gm.Matching(
    gm.make_matched("dream", env, network),
    squared_distance,
    lambda pixels: _normalised(env, multi_formation.decode(pixels, factor)),
  )
  tx = optax.sgd(lr, momentum)
  rate = lambda _: network_lr
  network_tx = optimizers.sgd(rate, momentum=0.9, weight_decay=5e-4)
  draw = functools.partial(draw_network, matching.model, network_tx, env)

  def real(_: Env, /) -> initial_images.Start:
    draw = functools.partial(first_parts, matching.model, env, options)
    return initial_images.Start(draw, ("images", "labels"), multi_formation.make_notes(factor))

  units = env._replace(mean=(0.0,) * len(env.mean), std=(1.0,) * len(env.mean))  # pixels in [0, 1]
  first = initial_images.make_start(units, init, "dream", {"real": real})
  look = functools.partial(choose, matching.model, env, options)

  def start(key: jax.Array, slots: Slots, res: Resources) -> gm.MatchState:
    network_key, image_key = jax.random.split(key)
    network = draw(network_key)
    labels = jnp.asarray(slots.labels, jnp.int32)
    slots = Slots(labels, jnp.asarray(slots.rank, jnp.int32))
    images = first.draw(image_key, slots, {**res, "params": network[0]})
    none = jnp.zeros((env.num_classes, num_clusters))
    real = none.astype(jnp.int32), none
    step = jnp.zeros((), jnp.int32)
    return gm.MatchState(step, images, labels, tx.init(images), network, real)

  def step(
    key: jax.Array, state: gm.MatchState, res: Resources, x: Rows, *, turn: int = 0
  ) -> tuple[gm.MatchState, dict[str, jax.Array]]:
    del turn
    draw_key, cluster_key, match_key, train_key = jax.random.split(key, 4)
    number = state.step % steps_per_network
    network = jax.lax.cond(number == 0, draw, lambda _: state.network, draw_key)
    images = jnp.where(number == 0, jnp.clip(state.images, 0, 1), state.images)
    anew = lambda key: look(network[0], key, res)
    real = jax.lax.cond(number % interval == 0, anew, lambda _: state.real, cluster_key)
    with convolution.looped():
      moved = images, state.opt_state
      moved, loss = move_images(
        matching, env, options, tx, res, real, network[0], match_key, moved, state.labels
      )
      network = train_on_real(matching.model, network_tx, env, options, network, train_key, res, x)
    new = gm.MatchState(state.step + 1, moved[0], state.labels, moved[1], network, real)
    return new, {"loss": loss}

  def inputs(rng: np.random.Generator, t: int, host: Resources) -> Rows:
    del t
    return draw_batches(rng, len(host["labels"]), network_images, network_batch)

  def read(state: gm.MatchState) -> Distilled:
    return Distilled(_normalised(env, state.images), state.labels)

  return Method(
    start,
    step,
    read,
    needs=first.needs_with("images", "labels"),
    num_steps=num_steps,
    batching="joint",
    inputs=inputs,
    real_images=True,
    notes=_notes(options, first.notes),
    dtype="float32",
    parts=factor,
  )


def squared_distance(real: Params, distilled: Params) -> Float[Array, ""]:
  """Computes the squared distance of two gradients by the kernels of convolutions alone."""
  pairs = zip(jax.tree.leaves(real), jax.tree.leaves(distilled), strict=True)
  return sum((jnp.square(a - b).sum() for a, b in pairs if a.ndim == 4), jnp.zeros(()))


def choose(
  model: nn.Module,
  env: Env,
  options: Options,
  params: Params,
  key: Key[Array, ""],
  res: Resources,
) -> Representatives:
  """Chooses the representatives of every class in the features of a network."""
  found = _features(model, env, options, params, res)
  labels = jnp.asarray(res["labels"], jnp.int32)
  return representatives(
    key, found, labels, env.num_classes, options.num_clusters, options.num_iterations
  )


def first_parts(
  model: nn.Module,
  env: Env,
  options: Options,
  key: Key[Array, ""],
  slots: Slots,
  res: Resources,
) -> Float[Array, "n h w c"]:
  """Puts the real images nearest the centres of factor^2 clusters for each slot into its parts.

  The parts of a class share its images evenly where it has fewer of them. Features are of a network
  with the parameters `res["params"]`.
  """
  count = options.factor**2
  rank = slots.rank[None] * count + jnp.arange(count, dtype=jnp.int32)[:, None]
  parts = Slots(jnp.tile(slots.labels, count), rank.ravel())  # in the order of `encode`
  labels = jnp.asarray(res["labels"], jnp.int32)
  found = _features(model, env, options, res["params"], res)
  rows = selection.k_means(key, found, labels, parts, env.num_classes, options.num_iterations)
  pixels = augment_lib.to_pixels(stream.take(res["images"], rows))
  return multi_formation.encode(pixels, options.factor, multi_formation.nearest)


def move_images(
  matching: gm.Matching,
  env: Env,
  options: Options,
  tx: optax.GradientTransformation,
  res: Resources,
  real: Representatives,
  params: Params,
  key: Key[Array, ""],
  moved: tuple[Float[Array, "n h w c"], Any],
  labels: Int32[Array, " n"],
) -> tuple[tuple[Float[Array, "n h w c"], Any], jax.Array]:
  """Moves images and their optimiser once for each class that has any; the sum of the L_c too."""
  by_class = selection.by_class(labels, env.num_classes)

  def one(c: jax.Array, carry: Any) -> Any:
    (images, opt_state), total = carry
    view_key, subset_key = jax.random.split(jax.random.fold_in(key, c))
    weights = subset(subset_key, labels == c, options.factor**2, options.batch_distilled)
    look = _shared_view(options.augment, view_key)
    batch = features_lib.real_images(env, res, real[0][c]), real[1][c]
    loss, grads = gm.class_gradient(matching, params, look, c, batch, images, by_class, weights)
    updates, opt_state = tx.update(grads, opt_state)
    return (optax.apply_updates(images, updates), opt_state), total + loss

  def some(c: jax.Array, carry: Any) -> Any:
    return jax.lax.cond(by_class.counts[c] > 0, one, lambda _, carry: carry, c, carry)

  return jax.lax.fori_loop(0, env.num_classes, some, (moved, jnp.zeros(())))


def subset(key: Key[Array, ""], mine: jax.Array, cells: int, most: int) -> Float[Array, "n cells"]:
  """Draws at most `most` of the decoded images of a class's slots `mine` (n,): weights 1 and 0."""
  total = len(mine) * cells
  if total <= most:
    return jnp.broadcast_to(mine[:, None], (len(mine), cells)).astype(jnp.float32)
  score = jnp.where(mine[:, None], jax.random.uniform(key, (len(mine), cells)), 2)
  rank = jnp.argsort(jnp.argsort(score.ravel())).reshape(score.shape)
  return ((rank < most) & mine[:, None]).astype(jnp.float32)


def train_on_real(
  model: nn.Module,
  tx: optax.GradientTransformation,
  env: Env,
  options: Options,
  network: NetworkState,
  key: Key[Array, ""],
  res: Resources,
  x: Rows,
) -> NetworkState:
  """Trains a network on the rows `x` of training images, one update for each batch of them."""
  rows, weights = jnp.asarray(x[0]), jnp.asarray(x[1])

  def loss_fn(params: Params, i: jax.Array) -> jax.Array:
    view_key, mix_key = jax.random.split(jax.random.fold_in(key, i))
    images = features_lib.real_images(env, res, rows[i])
    seen = _own_views(options.network_augment, view_key, images)
    labels = jnp.asarray(res["labels"], jnp.int32)[rows[i]]
    mixed, partner, share = cutmix_batch(mix_key, seen)
    logits: Any = model.apply({"params": params}, mixed, train=True)
    loss = share * losses.cross_entropy_rows(logits, labels)
    loss += (1 - share) * losses.cross_entropy_rows(logits, labels[partner])
    return jnp.sum(loss * weights[i]) / weights[i].sum()

  return train(tx, network, len(rows), loss_fn)


def _features(
  model: nn.Module, env: Env, options: Options, params: Params, res: Resources
) -> Float[Array, "N f"]:
  """The input of the classifier, for all training images as they are."""

  def chunk(rows: jax.Array) -> jax.Array:
    images = features_lib.real_images(env, res, rows)
    return taps.features(model, {"params": params}, images)[1].astype(jnp.float32)

  return features_lib.in_chunks(chunk, len(res["images"]), options.chunk_size)


def _shared_view(strategy: str | None, key: jax.Array) -> gm.View:
  """Draws a view of normalised images, the same for all of them."""
  if strategy is None:
    return lambda images: images
  op, numbers = dsa_lib.draw_combined(key, strategy, 1)
  return jax.vmap(lambda x: dsa_lib.apply_combined(x, op, numbers[0], strategy))


def _own_views(strategy: str | None, key: jax.Array, images: jax.Array) -> jax.Array:
  """Views of normalised images: each has strengths of its own."""
  if strategy is None:
    return images
  op, numbers = dsa_lib.draw_combined(key, strategy, len(images))
  return jax.vmap(lambda x, u: dsa_lib.apply_combined(x, op, u, strategy))(images, numbers)


def _normalised(env: Env, pixels: jax.Array) -> jax.Array:
  return augment_lib.normalize_pixels(pixels, env.mean, env.std)


def _check(env: Env, options: Options) -> None:
  o, where = options, "method 'dream': "
  check_at_least(
    where,
    1,
    num_steps=o.num_steps,
    num_clusters=o.num_clusters,
    interval=o.interval,
    batch_distilled=o.batch_distilled,
    steps_per_network=o.steps_per_network,
    network_images=o.network_images,
    network_batch=o.network_batch,
    chunk_size=o.chunk_size,
  )
  check_at_least(where, 0, lr=o.lr, network_lr=o.network_lr, num_iterations=o.num_iterations)
  check_share(where, below_one=True, momentum=o.momentum)
  crops.check_factor(where, o.factor, env.image_shape)
  for strategy in (o.augment, o.network_augment):
    if strategy is not None:
      dsa_lib.check_strategy(strategy)


def _notes(options: Options, of_start: Notes) -> Notes:
  """Notes on classes with few images; refuses more slots of a class than it may have clusters."""

  def notes(have: np.ndarray, want: np.ndarray) -> tuple[str, ...]:
    worst = int(np.argmax(want))
    if want[worst] > options.num_clusters:
      raise LtddError(
        f"method 'dream': class {worst} has {want[worst]} slots, and its real images are "
        f"represented by those of num_clusters={options.num_clusters} clusters; expected no more "
        "slots than clusters. Raise num_clusters or lower the images per class"
      )
    said = []
    few = np.flatnonzero((want > 0) & (have < options.num_clusters))
    if len(few):
      said.append(
        f"classes {', '.join(f'{c} ({have[c]})' for c in few)} have fewer training images than the "
        f"{options.num_clusters} clusters; all of their images are matched"
      )
    return (*said, *of_start(have, want))

  return notes
