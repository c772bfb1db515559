"""MTT and TESLA: images on which a network moves as experts did on the real ones.

method = mtt(env, inner_steps=30, expert_epochs=2, max_start_epoch=20)
x = method.inputs(rng, t, {"trajectories": snapshots})   # two vectors of one expert, on the host
state, metrics = method.step(key, state, {}, x)

The experts are the resource "trajectories" (`teachers.trajectories`), on the split of the image
source. The learning rate of the inner loop is learned with the images, and is that of students.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from ltdd_jax.core.registry import check_at_least, check_choice, check_share
from ltdd_jax.core.types import Distilled, Leaf, LtddError, Slots
from ltdd_jax.data import dsa
from ltdd_jax.distil import features, inner_loop
from ltdd_jax.distil.base import Env, Method, Resources
from ltdd_jax.distil.dm import first_images
from ltdd_jax.distil.network_training import batch_rows
from ltdd_jax.models import convolution
from ltdd_jax.models.flat import flat_params

VERSION = 1

Pair = tuple[Float[Array | np.ndarray, " p"], Float[Array | np.ndarray, " p"]]  # start, target


@flax.struct.dataclass
class TrajectoryState:
  """Images and the rate of the inner loop, both being learned."""

  step: Leaf  # [] int32
  images: Leaf  # (n, h, w, c) float32, normalised
  labels: Leaf  # (n,) int32
  student_lr: Leaf  # [] float32
  opt_state: Any  # of (images, student_lr)
  soft_labels: Leaf = None  # (n, k) float32 logits of the last expert, or None


class Options(NamedTuple):
  """The numbers of a method; `mtt` says what each is."""

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
  init: str


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
  init: str = "real",
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
    init: "real" (training images, drawn without replacement) or "noise", N(0, 1).

  Raises:
    LtddError: an argument out of range, or a network that `flat_params` refuses; from `inputs`,
      trajectories that are too short or of another network.
  """
  options = Options(
    num_steps, inner_steps, inner_batch_size, expert_epochs, max_start_epoch, lr, momentum,
    student_lr, lr_lr, augment, init,
  )  # fmt: skip
  return _matching("mtt", env, options, inner_loop.exact)


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
  init: str = "real",
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
  return _matching("tesla", env, options, inner_loop.constant_memory, expert_labels)


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
  init: str = "real",
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
  return _matching("tesla_released", env, options, gradient, expert_labels)


def _matching(
  name: str,
  env: Env,
  options: Options,
  gradient: Callable[..., inner_loop.Matched],
  expert_labels: bool = False,
) -> Method:
  """Makes a method of the function that computes loss and gradients."""
  _check(name, env, options)
  if env.expert is None:
    raise LtddError(f"method {name!r} needs the network of trajectories, and env.expert is None")
  model = env.expert()
  flat = flat_params(model, env.image_shape)
  txs = optax.sgd(options.lr, options.momentum), optax.sgd(options.lr_lr, options.momentum)
  first = first_images(env, options.init)

  def start(key: jax.Array, slots: Slots, res: Resources) -> TrajectoryState:
    learned = first(key, slots, res), jnp.float32(options.student_lr)
    return TrajectoryState(
      step=jnp.zeros((), jnp.int32),
      images=learned[0],
      labels=jnp.asarray(slots.labels, jnp.int32),
      student_lr=learned[1],
      opt_state=tuple(tx.init(x) for tx, x in zip(txs, learned, strict=True)),
      soft_labels=jnp.zeros((len(slots.labels), env.num_classes)) if expert_labels else None,
    )

  def logits_of(theta: jax.Array, images: jax.Array) -> jax.Array:
    return model.apply({"params": flat.unravel(theta)}, images, train=True)

  def step(
    key: jax.Array, state: TrajectoryState, res: Resources, x: Pair, *, turn: int = 0
  ) -> tuple[TrajectoryState, dict[str, jax.Array]]:
    del res, turn
    start, target = (jnp.asarray(vector) for vector in x)
    probabilities, soft = jax.nn.one_hot(state.labels, env.num_classes), None
    if expert_labels:
      rows_of = lambda rows: logits_of(target, state.images[rows])
      soft = features.in_chunks(rows_of, len(state.images), 500)
      probabilities = jax.nn.softmax(soft)
    keys = jax.random.key_data(jax.random.split(key))
    loss_fn = functools.partial(_inner_loss, options, logits_of, probabilities, keys)
    with convolution.looped():
      loss, grads = gradient(
        loss_fn,
        start,
        target,
        state.images,
        state.student_lr,
        num_steps=options.inner_steps,
      )
    learned = state.images, state.student_lr
    moved = [tx.update(*each) for tx, *each in zip(txs, grads, state.opt_state, strict=True)]
    images, rate = optax.apply_updates(learned, tuple(update for update, _ in moved))
    new = TrajectoryState(
      state.step + 1, images, state.labels, rate, tuple(opt for _, opt in moved), soft
    )
    return new, {"loss": loss, "student_lr": rate}

  return Method(
    start,
    step,
    lambda state: Distilled(state.images, state.labels, state.soft_labels, state.student_lr),
    needs=("images", "labels", "trajectories"),
    num_steps=options.num_steps,
    batching="joint",
    inputs=functools.partial(_draw, name, options, flat.size),
    real_images=options.init == "real",
    dtype="float32",
  )


def _check(name: str, env: Env, options: Options) -> None:
  """Raises LtddError for an argument that is out of range."""
  where = f"method {name!r}: "
  counts = ("num_steps", "inner_steps", "expert_epochs", "max_start_epoch")
  check_at_least(where, 1, **{key: getattr(options, key) for key in counts})
  if options.inner_batch_size is not None:
    check_at_least(where, 1, inner_batch_size=options.inner_batch_size)
  check_at_least(where, 0, lr=options.lr, lr_lr=options.lr_lr)
  check_share(where, below_one=True, momentum=options.momentum)
  check_choice(f"{where}init", options.init, ("real", "noise"))
  if not options.student_lr > 0:
    raise LtddError(f"{where}student_lr is {options.student_lr}; expected a positive number")
  if options.augment is not None:
    dsa.check_strategy(options.augment)


def _inner_loss(
  options: Options,
  logits_of: Callable[[jax.Array, jax.Array], jax.Array],
  probabilities: Float[Array, "n k"],
  keys: jax.Array,
  theta: Float[Array, " p"],
  images: Float[Array, "n h w c"],
  i: jax.Array,
) -> Float[Array, ""]:
  """The cross-entropy of inner step i on its batch, in its view: the same each time it is asked.

  `keys` are the data of two, of views and batches: those of a loop are not to be used again.
  """
  view_key, batch_key = jax.random.wrap_key_data(keys)
  n, size = len(images), options.inner_batch_size
  weights = jnp.ones(n)
  if size is not None and size < n:
    rows, weights = batch_rows(batch_key, i, n, size, short="first")  # as its code
    images, probabilities = images[rows], probabilities[rows]
  if options.augment is not None:
    images = dsa.dsa(jax.random.fold_in(view_key, i), images, strategy=options.augment)
  rows = -(probabilities * jax.nn.log_softmax(logits_of(theta, images))).sum(1)
  return (rows * weights).sum() / weights.sum()


def _draw(
  name: str, options: Options, size: int, rng: np.random.Generator, t: int, host: Resources
) -> Pair:
  """Draws an expert and an epoch, and reads the two vectors of a step."""
  del t
  snapshots = host["trajectories"]
  experts, count, found = snapshots.shape
  if found != size:
    raise LtddError(
      f"method {name!r}: the trajectories are of networks of {found:,} parameters, but the network "
      f"has {size:,}; expected those of one network. Give config.trajectories.network the network "
      "that they were made with, or make them anew in another --workdir"
    )
  last = options.max_start_epoch - 1 + options.expert_epochs
  if last >= count:
    raise LtddError(
      f"method {name!r}: max_start_epoch is {options.max_start_epoch} and expert_epochs is "
      f"{options.expert_epochs}, which asks for experts after {last} epochs, but the trajectories "
      f"have {count - 1}; lower them, or raise config.trajectories.num_epochs to {last}"
    )
  expert, epoch = rng.integers(experts), rng.integers(options.max_start_epoch)
  row = lambda e: np.array(snapshots[expert, e], np.float32)
  return row(epoch), row(epoch + options.expert_epochs)
