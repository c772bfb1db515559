"""Terms of distillation objectives. Each is a pure function of arrays."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ltdd_jax.models import layers
from ltdd_jax.models.taps import Moment

TEMPERATURE = 4.0  # of the softmaxes of densification and flatness


def safe_norm(x: Float[Array, "*g c"]) -> Float[Array, "*g"]:
  """Euclidean norm over the last axis, with gradient 0 at 0, as PyTorch has it."""
  square = jnp.sum(jnp.square(x), -1)
  positive = square > 0
  return jnp.where(positive, jnp.sqrt(jnp.where(positive, square, 1.0)), 0.0)


def bn_statistics(moments: Sequence[Moment], first_multiplier: float = 10.0) -> jax.Array:
  """Distance of a batch's statistics from those that the batch norms learned.

      R = kappa * R_1 + sum_{l >= 2} R_l,   R_l = ||rv_l - var_l||_2 + ||rm_l - mean_l||_2

  Norms are neither squared nor averaged; nothing is divided by channels or layers. `kappa` weighs
  the stem, the first batch norm of the network. Source: SRe2L (Yin et al., NeurIPS 2023), equation
  for the BN consistency term, with the constants of its released code.

  Args:
    moments: of every batch norm in the order of calls; see `models.taps`.
    first_multiplier: kappa.
  """
  terms = [safe_norm(m.running_var - m.var) + safe_norm(m.running_mean - m.mean) for m in moments]
  return first_multiplier * terms[0] + sum(terms[1:], start=jnp.zeros(()))


# ---- data densification ----


def densification(images: Float[Array, "b h w c"], labels: Int[Array, " b"]) -> Float[Array, ""]:
  """Distance of each class's eigenvalue spectrum from a flatter one.

      sum_c KL(sg(softmax(l_c / tau)) || softmax(l_c)),   l_c = eigenvalues of Z_c Z_c^T,

  where tau is 4 and the rows of Z_c are the images of class c, pooled to 32 x 32 pixels (as
  `torch.nn.AdaptiveAvgPool2d` does) and flattened. A class with one image contributes exactly 0.
  Source: G-VBSM (Shao et al., CVPR 2024), data densification, and its code.

  Classes may have different numbers of images, and these may be traced: one decomposition of the
  whole (b, b) matrix, in which products between classes are 0 and the diagonal of each class is
  raised by more than the trace of those before it. The sorted eigenvalues are then those of the
  first class, of the second, ..., and raising them alike changes no softmax.
  """
  order = jnp.argsort(labels)
  labels = labels[order]
  z = layers.adaptive_avg_pool(images, 32).reshape(len(labels), -1)[order]
  same = labels[:, None] == labels[None, :]
  gram = jnp.where(same, jnp.matmul(z, z.T, precision=jax.lax.Precision.HIGHEST), 0.0)
  before = labels[:, None] > labels[None, :]
  raise_by = jnp.where(before, 1.01 * jnp.diagonal(gram)[None, :] + 1.0, 0.0).sum(1)
  values = eigenvalues(gram + jnp.diag(jax.lax.stop_gradient(raise_by)))
  log_p = _log_softmax_within(values, same)
  log_q = jax.lax.stop_gradient(_log_softmax_within(values / TEMPERATURE, same))
  return jnp.sum(jnp.exp(log_q) * (log_q - log_p))


@jax.custom_vjp
def eigenvalues(matrix: Float[Array, "b b"]) -> Float[Array, " b"]:
  """Eigenvalues of a symmetric matrix, ascending, with the gradient `V diag(g) V^T`.

  It is finite for equal eigenvalues too, and right for symmetric functions of them.
  """
  return jnp.linalg.eigvalsh(matrix)


def _eigenvalues_fwd(matrix: jax.Array) -> tuple[jax.Array, jax.Array]:
  values, vectors = jnp.linalg.eigh(matrix)
  return values, vectors


def _eigenvalues_bwd(vectors: jax.Array, g: jax.Array) -> tuple[jax.Array]:
  return (jnp.matmul(vectors * g[None, :], vectors.T, precision=jax.lax.Precision.HIGHEST),)


eigenvalues.defvjp(_eigenvalues_fwd, _eigenvalues_bwd)


def _log_softmax_within(x: jax.Array, same: jax.Array) -> jax.Array:
  """Log-softmax of x (b,) over the entries of the same group, same (b, b)."""
  rows = jnp.where(same, x[None, :], -jnp.inf)
  top = jax.lax.stop_gradient(rows.max(1))
  return x - top - jnp.log(jnp.exp(rows - top[:, None]).sum(1))


# ---- flatness ----


def flatness(logits: Float[Array, "b k"], slow_logits: Float[Array, "b k"]) -> Float[Array, ""]:
  """Distance of what a teacher says of the images and of their running mean, in the same view.

      1/(b k) sum_b KL(p || q),   p = softmax(logits / 4),   q = sg(softmax(slow_logits / 4))

  Source: EDC (Shao et al., NeurIPS 2024), flatness regularisation. The paper names no divisor; b k
  is that of the code with which its weight, 0.25, was found. The code has KL(q || p).
  """
  log_p = jax.nn.log_softmax(logits / TEMPERATURE)
  log_q = jax.lax.stop_gradient(jax.nn.log_softmax(slow_logits / TEMPERATURE))
  return jnp.mean(jnp.exp(log_p) * (log_p - log_q))
