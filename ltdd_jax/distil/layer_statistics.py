"""Match the statistics of all convolutions and batch norms: G-VBSM's and EDC's objective.

  running = start(rule, statistics)
  distance, running = match(rule, inputs, labels, variables, statistics, running, key)

The statistics of a batch are vectors: mean and variance of the channels of each layer's input, and
for convolutions mean and variance of its tiles. They enter by their running means over the steps,
whose gradient is that of the newest statistic alone (straight through). Targets are those of the
training set; with `alpha` below 1 also those of the classes in the batch.
"""

import functools
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from ltdd_jax.core.types import Leaf, LtddError
from ltdd_jax.distil import objectives
from ltdd_jax.models import taps
from ltdd_jax.teachers import statistics as statistics_lib
from ltdd_jax.teachers.statistics import LayerStatistics, Statistics, Target

EMA_STARTS = ("zero", "unbiased")


class Rule(NamedTuple):
  """What is compared, and how."""

  first: float = 10.0  # weight of the first layer, the stem convolution
  momentum: float = 0.8  # of the running means
  ema_start: str = "zero"  # or "unbiased"
  drop: float = 0.0  # chance that a convolution is left out of a step
  alpha: float = 1.0  # weight of the training set's targets; 1 - alpha is that of the classes'
  batch: int | None = None  # targets are mean moments of batches of so many images; None: of all
  released: bool = False  # the classes' part is that of EDC's released code
  balanced: bool = False  # in targets of the training set every class counts alike

  @property
  def groups(self) -> bool:
    """Whether the batch is divided into its classes."""
    return self.alpha < 1 and not self.released


@flax.struct.dataclass
class Running:
  """Running means of the statistics of one layer for g groups: the batch, or its classes."""

  stats: Target  # (g, c), (g, c), (g, p), (g, p)
  weight: Leaf  # (g,) sum of the weights of what went in, 1 - momentum^n after n steps


class Some(NamedTuple):
  """The classes that a batch may hold: of a thousand classes no more than it has images."""

  classes: Leaf  # (g,) int32, increasing; k where there is none
  are_all: bool  # g = k

  @classmethod
  def of(cls, labels: Int[Array, " b"], k: int) -> "Some":
    """Those of a batch."""
    if k <= len(labels):
      return cls(jnp.arange(k), True)
    return cls(jnp.unique(labels, size=len(labels), fill_value=k), False)

  def take(self, tree: Any) -> Any:
    """Their rows of arrays (k, ...); those of no class have values that do not count."""
    return tree if self.are_all else jax.tree.map(lambda x: x[self.classes], tree)

  def put(self, tree: Any, rows: Any) -> Any:
    """Arrays (k, ...) with their rows (g, ...) in place."""
    put = lambda x, y: x.at[self.classes].set(y, mode="drop")
    return rows if self.are_all else jax.tree.map(put, tree, rows)


class LayerRunning(NamedTuple):
  """The running means of one layer."""

  batch: Running
  classes: Running | None


def start(rule: Rule, statistics: Statistics) -> tuple[LayerRunning, ...]:
  """Makes running means of zero for one teacher, in the shapes of its statistics."""

  def zeros(layer: LayerStatistics, groups: int) -> Running:
    like = lambda x: jnp.zeros((groups, x.shape[-1]), jnp.float32)
    stats = jax.tree.map(like, statistics_lib.per_class(layer))
    return Running(stats, jnp.zeros(groups, jnp.float32))

  k = statistics.counts.shape[0]
  return tuple(
    LayerRunning(zeros(x, 1), zeros(x, k) if rule.groups else None) for x in statistics.layers
  )


def match(
  rule: Rule,
  inputs: tuple[taps.LayerInput, ...],
  labels: Int[Array, " b"],
  variables: Any,
  statistics: Statistics,
  running: tuple[LayerRunning, ...],
  key: Key[Array, ""],
) -> tuple[Float[Array, ""], tuple[LayerRunning, ...]]:
  """Computes the distance of a batch's statistics from the targets.

      R = sum_l kappa_l [alpha D(s_l, T_l) + (1 - alpha) C_l],
      D(s, T) = sum over mean, var, tile mean, tile var of ||T - s||_2

  T_l of a batch norm are its running moments, of a convolution the moments of the training set,
  with `rule.balanced` those of a set in which every class has the same number of images.
  C_l is `sum_c p(c) D(s_lc, T_lc)` over the classes of the batch, p(c) being their share of it;
  with `rule.released` it is `D(s_l, sum_c p(c) T_lc)`, where T_lc has variances within an image
  alone, and tile means and variances in each other's place. Classes without training images have no
  statistics and are left out of p. kappa_1 is `rule.first`, others are 1.
  Sources: G-VBSM (Shao et al., CVPR 2024) and EDC (Shao et al., NeurIPS 2024) and their code.

  Args:
    rule: see `Rule`.
    inputs: of the layers, from `taps.apply_with_inputs(..., statistics.LAYERS)`.
    labels: (b,) classes of the images.
    variables: of the teacher: its batch norms' running moments.
    statistics: of the teacher on the training set; LtddError if they are of another network.
    running: of the teacher, see `start`.
    key: for the convolutions that are dropped.
  """
  some = Some.of(labels, statistics.counts.shape[0])
  onehot = (labels[:, None] == some.classes[None]).astype(jnp.float32)
  member = onehot if rule.groups else jnp.ones((len(labels), 1))
  found = statistics_lib.of_batch(inputs, member, statistics.tile)
  _check_fit(found, statistics)
  share = onehot.sum(0) * (some.take(statistics.counts) > 0)
  share = share / jnp.maximum(share.sum(), 1)
  total, new = jnp.zeros(()), []
  for i, (mine, theirs, before) in enumerate(
    zip(found.layers, statistics.layers, running, strict=True)
  ):
    kept = jnp.ones((), bool)
    if rule.drop and theirs.kind == "conv":
      kept = jax.random.bernoulli(jax.random.fold_in(key, i), 1 - rule.drop)
    distance, after = _match_layer(
      rule, mine, theirs, found.counts, statistics.counts, some, share, variables, before, kept
    )
    total += (rule.first if i == 0 else 1.0) * jnp.where(kept, distance, 0.0)
    new.append(after)
  return total, tuple(new)


def _match_layer(
  rule: Rule,
  mine: LayerStatistics,
  theirs: LayerStatistics,
  found: jax.Array,
  counts: jax.Array,
  some: Some,
  share: jax.Array,
  variables: Any,
  running: LayerRunning,
  kept: jax.Array,
) -> tuple[jax.Array, LayerRunning]:
  whole = jax.tree.map(lambda x: x[None], statistics_lib.pooled(mine, found))
  shown, batch = follow(rule, running.batch, whole, kept[None])
  target = jax.tree.map(lambda x: x[None], _overall(rule, theirs, counts, variables))
  distance = rule.alpha * distances(target, shown).sum()
  if rule.alpha == 1:
    return distance, LayerRunning(batch, None)
  of_class = statistics_lib.per_class(some.take(theirs), within_image=rule.released)
  if rule.released:
    of_class = of_class._replace(tile_mean=of_class.tile_var, tile_var=of_class.tile_mean)
    mix = jax.tree.map(lambda x: (share[:, None] * x).sum(0, keepdims=True), of_class)
    any_class = (share.sum() > 0).astype(jnp.float32)
    category, classes = any_class * distances(mix, shown).sum(), None
  else:
    each = statistics_lib.per_class(mine)
    assert running.classes is not None  # the rule has groups
    shown, moved = follow(rule, some.take(running.classes), each, kept & (found > 0))
    classes = some.put(running.classes, moved)
    category = (share * distances(of_class, shown)).sum()
  return distance + (1 - rule.alpha) * category, LayerRunning(batch, classes)


def follow(
  rule: Rule, running: Running, stats: Target, moved: Bool[Array, " g"]
) -> tuple[Target, Running]:
  """Moves running means, and gives their value the gradient of the newest statistic.

      e <- m e + (1 - m) sg(s),   shown = e + s - sg(s)

  The running means start at zero and stay there too small for a while, as in the released code of
  G-VBSM and EDC; with `ema_start="unbiased"` what is shown is e / (1 - m^n) after n steps.

  Of the g groups those that are not `moved` show what they have.
  """
  m, sg = rule.momentum, jax.lax.stop_gradient
  weight = jnp.where(moved, m * running.weight + (1 - m), running.weight)
  mix = lambda e, s: jnp.where(moved[:, None], m * e + (1 - m) * sg(s), e)
  value = jax.tree.map(mix, running.stats, stats)
  scale = jnp.ones_like(weight)
  if rule.ema_start == "unbiased":
    scale = 1 / jnp.where(weight > 0, weight, 1.0)
  shown = jax.tree.map(lambda e, s: scale[:, None] * e + (s - sg(s)), value, stats)
  return shown, Running(value, weight)


def distances(target: Target, stats: Target) -> Float[Array, " g"]:
  """Sums ||T - s||_2 over the statistics, for each of g groups."""
  parts = zip(target, stats, strict=True)
  norms = [objectives.safe_norm(t - s) for t, s in parts if s is not None]
  return functools.reduce(jnp.add, norms)


def _overall(rule: Rule, layer: LayerStatistics, counts: jax.Array, variables: Any) -> Target:
  """Targets of the training set: (c,) and (p,)."""
  if layer.kind == "conv":
    counts = (counts > 0).astype(jnp.float32) if rule.balanced else counts
    return statistics_lib.pooled(layer, counts, batch=rule.batch)
  moments = variables["batch_stats"]
  for name in layer.path.split("/"):
    moments = moments[name]
  return Target(moments["mean"], moments["var"])


def _check_fit(found: Statistics, statistics: Statistics) -> None:
  places = lambda s: [(x.path, x.kind) for x in s.layers]
  if places(found) != places(statistics):
    raise LtddError(
      f"statistics of layers {places(statistics)[:3]}... are not those of the teacher, which has "
      f"{places(found)[:3]}...; collect them with the same network"
    )
