"""Encodings: error bounds, softmax mass, and the same answer from NumPy and JAX."""

import functools

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ltdd_jax.labels.encoding import DTYPES, LEAST_SCALE, Encoding
from tests.reference import encoding_ref as ref

B = 4  # rows; one shape a class count, so that little is compiled
few = settings(deadline=None, max_examples=25)


@functools.cache
def jitted(encoding, k):
  return jax.jit(encoding.encode), jax.jit(functools.partial(encoding.decode, k=k))


def round_trip(encoding, logits):
  encode, decode = jitted(encoding, logits.shape[-1])
  arrays = encode(logits)
  there = np.asarray(decode(arrays))
  plain = encoding.decode(jax.device_get(arrays), logits.shape[-1])
  np.testing.assert_allclose(there, plain, rtol=1e-6, atol=1e-6)  # a fused multiply and add
  assert there.dtype == plain.dtype == np.float32
  return arrays, there


@st.composite
def logits(draw, k=7):
  """Rows of many sizes: spread, nearly equal, far from zero; some have ties."""
  rng = np.random.RandomState(draw(st.integers(0, 2**32 - 1)))
  z = rng.randn(B, k) * draw(st.sampled_from([1e-5, 1.0, 10.0, 1000.0]))
  z += draw(st.sampled_from([0.0, -20.0, 300.0]))
  z = np.round(z) + 0.0 if draw(st.booleans()) else z  # + 0.0: top_k puts -0 below 0
  return z.astype(np.float32)


@few
@given(logits(), st.sampled_from(DTYPES))
def test_errors_stay_within_the_stated_bounds(z, dtype):
  arrays, got = round_trip(Encoding(dtype), z)
  scales = np.asarray(arrays["rows"], np.float64)[:, 0] if dtype == "uint8" else np.zeros(B)
  for row, new, scale in zip(z.astype(np.float64), got, scales, strict=True):
    slack = 1e-6 * np.abs(row).max() * (dtype == "uint8")  # offset + scale * q in float32
    bound = np.array(ref.error_bound(row, dtype, scale))
    assert (np.abs(new - row) <= bound + slack).all()
    if dtype == "uint8":
      assert scale <= ref.scale_bound(row)


def test_narrow_rows_have_a_least_error():
  """Values nearer to each other than the least normal float16 are one of few levels."""
  z = np.array([[0.0, 2.0**-15.1, 2.0**-14, 0.001], [0.0, 0.001, 0.002, 0.015]], np.float32)
  arrays, got = round_trip(Encoding("uint8"), z)
  np.testing.assert_array_equal(arrays["rows"][:, 0], LEAST_SCALE)
  assert np.abs(got - z).max(1)[0] > 0.9 * 2.0**-15 > 0.001 / 255
  assert np.abs(got - z).max() <= 2.0**-15


def test_a_least_value_just_below_zero_is_within_the_bound():
  """Between zero and the first normal float16 below it there is no offset."""
  z = np.array([[-6e-5, 3e-5], [-3.1e-5, 9e-6], [-1e-7, 2.0]], np.float32)
  arrays, got = round_trip(Encoding("uint8"), z)
  slack = 1e-6 * np.abs(z).max(1, keepdims=True)
  assert (np.abs(got - z) <= np.float32(arrays["rows"])[:, :1] / 2 + slack).all()


@few
@given(logits(), st.sampled_from(DTYPES[:3]), st.integers(1, 7))
def test_decoded_rows_are_those_of_the_oracle(z, dtype, top_k):
  _, got = round_trip(Encoding(dtype, top_k), z)
  want = np.array([ref.decoded(row, dtype, top_k) for row in z.astype(np.float64)])
  unit = {"float32": 2**-23, "float16": 2**-10, "bfloat16": 2**-7}[dtype]
  others = unit * np.abs(want)  # float32's sum of the rest may fall to the other side of a rounding
  kept = np.zeros_like(want, bool)
  for row, classes in enumerate(z):
    kept[row, ref.top(classes.tolist(), top_k)] = True
  np.testing.assert_array_less(np.abs(got - want), np.where(kept, 1e-30, others + 1e-6) + 1e-12)


@few
@given(logits(), st.integers(1, 6))
def test_the_rest_preserves_the_mass_of_the_top_classes(z, top_k):
  z = np.clip(z, z.max(-1, keepdims=True) - 60, None)  # else both masses are 0 or 1 by float32
  _, got = round_trip(Encoding("float32", top_k), z)
  for row, new in zip(z.tolist(), got.tolist(), strict=True):
    p, q, kept = ref.softmax(row), ref.softmax(new), ref.top(row, top_k)
    np.testing.assert_allclose([q[c] for c in kept], [p[c] for c in kept], rtol=2e-4, atol=1e-7)
    others = [q[c] for c in range(len(row)) if c not in kept]
    np.testing.assert_allclose(max(others), min(others), rtol=1e-6)


@few
@given(logits(), st.integers(1, 6))
def test_top_k_and_uint8_combine(z, top_k):
  arrays, got = round_trip(Encoding("uint8", top_k), z)
  scale = np.asarray(arrays["rows"], np.float64)[:, 0]
  for i, row in enumerate(z.astype(np.float64)):
    kept = ref.top(row.tolist(), top_k)
    slack = 1e-6 * np.abs(row).max()
    assert np.abs(got[i, kept] - row[kept]).max() <= scale[i] / 2 + slack
    assert scale[i] <= ref.scale_bound(row[kept])
    want = ref.rest_logit(row.tolist(), kept)
    other = [c for c in range(len(row)) if c not in kept]
    np.testing.assert_allclose(got[i, other], want, rtol=2**-10, atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
def test_relabelled_classes_relabel_the_answer(dtype):
  encoding, z = Encoding(dtype, 3), np.random.RandomState(0).randn(B, 7).astype(np.float32)
  order = np.array([3, 0, 6, 2, 5, 1, 4])
  np.testing.assert_allclose(
    round_trip(encoding, z[:, order])[1], round_trip(encoding, z)[1][:, order], atol=1e-6
  )
