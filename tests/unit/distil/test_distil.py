"""Slots, the SRe2L objective, random selection and the distil stage."""

import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from configs import digits_lt
from ltdd_jax import distil
from ltdd_jax.artefacts import checkpoint
from ltdd_jax.core.types import Distilled, LtddError
from ltdd_jax.data import augment, images
from ltdd_jax.distil import objectives
from ltdd_jax.distil.run import run_method
from ltdd_jax.models.taps import Moment
from ltdd_jax.pipeline import check
from ltdd_jax.pipeline.context import Context
from ltdd_jax.training import loop
from tests import small


def test_interleaved_slots_hold_one_of_each_class_in_turn():
  slots = small.slots(2, 0, 3)
  assert slots.labels.tolist() == [0, 2, 0, 2, 2]
  assert slots.rank.tolist() == [0, 0, 1, 1, 2]


def test_class_major_slots():
  slots = small.slots(2, 0, 3, order="class_major")
  assert slots.labels.tolist() == [0, 0, 2, 2, 2]
  assert slots.rank.tolist() == [0, 1, 0, 1, 2]


@pytest.mark.parametrize("counts", [[0, 0], [-1, 2], [[1]]])
def test_bad_budgets_are_refused(counts):
  with pytest.raises(LtddError, match="slots_per_class"):
    small.slots(*counts)


def test_unknown_order_is_refused():
  with pytest.raises(LtddError, match="order is 'sideways'"):
    small.slots(1, order="sideways")


def test_unknown_method_says_what_was_meant():
  with pytest.raises(LtddError, match=r"sre21.*Did you mean 'sre2l'"):
    distil.make_method(small.env(), "sre21")
  with pytest.raises(LtddError, match=r"r_bm.*Did you mean 'r_bn'"):
    distil.make_method(small.env(), "sre2l", r_bm=1.0)


def test_bn_statistics_by_hand():
  moments = [
    Moment("stem", jnp.array([1.0, 2.0]), jnp.array([1.0, 1.0]), jnp.zeros(2), jnp.ones(2)),
    Moment("next", jnp.array([0.0]), jnp.array([4.0]), jnp.zeros(1), jnp.ones(1)),
  ]
  expected = 10 * np.sqrt(5) + 3
  np.testing.assert_allclose(objectives.bn_statistics(moments, 10.0), expected, rtol=1e-6)


def test_norm_has_no_gradient_at_zero():
  np.testing.assert_array_equal(jax.grad(objectives.safe_norm)(jnp.zeros(3)), np.zeros(3))


def test_sre2l_lowers_its_objective(key):
  method = distil.make_method(small.env(), "sre2l", num_steps=40, lr=0.1)
  slots, res = small.slots(2, 2, 2), small.resources()
  state, step = method.init(key, slots, res), jax.jit(method.step)
  losses = []
  for t in range(method.num_steps):
    state, metrics = step(jax.random.fold_in(key, t), state, res, None)
    losses.append(float(metrics["loss"]))
  assert np.mean(losses[-5:]) < np.mean(losses[:5])


def test_sre2l_refuses_a_teacher_without_batch_norm(key):
  from ltdd_jax import models

  net = models.make_model(num_classes=3, image_shape=(8, 8, 1), norm="instance", **small.NET)
  env = small.env()._replace(teachers=(distil.Network("plain", net),))
  method = distil.make_method(env, "sre2l", num_steps=1)
  res = {"teachers": (models.init_variables(net, key, (8, 8, 1)),)}
  state = method.init(key, small.slots(1, 1, 1), res)
  with pytest.raises(LtddError, match="'plain' has no batch norm"):
    jax.eval_shape(method.step, key, state, res, None)


def test_random_takes_each_image_once_before_any_twice(key):
  method = distil.make_method(small.env(), "random")
  res = small.resources()
  synth = method.init(key, small.slots(7, 3, 2), res)
  pixels = np.asarray(augment.denormalize(synth.images, small.SPEC.mean, small.SPEC.std))
  for c, distinct in ((0, 7), (1, 3), (2, 1)):
    mine = pixels[np.asarray(synth.labels) == c]
    real = res["images"][res["labels"] == c]
    assert len(np.unique(mine, axis=0)) == distinct
    assert {x.tobytes() for x in mine} <= {x.tobytes() for x in real}


def test_distilling_in_batches_fills_all_slots():
  method = distil.make_method(small.env(), "sre2l", num_steps=2)
  slots = small.slots(3, 2, 2)
  result = run_method(
    "a", method, small.env(), slots, small.resources(), batch_size=3,
    session=loop.Session(show_progress=False),
  )  # fmt: skip
  assert result.images.shape == (7, 8, 8, 1)
  assert result.images.dtype == np.uint8
  np.testing.assert_array_equal(result.labels, slots.labels)
  assert len(np.unique(result.images.reshape(7, -1), axis=0)) == 7


def test_images_come_back_from_jpeg():
  method = distil.make_method(small.env(), "random")
  slots = small.slots(3, 2, 1)
  fill = lambda quality: run_method(
    "a", method, small.env(), slots, small.resources(), jpeg_quality=quality,
    session=loop.Session(show_progress=False),
  ).images  # fmt: skip
  exact, stored = fill(None), fill(75)
  for image, there in zip(exact, stored, strict=True):
    file = io.BytesIO()
    Image.fromarray(image[..., 0]).save(file, "JPEG")  # 75 is Pillow's default
    np.testing.assert_array_equal(there[..., 0], Image.open(file))
  assert (exact != stored).any()
  assert np.abs(np.int32(exact) - stored).mean() < 16  # noise of one byte a pixel


def test_jpeg_of_colours():
  draws = np.random.RandomState(0).randint(0, 256, (2, 4, 4, 3)).repeat(8, 1).repeat(8, 2)
  colours = draws.astype(np.uint8)
  for image, there in zip(colours, images.through_jpeg(colours, 75), strict=True):
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG")  # 4:2:0 chroma is Pillow's default
    np.testing.assert_array_equal(there, Image.open(file))
    assert np.abs(np.int32(image) - there).mean() < 16  # channels are where they were


def test_quality_of_jpeg_is_a_number_that_pillow_knows():
  config = digits_lt.get_config("preset=smoke")
  config.distil.jpeg_quality = 0
  with pytest.raises(LtddError, match=r"jpeg_quality is 0; expected 1 to 95, or None"):
    check.check_with_data(Context(check.check(config)))


def counting(turns=3, num_steps=2):
  """A method whose images count its steps, in the digits of their turns, over all batches."""

  def init(key, slots, res):
    images = jnp.zeros((len(slots.labels), 8, 8, 1))
    return {"images": images, "labels": jnp.asarray(slots.labels), "seen": jnp.zeros(())}

  def step(key, state, res, x, *, turn=0):
    seen = 10 * state["seen"] + turn
    images = jnp.broadcast_to((seen / 255 - 0.4) / 0.3, state["images"].shape)
    return state | {"images": images, "seen": seen}, {"loss": seen}

  return distil.Method(
    init, step, lambda s: Distilled(s["images"], s["labels"]), needs=(), num_steps=num_steps,
    turns=turns, carry=lambda fresh, last: fresh | {"seen": last["seen"] % 10},
  )  # fmt: skip


def test_turns_and_what_is_carried_go_on_over_batches_of_images():
  slots = small.slots(2, 2, 2)
  result = run_method(
    "a", counting(), small.env(), slots, {}, batch_size=2,
    session=loop.Session(show_progress=False),
  )  # fmt: skip
  assert result.images[::2, 0, 0, 0].tolist() == [1, 120, 12]  # turns 0 1, 2 0, 1 2


def test_a_batch_that_was_stopped_goes_on_with_what_was_carried(tmp_path, monkeypatch):
  session = loop.Session(show_progress=False, scratch=tmp_path, checkpoint_seconds=0.0)
  slots = small.slots(2, 2, 0)
  fill = lambda: run_method("a", counting(), small.env(), slots, {}, batch_size=2, session=session)
  calls = iter([False, False, True])
  monkeypatch.setattr(checkpoint, "stop_requested", lambda: next(calls))
  with pytest.raises(checkpoint.Interrupted, match="distil/a/1: stopped after step 1 of 2"):
    fill()
  monkeypatch.setattr(checkpoint, "stop_requested", lambda: False)
  assert fill().images[::2, 0, 0, 0].tolist() == [1, 120]


@pytest.mark.parametrize("carries", [True, False])
def test_finished_batches_are_not_made_again_and_leave_no_checkpoints(tmp_path, carries):
  session = loop.Session(show_progress=False, scratch=tmp_path)
  slots = small.slots(2, 2, 2)
  method = counting() if carries else counting()._replace(carry=None)
  fill = lambda method: run_method(
    "a", method, small.env(), slots, {}, batch_size=2, session=session
  )
  whole = fill(method).images
  assert [p.name for p in (tmp_path / "distil" / "a").iterdir()] == ["2"]  # of 0, 1 and 2
  broken = method._replace(step=lambda *args, **kwargs: pytest.fail("a step was run"))
  np.testing.assert_array_equal(fill(broken).images, whole)
