"""Save -> load -> equal, and fingerprints that see values and nothing else."""

import json
import pathlib
import random
import tempfile

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ltdd_jax.artefacts import checkpoint
from ltdd_jax.artefacts import workdir as workdir_lib
from ltdd_jax.core import config
from ltdd_jax.core.files import TEMPORARY

KINDS = [
  np.dtype(d)
  for d in ("bool", "uint8", "int8", "int16", "int32", "int64", "float16", "float32", "float64",
            ">f4", "<U3", "complex64", ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn)
]  # fmt: skip
shapes = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)


@st.composite
def arrays(draw, kinds=tuple(KINDS), shape=shapes):
  """Arrays of any kind and shape, with any bits, in C or Fortran order."""
  dtype, shape = draw(st.sampled_from(kinds)), draw(shape)
  size = int(np.prod(shape)) * dtype.itemsize
  seed = np.random.RandomState(draw(st.integers(0, 2**32 - 1)))
  if dtype.kind == "U":
    array = seed.randint(0, 1000, shape).astype(dtype)
  elif dtype.kind == "b":
    array = seed.randint(0, 2, shape).astype(bool)
  else:
    array = np.frombuffer(seed.bytes(size), dtype).reshape(shape)
  return np.asfortranarray(array) if draw(st.booleans()) and array.ndim else array


def assert_same(a, b):
  assert a.dtype == b.dtype
  assert a.shape == b.shape
  assert a.tobytes() == b.tobytes()  # bits, so that NaN counts as equal to itself


names = st.from_regex(r"[a-z][a-z0-9_]{0,8}", fullmatch=True)


@settings(deadline=None, max_examples=40)
@given(st.dictionaries(names, arrays(), max_size=3))
def test_arrays_come_back_bit_for_bit(content):
  with tempfile.TemporaryDirectory() as folder, workdir_lib.Workdir(folder) as work:
    work.commit("a/b", config={}, inputs={}, arrays=content)
    again = workdir_lib.Workdir(folder).load("a/b")
    assert sorted(again.arrays) == sorted(content)
    for name, array in content.items():
      assert_same(again.arrays[name], array)
      assert again.meta["arrays"][name]["shape"] == list(array.shape)
    assert not list(pathlib.Path(folder).rglob(f"{TEMPORARY}*"))


LEAF_KINDS = tuple(
  np.dtype(d) for d in ("bool", "uint8", "int32", "float16", "float32", ml_dtypes.bfloat16)
)
small = hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3)
trees = st.recursive(
  st.one_of(arrays(kinds=LEAF_KINDS, shape=small), st.none()),
  lambda inner: st.one_of(
    st.dictionaries(names, inner, max_size=3), st.tuples(inner, inner), st.lists(inner, max_size=2)
  ),
  max_leaves=5,
)


@settings(deadline=None, max_examples=15)
@given(trees, st.booleans())
def test_states_come_back_bit_for_bit(tree, on_device):
  state = jax.tree.map(jnp.asarray, tree) if on_device else tree
  with tempfile.TemporaryDirectory() as folder:
    progress = checkpoint.Progress(folder)
    progress.save(5, state)
    step, back = progress.restore(jax.tree.map(lambda x: x, state))
    progress.close()
  assert step == 5
  assert jax.tree.structure(back) == jax.tree.structure(state)
  for old, new in zip(jax.tree.leaves(state), jax.tree.leaves(back), strict=True):
    assert type(old) is type(new)
    assert_same(np.asarray(new), np.asarray(old))


# ---- fingerprints ----

scalars = st.one_of(
  st.none(),
  st.booleans(),
  st.integers(-(2**70), 2**70),
  st.floats(allow_nan=False, allow_infinity=False),
  st.text(max_size=5),
)
keys = st.text("abcxyz_", min_size=1, max_size=3)
configs = st.dictionaries(
  keys,
  st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(keys, inner, max_size=3)),
    max_leaves=8,
  ),
  max_size=4,
)


def fingerprint(value):
  return workdir_lib.fingerprint(value, {})


def dressed(value, seed):
  """The same value with other keys first, tuples for lists, NumPy scalars for numbers."""
  rng = random.Random(seed)
  if isinstance(value, dict):
    items = [(k, dressed(v, seed + 1)) for k, v in value.items()]
    rng.shuffle(items)
    return dict(items)
  if isinstance(value, list):
    return tuple(dressed(v, seed + 1) for v in value)
  if isinstance(value, bool):
    return np.bool_(value)
  if isinstance(value, float):
    return np.float64(value)
  if isinstance(value, int) and abs(value) < 2**63:
    return np.int64(value)
  return value


@given(configs, st.integers(0, 100))
def test_fingerprints_see_values_only(value, seed):
  assert fingerprint(dressed(value, seed)) == fingerprint(value)


@given(configs)
def test_fingerprints_survive_json(value):
  assert fingerprint(json.loads(json.dumps(value))) == fingerprint(value)


def places(value, path=()):
  """All paths to values, containers among them."""
  yield path
  if isinstance(value, dict | list):
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in items:
      yield from places(inner, (*path, key))


def replaced(value, path, new):
  if not path:
    return new
  out = dict(value) if isinstance(value, dict) else list(value)
  out[path[0]] = replaced(value[path[0]], path[1:], new)
  return out


@given(configs.filter(len), scalars, st.data())
def test_fingerprints_see_every_value(value, new, data):
  path = data.draw(st.sampled_from([p for p in places(value) if p]))
  changed = replaced(value, path, new)
  same = json.dumps(changed, sort_keys=True) == json.dumps(value, sort_keys=True)
  assert (fingerprint(changed) == fingerprint(value)) is same


@given(configs, configs)
def test_a_difference_is_shown_exactly_if_fingerprints_differ(old, new):
  assert (config.diff(old, new) == {}) is (fingerprint(old) == fingerprint(new))
  assert config.diff(old, old) == {}
  assert {k: (b, a) for k, (a, b) in config.diff(old, new).items()} == config.diff(new, old)
