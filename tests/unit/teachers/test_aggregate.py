import jax.numpy as jnp
import numpy as np
import pytest

from ltdd_jax.core.types import LtddError
from ltdd_jax.labels import label as label_lib
from ltdd_jax.teachers import aggregate as aggregate_lib
from tests import small

KNOWN = ("b", "a", "c")


def test_none_is_all_and_a_choice_keeps_its_order():
  choose = lambda chosen: aggregate_lib.members("config.distil.teachers", chosen, KNOWN)
  assert choose(None) == ("a", "b", "c")
  assert choose(["c", "a"]) == ("c", "a")
  assert choose(("b",)) == ("b",)


@pytest.mark.parametrize(
  ("chosen", "message"),
  [
    (("d",), r"distil\.teachers has 'd'; expected different keys .*\(a, b, c\), or None"),
    (("a", "a"), "'a' more than once"),
    ((), "is empty"),
  ],
)
def test_errors(chosen, message):
  with pytest.raises(LtddError, match=message):
    aggregate_lib.members("config.distil.teachers", chosen, KNOWN)


def norm_equalised_reference(logits):
  """G-VBSM's code: each teacher's matrix divided by its own norm, times the mean of the norms."""
  norms = [sum(v * v for v in np.ravel(z)) ** 0.5 for z in logits]
  scaled = sum(z / n for z, n in zip(logits, norms, strict=True) if n > 0)
  return scaled * (sum(norms) / len(norms)) / len(norms)


def test_norm_equalised_against_loops():
  logits = np.random.RandomState(0).randn(3, 4, 5) * np.array([1.0, 10.0, 0.1]).reshape(3, 1, 1)
  for silent in (False, True):
    logits[2] *= not silent
    actual = aggregate_lib.norm_equalised(jnp.asarray(logits, jnp.float32))
    np.testing.assert_allclose(actual, norm_equalised_reference(logits), rtol=1e-5, atol=1e-5)


def test_equal_norms_make_it_the_mean():
  logits = np.random.RandomState(2).randn(2, 3, 4)
  logits /= np.linalg.norm(logits, axis=(-2, -1), keepdims=True)
  logits = jnp.asarray(logits, jnp.float32)
  np.testing.assert_allclose(
    aggregate_lib.norm_equalised(logits), aggregate_lib.mean(logits), atol=1e-6
  )


def test_labels_are_made_with_the_aggregate():
  one, two = small.teacher(), small.teacher(1)
  networks, variables = (one.model, two.model), (one.variables, two.variables)
  x = np.random.RandomState(3).randn(2, 8, 8, 1).astype(np.float32)
  each = [m.apply(v, x, train=False) for m, v in zip(networks, variables, strict=True)]
  got = label_lib.teacher_logits(networks, variables, x, "norm_equalised")
  want = norm_equalised_reference(np.asarray(each, np.float64))
  np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-6)
