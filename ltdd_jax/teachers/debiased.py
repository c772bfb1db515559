"""RLDD's debiased teachers: two mixed views, a loss that turns to the tail, and agreeing features.

"Rethinking Long-tailed Dataset Distillation" (AAAI 2026). The teacher's objective follows GLMC. The
authors' code was not found: what the paper leaves open is as in the one public copy, and where the
two contradict each other there are two objectives, `rldd` and `rldd_released`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ltdd_jax.core.registry import check_at_least, check_share
from ltdd_jax.core.types import LtddError
from ltdd_jax.data import views as views_lib
from ltdd_jax.models import layers, taps
from ltdd_jax.training import losses

HEADS = "heads"  # where the parameters are that a teacher does not keep
WIDTH = 128  # of the projection and the prediction
PARTNER_POWER = 0.2  # partners are drawn in proportion to n_c^(1 - 0.2), not to n_c


class Outputs(NamedTuple):
  """What `WithHeads` makes of images."""

  logits: Any  # (b, k) of the network
  plain: Any  # (b, k) of the second classifier; the same where there is none
  projection: Any  # (b, 128) z
  prediction: Any  # (b, 128) p


class _Heads(nn.Module):
  """Projection and prediction of features, linear both, and maybe a second classifier."""

  num_classes: int | None

  @nn.compact
  def __call__(self, features: jax.Array, logits: jax.Array) -> Outputs:
    z = layers.torch_dense(features, WIDTH, name="projection")
    p = layers.torch_dense(z, WIDTH, name="prediction")
    plain = logits
    if self.num_classes is not None:
      plain = layers.torch_dense(features, self.num_classes, name="classifier")
    return Outputs(*(x.astype(jnp.float32) for x in (logits, plain, z, p)))


class WithHeads(nn.Module):
  """A network with heads on its penultimate features; its own parameters keep their places."""

  body: nn.Module  # not `network`, the name of a child that `models.computing_in` takes
  second_classifier: int | None = None  # its classes

  def setup(self) -> None:
    nn.share_scope(self, self.body)
    self.heads = _Heads(self.second_classifier)

  def __call__(self, x: jax.Array, *, train: bool) -> Outputs:
    inputs: list[taps.LayerInput] = []
    with taps.recording(inputs, nn.Dense):
      logits = self.body(x, train=train)
    if not inputs:
      raise LtddError(
        f"config.teacher.objective: {type(self.body).__name__} has no dense layer, so its "
        "features are not known; expected a network with one, such as 'convnet'"
      )
    return self.heads(inputs[-1].value, logits)


def class_weights(counts: np.ndarray, q: float) -> np.ndarray:
  """Computes `n_c^-q / sum_j n_j^-q` of (k,) counts."""
  weights = np.asarray(counts, np.float64) ** -q
  return weights / weights.sum()


def check(q: float, gamma: float) -> None:
  """Raises LtddError for numbers that the objectives cannot have."""
  check_share("objective: ", q=q)
  check_at_least("objective: ", 0, gamma=gamma)


def make_loss(counts: np.ndarray, q: float, gamma: float, released: bool) -> Callable[..., Any]:
  """Makes the loss of `objectives.rldd`, or with `released` that of `objectives.rldd_released`."""
  scale = len(counts) if released else 1
  weights = (scale * class_weights(counts, q)).astype(np.float32)

  def loss_fn(apply_fn, params, batch_stats, batch, key, progress):
    images, (labels, partners) = batch  # (4, b, h, w, c): two views of images, two of partners
    share_key, box_key = jax.random.split(key)
    share = jax.random.uniform(share_key)
    views = mixed(box_key, share, images)
    found = []
    for view in views:  # one after another: each has batch statistics of its own
      variables = {"params": params, "batch_stats": batch_stats}
      out, updated = apply_fn(variables, view, train=True, mutable=["batch_stats"])
      batch_stats = updated.get("batch_stats", {})
      found.append(out)
    one = jnp.ones_like(weights)
    plain = sum(mixed_loss(o.plain, labels, partners, share, one) for o in found)
    weighted = sum(mixed_loss(o.logits, labels, partners, share, weights) for o in found)
    agreement = sum(agree(a, b, released) for a, b in (found, found[::-1]))
    turn = jnp.square(progress)
    loss = (1 - turn) * plain + turn * weighted - gamma * agreement
    return loss, (batch_stats, {"plain": plain, "weighted": weighted, "agreement": agreement})

  return loss_fn


def mixed(
  key: jax.Array, share: Float[Array, ""], images: Float[Array, "4 b h w c"]
) -> tuple[Float[Array, "b h w c"], Float[Array, "b h w c"]]:
  """Mixes the first views with the partners' by mixup, the second ones by CutMix.

  Both with the same share of the image itself; one box for the batch, with sides
  `ceil(side sqrt(1 - share))` before it is clipped at the border.
  """
  first, second, first_partner, second_partner = images
  h, w = images.shape[2:4]
  row_key, column_key = jax.random.split(key)
  row, column = jax.random.randint(row_key, (), 0, h), jax.random.randint(column_key, (), 0, w)
  inside, _ = views_lib.box_mask(share, row, column, h, w, rounding=jnp.ceil)
  cut = jnp.where(inside[None, :, :, None], second_partner, second)
  return share * first + (1 - share) * first_partner, cut


def mixed_loss(
  logits: Float[Array, "b k"],
  labels: Int[Array, " b"],
  partners: Int[Array, " b"],
  share: Float[Array, ""],
  weights: Float[Array | np.ndarray, " k"],
) -> Float[Array, ""]:
  """Computes the mean of `share w_y CE(y) + (1 - share) w_y' CE(y')`, y' being the partners'."""
  weights = jnp.asarray(weights)
  own = weights[labels] * losses.cross_entropy_rows(logits, labels)
  other = weights[partners] * losses.cross_entropy_rows(logits, partners)
  return (share * own + (1 - share) * other).mean()


def agree(a: Outputs, b: Outputs, released: bool) -> Float[Array, ""]:
  """Computes the mean cosine of one view's feature and the other's, which has no gradient."""
  mine, other = (a.prediction, b.projection) if released else (a.projection, b.prediction)
  unit = lambda x: x / jnp.maximum(jnp.linalg.norm(x, axis=1, keepdims=True), 1e-8)
  return (unit(mine) * unit(jax.lax.stop_gradient(other))).sum(1).mean()
