"""FRePo: images and labels from which the features of networks predict real labels.

method = frepo(env, network={"name": "convnet", "depth": 3, "width": 128, "layout": "frepo", ...})
state, metrics = method.step(key, state, {"images": images, "labels": labels}, None)
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key

from ltdd_jax import models
from ltdd_jax.core.registry import check_at_least
from ltdd_jax.core.types import Distilled, Leaf, Slots
from ltdd_jax.distil import features as features_lib
from ltdd_jax.distil import initial_images
from ltdd_jax.distil.base import Env, Method, Resources
from ltdd_jax.distil.network_training import make_network, member, with_member
from ltdd_jax.models import taps

VERSION = 1

NETWORK = {
  "name": "convnet", "depth": 3, "width": 128, "norm": "batch", "layout": "frepo",
  "bn_momentum": 0.1,
}  # fmt: skip
RIDGE = 1e-6  # lambda, in units of the mean of the kernel's diagonal

Look = Callable[[jax.Array], jax.Array]  # images (b, h, w, c) -> features (b, f)


@flax.struct.dataclass
class Network:
  """A network of the pool; the pool is one with a leading axis of q."""

  variables: Any
  opt_state: Any
  age: Leaf  # [] int32, updates, see `first_pool`


@flax.struct.dataclass
class Learned:
  """What is optimised: `optax.lamb` has one trust ratio for all images, and one for all labels."""

  images: Leaf  # (n, h, w, c) float32, normalised
  soft_labels: Leaf  # (n, k) float32


@flax.struct.dataclass
class State:
  """Images and labels that are being optimised, and the networks that go along."""

  learned: Learned
  labels: Leaf  # (n,) int32, of the slots
  opt_state: Any
  pool: Network


def frepo(
  env: Env,
  /,
  *,
  num_steps: int = 500_000,
  lr: float = 3e-4,
  batch_real: int = 1024,
  flip: bool = True,
  num_networks: int = 10,
  max_updates: int = 100,
  network_lr: float = 3e-4,
  network_batch: int = 1000,
  network: Mapping[str, Any] = NETWORK,
  init: str | Mapping[str, Any] = "real",
) -> Method:
  """FRePo (Zhou et al., NeurIPS 2022): kernel ridge regression on features of a pool of networks.

      L = mean_b 1/2 |p_b - y_b|^2 - mean_j min(gap_j, 1/k)
      p = g(X) g(S)' (g(S) g(S)' + lambda I)^-1 Y,   lambda = 1e-6 tr(g(S) g(S)') / n

  X are `batch_real` training images, uniform over all of them, so that a long-tailed set gives
  long-tailed batches; y_b is their class, one-hot minus 1/k. S are the distilled images and Y their
  labels, which both are learned; gap_j is that between the two largest numbers of label j. g is the
  input of the classifier of a network in eval mode.

  Each step draws a network of the pool. LAMB moves images and labels, with its rate on a cosine to
  a tenth. Then the network takes one step of Adam on the new images, in train mode, down
  mean_j 1/2 |f(s_j) - Y_j|^2; or if it has had more than `max_updates`, a new one takes its place.
  Images start from `init`, and labels from (onehot - 1/k) / sqrt(k / 10). They are not clamped.

  Labels are targets of a regression, of size 1 or less. Stored as logits they are what the loss
  `mse_ce` with `ce_weight=0` compares with (recipe `frepo_eval`); KL at a high temperature comes to
  nearly the same. As probabilities they are almost uniform: ADSA, which reads them so, fits a tau
  in their small units, and students have the targets Y - tau (log pi - mean log pi).

  In what we differ from the released code: a real batch has no image twice, but passes over the set
  are not kept; classes may have unequal numbers of slots; a class with fewer images than slots
  starts from each of them several times, and copies get the same gradient; lambda is ten times as
  large, or more, where float32 has no Cholesky factor.

  Args:
    env: static facts; teachers are not used.
    num_steps: of LAMB.
    lr: of images and labels, relative to the norm of each.
    batch_real: real images in a step, at most the whole set.
    flip: whether S has the mirror images too, with the same labels; not for digits.
    num_networks: in the pool.
    max_updates: of a network, see above.
    network_lr: of Adam.
    network_batch: distilled images in an update of a network, at most all.
    network: {name, **kwargs} of `models.make_model`.
    init: of images, as in `dm`.
  """
  check_at_least(
    "method 'frepo': ",
    1,
    num_steps=num_steps,
    batch_real=batch_real,
    num_networks=num_networks,
    max_updates=max_updates,
    network_batch=network_batch,
  )
  check_at_least("method 'frepo': ", 0, lr=lr, network_lr=network_lr)
  model, k = make_network(env, network), env.num_classes
  tx = optax.lamb(optax.cosine_decay_schedule(lr, num_steps, alpha=0.1))
  network_tx = optax.adam(network_lr)
  draw = functools.partial(new_network, model, network_tx, env)
  first = initial_images.make_start(env, init, "frepo", initial_images.MATCHING)

  def start(key: jax.Array, slots: Slots, res: Resources) -> State:
    image_key, pool_key = jax.random.split(key)
    labels = jnp.asarray(slots.labels, jnp.int32)
    images = first.draw(image_key, slots, res)
    learned = Learned(images, centred(labels, k) / (k / 10) ** 0.5)
    pool = first_pool(draw, jax.random.split(pool_key, num_networks), max_updates)
    return State(learned, labels, tx.init(learned), pool)

  def step(
    key: jax.Array, state: State, res: Resources, x: Any, *, turn: int = 0
  ) -> tuple[State, dict[str, jax.Array]]:
    del x, turn
    number_key, row_key, fresh_key, batch_key = jax.random.split(key, 4)
    number = jax.random.randint(number_key, (), 0, num_networks)
    drawn = member(state.pool, number)
    rows = jax.random.permutation(row_key, len(res["labels"]))[:batch_real]
    look = functools.partial(embed, model, drawn.variables)
    loss_fn = functools.partial(
      objective,
      look=look,
      real=look(features_lib.real_images(env, res, rows)),
      targets=centred(jnp.asarray(res["labels"], jnp.int32)[rows], k),
      flip=flip,
    )
    grads, metrics = jax.grad(loss_fn, has_aux=True)(state.learned)
    updates, opt_state = tx.update(grads, state.opt_state, state.learned)
    learned = optax.apply_updates(state.learned, updates)
    one = jax.lax.cond(
      drawn.age > max_updates,
      lambda: draw(fresh_key),
      lambda: update(model, network_tx, drawn, _some(batch_key, learned, network_batch)),
    )
    return State(learned, state.labels, opt_state, with_member(state.pool, number, one)), metrics

  def read(state: State) -> Distilled:
    return Distilled(state.learned.images, state.labels, state.learned.soft_labels)

  return Method(
    start,
    step,
    read,
    needs=first.needs_with("images", "labels"),
    num_steps=num_steps,
    batching="joint",
    real_images=True,
    notes=first.notes,
    dtype="float32",
  )


def centred(labels: Int[Array, " n"], k: int) -> Float[Array, "n k"]:
  """Computes onehot - 1/k."""
  return jax.nn.one_hot(labels, k) - 1 / k


def embed(model: nn.Module, variables: Any, images: Float[Array, "b h w c"]) -> Float[Array, "b f"]:
  """Computes the input of the classifier, in eval mode."""
  return taps.features(model, variables, images)[1].astype(jnp.float32)


def objective(
  learned: Learned,
  *,
  look: Look,
  real: Float[Array, "b f"],
  targets: Float[Array, "b k"],
  flip: bool,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
  """Computes L of `frepo` and its two terms; `real` are features, `targets` centred labels."""
  images, labels = learned.images, learned.soft_labels
  if flip:
    images = jnp.concatenate([images, images[:, :, ::-1]])
    labels = jnp.concatenate([labels, labels])
  predicted = ridge_regression(real, look(images), labels)
  regression = 0.5 * jnp.square(predicted - targets).sum(1).mean()
  gap = -jnp.diff(jax.lax.top_k(labels, 2)[0], axis=1)[:, 0]
  margin = -jnp.minimum(gap, 1 / labels.shape[1]).mean()
  loss = regression + margin
  return loss, {"loss": loss, "regression": regression, "margin": margin}


def ridge_regression(
  real: Float[Array, "b f"], features: Float[Array, "n f"], labels: Float[Array, "n k"]
) -> Float[Array, "b k"]:
  """Predicts labels of `real` by those of `features`: p of `frepo`."""
  product = functools.partial(jnp.matmul, precision="highest")
  kernel = product(features, features.T)
  unit = jnp.maximum(jnp.trace(kernel) / len(kernel), 1e-12) * jnp.eye(len(kernel))
  ridge = _least_ridge(*jax.lax.stop_gradient((kernel, unit)))
  weights = jax.scipy.linalg.solve(kernel + ridge * unit, labels, assume_a="pos")
  return product(product(real, features.T), weights)


def _least_ridge(kernel: Float[Array, "n n"], unit: Float[Array, "n n"]) -> Float[Array, ""]:
  """The first of 1e-6, 1e-5, ..., 1 with which the kernel has a Cholesky factor in float32.

  Rounding costs images that are copies, or a thousand others, their positive eigenvalues.
  """

  def fails(ridge: jax.Array) -> jax.Array:
    return (ridge < 0.5) & ~jnp.isfinite(jnp.linalg.cholesky(kernel + ridge * unit)).all()

  return jax.lax.while_loop(fails, lambda ridge: 10 * ridge, jnp.float32(RIDGE))


def new_network(
  model: nn.Module, tx: optax.GradientTransformation, env: Env, key: Key[Array, ""]
) -> Network:
  """Draws a random network of age 0, with an optimiser that has not moved."""
  variables = models.init_variables(model, key, env.image_shape)
  return Network(variables, tx.init(variables["params"]), jnp.zeros((), jnp.int32))


def first_pool(
  draw: Callable[[jax.Array], Network], keys: Key[Array, " q"], max_updates: int
) -> Network:
  """Draws q random networks; number i counts as i floor(max_updates / q) updates old.

  So they are not all replaced at one time.
  """
  pool = jax.vmap(draw)(keys)
  age = jnp.arange(len(keys), dtype=jnp.int32) * (max_updates // len(keys))
  return dataclasses.replace(pool, age=age)


def update(
  model: nn.Module, tx: optax.GradientTransformation, network: Network, batch: Learned
) -> Network:
  """Takes one step of the optimiser down `mean_j 1/2 |f(s_j) - y_j|^2`, in train mode."""
  params = network.variables["params"]

  def loss_fn(params: Any) -> tuple[jax.Array, Any]:
    at = {**network.variables, "params": params}
    outputs, updated = model.apply(at, batch.images, train=True, mutable=["batch_stats"])
    loss = 0.5 * jnp.square(outputs - batch.soft_labels).sum(1).mean()
    return loss, updated.get("batch_stats", {})

  grads, batch_stats = jax.grad(loss_fn, has_aux=True)(params)
  updates, opt_state = tx.update(grads, network.opt_state, params)
  variables = {"params": optax.apply_updates(params, updates), "batch_stats": batch_stats}
  return Network(variables, opt_state, network.age + 1)


def _some(key: jax.Array, learned: Learned, size: int) -> Learned:
  """All images with their labels, or `size` of them, drawn without replacement."""
  n = len(learned.images)
  if n <= size:
    return learned
  rows = jax.random.permutation(key, n)[:size]
  return jax.tree.map(lambda x: x[rows], learned)
