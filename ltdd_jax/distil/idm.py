"""IDM: distribution matching in the features of networks of all ages, from new to well trained.

method = idm(env, network={"name": "convnet", "depth": 3, "width": 128, "norm": "instance"})
x = method.inputs(rng, t, {"labels": labels})            # rows of real images, on the host
state, metrics = method.step(key, state, {"images": images}, x)
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int, Int32, Key

from ltdd_jax import models
from ltdd_jax.core.registry import check_at_least, within
from ltdd_jax.core.types import Distilled, Leaf, LtddError, Slots
from ltdd_jax.data import crops, dsa
from ltdd_jax.distil import features as features_lib
from ltdd_jax.distil import multi_formation
from ltdd_jax.distil.base import Env, Method, Resources
from ltdd_jax.distil.dm import (
  CONVNET,
  RealBatch,
  Views,
  draw_rows,
  draw_views,
  in_views,
  mean_distance,
  real_means,
)
from ltdd_jax.distil.network_training import make_network, member, with_member
from ltdd_jax.models import convolution, taps
from ltdd_jax.training import losses, optimizers

VERSION = 1

FIRST = 3  # networks that the queue starts with
Look = Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]  # see `embed`
SGD = {"name": "sgd", "lr": 0.01, "momentum": 0.9, "weight_decay": 5e-4}


@flax.struct.dataclass
class Queue:
  """Networks in the order of their making: number i is in place i mod q."""

  variables: Any  # (q, ...)
  opt_state: Any  # (q, ...)
  accuracy: Leaf  # (q,) float32 in [0, 1], see `train_member`; 0 before
  made: Leaf  # [] int32, networks made so far


@flax.struct.dataclass
class State:
  """Images that are being optimised, and the networks that go along."""

  step: Leaf  # [] int32
  images: Leaf  # (n, h, w, c) float32, normalised; each holds several small ones
  labels: Leaf  # (n,) int32
  opt_state: Any
  queue: Queue


class Inputs(NamedTuple):
  """Rows of real images of a step."""

  real: RealBatch  # of each class, to match
  train: Int32[Array | np.ndarray, "m s b"]  # of s training steps of each of m networks


def idm(
  env: Env,
  /,
  *,
  num_steps: int = 20_000,
  lr: float = 0.4,
  batch_real: int = 256,
  ce_weight: float = 0.5,
  factor: int = 2,
  num_networks: int = 100,
  new_every: int = 30,
  trained_networks: int = 2,
  train_steps: int = 10,
  train_batch: int = 256,
  optimizer: Mapping[str, Any] = SGD,
  network: Mapping[str, Any] = CONVNET,
  augment: str | None = dsa.STRATEGY,
  init: str | Mapping[str, Any] = "real",
) -> Method:
  """IDM (Zhao et al., CVPR 2023): DM with smaller images, trained networks and a cross-entropy.

      L = sum_c || mean_b g(A_c(x_cb)) - mean_j g(A_c(s_cj)) ||^2
                + 100 w a mean_j CE(f(A_c(s_cj)), c)

  s_cj are the factor^2 parts of all images of class c, enlarged (`multi_formation`); w is
  `ce_weight`, f a network of the queue in eval mode, g the input of its classifier and a its
  accuracy. The rest is as in `dm`. Each step appends a new network if it is time, takes a network
  at random to match, moves all images by SGD, and trains `trained_networks` at random, different
  ones, on real images: cross-entropy, without augmentation. Images are not clamped.

  In what we differ from the released code:

  * One step moves all classes at once, by SGD with the rate 0.4 and without momentum. The code
    takes the classes in turn, rate 0.2 and momentum 0.5, so that a class's momentum runs out while
    the others are moved; both go the same way.
  * a is the mean over the classes of the accuracy on the batches of the network's last training,
    before each step. The code averages over images and over all training since the students were
    last evaluated, and forgets it then, so a depends on how often that is. On balanced data both
    estimate one number.
  * Parts start from different real images, as far as there are enough; the code draws anew for each
    part. Its script for Tiny-ImageNet starts from whole images that are then cut up.
  * Rows for training are drawn with replacement. A_c is drawn anew for each class. The code makes
    one step more.

  Args:
    env: static facts; teachers are not used.
    num_steps: of the images.
    lr: of the images, in units of normalised pixels.
    batch_real: real images of each class in a step; 5,000 for one image per class.
    ce_weight: w, for an accuracy in percent as in the code.
    factor: parts a side.
    num_networks: networks in the queue, q; then the oldest goes. It starts with 3.
    new_every: steps from one new network to the next; the first step has one.
    trained_networks: networks trained in a step; 0 for none.
    train_steps: of each of these.
    train_batch: real images in such a step, of any class: those of a long-tailed set are
      long-tailed.
    optimizer: {name, lr, **kwargs} of `optimizers.make_optimizer`, of the networks.
    network: {name, **kwargs} of `models.make_model`.
    augment: strategy of `dsa.dsa`, without "flip" for digits; None for no views.
    init: "real" as above, or {"name": "imported", "path": SET, ...}, see `initial_images`: a set of
      the same `factor`.
  """
  check_at_least(
    "method 'idm': ",
    1,
    num_steps=num_steps,
    batch_real=batch_real,
    num_networks=num_networks,
    new_every=new_every,
    train_steps=train_steps,
    train_batch=train_batch,
  )
  check_at_least("method 'idm': ", 0, lr=lr, ce_weight=ce_weight, trained_networks=trained_networks)
  _check(env, trained_networks, num_networks, factor)
  if augment is not None:
    dsa.check_strategy(augment)
  model = make_network(env, network)
  with within("method 'idm': optimizer"):
    network_tx = optimizers.make_optimizer(optimizer, {"name": "constant"}, num_steps)
  tx = optax.sgd(lr)
  first = multi_formation.make_start(env, init, "idm", factor, multi_formation.block_mean)

  def start(key: jax.Array, slots: Slots, res: Resources) -> State:
    image_key, queue_key = jax.random.split(key)
    images = first.draw(image_key, slots, res)
    labels = jnp.asarray(slots.labels, jnp.int32)
    queue = first_queue(model, network_tx, env, jax.random.split(queue_key, num_networks))
    return State(jnp.zeros((), jnp.int32), images, labels, tx.init(images), queue)

  def step(
    key: jax.Array, state: State, res: Resources, x: Inputs, *, turn: int = 0
  ) -> tuple[State, dict[str, jax.Array]]:
    del turn
    new_key, choice_key, view_key, train_key = jax.random.split(key, 4)
    fresh = models.init_variables(model, new_key, env.image_shape)
    queue = append(state.queue, fresh, network_tx, state.step % new_every == 0)
    number = jax.random.randint(choice_key, (), 0, jnp.minimum(queue.made, num_networks))
    variables, accuracy = member(queue.variables, number), queue.accuracy[number]
    views = None if augment is None else draw_views(view_key, augment, env.num_classes)
    wanted = jnp.bincount(state.labels, length=env.num_classes) > 0
    look = functools.partial(embed, model, variables, views)
    features = lambda images, labels, counted: look(images, labels)[1]
    targets = real_means(features, env, res, x.real, wanted, together=False)
    loss_fn = functools.partial(
      objective,
      labels=state.labels,
      targets=targets,
      look=look,
      factor=factor,
      ce_weight=100 * ce_weight * accuracy,
    )
    grads, metrics = jax.grad(loss_fn, has_aux=True)(state.images)
    metrics["accuracy"] = accuracy
    updates, opt_state = tx.update(grads, state.opt_state)
    images = optax.apply_updates(state.images, updates)
    places = _different(train_key, queue, trained_networks)
    for place, rows in zip(places, x.train, strict=True):
      queue = train_member(queue, place, rows, model, network_tx, env, res)
    return State(state.step + 1, images, state.labels, opt_state, queue), metrics

  def inputs(rng: np.random.Generator, t: int, host: Resources) -> Inputs:
    del t
    labels = np.asarray(host["labels"])
    shape = (trained_networks, train_steps, train_batch)
    rows = rng.integers(len(labels), size=shape, dtype=np.int32)
    return Inputs(draw_rows(rng, labels, env.num_classes, batch_real), rows)

  return Method(
    start,
    step,
    lambda state: Distilled(state.images, state.labels),
    needs=first.needs_with("images", "labels"),
    num_steps=num_steps,
    batching="joint",
    inputs=inputs,
    real_images=True,
    notes=first.notes,
    dtype="float32",
    parts=factor,
  )


def _check(env: Env, trained_networks: int, num_networks: int, factor: int) -> None:
  """Raises LtddError for networks that are not there, or parts that do not fit."""
  most = min(FIRST + 1, num_networks)
  if trained_networks > most:
    raise LtddError(
      f"method 'idm': trained_networks is {trained_networks}, and the queue has {most} networks in "
      f"the first step; expected {most} or fewer"
    )
  crops.check_factor("method 'idm': ", factor, env.image_shape)
  h, w, _ = env.image_shape
  if h % factor or w % factor:
    raise LtddError(
      f"method 'idm': factor is {factor}, which does not divide the sides of images of {h} x {w} "
      "pixels; expected a divisor, such as 1 or 2"
    )


def first_queue(
  model: nn.Module, tx: optax.GradientTransformation, env: Env, keys: Key[Array, " q"]
) -> Queue:
  """Draws q random networks, of which `FIRST` count as made."""
  variables = jax.vmap(lambda key: models.init_variables(model, key, env.image_shape))(keys)
  return Queue(
    variables=variables,
    opt_state=jax.vmap(tx.init)(variables["params"]),
    accuracy=jnp.zeros(len(keys)),
    made=jnp.int32(min(FIRST, len(keys))),
  )


def objective(
  images: Float[Array, "n h w c"],
  *,
  labels: Int[Array, " n"],
  targets: Float[Array, "k f"],
  look: Look,
  factor: int,
  ce_weight: Float[Array, ""],
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
  """Computes L of `idm` and its two terms; `targets` are the mean features of real images."""
  labels = jnp.tile(labels, factor**2)
  logits, features = look(multi_formation.decode(images, factor), labels)
  distance = mean_distance(features, labels, targets)
  ce = sum_of_means(losses.cross_entropy_rows(logits, labels), labels, len(targets))
  loss = distance + ce_weight * ce
  return loss, {"loss": loss, "distance": distance, "ce": ce}


def embed(
  model: nn.Module,
  variables: Any,
  views: Views,
  images: Float[Array, "b h w c"],
  labels: Int[Array, " b"],
) -> tuple[Float[Array, "b k"], Float[Array, "b f"]]:
  """Computes logits and the input of the classifier, in eval mode, of images in their views."""
  logits, features = taps.features(model, variables, in_views(views, images, labels))
  return logits.astype(jnp.float32), features.astype(jnp.float32)


def sum_of_means(values: Float[Array, " n"], labels: Int[Array, " n"], k: int) -> Float[Array, ""]:
  """Computes the mean value of each class that occurs, and the sum of these."""
  counts = jnp.bincount(labels, length=k)
  return (values / counts[labels]).sum()


def append(
  queue: Queue, fresh: Any, tx: optax.GradientTransformation, due: Bool[Array, ""]
) -> Queue:
  """Puts an untrained network into the next place, if it is due: the oldest one's in a full queue.

  Args:
    queue: q networks.
    fresh: variables of the new one.
    tx: its optimiser.
    due: whether to do so.
  """
  place = queue.made % len(queue.accuracy)
  rows = (queue.variables, queue.opt_state, queue.accuracy)
  new = (fresh, tx.init(fresh["params"]), jnp.zeros(()))
  put = lambda all_, one: all_.at[place].set(jnp.where(due, one, all_[place]))
  variables, opt_state, accuracy = jax.tree.map(put, rows, new)
  return Queue(variables, opt_state, accuracy, queue.made + due)


def train_member(
  queue: Queue,
  place: Int[Array, ""],
  rows: Int[Array, "s b"],
  model: nn.Module,
  tx: optax.GradientTransformation,
  env: Env,
  res: Resources,
) -> Queue:
  """Trains one network for s steps on batches of real images, and measures its accuracy on them.

  The accuracy is that of each batch before its step, in train mode: of all images of a class, and
  then the mean over the classes that occurred.

  Args:
    queue: q networks.
    place: of the network.
    rows: of the training images.
    model: the networks' module.
    tx: their optimiser.
    env: static facts.
    res: "images" and "labels" of the training set.
  """
  labels = jnp.asarray(res["labels"], jnp.int32)

  def one(carry: Any, rows: jax.Array) -> tuple[Any, jax.Array]:
    variables, opt_state = carry
    images, targets = features_lib.real_images(env, res, rows), labels[rows]

    def loss_fn(params: Any) -> tuple[jax.Array, Any]:
      at = {**variables, "params": params}
      logits, updated = model.apply(at, images, train=True, mutable=["batch_stats"])
      return losses.cross_entropy(logits, targets), (logits, updated.get("batch_stats", {}))

    grads, (logits, batch_stats) = jax.grad(loss_fn, has_aux=True)(variables["params"])
    updates, opt_state = tx.update(grads, opt_state, variables["params"])
    params = optax.apply_updates(variables["params"], updates)
    right = logits.argmax(1) == targets
    counts = [jnp.zeros(env.num_classes).at[targets].add(x) for x in (right, jnp.ones(len(rows)))]
    return ({"params": params, "batch_stats": batch_stats}, opt_state), jnp.stack(counts)

  carry = member((queue.variables, queue.opt_state), place)
  with convolution.looped():
    carry, counts = jax.lax.scan(one, carry, rows)
  right, total = counts.sum(0)
  accuracy = jnp.sum(right / jnp.maximum(total, 1)) / jnp.sum(total > 0)
  places = (queue.variables, queue.opt_state, queue.accuracy)
  variables, opt_state, found = with_member(places, place, (*carry, accuracy))
  return Queue(variables, opt_state, found, queue.made)


def _different(key: jax.Array, queue: Queue, count: int) -> Int[Array, " m"]:
  """Draws so many places of the queue, no two of them alike."""
  order = jax.random.uniform(key, queue.accuracy.shape)
  there = jnp.arange(len(order)) < queue.made
  return jnp.argsort(jnp.where(there, order, 2.0))[:count]
