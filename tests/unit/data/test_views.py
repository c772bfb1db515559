"""Views are functions of (key, epoch, image), and no two of their draws share a key."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ltdd_jax.core.types import LtddError
from ltdd_jax.data import augment, crops, dsa, rand_augment
from ltdd_jax.data import views as views_lib
from tests import small
from tests.reference import dsa_ref

IMAGES, LABELS = small.images(5), np.array([0, 1, 2, 0, 1], np.int32)


def make(**kwargs):
  return jax.jit(views_lib.view_fn(small.SPEC, **kwargs))


DSA = {"crop_scale": None, "flip": False, "dsa": dsa.STRATEGY}


@pytest.mark.parametrize("mix", ["cutmix", "mixup", None])
def test_view_does_not_depend_on_its_batch(mix, key):
  views = make(mix=mix)
  all_views = views(key, IMAGES, LABELS, jnp.arange(5), jnp.full(5, 2))
  one = views(key, IMAGES, LABELS, jnp.array([3, 1]), jnp.array([2, 0]))
  np.testing.assert_array_equal(one.images[0], all_views.images[3])
  assert one.partner_labels[0] == all_views.partner_labels[3]
  assert one.weight[0] == all_views.weight[3]
  again = views(key, IMAGES, LABELS, jnp.array([3]), jnp.array([1]))
  assert not np.array_equal(again.images[0], one.images[0])


def test_nothing_asked_for_gives_the_images(key):
  views = make(crop_scale=None, flip=False, mix=None)
  got = views(key, IMAGES, LABELS, jnp.arange(5), jnp.zeros(5, int))
  want = augment.normalize(IMAGES, small.SPEC.mean, small.SPEC.std)
  np.testing.assert_allclose(got.images, want, atol=1e-6)
  np.testing.assert_array_equal(got.weight, np.ones(5))
  np.testing.assert_array_equal(got.labels, LABELS)


def test_mosaics_are_shuffled_strip_by_strip(key):
  views = make(crop_scale=None, flip=False, mix=None, shuffle_patches=2)
  strips = np.repeat(np.repeat(np.arange(4).reshape(2, 2), 4, 0), 4, 1)[None, ..., None]
  shown = np.repeat(50 * strips.astype(np.uint8), 40, 0)
  got = views(key, shown, np.zeros(40, np.int32), jnp.arange(40), jnp.zeros(40, int)).images
  quarter = np.asarray(got[:, ::4, ::4, 0] * 0.3 + 0.4) * 255 / 50
  found = {tuple(np.rint(q).astype(int).ravel()) for q in quarter}
  assert found == {(0, 1, 2, 3), (1, 0, 3, 2), (2, 3, 0, 1), (3, 2, 1, 0)}
  with pytest.raises(LtddError, match="shuffle_patches is 3; expected a number that divides"):
    jax.eval_shape(make(shuffle_patches=3), key, IMAGES, LABELS, jnp.arange(5), jnp.arange(5))


def test_parts_take_turns_enlarged(key):
  """Of image i in label epoch e part (e + i) mod 4, and of a partner its own part."""
  shown = np.repeat(np.repeat(np.arange(4).reshape(2, 2), 4, 0), 4, 1)[None, ..., None]
  images = (
    np.repeat(60 * shown, 5, 0).astype(np.uint8) + np.arange(5, dtype=np.uint8)[:, None, None, None]
  )
  level = lambda x: np.asarray((x * 0.3 + 0.4) * 255)
  rows, epochs = jnp.array([0, 1, 2, 3, 4, 2]), jnp.array([0, 0, 1, 2, 7, 3])
  views = make(crop_scale=None, flip=False, mix=None, parts=2)
  got = level(views(key, images, LABELS, rows, epochs).images)
  want = 60 * ((np.asarray(rows) + np.asarray(epochs)) % 4) + np.asarray(rows)
  np.testing.assert_allclose(got, np.broadcast_to(want[:, None, None, None], got.shape), atol=1e-3)
  mixed = make(crop_scale=None, flip=False, parts=2)(key, images, LABELS, rows, epochs)
  partner = np.asarray(mixed.partners)
  other = 60 * ((partner + np.asarray(epochs)) % 4) + partner
  for i, seen in enumerate(np.rint(level(mixed.images)).astype(int)):
    assert set(seen.ravel()) <= {want[i], other[i]}
    assert want[i] == other[i] or abs(mixed.weight[i] - (seen == want[i]).mean()) < 1e-6


def test_rand_augment_comes_before_the_crop(key):
  views = make(crop_scale=None, flip=False, mix=None, rand_augment=True)
  got = views(key, IMAGES, LABELS, jnp.arange(5), jnp.zeros(5, int)).images
  levels = np.asarray((got * 0.3 + 0.4) * 255)
  np.testing.assert_allclose(levels, np.rint(levels), atol=1e-3)
  assert -1e-3 <= levels.min() < levels.max() <= 255 + 1e-3
  floats = IMAGES.astype(np.float32) / 255  # a set that is stored as floats has the same views
  again = views(key, floats, LABELS, jnp.arange(5), jnp.zeros(5, int)).images
  np.testing.assert_allclose(got, again, atol=1e-5)
  assert (np.abs(levels - IMAGES).max((1, 2, 3)) > 0.5).sum() >= 2


def test_cutmix_takes_every_pixel_from_one_of_two_images(key):
  views = make(crop_scale=None, flip=False, mix="cutmix")
  got = views(key, IMAGES, LABELS, jnp.arange(5), jnp.zeros(5, int))
  sources = augment.normalize(IMAGES, small.SPEC.mean, small.SPEC.std)
  own = np.isclose(got.images, sources, atol=1e-6)
  for i in range(5):
    share = float(got.weight[i])
    assert own[i].mean() >= share - 1e-6
    partners = [j for j in range(5) if LABELS[j] == int(got.partner_labels[i])]
    assert any((own[i] | np.isclose(got.images[i], sources[j], atol=1e-6)).all() for j in partners)


def test_dsa_has_one_operation_an_epoch_and_strengths_for_each_view(key):
  """Of white images: all of one colour by "color", and with a black square by "cutout"."""
  white, epochs = np.full_like(IMAGES, 255), jnp.arange(12)
  views = make(**DSA | {"dsa": "color_cutout", "mix": None})
  seen = set()
  for epoch in epochs:
    got = np.asarray(views(key, white, LABELS, jnp.arange(5), jnp.full(5, epoch)).images)
    flat = np.ptp(got, axis=(1, 2, 3)) < 1e-5
    assert flat.all() or not flat.any()
    seen.add(bool(flat[0]))
    assert len(np.unique(got, axis=0)) > 1
    assert flat[0] or ((got == 0) | np.isclose(got, 2)).all()  # (1 - 0.4) / 0.3
  assert seen == {True, False}


@pytest.mark.parametrize("combined", [False, True])
def test_dsa_acts_on_normalised_images_before_the_mix(combined, key):
  """Against NumPy, with the numbers that the view's keys draw."""
  rows, epochs, strategy = jnp.array([3, 0, 4]), jnp.array([5, 1, 2]), "crop_rotate_flip"
  views = make(**DSA | {"dsa": strategy, "dsa_combined": combined, "mix": None})
  got = views(key, IMAGES, LABELS, rows, epochs).images
  fold = lambda *numbers: functools.reduce(jax.random.fold_in, numbers, key)
  draw = dsa.draw_combined if combined else dsa.draw
  for view, i, e in zip(got, np.asarray(rows), np.asarray(epochs), strict=True):
    op, _ = draw(fold(views_lib._EPOCH, e), strategy, 1)
    _, (u,) = draw(fold(views_lib.IMAGE, e * 5 + i, views_lib._DSA), strategy, 1)
    want = (IMAGES[i] / 255 - 0.4) / 0.3
    if combined:
      want, u = dsa_ref.apply("flip", want, u[0]), u[2]
    np.testing.assert_allclose(view, dsa_ref.apply(dsa.OPS[op], want, u), atol=2e-5)
  if not combined:
    return
  mixed = make(**DSA | {"dsa": strategy, "dsa_combined": combined})
  seen = mixed(key, IMAGES, LABELS, rows, epochs)
  parts = [views(key, IMAGES, LABELS, x, epochs).images for x in (rows, seen.partners)]
  assert np.all((seen.images == parts[0]) | (seen.images == parts[1]))
  assert not np.array_equal(seen.images, parts[0])


def test_some_views_are_not_mixed(key):
  rows, epochs = jnp.tile(jnp.arange(5), 40), jnp.repeat(jnp.arange(40), 5)
  often, always = (
    make(crop_scale=None, flip=False, mix_prob=prob)(key, IMAGES, LABELS, rows, epochs)
    for prob in (0.5, 1.0)
  )
  own = augment.normalize(IMAGES, small.SPEC.mean, small.SPEC.std)[rows]
  as_it_is = np.isclose(often.images, own).all((1, 2, 3)) & (often.weight == 1)
  mixed = np.isclose(often.images, always.images, atol=1e-6).all((1, 2, 3))
  mixed &= np.asarray(often.weight == always.weight)
  assert (as_it_is | mixed).all()
  plain = np.asarray(often.weight) == 1
  assert 0.4 < (plain & ~(np.asarray(always.weight) == 1)).mean() < 0.6
  np.testing.assert_array_equal(often.partners[plain & ~mixed], rows[plain & ~mixed])
  np.testing.assert_array_equal(often.partner_labels, LABELS[np.asarray(often.partners)])


def test_padded_crop_shifts_the_image_over_black(key):
  views = make(crop_scale=None, padding=2, flip=False, mix=None)
  got = views(key, IMAGES, LABELS, jnp.arange(5), jnp.zeros(5, int)).images
  padded = augment.normalize_pixels(
    jnp.pad(IMAGES / np.float32(255), ((0, 0), (2, 2), (2, 2), (0, 0))), (0.4,), (0.3,)
  )
  for i in range(5):
    windows = (padded[i, y : y + 8, x : x + 8] for y in range(5) for x in range(5))
    assert any(np.allclose(got[i], w, atol=1e-5) for w in windows)


def test_unknown_mix_is_refused():
  with pytest.raises(LtddError, match="mix is 'blend'"):
    views_lib.view_fn(small.SPEC, mix="blend")


@pytest.mark.parametrize(
  ("key", "value", "expected"),
  [
    ("mix_alpha", -1, "a number > 0"),
    ("mix_alpha", 0, "a number > 0"),
    ("mix_alpha", float("nan"), "a number > 0"),
    ("mix_prob", 0, "a number > 0 and <= 1"),
    ("mix_prob", 1.5, "a number > 0 and <= 1"),
    ("crop_scale", 0.5, "a pair of numbers with 0 < low <= high <= 1"),
    ("crop_scale", (2, 3), "a pair of numbers with 0 < low <= high <= 1"),
    ("crop_scale", (0.5, 0.2), "a pair of numbers with 0 < low <= high <= 1"),
    ("crop_scale", (0.0, 1.0), "a pair of numbers with 0 < low <= high <= 1"),
    ("crop_scale", (0.1, 0.5, 1.0), "a pair of numbers with 0 < low <= high <= 1"),
    ("crop_scale", ("a", "b"), "a pair of numbers with 0 < low <= high <= 1"),
    ("padding", -1, "a whole number >= 0"),
    ("padding", 1.5, "a whole number >= 0"),
    ("shuffle_patches", 0, "a whole number >= 1"),
  ],
)
def test_numbers_that_make_no_view_are_refused(key, value, expected):
  with pytest.raises(LtddError) as error:
    views_lib.view_fn(small.SPEC, **{key: value})
  assert f"config.label.views.{key} is {value!r}; expected {expected}" in str(error.value)


@pytest.mark.parametrize(
  ("kwargs", "message"),
  [
    ({"dsa": "crop_colour"}, "operation 'colour' is not known"),
    ({"dsa_combined": True}, "dsa_combined is True and config.label.views.dsa is None; expected"),
  ],
)
def test_bad_dsa_is_refused(kwargs, message):
  with pytest.raises(LtddError, match=message):
    views_lib.view_fn(small.SPEC, **kwargs)


# ---- keys ----


def uses(jaxpr, keys=None):
  """Yields (key, primitive, number) of each use of a random key, through inner functions."""
  keys = dict(keys or {})
  name = lambda v: keys.setdefault(v, object())
  for eqn in jaxpr.eqns:
    inner = [x for x in eqn.params.values() if hasattr(x, "jaxpr")]
    key_vars = [v for v in eqn.invars if jax.dtypes.issubdtype(v.aval.dtype, jax.dtypes.prng_key)]
    if eqn.primitive.name.startswith("random_"):
      number = eqn.invars[1] if eqn.primitive.name == "random_fold_in" else None
      for v in key_vars:
        yield name(v), eqn.primitive.name, getattr(number, "val", number)
    elif inner:
      for closed in inner:
        outer = eqn.invars[-len(closed.jaxpr.invars) :]
        known = zip(closed.jaxpr.invars, outer, strict=True)
        yield from uses(closed.jaxpr, {a: name(b) for a, b in known if b in key_vars})
    elif key_vars and eqn.primitive.name in ("broadcast_in_dim", "reshape", "copy"):
      keys[eqn.outvars[0]] = name(key_vars[0])


def shared_keys(fn, *args):
  """Keys that have two uses, but for folds with different numbers."""
  found = list(uses(jax.make_jaxpr(fn)(*args).jaxpr))
  assert found
  for one, two in itertools.combinations(found, 2):
    folds = one[1] == two[1] == "random_fold_in"
    if one[0] is two[0] and not (folds and str(one[2]) != str(two[2])):
      yield one, two


BATCH = jnp.asarray(IMAGES, jnp.float32)
DRAWS = {
  "crop": lambda k: crops.random_resized_crop(k, BATCH),
  "cutmix": lambda k: views_lib.cutmix(k, BATCH[0], BATCH[1], 1.0),
  "mixup": lambda k: views_lib.mixup(k, BATCH[0], BATCH[1], 0.8),
  "shuffle": lambda k: crops.shuffle_patches(k, BATCH[0], factor=2),
  "dsa": lambda k: dsa.dsa(k, BATCH),
  "rand_augment": lambda k: rand_augment.rand_augment(k, IMAGES[0]),
  "compose": augment.compose([{"name": "random_resized_crop"}, {"name": "random_flip"}]),
}


@pytest.mark.parametrize("name", DRAWS)
def test_no_key_serves_two_draws_of_an_augmentation(name, key):
  args = (BATCH,) if name == "compose" else ()
  assert not list(shared_keys(DRAWS[name], key, *args))


@pytest.mark.parametrize(("mix", "combined"), [("cutmix", True), ("mixup", False)])
def test_no_key_serves_two_draws_of_a_view(mix, combined, key):
  """A key that is folded is not split: `fold_in(key, 0)` would be `split(key)[0]`."""
  kwargs = {"padding": 1, "rand_augment": True, "shuffle_patches": 2, "mix_prob": 0.5}
  kwargs |= {"dsa": dsa.STRATEGY, "dsa_combined": combined}
  views_of = views_lib.view_fn(small.SPEC, mix=mix, **kwargs)
  rows = jnp.arange(5)
  assert not list(shared_keys(views_of, key, BATCH, jnp.asarray(LABELS), rows, rows))


def test_a_shared_key_is_seen(key):
  both = lambda k: (jax.random.split(k), jax.random.fold_in(k, 0))
  assert list(shared_keys(both, key))
  twice = lambda k: (jax.random.fold_in(k, 1), jax.random.fold_in(k, 1))
  assert list(shared_keys(twice, key))
  assert not list(shared_keys(lambda k: (jax.random.fold_in(k, 0), jax.random.fold_in(k, 1)), key))
