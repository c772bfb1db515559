"""Invariants of splits, samplers, sources and views, over inputs that hypothesis makes up."""

import functools

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ltdd_jax.data import arrays, augment, feed, longtail
from ltdd_jax.data import views as views_lib

SHORT = settings(max_examples=40, deadline=None)
VIEWS = settings(max_examples=25, deadline=None)  # each view is compiled once, for one shape
seeds = st.integers(0, 2**31 - 1)
factors = st.floats(1, 1000, allow_nan=False)


@SHORT
@given(n_max=st.integers(1, 5000), k=st.integers(2, 200), factor=factors)
def test_counts_fall_from_n_max_to_its_share(n_max, k, factor):
  counts = longtail.class_counts(n_max, k, factor)
  assert counts.shape == (k,)
  assert counts[0] == n_max
  assert (np.diff(counts) <= 0).all()
  assert n_max / factor - 1 - 1e-6 < counts[-1] <= n_max / factor + 1e-6


@SHORT
@given(
  per_class=st.integers(1, 40),
  k=st.integers(2, 12),
  factor=factors,
  rule=st.sampled_from(["ltdd", "ldam"]),
  seed=seeds,
)
def test_splits_take_distinct_images_of_the_right_class(per_class, k, factor, rule, seed):
  labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(k), per_class))
  split = longtail.make_split(labels, k, rule=rule, imbalance_factor=factor)
  assert len(set(split.indices.tolist())) == len(split.indices) == sum(split.counts)
  np.testing.assert_array_equal(split.labels, labels[split.indices])
  assert tuple(np.bincount(split.labels, minlength=k)) == split.counts
  again = longtail.make_split(labels, k, rule=rule, imbalance_factor=factor)
  assert again.sha256 == split.sha256


@SHORT
@given(counts=st.lists(st.integers(0, 500), min_size=1, max_size=60))
@pytest.mark.parametrize("rule", ["thirds", "counts(100,20)"])
def test_groups_part_the_classes_by_size(rule, counts):
  groups = longtail.groups(counts, rule)
  assert sorted(sum(groups.values(), ())) == list(range(len(counts)))
  sizes = [[counts[c] for c in groups[name]] for name in ("head", "mid", "tail")]
  for larger, smaller in ((sizes[0], sizes[1]), (sizes[1], sizes[2])):
    assert not larger or not smaller or min(larger) >= max(smaller)


@SHORT
@given(counts=st.lists(st.integers(1, 5000), min_size=2, max_size=50))
def test_prior_is_a_distribution(counts):
  assert np.exp(longtail.log_prior(counts)).sum() == pytest.approx(1, abs=1e-5)


@SHORT
@given(n=st.integers(1, 50), b=st.integers(1, 60), seed=seeds, epochs=st.integers(1, 4))
def test_each_index_once_an_epoch(n, b, seed, epochs):
  sampler = feed.BatchSampler(seed, "property", n, b)
  steps = range(feed.num_steps(n, b, num_epochs=epochs))
  stream = np.concatenate([sampler(step) for step in steps])
  epoch = np.concatenate([sampler.epoch(step) for step in steps])
  for e in range(epochs):
    assert sorted(stream[epoch == e]) == list(range(n))


@SHORT
@given(n=st.integers(1, 50), b=st.integers(1, 60), step=st.integers(0, 10_000), seed=seeds)
def test_a_sampler_has_no_history(n, b, step, seed):
  used = feed.BatchSampler(seed, "property", n, b)
  for other in (step + 1, 0, step):
    used(other)
  np.testing.assert_array_equal(used(step), feed.BatchSampler(seed, "property", n, b)(step))


@SHORT
@given(n=st.integers(1, 30), c=st.sampled_from([1, 3]), seed=seeds)
def test_measured_constants_are_those_of_the_pixels(n, c, seed):
  rng = np.random.default_rng(seed)
  x = rng.integers(0, 256, (n, 3, 2, c), np.uint8)
  given_arrays = {"x_train": x, "y_train": np.zeros(n, int), "x_test": x, "y_test": np.ones(n, int)}
  spec = arrays.open_arrays("arrays", given_arrays).spec
  np.testing.assert_allclose(spec.mean, (x / 255).mean((0, 1, 2)), atol=1e-6)
  expected = np.maximum((x / 255).std((0, 1, 2)), 1 / 255)
  np.testing.assert_allclose(spec.std, expected, atol=2e-6)


SHAPE = (5, 6, 8, 3)


def _pixels(seed):
  return np.random.default_rng(seed).uniform(0, 1, SHAPE).astype(np.float32)


_PLAIN = {
  "random_crop": {"padding": 2},
  "random_flip": {},
  "random_resized_crop": {"scale": (0.1, 1.0)},
  "random_roll": {"low": -3, "high": 3},
}


@functools.cache
def _view(name, shared):
  return jax.jit(functools.partial(augment.AUGMENTS[name], **_PLAIN[name], shared=shared))


@VIEWS
@given(seed=seeds)
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("name", _PLAIN)
def test_views_keep_shape_type_and_range(name, shared, seed):
  images = _pixels(seed)
  views = np.asarray(_view(name, shared)(jax.random.key(seed), images))
  assert views.shape == SHAPE
  assert views.dtype == np.float32
  low = 0 if name == "random_crop" else images.min()
  assert low - 1e-6 <= views.min()
  assert views.max() <= images.max() + 1e-6


@functools.cache
def _mix(name):
  mix = jax.vmap(views_lib.MIXES[name], (0, 0, 0, None))
  return jax.jit(lambda key, x: mix(jax.random.split(key, len(x)), x, x[::-1], 0.8))


@VIEWS
@given(seed=seeds)
@pytest.mark.parametrize("name", views_lib.MIXES)
def test_mixing_weights_are_shares(name, seed):
  images = _pixels(seed)
  views, weight = _mix(name)(jax.random.key(seed), images)
  assert views.shape == SHAPE
  assert views.dtype == weight.dtype == np.float32
  assert ((weight >= 0) & (weight <= 1)).all()
  assert images.min() - 1e-6 <= views.min()
  assert views.max() <= images.max() + 1e-6


@VIEWS
@given(seed=seeds)
@pytest.mark.parametrize("shared", [False, True])
def test_a_double_flip_is_none(seed, shared):
  images, flip = _pixels(seed), _view("random_flip", shared)
  key = jax.random.key(seed)
  np.testing.assert_array_equal(flip(jax.random.clone(key), flip(key, images)), images)


@VIEWS
@given(seed=seeds)
def test_constant_images_stay_constant_under_a_resized_crop(seed):
  images = np.broadcast_to(_pixels(seed)[:, :1, :1], SHAPE)
  views = _view("random_resized_crop", False)(jax.random.key(seed), images)
  np.testing.assert_allclose(views, images, atol=1e-6)


_normalize = jax.jit(augment.normalize, static_argnums=(1, 2))
_denormalize = jax.jit(augment.denormalize, static_argnums=(1, 2))
constants = st.tuples(*[st.integers(10, 90)] * 3), st.tuples(*[st.integers(5, 50)] * 3)


@settings(max_examples=15, deadline=None)
@given(seed=seeds, mean=constants[0], std=constants[1])
def test_pixels_survive_normalisation(seed, mean, std):
  pixels = np.random.default_rng(seed).integers(0, 256, (2, 4, 4, 3), np.uint8)
  mean, std = tuple(m / 100 for m in mean), tuple(s / 100 for s in std)
  back = _denormalize(_normalize(pixels, mean, std), mean, std)
  np.testing.assert_array_equal(back, pixels)
