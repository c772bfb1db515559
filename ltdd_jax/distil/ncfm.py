"""NCFM: matches the characteristic function of features, not their mean alone.

method = ncfm(env)                                       # env.teachers of one architecture
x = method.inputs(rng, t, {"labels": labels})            # rows of real images, on the host
res = {"teachers": trained, "initial_teachers": untrained, "images": images}
state, metrics = method.step(key, state, res, x)
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax
import optax.contrib
from jaxtyping import Array, Float, Int

from ltdd_jax.core.registry import check_at_least, within
from ltdd_jax.core.types import Distilled, Leaf, LtddError, Slots
from ltdd_jax.data import augment as augment_lib
from ltdd_jax.data import crops, dsa
from ltdd_jax.distil import multi_formation, selection
from ltdd_jax.distil.base import Env, Method, Resources
from ltdd_jax.distil.dm import RealBatch, class_batches, real_means
from ltdd_jax.distil.idm import sum_of_means
from ltdd_jax.models import taps
from ltdd_jax.training import losses, optimizers

VERSION = 1

ADAMW = {"name": "adamw", "lr": 1e-3, "weight_decay": 5e-4}
STRATEGY = "color_crop_cutout"
SCALE = 300.0
GROUP = 16  # frequencies of one scale
WIDTH = 64  # of the sampling network
SAMPLER_MOMENTUM = 0.5

Views = tuple[Int[Array, " k"], Float[Array, "k 4 3"]] | None  # see `draw_views`


@flax.struct.dataclass
class State:
  """Images that are being optimised, and what goes along."""

  images: Leaf  # (n, h, w, c) float32 pixels, about [0, 1]; each holds several small ones
  labels: Leaf  # (n,) int32
  opt_state: Any
  plateau: Any  # of `optax.contrib.reduce_on_plateau`
  sampler: Any = None  # parameters of the sampling network
  sampler_opt_state: Any = None


class Options(NamedTuple):
  """The arguments of `ncfm`; without a `sampler_lr` all scales are 1."""

  num_steps: int
  optimizer: Mapping[str, Any]
  batch_real: int
  num_frequencies: int
  amplitude: float
  phase: float
  calibration: float
  factor: int
  patience: int
  augment: str | None
  init: str | Mapping[str, Any]
  sampler_lr: float | None = None


class Sampler(nn.Module):
  """The sampling network psi: noise (g, WIDTH) -> log scales (g,) in (-1, 1), 0 at first."""

  @nn.compact
  def __call__(self, noise: jax.Array) -> jax.Array:
    """Runs two hidden layers with leaky ReLU, and tanh."""
    x = noise
    for _ in range(2):
      x = nn.leaky_relu(nn.Dense(WIDTH)(x), 0.2)
    return jnp.tanh(nn.Dense(1, kernel_init=nn.initializers.zeros)(x)[:, 0])


def ncfm(
  env: Env,
  /,
  *,
  num_steps: int = 20_000,
  optimizer: Mapping[str, Any] = ADAMW,
  batch_real: int = 1024,
  num_frequencies: int = 1024,
  amplitude: float = 0.5,
  phase: float = 0.5,
  calibration: float = 1.0,
  factor: int = 2,
  patience: int = 500,
  sampler_lr: float = 1e-3,
  augment: str | None = STRATEGY,
  init: str | Mapping[str, Any] = "real",
) -> Method:
  """NCFM (Wang et al., CVPR 2025): a min-max match of characteristic functions of features.

      L = sum_c 300 mean_t sqrt(amplitude (|p_c(t)| - |q_c(t)|)^2
                                + phase 2 (|p_c(t)| |q_c(t)| - Re p_c(t) conj q_c(t)))

  p_c and q_c are the empirical characteristic functions of the features g of real and distilled
  images of class c, p(t) = mean_n exp(i <t, g_n / |g_n|>). t ~ s_j N(0, I), 16 of each scale s_j,
  which a network psi makes of noise. Images descend L, and psi ascends it. Then images take a
  second step, down `calibration` times the cross-entropy of the trained network, the sum over the
  classes of their means.

  g is the input of the classifier in a mixture u initial + (1 - u) trained, u ~ U(0, 1), of the
  parameters of a teacher, drawn for each step; batch norms keep the trained statistics. Images hold
  factor^2 small ones (`multi_formation`). All images of a class, real and distilled, share their
  view (`dsa.apply_combined`). Pixels are clamped to [0, 1] before each step. When the loss has not
  fallen for `patience` steps the rate is halved.

  The paper says no more of psi than that it makes a scale mixture. Ours are its layers, and that
  its scales have the root mean square 1: L grows with the scale of all t, and psi would do no more
  than raise that.

  In what we differ from the released code, also in `ncfm_released`:

  * Each step draws new real images. The code takes the first `batch_real` of each class always.
  * Distilled images are those of this step. The code decodes up to ten batches ahead.
  * One step moves all classes, and all see the same t. The code takes the classes in turn with one
    AdamW for all, and new t: with k classes on one device images move about sqrt(k) times as far.
  * Parts start from different real images, as far as there are enough, drawn at random; the code
    takes the first of each class.

  Args:
    env: static facts; one teacher or more, all of one architecture. The paper has 20.
    num_steps: each of them two of the optimiser.
    optimizer: {name, lr, **kwargs} of `optimizers.make_optimizer`, of pixels in [0, 1].
    batch_real: real images of each class in a step.
    num_frequencies: t in a step; a multiple of 16.
    amplitude: weight of the difference of amplitudes.
    phase: weight of the difference of phases.
    calibration: weight of the cross-entropy; 0 for no second step.
    factor: parts a side.
    patience: steps.
    sampler_lr: of psi, by SGD with momentum 0.5.
    augment: strategy of `dsa.apply_combined`; None for no views.
    init: "real" as above, or {"name": "imported", "path": SET, ...}, see `initial_images`: a set of
      the same `factor`.
  """
  options = Options(
    num_steps, optimizer, batch_real, num_frequencies, amplitude, phase, calibration, factor,
    patience, augment, init, sampler_lr,
  )  # fmt: skip
  return _make("ncfm", env, options)


def ncfm_released(
  env: Env,
  /,
  *,
  num_steps: int = 20_000,
  optimizer: Mapping[str, Any] = ADAMW,
  batch_real: int = 1024,
  num_frequencies: int = 4096,
  amplitude: float = 0.5,
  phase: float = 0.5,
  calibration: float = 1.0,
  factor: int = 2,
  patience: int = 500,
  augment: str | None = STRATEGY,
  init: str | Mapping[str, Any] = "real",
) -> Method:
  """NCFM as its code runs: t ~ N(0, I), and more of them.

  All its configs leave psi out. If it is switched on, it never learns: the gradients of its descent
  and of its ascent add up to zero. Otherwise, and in what we differ, as `ncfm`.
  """
  options = Options(
    num_steps, optimizer, batch_real, num_frequencies, amplitude, phase, calibration, factor,
    patience, augment, init,
  )  # fmt: skip
  return _make("ncfm_released", env, options)


def _make(name: str, env: Env, o: Options) -> Method:
  """See `ncfm`."""
  _check(name, env, o)
  with within(f"method {name!r}: optimizer"):
    tx = optimizers.make_optimizer(o.optimizer, {"name": "constant"}, o.num_steps)
  plateau = optax.contrib.reduce_on_plateau(0.5, o.patience + 1, rtol=1e-4)
  sampler_tx = optax.sgd(o.sampler_lr or 0, SAMPLER_MOMENTUM)
  first = multi_formation.make_start(env, o.init, name, o.factor, multi_formation.nearest)
  k, groups = env.num_classes, o.num_frequencies // GROUP

  def start(key: jax.Array, slots: Slots, res: Resources) -> State:
    image_key, sampler_key = jax.random.split(key)
    images = first.draw(image_key, slots, res)
    images = augment_lib.denormalize_pixels(images, env.mean, env.std)
    labels = jnp.asarray(slots.labels, jnp.int32)
    state = State(images, labels, tx.init(images), plateau.init(images))
    if o.sampler_lr is None:
      return state
    sampler = Sampler().init(sampler_key, jnp.zeros((1, WIDTH)))
    return dataclasses.replace(state, sampler=sampler, sampler_opt_state=sampler_tx.init(sampler))

  def step(
    key: jax.Array, state: State, res: Resources, x: RealBatch, *, turn: int = 0
  ) -> tuple[State, dict[str, jax.Array]]:
    del turn
    keys = jax.random.split(key, 5)
    trained, mixed = draw_mixture(keys[0], res)
    labels = jnp.tile(state.labels, o.factor**2)
    wanted = jnp.bincount(labels, length=k) > 0
    model = env.teachers[0].model
    look_in = lambda key: functools.partial(embed, o.augment, draw_views(key, o.augment, k), model)
    look = functools.partial(look_in(keys[1]), mixed)
    noise = jax.random.normal(keys[2], (groups, WIDTH))

    def match(images: jax.Array, sampler: Any) -> jax.Array:
      features = look(_shown(images, o.factor, env), labels)[1]
      t = jax.random.normal(keys[3], (o.num_frequencies, features.shape[1]))
      if o.sampler_lr is not None:
        t = scales(sampler, noise)[:, None] * t
      of_real = lambda images, labels, counted: waves(look(images, labels)[1], t)
      real = real_means(of_real, env, res, x, wanted, together=False)
      distilled = selection.class_means(waves(features, t), labels, k)
      return discrepancy(real, distilled, wanted, o.amplitude, o.phase)

    def calibrate(images: jax.Array) -> jax.Array:
      logits = look_in(keys[4])(trained, _shown(images, o.factor, env), labels)[0]
      return o.calibration * sum_of_means(losses.cross_entropy_rows(logits, labels), labels, k)

    def move(images: jax.Array, grads: jax.Array, opt_state: Any) -> tuple[jax.Array, Any]:
      updates, opt_state = tx.update(grads, opt_state, images)
      return images + state.plateau.scale * updates, opt_state

    images, sampler = jnp.clip(state.images, 0, 1), state.sampler
    matched, grads = jax.value_and_grad(match, (0, 1))(images, sampler)
    images, opt_state = move(images, grads[0], state.opt_state)
    sampler_opt_state = state.sampler_opt_state
    if o.sampler_lr is not None:
      up = jax.tree.map(jnp.negative, grads[1])
      updates, sampler_opt_state = sampler_tx.update(up, sampler_opt_state)
      sampler = optax.apply_updates(sampler, updates)
    ce = jnp.zeros(())
    if o.calibration:
      ce, grads = jax.value_and_grad(calibrate)(images)
      images, opt_state = move(images, grads, opt_state)
    _, rate = plateau.update({}, state.plateau, value=(matched + ce) / wanted.sum())
    metrics = {"loss": matched + ce, "match": matched, "ce": ce, "scale": rate.scale}
    return State(images, state.labels, opt_state, rate, sampler, sampler_opt_state), metrics

  def read(state: State) -> Distilled:
    pixels = jnp.clip(state.images, 0, 1)
    return Distilled(augment_lib.normalize_pixels(pixels, env.mean, env.std), state.labels)

  return Method(
    start,
    step,
    read,
    needs=first.needs_with("teachers", "initial_teachers", "images", "labels"),
    num_steps=o.num_steps,
    batching="joint",
    inputs=class_batches(k, o.batch_real),
    real_images=True,
    notes=first.notes,
    dtype="float32",
    parts=o.factor,
  )


def _check(name: str, env: Env, o: Options) -> None:
  """Raises LtddError for an argument that is out of range."""
  where = f"method {name!r}: "
  check_at_least(where, 1, num_steps=o.num_steps, batch_real=o.batch_real, patience=o.patience)
  check_at_least(where, 1, num_frequencies=o.num_frequencies)
  if o.sampler_lr is not None and o.num_frequencies % GROUP:
    raise LtddError(
      f"{where}num_frequencies is {o.num_frequencies}; expected a multiple of {GROUP}, such as 1024"
    )
  check_at_least(where, 0, amplitude=o.amplitude, phase=o.phase, calibration=o.calibration)
  check_at_least(where, 0, sampler_lr=o.sampler_lr or 0)
  crops.check_factor(where, o.factor, env.image_shape)
  check_alike(name, env)
  if o.augment is not None:
    dsa.check_strategy(o.augment)


def check_alike(name: str, env: Env) -> None:
  """Raises LtddError for teachers of several architectures."""
  other = [network.name for network in env.teachers if network.model != env.teachers[0].model]
  if other:
    raise LtddError(
      f"method {name!r} draws one of its teachers in each step, and {other[0]!r} is of another "
      f"architecture than {env.teachers[0].name!r}; expected teachers of one. Name those in "
      "config.distil.teachers"
    )


def draw_mixture(key: jax.Array, res: Resources) -> tuple[Any, Any]:
  """Draws a teacher; returns its variables, and a mixture of them with those it began with."""
  number_key, share_key = jax.random.split(key)
  number = jax.random.randint(number_key, (), 0, len(res["teachers"]))
  trained, initial = (
    jax.lax.switch(number, [lambda v=v: v for v in res[name]])
    for name in ("teachers", "initial_teachers")
  )
  share = jax.random.uniform(share_key)
  mix = lambda a, b: share * a + (1 - share) * b
  params = jax.tree.map(mix, initial["params"], trained["params"])
  return trained, {**trained, "params": params}


def draw_views(key: jax.Array, strategy: str | None, k: int) -> Views:
  """Draws for each class what `dsa.apply_combined` takes; None for images as they are."""
  if strategy is None:
    return None
  draw = lambda key: dsa.draw_combined(key, strategy, 1)
  ops, numbers = jax.vmap(draw)(jax.random.split(key, k))
  return ops, numbers[:, 0]


def embed(
  strategy: str | None,
  views: Views,
  model: nn.Module,
  variables: Any,
  images: Float[Array, "b h w c"],
  labels: Int[Array, " b"],
) -> tuple[Float[Array, "b k"], Float[Array, "b f"]]:
  """Computes logits and features of norm 1, in eval mode, of images in the views of their classes.

  Features are the classifier's input.
  """
  if strategy is not None and views is not None:
    view = functools.partial(dsa.apply_combined, strategy=strategy)
    images = jax.vmap(view)(images, views[0][labels], views[1][labels])
  logits, features = taps.features(model, variables, images)
  features = features.astype(jnp.float32)
  norm = jnp.sqrt(jnp.maximum(jnp.square(features).sum(1, keepdims=True), 1e-24))
  return logits.astype(jnp.float32), features / norm


def _shown(pixels: jax.Array, factor: int, env: Env) -> jax.Array:
  """The parts of all images, normalised."""
  return augment_lib.normalize_pixels(multi_formation.decode(pixels, factor), env.mean, env.std)


def scales(sampler: Any, noise: Float[Array, "g w"]) -> Float[Array, " m"]:
  """Computes the scales s_j of psi, of root mean square 1, the same for `GROUP` frequencies."""
  log_scales: Any = Sampler().apply(sampler, noise)
  found = jnp.exp(log_scales)
  return jnp.repeat(found / jnp.sqrt(jnp.square(found).mean()), GROUP)


def waves(features: Float[Array, "b f"], t: Float[Array, "m f"]) -> Float[Array, "b both"]:
  """Computes exp(i <t, g>): the m real parts of each feature vector, then the imaginary ones."""
  angles = jnp.einsum("bf,mf->bm", features, t, precision="highest")
  return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=1)


def discrepancy(
  real: Float[Array, "k both"],
  distilled: Float[Array, "k both"],
  wanted: Array,
  amplitude: float,
  phase: float,
) -> Float[Array, ""]:
  """Computes L of `ncfm` of two characteristic functions at m frequencies, see `waves`.

  The terms add up to |p - q|^2 if both have the weight 1, so L is the root of

      phase |p - q|^2 + (amplitude - phase) (|p| - |q|)^2

  which for equal weights needs no modulus. Roots have 1e-12 added: their slope at 0 is infinite.

  Args:
    real: p of each class.
    distilled: q of each class.
    wanted: (k,) bool, the classes that count.
    amplitude: weight.
    phase: weight.
  """
  p, q = (x.reshape(len(x), 2, -1) for x in (real, distilled))
  modulus = lambda x: jnp.sqrt(jnp.square(x).sum(1) + 1e-12)
  squared = phase * jnp.square(p - q).sum(1)
  if amplitude != phase:
    squared += (amplitude - phase) * jnp.square(modulus(p) - modulus(q))
  rows = jnp.sqrt(jnp.maximum(squared, 0) + 1e-12).mean(1)
  return SCALE * jnp.where(wanted, rows, 0).sum()
