"""DM: distribution matching in the features of networks that nobody trained.

  method = dm(env, network={"name": "convnet", "depth": 3, "width": 128, "norm": "instance"})
  x = method.inputs(rng, t, {"labels": labels})            # rows of real images, on the host
  state, metrics = method.step(key, state, {"images": images}, x)

Every step draws a new network from its key, so a run keeps no network and needs no teacher.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int, Key

from ltdd_jax import models
from ltdd_jax.core.types import Leaf, LtddError, Slots
from ltdd_jax.data import augment as augment_lib
from ltdd_jax.data import dsa
from ltdd_jax.distil import coreset, pixels
from ltdd_jax.distil.base import Env, Method, check_choice
from ltdd_jax.models import layers, taps

CONVNET = {"name": "convnet", "depth": 3, "width": 128, "norm": "instance"}


class RealBatch(NamedTuple):
  """Real images of one step, by class."""

  rows: Leaf  # (k, r) int32, rows of the training set
  weights: Leaf  # (k, r) float32, 1, or 0 where the class has no further image


class Views(NamedTuple):
  """The operation of DSA that all images of a class see, real and distilled."""

  op: Leaf  # (k,) int32
  numbers: Leaf  # (k, 3) float32


def dm(
  env: Env,
  /,
  *,
  num_steps: int = 20_000,
  lr: float = 1.0,
  momentum: float = 0.5,
  batch_real: int = 256,
  network: Mapping[str, Any] = CONVNET,
  augment: str | None = dsa.STRATEGY,
  init: str = "real",
) -> Method:
  """DM (Zhao and Bilen, WACV 2023): images whose mean feature is that of real ones, class by class.

      L = sum_c || mean_b g(A_c(x_cb)) - mean_j g(A_c(s_cj)) ||^2

  g is the input of the classifier of a new random network, x_c are up to `batch_real` images of
  class c drawn without replacement, and A_c is a view of DSA. One step of SGD on all images; they
  are not clamped. Networks with batch norm run in train mode on all classes together, real and
  distilled images apart; others on one class of real images at a time.

  In what we differ from the released code: classes may have unequal numbers of slots, and fewer
  than `batch_real` images with batch norm too, whose statistics leave out what is missing; A_c is
  drawn anew for each class (the code seeds it by the clock, so classes of one millisecond share
  it); a class with fewer images than slots starts from each of them several times; the code makes
  one step more.

  Args:
    env: static facts; teachers are not used.
    num_steps: of SGD.
    lr: in units of normalised pixels; 10 for 100 images per class and more.
    momentum: of SGD.
    batch_real: real images of each class in a step.
    network: {name, **kwargs} of `models.make_model`.
    augment: strategy of `dsa.dsa`, without "flip" for digits, or None for no views.
    init: "real" (training images, drawn without replacement) or "noise", N(0, 1).

  Raises:
    LtddError: an unknown network, operation or `init`, or a number out of range.
  """
  layers.check_least("method 'dm'", 1, num_steps=num_steps, batch_real=batch_real)
  layers.check_positive("method 'dm'", lr=lr)
  if not 0 <= momentum < 1:
    raise LtddError(f"method 'dm': momentum is {momentum}; expected 0 or more and less than 1")
  check_choice("dm", "init", init, ("real", "noise"))
  if augment is not None:
    dsa.check_strategy(augment)
  model = _make_network(env, network)
  tx = optax.sgd(lr, momentum or None)

  def start(key: jax.Array, slots: Slots, res: Mapping[str, Any]) -> pixels.PixelState:
    if init == "real":
      images = coreset.random(env).init(key, slots, res).images
    else:
      images = jax.random.normal(key, (len(slots.labels), *env.image_shape))
    labels = jnp.asarray(slots.labels, jnp.int32)
    return pixels.PixelState(jnp.zeros((), jnp.int32), images, labels, tx.init(images))

  def step(
    key: jax.Array, state: pixels.PixelState, res: Mapping[str, Any], x: RealBatch, *, turn: int = 0
  ) -> tuple[pixels.PixelState, dict[str, jax.Array]]:
    del turn
    network_key, view_key = jax.random.split(key)
    variables = models.init_variables(model, network_key, env.image_shape)
    views = None if augment is None else draw_views(view_key, augment, env.num_classes)
    wanted = jnp.bincount(state.labels, length=env.num_classes) > 0
    targets = real_means(model, variables, views, env, res["images"], x, wanted)
    loss_fn = lambda images: distance(model, variables, views, images, state.labels, targets)
    loss, grads = jax.value_and_grad(loss_fn)(state.images)
    updates, opt_state = tx.update(grads, state.opt_state)
    images = optax.apply_updates(state.images, updates)
    return state.replace(step=state.step + 1, images=images, opt_state=opt_state), {"loss": loss}

  def inputs(rng: np.random.Generator, t: int, host: Mapping[str, np.ndarray]) -> RealBatch:
    del t
    return draw_rows(rng, host["labels"], env.num_classes, batch_real)

  return Method(
    start,
    step,
    pixels.read,
    needs=("images", "labels"),
    num_steps=num_steps,
    batching="joint",
    inputs=inputs,
    real_images=True,
  )


def draw_rows(
  rng: np.random.Generator, labels: np.ndarray, num_classes: int, size: int
) -> RealBatch:
  """Draws `min(size, n_c)` images of each class without replacement, on the host."""
  by_class = np.lexsort((rng.random(len(labels)), labels))  # random order within each class
  counts = np.bincount(labels, minlength=num_classes)[:, None]
  place = np.arange(size)[None]
  first = np.cumsum(counts)[:, None] - counts
  rows = by_class[np.minimum(first + np.minimum(place, counts - 1), len(labels) - 1)]
  return RealBatch(rows.astype(np.int32), (place < counts).astype(np.float32))


def draw_views(key: Key[Array, ""], strategy: str, num_classes: int) -> Views:
  """Draws an operation, and its numbers, for each class."""
  draw = jax.vmap(lambda key: dsa.draw(key, strategy, 1))
  op, numbers = draw(jax.random.split(key, num_classes))
  return Views(op, numbers[:, 0])


def real_means(
  model: nn.Module,
  variables: Any,
  views: Views | None,
  env: Env,
  images: Any,
  x: RealBatch,
  wanted: Bool[Array, " k"],
) -> Float[Array, "k f"]:
  """Computes the mean feature of the real images of each class, 0 where it is not wanted.

  Args:
    model: a network.
    variables: its collections.
    views: see `draw_views`; None for images as they are.
    env: static facts.
    images: (N, h, w, c) uint8, the training set.
    x: the images to take.
    wanted: classes with slots. The others cost nothing, unless there is batch norm.
  """
  weights = jnp.asarray(x.weights) * wanted[:, None]
  classes = jnp.arange(env.num_classes)

  def look(c: jax.Array) -> jax.Array:
    batch = augment_lib.normalize(jnp.asarray(images)[x.rows[c]], env.mean, env.std)
    return _look(batch, jnp.full(len(batch), c), views)

  def mean(features: jax.Array, weights: jax.Array) -> jax.Array:
    total = jnp.einsum("rf,r->f", features, weights, precision="highest")
    return total / jnp.maximum(weights.sum(), 1)

  if variables["batch_stats"]:
    batch = jax.lax.map(look, classes).reshape(-1, *env.image_shape)
    features = embed(model, variables, batch, weights.reshape(-1) > 0)
    return jax.vmap(mean)(features.reshape(*weights.shape, -1), weights)
  of_class = lambda c: mean(embed(model, variables, look(c)), weights[c])
  none = jnp.zeros(jax.eval_shape(of_class, classes[0]).shape)
  return jax.lax.map(lambda c: jax.lax.cond(wanted[c], of_class, lambda _: none, c), classes)


def distance(
  model: nn.Module,
  variables: Any,
  views: Views | None,
  images: Float[Array, "n h w c"],
  labels: Int[Array, " n"],
  targets: Float[Array, "k f"],
) -> Float[Array, ""]:
  """Computes L of `dm`: the sum over classes with images of squared distances of mean features."""
  features = embed(model, variables, _look(images, labels, views))
  member = jax.nn.one_hot(labels, len(targets))
  counts = member.sum(0)[:, None]
  means = jnp.einsum("nk,nf->kf", member, features, precision="highest") / jnp.maximum(counts, 1)
  return jnp.sum(jnp.where(counts > 0, jnp.square(means - targets), 0))


def embed(
  model: nn.Module,
  variables: Any,
  images: Float[Array, "b h w c"],
  counted: Bool[Array, " b"] | None = None,
) -> Float[Array, "b f"]:
  """Computes the input of the classifier; batch norms use the moments of the images `counted`."""
  if not variables["batch_stats"]:
    return taps.features(model, variables, images)[1]
  found = []

  def intercept(call, args, kwargs, context):
    if isinstance(context.module, nn.BatchNorm) and counted is not None:
      kwargs = kwargs | {"mask": counted.reshape(-1, *[1] * (args[0].ndim - 1))}
    if isinstance(context.module, nn.Dense):
      found.append(args[0])
    return call(*args, **kwargs)

  with nn.intercept_methods(intercept):
    model.apply(variables, images, train=True, mutable=["batch_stats"])
  return found[-1]


def _look(images: jax.Array, labels: jax.Array, views: Views | None) -> jax.Array:
  if views is None:
    return images
  return jax.vmap(dsa.apply_op)(images, views.op[labels], views.numbers[labels])


def _make_network(env: Env, network: Mapping[str, Any]) -> nn.Module:
  kwargs = dict(network)
  name = str(kwargs.pop("name", None))
  return models.make_model(name, num_classes=env.num_classes, image_shape=env.image_shape, **kwargs)
