"""DM: rows of real images, unequal classes, Siamese views, its errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import methods
from ltdd_jax import distil
from ltdd_jax.core.types import LtddError
from ltdd_jax.data import augment
from ltdd_jax.distil.dm import dm, draw_rows
from tests import small

NORMS = ("instance", "batch")


def make(norm="instance", **kwargs):
  network = {"name": "convnet", "depth": 1, "width": 4, "norm": norm}
  return dm(small.env(0), **{"network": network, "batch_real": 8, **kwargs})


def slots_of(*counts):
  return distil.make_slots(small.K, slots_per_class=[int(n) for n in counts])


def resources(counts=small.COUNTS):
  data = small.train_data(counts)
  return {"images": jnp.asarray(data.images), "labels": jnp.asarray(data.labels)}


def run(method, slots, res, steps=1, seed=0):
  state = jax.jit(method.init)(jax.random.key(100), slots_of(*slots), res)
  step, host = jax.jit(method.step), {"labels": np.asarray(res["labels"])}
  for t in range(steps):
    x = method.inputs(np.random.default_rng((seed, t)), t, host)
    state, metrics = step(jax.random.fold_in(jax.random.key(seed), t), state, res, x)
  return method.read(state), metrics["loss"]


def test_rows_are_drawn_without_replacement_in_each_class():
  labels = np.array([2, 0, 0, 2, 0, 4, 2, 2, 0, 2], np.int32)  # 4 of class 0, 5 of 2, 1 of 4
  seen = set()
  for seed in range(20):
    rows, weights = draw_rows(np.random.default_rng(seed), labels, 6, 4)
    assert rows.dtype == np.int32
    assert weights.dtype == np.float32
    np.testing.assert_array_equal(weights.sum(1), [4, 0, 4, 0, 1, 0])
    assert ((rows >= 0) & (rows < len(labels))).all()
    for c in range(6):
      mine = rows[c][weights[c] > 0]
      assert len(set(mine)) == len(mine)
      assert (labels[mine] == c).all()
    seen |= set(rows[2])
  assert seen == {0, 3, 6, 7, 9}
  rows, weights = draw_rows(np.random.default_rng(0), labels, 6, 5000)  # no more than 5 are there
  assert rows.shape == weights.shape == (6, 5)


def test_rows_depend_on_the_generator_alone():
  labels = small.train_data().labels
  draw = lambda seed: make().inputs(np.random.default_rng(seed), 7, {"labels": labels})[0]
  np.testing.assert_array_equal(draw(1), draw(1))
  assert not np.array_equal(draw(1), draw(2))


@pytest.mark.parametrize("norm", NORMS)
def test_images_equal_to_the_real_ones_are_at_distance_zero_under_any_view(norm):
  """Since all images of a class, real and distilled, share their view."""
  method, res, host = make(norm), resources(), {"labels": small.train_data().labels}
  state = method.init(jax.random.key(0), slots_of(*small.COUNTS), res)
  step = jax.jit(method.step)
  for seed in range(8):
    x = method.inputs(np.random.default_rng(seed), 0, host)
    assert step(jax.random.key(seed), state, res, x)[1]["loss"] < 1e-8


@pytest.mark.parametrize("norm", NORMS)
def test_places_without_a_real_image_change_nothing(norm):
  few = make(norm, batch_real=7)
  fill_up = lambda x: np.pad(x, ((0, 0), (0, 13)))
  many = few._replace(inputs=lambda *args: tuple(map(fill_up, few.inputs(*args))))
  (one, one_loss), (two, two_loss) = (run(m, (2, 1, 2), resources(), steps=2) for m in (few, many))
  np.testing.assert_allclose(one_loss, two_loss, rtol=1e-4)
  np.testing.assert_allclose(one.images, two.images, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("norm", NORMS)
def test_real_images_of_classes_without_slots_change_nothing(norm):
  res = resources((4, 3, 3))
  other = res | {"images": res["images"].at[4:7].set(0)}
  (one, _), (two, _) = (run(make(norm), (2, 0, 1), r, steps=2) for r in (res, other))
  np.testing.assert_array_equal(one.images, two.images)
  np.testing.assert_array_equal(one.labels, [0, 2, 0])


def test_a_class_with_neither_slots_nor_real_images():
  synth, loss = run(make("batch"), (2, 1, 0), resources((7, 3, 0)), steps=2)
  assert np.isfinite(synth.images).all()
  assert loss > 0


def test_starts_from_real_images_each_used_once():
  slots = slots_of(5, 2, 1)
  res = resources()
  start = np.asarray(make().init(jax.random.key(0), slots, res).images)
  real = np.asarray(augment.normalize(res["images"], small.SPEC.mean, small.SPEC.std))
  rows = [int(np.flatnonzero((real == image).all((1, 2, 3)))[0]) for image in start]
  np.testing.assert_array_equal(res["labels"][np.array(rows)], slots.labels)
  assert len(set(rows)) == 8


def test_starts_from_noise():
  slots = slots_of(20, 20, 20)
  start = make(init="noise").init(jax.random.key(0), slots, resources()).images
  np.testing.assert_allclose(start.std(), 1, atol=0.05)


def test_each_step_has_a_network_of_its_own():
  method, res = make(augment=None, lr=1e-9), resources()  # the images stay
  losses = [run(method, (2, 1, 1), res, seed=seed)[1] for seed in (0, 0, 1)]
  assert losses[0] == losses[1]
  assert abs(losses[0] - losses[2]) > 1e-4


def test_means_come_closer():
  method = make(init="noise", augment=None, lr=1.0)
  _, first = run(method, (2, 2, 2), resources())
  _, last = run(method, (2, 2, 2), resources(), steps=40)
  assert last < 0.2 * first


def test_published_settings():
  few, many = (methods.dm("cifar10", ipc).method for ipc in (50, 100))
  assert (few["lr"], many["lr"], few["num_steps"]) == (1.0, 10.0, 20_000)
  assert few["augment"] == "color_crop_cutout_flip_scale_rotate"
  assert methods.dm("mnist", 10).method["augment"] == "color_crop_cutout_scale_rotate"


@pytest.mark.parametrize(
  ("kwargs", "message"),
  [
    ({"batch_real": 0}, "'dm': batch_real is 0; expected 1 or more"),
    ({"num_steps": -5}, "'dm': num_steps is -5; expected 1 or more"),
    ({"lr": -1.0}, r"'dm': lr is -1.0; expected 0 or more"),
    ({"momentum": 1.0}, r"momentum is 1.0; expected a number in \[0, 1\)"),
    ({"init": "rded"}, "unknown 'init' of method 'dm': 'rded'. .*: imported, noise, real"),
    ({"augment": "color_cutmix"}, "operation 'cutmix' is not known"),
    ({"network": {"name": "convnett"}}, "unknown model 'convnett'"),
    ({"network": {"depth": 3}}, "unknown model ''"),
    ({"network": {"name": "convnet", "depth": 4}}, "at most depth=3"),
  ],
)
def test_invalid_arguments(kwargs, message):
  with pytest.raises(LtddError, match=message):
    make(**kwargs)
