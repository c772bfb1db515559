"""Encodings of soft labels: logits in few bytes, and back.

  encoding = Encoding("uint8", top_k=10)
  arrays = encoding.encode(logits)       # {"values": ..., "indices": ..., "rows": ...}
  logits = encoding.decode(arrays, k)    # float32 (b, k), NumPy from NumPy and JAX from JAX
  encoding.row_bytes(k)                  # bytes of one label

Both are pure and jit-able: students keep the encoded arrays and decode the rows of a batch in their
step. What a row loses is stated at `Encoding.encode`.
"""

import dataclasses
import numbers
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ltdd_jax.core.registry import check_choice
from ltdd_jax.core.types import LtddError

DTYPES = ("float32", "float16", "bfloat16", "uint8")
LEAST_SCALE = 2.0**-14  # the least normal float16


@dataclasses.dataclass(frozen=True)
class Encoding:
  """How logits are stored.

  Attributes:
    dtype: "float32", "float16", "bfloat16", or "uint8": 256 levels between the least and the
      largest value of a row, with a scale and an offset a row in float16.
    top_k: classes kept of each row, the likeliest ones; None for all. The mass of the others is
      stored as one number a row: the logit that each of them gets, so that their probabilities sum
      to what they did.

  Raises:
    LtddError: an unknown dtype, or a top_k that is no whole number of 1 or more.
  """

  dtype: str = "float16"
  top_k: int | None = None

  def __post_init__(self) -> None:
    check_choice("config.label.dtype", self.dtype, DTYPES)
    m = self.top_k
    if m is not None and (isinstance(m, bool) or not isinstance(m, numbers.Integral) or m < 1):
      raise LtddError(
        f"config.label.top_k is {m!r}; expected 1 or more classes, a whole number, or None for all"
      )

  def __str__(self) -> str:
    return self.dtype if self.top_k is None else f"{self.dtype} top-{self.top_k}"

  def check(self, k: int) -> None:
    """Raises LtddError if there are fewer than `top_k` classes."""
    if self.top_k is not None and self.top_k > k:
      raise LtddError(
        f"config.label.top_k is {self.top_k}; expected 1 to {k}, the number of classes, or None "
        "for all"
      )

  def width(self, k: int) -> int:
    """Values stored of a row of k logits."""
    return k if self.top_k is None else min(self.top_k, k)

  def columns(self, k: int) -> tuple[str, ...]:
    """Numbers stored once a row."""
    return ("scale", "offset") * (self.dtype == "uint8") + ("rest",) * (self.width(k) < k)

  def layout(self, k: int) -> dict[str, tuple[int, np.dtype]]:
    """The arrays of an encoded row: {name: (numbers, dtype)}.

    "values" always; "indices", the classes of the values, if some are left out; "rows", the numbers
    of `columns`, if there are any.
    """
    width, columns = self.width(k), self.columns(k)
    out = {"values": (width, jnp.dtype(self.dtype))}
    if width < k:
      out["indices"] = width, np.min_scalar_type(k - 1)
    if columns:
      out["rows"] = len(columns), jnp.dtype("float16" if self.dtype == "uint8" else self.dtype)
    return out

  def row_bytes(self, k: int) -> int:
    """Bytes of one encoded label."""
    return sum(count * dtype.itemsize for count, dtype in self.layout(k).values())

  def encode(self, logits: jax.Array) -> dict[str, jax.Array]:
    """Encodes rows of finite logits; a value that does not fit becomes infinite (see `largest`).

    Error of a value x, besides what `top_k` leaves out: none (float32), 2^-11 |x| (float16, at
    least 2^-25), 2^-8 |x| (bfloat16), half the row's scale (uint8), which is 1/255 of the span of
    the row's values and of what rounding the offset to float16 adds, at most 2^-10 |offset|. The
    scale is at least `LEAST_SCALE`, so that for narrow rows near zero the error is up to 2^-15.

    Args:
      logits: (b, k).

    Returns:
      Arrays (b, numbers) as `layout` lists them.
    """
    k = logits.shape[-1]
    layout, width = self.layout(k), self.width(k)
    values, numbers, out = jnp.asarray(logits, jnp.float32), {}, {}
    if width < k:
      every = values
      values, indices = jax.lax.top_k(every, width)
      out["indices"] = indices.astype(layout["indices"][1])
      others = jnp.put_along_axis(every, indices, -jnp.inf, axis=-1, inplace=False)
      mass = jax.nn.logsumexp(others, axis=-1, keepdims=True)
      numbers["rest"] = mass - float(np.log(k - width))
    if self.dtype == "uint8":
      scale, offset = numbers["scale"], numbers["offset"] = _scale_and_offset(values)
      values = jnp.clip(jnp.round((values - offset) / scale), 0, 255)
    out["values"] = values.astype(layout["values"][1])
    if columns := self.columns(k):
      rows = jnp.concatenate([numbers[name] for name in columns], axis=-1)
      out["rows"] = rows.astype(layout["rows"][1])
    return out

  def decode(self, arrays: Mapping[str, Any], k: int) -> Any:
    """Decodes rows of any leading shape: float32 (..., k), of the kind of array that came in."""
    values = arrays["values"].astype(np.float32)
    numbers = {
      name: arrays["rows"][..., i : i + 1].astype(np.float32)
      for i, name in enumerate(self.columns(k))
    }
    if self.dtype == "uint8":
      values = numbers["offset"] + numbers["scale"] * values
    if self.width(k) == k:
      return values
    return _fill(numbers["rest"], arrays["indices"].astype(np.int32), values, k)


def from_config(label: Mapping[str, Any]) -> Encoding:
  """The encoding that `config.label` asks for."""
  return Encoding(label["dtype"], label["top_k"])


def _scale_and_offset(values: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Numbers (b, 1) of float16, in float32, whose 256 levels reach over all values of a row.

  The offset is rounded down and the scale up. `reduce_precision` does the rounding, since XLA may
  leave out a conversion to float16 and back.
  """
  half = lambda x: jax.lax.reduce_precision(x, exponent_bits=5, mantissa_bits=10)
  beside = lambda x, to: jnp.nextafter(x.astype(jnp.float16), jnp.float16(to)).astype(jnp.float32)
  least, most = values.min(-1, keepdims=True), values.max(-1, keepdims=True)
  offset = half(least)
  below = jnp.where(offset == 0, -LEAST_SCALE, beside(offset, -np.inf))  # `half` has no subnormals
  offset = jnp.where(offset > least, below, offset)
  wanted = jnp.maximum((most - offset) / 255, LEAST_SCALE)
  scale = half(wanted)
  return jnp.where(scale < wanted, beside(scale, np.inf), scale), offset


def _fill(others: Any, indices: Any, values: Any, k: int) -> Any:
  """Rows (..., k) of `others` (..., 1) with `values` at `indices` (..., m)."""
  shape = (*values.shape[:-1], k)
  if isinstance(values, np.ndarray):
    rows = np.broadcast_to(others, shape).copy()
    np.put_along_axis(rows, indices, values, axis=-1)
    return rows
  full = jnp.broadcast_to(others, shape)
  return jnp.put_along_axis(full, indices, values, axis=-1, inplace=False)


def largest(arrays: Mapping[str, jax.Array]) -> jax.Array:
  """The largest stored float by amount, []: infinite or NaN if a logit did not fit."""
  floats = [x for x in arrays.values() if jnp.issubdtype(x.dtype, jnp.floating)]
  return jnp.max(jnp.stack([jnp.max(jnp.abs(x.astype(jnp.float32))) for x in floats]))
