"""DC and DSA: images whose loss gradients, class by class, are those of real images.

method = dsa(env, steps_per_network=10, epochs=50)
x = method.inputs(rng, t, {"labels": labels})            # rows of real images, on the host
state, metrics = method.step(key, state, {"images": images}, x)

The state carries the network. It is drawn anew every `steps_per_network` steps; after each of the
steps between it is trained on the distilled images. `class_gradient` is what `dream` shares.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key

from ltdd_jax import models
from ltdd_jax.core.registry import check_at_least, check_share
from ltdd_jax.core.types import Leaf, LtddError, Slots
from ltdd_jax.data import dsa as dsa_lib
from ltdd_jax.distil import features as features_lib
from ltdd_jax.distil import initial_images, pixels, selection
from ltdd_jax.distil.base import Env, Method, Resources
from ltdd_jax.distil.dm import CONVNET, RealBatch, class_batches
from ltdd_jax.distil.network_training import (
  NetworkState,
  Params,
  batch_rows,
  draw_network,
  make_network,
  train,
)
from ltdd_jax.models import convolution
from ltdd_jax.training import losses

VERSION = 1

View = Callable[[jax.Array], jax.Array]  # images (b, h, w, c) -> what the network sees of them


@flax.struct.dataclass
class MatchState:
  """Images that are being optimised, and the network whose gradients they match."""

  step: Leaf  # [] int32
  images: Leaf  # (n, h, w, c) float32
  labels: Leaf  # (n,) int32
  opt_state: Any  # of the images
  network: Any  # see `NetworkState`
  real: Any = None  # rows (k, r) of real images and their weights, if they outlive a step


class Options(NamedTuple):
  """The arguments of `dc`."""

  num_steps: int
  lr: float
  momentum: float
  batch_real: int
  network: Mapping[str, Any]
  steps_per_network: int
  epochs: int
  network_lr: float
  network_batch: int
  augment: str | None
  init: str | Mapping[str, Any]


class Matching(NamedTuple):
  """What gradient matching is made of; all static."""

  model: nn.Module
  distance: Callable[[Params, Params], jax.Array]  # gradients of real and distilled images -> []
  decode: Callable[[jax.Array], jax.Array] = lambda x: x  # (m, h, w, c) -> (cells m, h, w, c)


def dc(
  env: Env,
  /,
  *,
  num_steps: int = 10_000,
  lr: float = 0.1,
  momentum: float = 0.5,
  batch_real: int = 256,
  network: Mapping[str, Any] = CONVNET,
  steps_per_network: int = 10,
  epochs: int = 50,
  network_lr: float = 0.01,
  network_batch: int = 256,
  augment: str | None = None,
  init: str | Mapping[str, Any] = "noise",
) -> Method:
  """DC (Zhao, Mopuri and Bilen, ICLR 2021): images that train a network as real ones do.

      L = sum_c D(grad_theta l(A_c(x_c)), grad_theta l(A_c(s_c))),   D: `cosine_distance`

  where l is the mean cross-entropy of up to `batch_real` real images x_c of the class, drawn
  without replacement, or of all its distilled images s_c. Each step moves all images once by SGD;
  they are not clamped. Then the network theta is trained on them for some epochs. After
  `steps_per_network` steps a new random one is drawn, without that training before.

  In what we differ from the released code: a step is one matching step, so that its T = 1,000
  networks are `num_steps = T * steps_per_network` (it makes one network more); classes may have
  unequal numbers of slots, and fewer than `batch_real` images; A_c (`dsa`) is drawn from a key (the
  code seeds it by the clock); networks with batch norm are refused.

  Args:
    env: static facts; teachers are not used.
    num_steps: matching steps.
    lr: of the images, in units of normalised pixels.
    momentum: of the images' SGD, which goes on from network to network.
    batch_real: real images of each class in a step.
    network: {name, **kwargs} of `models.make_model`.
    steps_per_network: matching steps on one network: 1 for 1 image per class, 10 for 10, 50 for 50.
    epochs: of the network on the distilled images after a step: 50 for 10 images per class, 10 for
      50; 0 for none.
    network_lr: of its plain SGD.
    network_batch: distilled images in a batch of these epochs; the last one may be smaller.
    augment: strategy of `dsa.dsa`, without "flip" for digits; None for no views.
    init: "noise", N(0, 1), "real" (training images, drawn without replacement), or
      {"name": "imported", "path": SET, ...}, see `initial_images`.
  """
  options = Options(
    num_steps, lr, momentum, batch_real, network, steps_per_network, epochs, network_lr,
    network_batch, augment, init,
  )  # fmt: skip
  return _method("dc", env, options)


def dsa(
  env: Env,
  /,
  *,
  num_steps: int = 10_000,
  lr: float = 0.1,
  momentum: float = 0.5,
  batch_real: int = 256,
  network: Mapping[str, Any] = CONVNET,
  steps_per_network: int = 10,
  epochs: int = 50,
  network_lr: float = 0.01,
  network_batch: int = 256,
  augment: str | None = dsa_lib.STRATEGY,
  init: str | Mapping[str, Any] = "real",
) -> Method:
  """DSA (Zhao and Bilen, ICML 2021): `dc` with the same view A_c of real and distilled images.

  The network is trained on views too, in which each image has strengths of its own. Arguments and
  differences are those of `dc`.
  """
  options = Options(
    num_steps, lr, momentum, batch_real, network, steps_per_network, epochs, network_lr,
    network_batch, augment, init,
  )  # fmt: skip
  return _method("dsa", env, options)


def _method(name: str, env: Env, options: Options) -> Method:
  """Makes DC or DSA."""
  o, where = options, f"method {name!r}: "
  check_at_least(
    where,
    1,
    num_steps=o.num_steps,
    batch_real=o.batch_real,
    steps_per_network=o.steps_per_network,
    network_batch=o.network_batch,
  )
  check_at_least(where, 0, lr=o.lr, epochs=o.epochs, network_lr=o.network_lr)
  check_share(where, below_one=True, momentum=o.momentum)
  if o.augment is not None:
    dsa_lib.check_strategy(o.augment)
  matching = Matching(make_matched(name, env, o.network), cosine_distance)
  tx, network_tx = optax.sgd(o.lr, o.momentum), optax.sgd(o.network_lr)
  first = initial_images.make_start(env, o.init, name, initial_images.MATCHING)

  def start(key: jax.Array, slots: Slots, res: Resources) -> MatchState:
    image_key, network_key = jax.random.split(key)
    images = first.draw(image_key, slots, res)
    labels = jnp.asarray(slots.labels, jnp.int32)
    network = draw_network(matching.model, network_tx, env, network_key)
    return MatchState(jnp.zeros((), jnp.int32), images, labels, tx.init(images), network)

  def step(
    key: jax.Array, state: MatchState, res: Resources, x: RealBatch, *, turn: int = 0
  ) -> tuple[MatchState, dict[str, jax.Array]]:
    del turn
    draw_key, view_key, train_key = jax.random.split(key, 3)
    draw = functools.partial(draw_network, matching.model, network_tx, env)
    network = jax.lax.cond(
      state.step % o.steps_per_network == 0, draw, lambda _: state.network, draw_key
    )
    with convolution.looped():
      draw_view = functools.partial(shared_view, o.augment, view_key)
      loss, grads = all_classes(matching, env, res, x, network[0], draw_view, state)
      updates, opt_state = tx.update(grads, state.opt_state)
      images = optax.apply_updates(state.images, updates)
      if o.epochs and o.steps_per_network > 1:
        last = (state.step + 1) % o.steps_per_network == 0
        go_on = lambda net: train_on(matching.model, network_tx, net, train_key, images, state, o)
        network = jax.lax.cond(last, lambda net: net, go_on, network)
    new = MatchState(state.step + 1, images, state.labels, opt_state, network)
    return new, {"loss": loss}

  return Method(
    start,
    step,
    pixels.read,
    needs=first.needs_with("images", "labels"),
    num_steps=o.num_steps,
    batching="joint",
    inputs=class_batches(env.num_classes, o.batch_real),
    real_images=True,
    notes=first.notes,
    dtype="float32",
  )


def make_matched(name: str, env: Env, network: Mapping[str, Any]) -> nn.Module:
  """Makes the network whose gradients are matched.

  Raises:
    LtddError: see `models.make_model`; or it has batch norm.
  """
  model = make_network(env, network)
  draw = functools.partial(models.init_variables, model, image_shape=env.image_shape)
  if jax.eval_shape(draw, jax.random.key(0))["batch_stats"]:
    raise LtddError(
      f"method {name!r}: network {dict(network)} has batch norm, and the gradients of one class "
      "must not depend on the other classes' images; expected a network with norm='instance' or "
      "norm='none', such as a convnet"
    )
  return model


def train_on(
  model: nn.Module,
  tx: optax.GradientTransformation,
  network: NetworkState,
  key: Key[Array, ""],
  images: Float[Array, "n h w c"],
  state: MatchState,
  options: Options,
) -> NetworkState:
  """Trains a network on distilled images for `epochs`, in a new order and new views each time."""
  n = len(images)
  size = min(options.network_batch, n)
  batches = -(-n // size)
  order_key, view_key = jax.random.split(key)

  def loss_fn(params: Params, i: jax.Array) -> jax.Array:
    rows, there = batch_rows(order_key, i, n, size, short="last")
    seen = images[rows]
    if options.augment is not None:
      seen = dsa_lib.dsa(jax.random.fold_in(view_key, i), seen, strategy=options.augment)
    logits: Any = model.apply({"params": params}, seen, train=True)
    loss = losses.cross_entropy_rows(logits, state.labels[rows])
    return jnp.sum(loss * there) / there.sum()

  return train(tx, network, options.epochs * batches, loss_fn)


def all_classes(
  matching: Matching,
  env: Env,
  res: Resources,
  x: RealBatch,
  params: Params,
  draw_view: Callable[[jax.Array], View],
  state: MatchState,
) -> tuple[jax.Array, Float[Array, "n h w c"]]:
  """Computes L of `dc`, the sum over the classes with images, and its gradient by the images.

  `draw_view(c)` gives the view of a class.
  """
  by_class = selection.by_class(state.labels, env.num_classes)
  rows, weights = jnp.asarray(x[0]), jnp.asarray(x[1])
  ones = jnp.ones((len(state.images), 1))

  def one(c: jax.Array, total: Any) -> Any:
    real = features_lib.real_images(env, res, rows[c]), weights[c]
    loss, grads = class_gradient(
      matching, params, draw_view(c), c, real, state.images, by_class, ones
    )
    return total[0] + loss, total[1] + grads

  def some(c: jax.Array, total: Any) -> Any:
    return jax.lax.cond(by_class.counts[c] > 0, one, lambda _, total: total, c, total)

  return jax.lax.fori_loop(0, env.num_classes, some, (0.0, jnp.zeros_like(state.images)))


def class_gradient(
  matching: Matching,
  params: Params,
  view: View,
  c: Int[Array, ""],
  real: tuple[Float[Array, "r h w c"], Float[Array, " r"]],
  images: Float[Array, "n h w c"],
  by_class: selection.ByClass,
  weights: Float[Array, "n cells"],
) -> tuple[jax.Array, Float[Array, "n h w c"]]:
  """Computes D of one class that has images, and its gradient by the images.

  D compares two gradients by the parameters: those of the mean cross-entropy of real images and of
  distilled ones, all in one view. The images of a class are taken a few at a time, as many
  as a class has on average: so shapes do not depend on the classes' sizes, and the cost grows with
  the number of images and not with its square. With v = dD/dg by the gradient g of the distilled
  images, the gradient by an image s is d/ds <v, dl(s)/dtheta>, exact for any parts.

  Args:
    matching: see there.
    params: theta.
    view: of real and distilled images alike.
    c: the class.
    real: its real images, and their weights, 0 for those that are not there.
    images: all distilled images.
    by_class: their rows, class by class.
    weights: of what `matching.decode` makes of each image; 1, or 0 for what is left out.
  """
  size = -(-len(images) // len(by_class.counts))
  parts = -(-by_class.counts[c] // size)

  def mean_gradient(params: Params, seen: jax.Array, weights: jax.Array) -> Params:
    def loss_fn(params: Params) -> jax.Array:
      logits: Any = matching.model.apply({"params": params}, seen, train=True)
      labels = jnp.broadcast_to(c, weights.shape)
      return jnp.sum(losses.cross_entropy_rows(logits, labels) * weights)

    return jax.grad(loss_fn)(params)

  def rows_of(part: jax.Array) -> tuple[jax.Array, jax.Array]:
    place = part * size + jnp.arange(size)
    rows = by_class.rows_of(jnp.broadcast_to(c, place.shape), place)
    return rows, weights[rows] * (place < by_class.counts[c])[:, None]

  def of_images(x: jax.Array, w: jax.Array) -> Params:
    return mean_gradient(params, view(matching.decode(x)), w.T.ravel() / total)

  def add(part: jax.Array, gradient: Params) -> Params:
    rows, w = rows_of(part)
    return jax.tree.map(jnp.add, gradient, of_images(images[rows], w))

  def pull(part: jax.Array, grads: jax.Array) -> jax.Array:
    rows, w = rows_of(part)
    along = lambda x: _dot(direction, of_images(x, w))
    return grads.at[rows].add(jax.grad(along)(images[rows]))

  total = jax.lax.fori_loop(0, parts, lambda i, sum_: sum_ + rows_of(i)[1].sum(), 0.0)
  target = mean_gradient(params, view(real[0]), real[1] / real[1].sum())
  own = jax.lax.fori_loop(0, parts, add, jax.tree.map(jnp.zeros_like, params))
  loss, direction = jax.value_and_grad(matching.distance, argnums=1)(target, own)
  return loss, jax.lax.fori_loop(0, parts, pull, jnp.zeros_like(images))


def cosine_distance(real: Params, distilled: Params) -> Float[Array, ""]:
  """Computes D of DC: 1 - cosine for each output unit of each layer, summed over units and layers.

      1 - <a_o, b_o> / (||a_o|| ||b_o|| + 1e-6)

  A unit's weights are all but the last axis of a kernel. Tensors of one dimension, biases and the
  scales of norms, do not count (released code).
  """

  def one(a: jax.Array, b: jax.Array) -> jax.Array:
    a, b = (x.reshape(-1, x.shape[-1]) for x in (a, b))
    norms = _norm(a) * _norm(b) + 1e-6
    return jnp.sum(1 - (a * b).sum(0) / norms)

  pairs = zip(jax.tree.leaves(real), jax.tree.leaves(distilled), strict=True)
  return sum((one(a, b) for a, b in pairs if a.ndim > 1), jnp.zeros(()))


def _norm(x: Float[Array, "m o"]) -> Float[Array, " o"]:
  """The norm of each column; its gradient at 0 is 0."""
  square = jnp.square(x).sum(0)
  return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), 0)


def _dot(a: Params, b: Params) -> jax.Array:
  pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
  return sum((jnp.vdot(x, y, precision="highest") for x, y in pairs), jnp.zeros(()))


def shared_view(strategy: str | None, key: Key[Array, ""], c: Int[Array, ""]) -> View:
  """Draws the view of a class: one operation of `dsa` with the same strengths for all images."""
  if strategy is None:
    return lambda images: images
  op, numbers = dsa_lib.draw(jax.random.fold_in(key, c), strategy, 1)
  return lambda images: jax.vmap(dsa_lib.apply_op, (0, None, None))(images, op, numbers[0])
