"""Float64 oracle of `encoding.py`: what a decoded row is, from the definitions, in loops."""

import math

import numpy as np


def round_float(x: float, dtype: str) -> float:
  """A value after a round trip through a float dtype; bfloat16 keeps 8 significant bits."""
  if dtype != "bfloat16":
    return float(np.dtype(dtype).type(x))
  if x == 0:
    return 0.0
  mantissa, exponent = math.frexp(x)
  return math.ldexp(round(mantissa * 256), exponent - 8)  # half to even, as `round` does


def top(row: list[float], m: int) -> list[int]:
  """Classes of the m largest logits, the lower number first among equals."""
  return sorted(range(len(row)), key=lambda c: (-row[c], c))[:m]


def rest_logit(row: list[float], kept: list[int]) -> float:
  """The logit r with (k - m) exp(r) = sum of exp over the classes that are not kept."""
  others = [x for c, x in enumerate(row) if c not in kept]
  most = max(others)
  return most + math.log(sum(math.exp(x - most) for x in others) / len(others))


def softmax(row) -> list[float]:
  most = max(row)
  e = [math.exp(x - most) for x in row]
  return [x / sum(e) for x in e]


def decoded(row, dtype: str, top_k: int | None) -> list[float]:
  """The row that students see, for a float dtype."""
  row = [float(x) for x in row]
  k = len(row)
  kept = top(row, min(top_k or k, k))
  values = {c: round_float(row[c], dtype) for c in kept}
  if len(kept) == k:
    return [values[c] for c in range(k)]
  other = round_float(rest_logit(row, kept), dtype)
  return [values.get(c, other) for c in range(k)]


def error_bound(row, encoding_dtype: str, scale: float = 0.0) -> list[float]:
  """The stated bound of each value's error, without what float32 arithmetic adds."""
  if encoding_dtype == "uint8":
    return [scale / 2 for _ in row]
  unit, least = {"float32": (0, 0), "float16": (2**-11, 2**-25), "bfloat16": (2**-8, 2**-134)}[
    encoding_dtype
  ]
  return [max(unit * abs(x), least) for x in row]


def scale_bound(values) -> float:
  """The largest scale of a row of uint8: 1/255 of the span, and what roundings add."""
  low = min(values)
  reach = max(values) - low + abs(low) * 2**-10 + 2**-14
  return max(reach / 255, 2**-14) * (1 + 2**-10)
