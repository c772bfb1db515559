"""DM: distribution matching in the features of networks that nobody trained.

method = dm(env, network={"name": "convnet", "depth": 3, "width": 128, "norm": "instance"})
x = method.inputs(rng, t, {"labels": labels})            # rows of real images, on the host
state, metrics = method.step(key, state, {"images": images}, x)
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Float32, Int, Int32, Key

from ltdd_jax import models
from ltdd_jax.core.registry import check_at_least, check_share
from ltdd_jax.core.types import Slots
from ltdd_jax.data import dsa
from ltdd_jax.distil import features as features_lib
from ltdd_jax.distil import initial_images, pixels
from ltdd_jax.distil.base import Env, Inputs, Method, Resources
from ltdd_jax.distil.network_training import make_network
from ltdd_jax.models import taps

VERSION = 1

RealBatch = tuple[  # rows, and weights: 0 where the class has no further image
  Int32[Array | np.ndarray, "k r"], Float32[Array | np.ndarray, "k r"]
]
Views = tuple[Int[Array, " k"], Float[Array, "k 3"]] | None  # of each class, see `dsa.apply_op`
Embed = Callable[..., jax.Array]  # images (b, h, w, c), labels (b,), counted (b,) -> (b, f)
CONVNET = {"name": "convnet", "depth": 3, "width": 128, "norm": "instance"}


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
  init: str | Mapping[str, Any] = "real",
) -> Method:
  """DM (Zhao and Bilen, WACV 2023): images whose mean feature is that of real ones, class by class.

      L = sum_c || mean_b g(A_c(x_cb)) - mean_j g(A_c(s_cj)) ||^2

  Each step draws a new random network, whose classifier has the input g; up to `batch_real` images
  x_c of each class without replacement; and a view A_c of DSA. Then SGD moves all images at once;
  they are not clamped. Networks with batch norm run in train mode on all classes together, real
  and distilled images apart.

  In what we differ from the released code: classes may have unequal numbers of slots, and fewer
  than `batch_real` images with batch norm too, whose moments leave out what is missing; A_c is
  drawn anew for each class (the code seeds it by the clock); a class with fewer images than slots
  starts from each of them several times; the code makes one step more.

  Args:
    env: static facts; teachers are not used.
    num_steps: of SGD.
    lr: in units of normalised pixels; 10 for 100 images per class and more.
    momentum: of SGD.
    batch_real: real images of each class in a step.
    network: {name, **kwargs} of `models.make_model`.
    augment: strategy of `dsa.dsa`, without "flip" for digits; None for no views.
    init: "real" (training images, drawn without replacement), "noise", N(0, 1), or
      {"name": "imported", "path": SET, ...}, see `initial_images`.
  """
  check_at_least("method 'dm': ", 1, num_steps=num_steps, batch_real=batch_real)
  check_at_least("method 'dm': ", 0, lr=lr)
  check_share("method 'dm': ", below_one=True, momentum=momentum)
  if augment is not None:
    dsa.check_strategy(augment)
  model = make_network(env, network)
  tx = optax.sgd(lr, momentum)
  first = initial_images.make_start(env, init, "dm", initial_images.MATCHING)

  def start(key: jax.Array, slots: Slots, res: Resources) -> pixels.PixelState:
    images = first.draw(key, slots, res)
    labels = jnp.asarray(slots.labels, jnp.int32)
    return pixels.PixelState(jnp.zeros((), jnp.int32), images, labels, tx.init(images))

  def step(
    key: jax.Array, state: pixels.PixelState, res: Resources, x: RealBatch, *, turn: int = 0
  ) -> tuple[pixels.PixelState, dict[str, jax.Array]]:
    del turn
    network_key, view_key = jax.random.split(key)
    variables = models.init_variables(model, network_key, env.image_shape)
    views = None if augment is None else draw_views(view_key, augment, env.num_classes)
    wanted = jnp.bincount(state.labels, length=env.num_classes) > 0
    look = functools.partial(embed, model, variables, views)
    targets = real_means(look, env, res, x, wanted, together=bool(variables["batch_stats"]))
    loss_fn = lambda images: distance(look, images, state.labels, targets)
    loss, grads = jax.value_and_grad(loss_fn)(state.images)
    updates, opt_state = tx.update(grads, state.opt_state)
    images = optax.apply_updates(state.images, updates)
    return pixels.PixelState(state.step + 1, images, state.labels, opt_state), {"loss": loss}

  return Method(
    start,
    step,
    pixels.read,
    needs=first.needs_with("images", "labels"),
    num_steps=num_steps,
    batching="joint",
    inputs=class_batches(env.num_classes, batch_real),
    real_images=True,
    notes=first.notes,
    dtype="float32",
  )


def class_batches(num_classes: int, size: int) -> Inputs:
  """Makes `Method.inputs` that draws up to `size` real images of each class: see `draw_rows`."""
  return lambda rng, t, host: draw_rows(rng, np.asarray(host["labels"]), num_classes, size)


def draw_rows(
  rng: np.random.Generator, labels: np.ndarray, num_classes: int, size: int
) -> RealBatch:
  """Draws `min(size, n_c)` rows of each class c without replacement; the rest has weight 0.

  Rows and weights are (k, r), r = size or the images of the largest class, if these are fewer.
  """
  by_class = np.lexsort((rng.random(len(labels)), labels))  # random order within each class
  counts = np.bincount(labels, minlength=num_classes)
  size = min(size, counts.max())
  place = (np.cumsum(counts) - counts)[:, None] + np.arange(size)[None]
  rows = by_class[np.minimum(place, len(labels) - 1)]
  weights = np.arange(size)[None] < counts[:, None]
  return rows.astype(np.int32), weights.astype(np.float32)


def draw_views(key: Key[Array, ""], strategy: str, num_classes: int) -> Views:
  """Draws an operation and its numbers for each class."""
  draw = jax.vmap(lambda key: dsa.draw(key, strategy, 1))
  op, numbers = draw(jax.random.split(key, num_classes))
  return op, numbers[:, 0]


def real_means(
  look: Embed, env: Env, res: Resources, x: RealBatch, wanted: Bool[Array, " k"], *, together: bool
) -> Float[Array, "k f"]:
  """Computes the mean feature of the real images of each class that is wanted, 0 for the others.

  One class at a time, and nothing for those not wanted; or, as batch norms ask, all `together`.
  """
  rows, weights = jnp.asarray(x[0]), jnp.asarray(x[1]) * wanted[:, None]

  def means(classes: Int[Array, " m"]) -> Float[Array, "m f"]:
    images = features_lib.real_images(env, res, rows[classes].ravel())
    weight = weights[classes]
    features = look(images, jnp.repeat(classes, rows.shape[1]), weight.ravel() > 0)
    total = jnp.einsum(
      "mrf,mr->mf", features.reshape(*weight.shape, -1), weight, precision="highest"
    )
    return total / jnp.maximum(weight.sum(1, keepdims=True), 1)

  classes = jnp.arange(env.num_classes)
  if together:
    return means(classes)
  none = jnp.zeros(jax.eval_shape(means, classes[:1]).shape)
  one = lambda c: jax.lax.cond(wanted[c], lambda: means(c[None]), lambda: none)
  return jax.lax.map(one, classes)[:, 0]


def distance(
  look: Embed,
  images: Float[Array, "n h w c"],
  labels: Int[Array, " n"],
  targets: Float[Array, "k f"],
) -> Float[Array, ""]:
  """Computes L of `dm`, the sum over the classes that have images; `targets` are of real images."""
  return mean_distance(look(images, labels, jnp.ones(labels.shape, bool)), labels, targets)


def mean_distance(
  features: Float[Array, "n f"], labels: Int[Array, " n"], targets: Float[Array, "k f"]
) -> Float[Array, ""]:
  """Computes the squared distances of the classes' mean features to `targets`, and their sum."""
  member = jax.nn.one_hot(labels, len(targets))
  counts = member.sum(0)[:, None]
  means = jnp.einsum("nk,nf->kf", member, features, precision="highest") / jnp.maximum(counts, 1)
  return jnp.sum(jnp.where(counts > 0, jnp.square(means - targets), 0))


def in_views(
  views: Views, images: Float[Array, "b h w c"], labels: Int[Array, " b"]
) -> Float[Array, "b h w c"]:
  """Shows each image in the view of its class; None for images as they are."""
  if views is None:
    return images
  return jax.vmap(dsa.apply_op)(images, views[0][labels], views[1][labels])


def embed(
  model: nn.Module,
  variables: Any,
  views: Views,
  images: Float[Array, "b h w c"],
  labels: Int[Array, " b"],
  counted: Bool[Array, " b"],
) -> Float[Array, "b f"]:
  """Computes the input of the classifier for images in their classes' views.

  Batch norms take the moments of the images `counted`.
  """
  images = in_views(views, images, labels)
  if not variables["batch_stats"]:
    return taps.features(model, variables, images)[1].astype(jnp.float32)
  found = []

  def intercept(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
    if isinstance(context.module, nn.Dense):
      found.append(args[0])
    return call(*args, **kwargs)

  with nn.intercept_methods(intercept), nn.intercept_methods(taps.counting(counted)):
    model.apply(variables, images, train=True, mutable=["batch_stats"])
  return found[-1].astype(jnp.float32)
