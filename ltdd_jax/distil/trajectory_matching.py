"""What MTT, TESLA, FTD, DATM and DAMED share: images that move a network as experts moved.

method = matching("mtt", env, options, inner_loop.exact)
x = method.inputs(rng, t, {"trajectories": snapshots})   # two vectors of one expert, on the host
state, metrics = method.step(key, state, {}, x)

The experts are the resource "trajectories" (`teachers.trajectories`), on the split of the image
source. The learning rate of the inner loop is learned with the images, and is that of students.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from ltdd_jax.core.registry import check_at_least, check_share
from ltdd_jax.core.types import Distilled, Leaf, LtddError, Slots
from ltdd_jax.data import dsa
from ltdd_jax.distil import features, initial_images, inner_loop
from ltdd_jax.distil.base import Env, Inputs, Method, Resources
from ltdd_jax.distil.network_training import batch_rows
from ltdd_jax.models import convolution
from ltdd_jax.models.flat import flat_params

Pair = tuple[Float[Array | np.ndarray, " p"], Float[Array | np.ndarray, " p"]]  # start, target
CHUNK = 500  # images in one forward pass
LogitsOf = Callable[[jax.Array, jax.Array], jax.Array]  # theta (p,), images (b,h,w,c) -> (b, k)


@flax.struct.dataclass
class TrajectoryState:
  """Images, the rate of the inner loop and maybe soft labels, which are being learned."""

  step: Leaf  # [] int32
  images: Leaf  # (n, h, w, c) float32, normalised
  labels: Leaf  # (n,) int32
  student_lr: Leaf  # [] float32
  opt_state: Any
  soft_labels: Leaf = None  # (n, k) float32 logits, learned or of the last expert, or None
  slow: Leaf = None  # (n, h, w, c) running mean of the images, or None
  predicted: Leaf = None  # (n,) bool, if some expert predicted the first image correctly, or None


class Options(NamedTuple):
  """The numbers of a method; `mtt`, `ftd` and `datm` say what each is."""

  num_steps: int
  inner_steps: int
  inner_batch_size: int | None
  expert_epochs: int
  max_start_epoch: int
  lr: float
  momentum: float
  student_lr: float
  lr_lr: float
  augment: str | None
  init: str | Mapping[str, Any]
  min_start_epoch: int = 0
  first_max_start_epoch: int | None = None
  growth_steps: int = 1
  lr_labels: float | None = None  # None if labels are not learned
  momentum_labels: float = 0.0
  threshold: float | None = None
  ema_decay: float | None = None


class First(NamedTuple):
  """What a method starts from; the fields are those of `TrajectoryState`."""

  images: jax.Array
  soft_labels: jax.Array | None = None
  predicted: jax.Array | None = None


Firsts = tuple[  # what draws, and the start that it draws from
  Callable[[jax.Array, Slots, Resources], First], initial_images.Start
]


class Phases(NamedTuple):
  """How a method differs that matches more than one pair of vectors in a step."""

  needs: tuple[str, ...]  # resources beside those of all
  inputs: Inputs  # -> x
  gradient: Callable[..., inner_loop.Matched]  # loss_fn, x, learned, rate, resources -> L and so on


def matching(
  name: str,
  env: Env,
  options: Options,
  gradient: Callable[..., inner_loop.Matched],
  *,
  first: Firsts | None = None,
  expert_labels: bool = False,
  phases: Phases | None = None,
) -> Method:
  """Makes a method of trajectory matching.

  Args:
    name: of the method, for messages.
    env: static facts; `env.expert` makes the network of the trajectories.
    options: its numbers.
    gradient: computes loss and gradients, see `inner_loop`.
    first: what to start from, by the resource "experts" too; None for images of `options.init`.
    expert_labels: whether the expert's probabilities are the labels of each step.
    phases: of a step, or None for one pair of vectors in each.

  Raises:
    LtddError: an argument out of range, or a network that `flat_params` refuses; from `inputs`,
      trajectories that are too short or of another network.
  """
  _check(name, options)
  logits_of, size = expert_network(name, env)
  exact = gradient is inner_loop.exact
  draw, initial = first or _first_images(name, env, options.init)
  txs = {
    "images": optax.sgd(options.lr, options.momentum),
    "student_lr": optax.sgd(options.lr_lr, options.momentum),
  }
  if options.lr_labels is not None:
    txs["soft_labels"] = optax.sgd(options.lr_labels, options.momentum_labels)
  tx = optax.partition(txs, {key: key for key in txs})

  def start(key: jax.Array, slots: Slots, res: Resources) -> TrajectoryState:
    images, soft_labels, predicted = draw(key, slots, res)
    if expert_labels:
      soft_labels = jnp.zeros((len(slots.labels), env.num_classes))
    state = TrajectoryState(
      step=jnp.zeros((), jnp.int32),
      images=images,
      labels=jnp.asarray(slots.labels, jnp.int32),
      student_lr=jnp.float32(options.student_lr),
      opt_state=None,
      soft_labels=soft_labels,
      slow=None if options.ema_decay is None else jnp.array(images),  # donated both: no alias
      predicted=predicted,
    )
    return dataclasses.replace(state, opt_state=tx.init(_learned(txs, state)))

  def step(
    key: jax.Array, state: TrajectoryState, res: Resources, x: Any, *, turn: int = 0
  ) -> tuple[TrajectoryState, dict[str, jax.Array]]:
    del turn
    x = jax.tree.map(jnp.asarray, x)  # two vectors, or what `phases` make of it
    probabilities = jax.nn.one_hot(state.labels, env.num_classes)
    if expert_labels:
      state = dataclasses.replace(state, soft_labels=all_logits(logits_of, x[1], state.images))
      probabilities = jax.nn.softmax(state.soft_labels)
    keys = jax.random.key_data(jax.random.split(key))
    loss_fn = functools.partial(inner_loss, options, logits_of, probabilities, keys)
    learned = _learned(txs, state)
    rate = learned.pop("student_lr")
    with convolution.looped():
      if phases:
        loss, (grads, by_rate) = phases.gradient(loss_fn, x, learned, rate, res)
      else:
        loss, (grads, by_rate) = gradient(loss_fn, *x, learned, rate, num_steps=options.inner_steps)
    return _move(tx, options, state, loss, grads | {"student_lr": by_rate})

  needs = phases.needs if phases else ("experts",) if first else ()

  def memory(n: int) -> int:
    """Bytes: what the way back through an inner step keeps, gradients and their sum, vectors."""
    shapes = {"images": (n, *env.image_shape), "soft_labels": (n, env.num_classes)}
    learned = {k: jax.ShapeDtypeStruct(x, jnp.float32) for k, x in shapes.items() if k in txs}

    def loss_fn(*args: Any) -> jax.Array:
      keys = jax.random.key_data(jax.random.split(jax.random.key(0)))
      return inner_loss(options, logits_of, jnp.ones(shapes["soft_labels"]), keys, *args)

    theta = jax.ShapeDtypeStruct((size,), jnp.float32)
    with convolution.looped():
      one = inner_loop.step_bytes(loss_fn, theta, learned, exact=exact)
    own = sum(4 * x.size for x in learned.values())
    return one + 2 * own + 4 * size * (options.inner_steps if exact else 1)

  return Method(
    start,
    step,
    _read,
    needs=initial.needs_with("images", "labels", "trajectories", *needs),
    num_steps=options.num_steps,
    batching="joint",
    inputs=phases.inputs if phases else functools.partial(draw_pair, name, options, size),
    real_images="images" in initial.needs,
    notes=initial.notes,
    dtype="float32",
    remarks=_unpredicted if first else None,
    memory=memory,
  )


def _move(
  tx: optax.GradientTransformation,
  options: Options,
  state: TrajectoryState,
  loss: jax.Array,
  grads: dict[str, jax.Array],
) -> tuple[TrajectoryState, dict[str, jax.Array]]:
  """Moves what is learned, unless the loss is above the threshold, and the mean of the images."""
  learned, metrics = _learned(grads, state), {"loss": loss}
  updates, opt_state = tx.update(grads, state.opt_state)
  moved = optax.apply_updates(learned, updates), opt_state
  if options.threshold is not None:
    skip = loss > options.threshold
    keep = lambda old, new: jnp.where(skip, old, new)
    moved = jax.tree.map(keep, (learned, state.opt_state), moved)
    metrics["skipped"] = skip.astype(jnp.float32)
  state = dataclasses.replace(state, step=state.step + 1, opt_state=moved[1], **moved[0])
  if options.ema_decay is not None:
    slow = optax.incremental_update(state.images, state.slow, 1 - options.ema_decay)
    state = dataclasses.replace(state, slow=slow)
  return state, metrics | {"student_lr": state.student_lr}


def expert_network(name: str, env: Env) -> tuple[LogitsOf, int]:
  """Returns the logits of the experts' network as a function of a vector, and that one's length."""
  if env.expert is None:
    raise LtddError(f"method {name!r} needs the network of trajectories, and env.expert is None")
  model = env.expert()
  flat = flat_params(model, env.image_shape)

  def logits_of(theta: jax.Array, images: jax.Array) -> jax.Array:
    return model.apply({"params": flat.unravel(theta)}, images, train=True)

  return logits_of, flat.size


def all_logits(
  logits_of: LogitsOf, theta: Float[Array, " p"], images: Float[Array, "n h w c"]
) -> Float[Array, "n k"]:
  """Logits of all images, a fixed number at a time."""
  return features.in_chunks(lambda rows: logits_of(theta, images[rows]), len(images), CHUNK)


def _first_images(name: str, env: Env, init: str | Mapping[str, Any]) -> Firsts:
  start = initial_images.make_start(env, init, name, initial_images.MATCHING)
  return lambda *args: First(start.draw(*args)), start


def _learned(names: Any, state: TrajectoryState) -> dict[str, jax.Array]:
  """What is learned, by its names."""
  return {name: getattr(state, name) for name in names}


def _read(state: TrajectoryState) -> Distilled:
  """The images as they stand, or their running mean if there is one."""
  images = state.images if state.slow is None else state.slow
  return Distilled(images, state.labels, state.soft_labels, state.student_lr)


def _unpredicted(state: TrajectoryState) -> tuple[str, ...]:
  """Says which classes have slots that start from images that no expert predicts correctly."""
  if state.predicted is None:
    return ()
  unknown = np.unique(np.asarray(state.labels)[~np.asarray(state.predicted)]).tolist()
  if not unknown:
    return ()
  text = f"no expert predicts a training image of classes {unknown} correctly; their images start"
  return (f"{text} from any of theirs, with uniform labels",)


def _check(name: str, options: Options) -> None:
  """Raises LtddError for an argument that is out of range."""
  where = f"method {name!r}: "
  counts = ("num_steps", "inner_steps", "expert_epochs", "max_start_epoch", "growth_steps")
  check_at_least(where, 1, **{key: getattr(options, key) for key in counts})
  if options.inner_batch_size is not None:
    check_at_least(where, 1, inner_batch_size=options.inner_batch_size)
  check_at_least(where, 0, lr=options.lr, lr_lr=options.lr_lr)
  check_at_least(where, 0, min_start_epoch=options.min_start_epoch)
  check_share(
    where, below_one=True, momentum=options.momentum, momentum_labels=options.momentum_labels
  )
  if options.lr_labels is not None:
    check_at_least(where, 0, lr_labels=options.lr_labels)
  if options.ema_decay is not None:
    check_share(where, below_one=True, ema_decay=options.ema_decay)
  for key in ("student_lr", "threshold"):
    value = getattr(options, key)
    if value is not None and not value > 0:
      raise LtddError(f"{where}{key} is {value}; expected a positive number")
  least, last = options.min_start_epoch, options.max_start_epoch
  for key in ("first_max_start_epoch", "max_start_epoch"):
    value = getattr(options, key)
    if value is not None and not least < value <= last:
      raise LtddError(
        f"{where}{key} is {value}; expected a number above min_start_epoch, which is {least}"
        + (f", and up to max_start_epoch, which is {last}" if key != "max_start_epoch" else "")
      )
  if options.augment is not None:
    dsa.check_strategy(options.augment)


def inner_loss(
  options: Options,
  logits_of: LogitsOf,
  probabilities: Float[Array, "n k"],
  keys: jax.Array,
  theta: Float[Array, " p"],
  learned: dict[str, jax.Array],
  i: jax.Array,
  class_weights: Float[Array, " k"] | None = None,
) -> Float[Array, ""]:
  """Computes the cross-entropy of inner step i on its batch, in its view.

  It is the same each time it is asked. If `learned` has soft labels, the target is their softmax,
  and `probabilities` otherwise. `keys` are the data of two, of views and batches: those of a loop
  are not to be used again. Weights of the classes, if there are any, do not sum to the number of
  classes: the loss is a mean over images all the same.
  """
  keys, i = jax.lax.optimization_barrier((keys, i))  # no key becomes a constant of the loop
  view_key, batch_key = jax.random.wrap_key_data(keys)
  images = learned["images"]
  if "soft_labels" in learned:
    probabilities = jax.nn.softmax(learned["soft_labels"])
  n, size = len(images), options.inner_batch_size
  weights = jnp.ones(n)
  if size is not None and size < n:
    rows, weights = batch_rows(batch_key, i, n, size, short="first")  # as its code
    images, probabilities = images[rows], probabilities[rows]
  if options.augment is not None:
    images = dsa.dsa(jax.random.fold_in(view_key, i), images, strategy=options.augment)
  if class_weights is not None:
    probabilities = class_weights[None] * probabilities
  rows = -(probabilities * jax.nn.log_softmax(logits_of(theta, images))).sum(1)
  return (rows * weights).sum() / weights.sum()


def end_of_start_epochs(options: Options, t: int) -> int:
  """The start epochs of step t lie below this: T + floor((T+ - T) t / E), and at most T+.

  T is `first_max_start_epoch`, T+ `max_start_epoch`, E `growth_steps`.
  """
  last = options.max_start_epoch
  first = last if options.first_max_start_epoch is None else options.first_max_start_epoch
  return min(last, first + (last - first) * t // options.growth_steps)


def draw_pair(
  name: str, options: Options, size: int, rng: np.random.Generator, t: int, host: Resources
) -> Pair:
  """Draws an expert and an epoch, and reads the two vectors of a step."""
  snapshots = host["trajectories"]
  experts, count, found = snapshots.shape
  check_size(name, found, size)
  last = options.max_start_epoch - 1 + options.expert_epochs
  if last >= count:
    raise LtddError(
      f"method {name!r}: max_start_epoch is {options.max_start_epoch} and expert_epochs is "
      f"{options.expert_epochs}, which asks for experts after {last} epochs, but the trajectories "
      f"have {count - 1}; lower them, or raise config.trajectories.num_epochs to {last}"
    )
  expert = rng.integers(experts)
  epoch = rng.integers(options.min_start_epoch, end_of_start_epochs(options, t))
  row = lambda e: np.array(snapshots[expert, e], np.float32)
  return row(epoch), row(epoch + options.expert_epochs)


def check_size(name: str, found: int, size: int) -> None:
  """Raises LtddError for vectors of another network."""
  if found != size:
    raise LtddError(
      f"method {name!r}: the trajectories are of networks of {found:,} parameters, but the network "
      f"has {size:,}; expected those of one network. Give config.trajectories.network the network "
      "that they were made with, or make them anew in another --workdir"
    )
