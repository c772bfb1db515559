"""FTD and DATM as methods: running means, start epochs, first images, what a step moves, errors."""

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import base, methods
from ltdd_jax import distil
from ltdd_jax.core import files
from ltdd_jax.core.types import LtddError
from ltdd_jax.distil import ftd_datm
from ltdd_jax.distil.base import Env
from ltdd_jax.distil.run import run_method
from ltdd_jax.pipeline.resources import RESOURCES
from ltdd_jax.training import loop
from tests import small
from tests.contract.test_methods import KWARGS

SLOTS = small.slots(2, 1, 1)


def make(name, **kwargs):
  return distil.make_method(small.env(0), name, **KWARGS[name] | kwargs)


def test_ftd_gives_the_running_mean_of_the_images():
  method, res = make("ftd", ema_decay=0.75), small.resources()
  state, step = jax.jit(method.init)(jax.random.key(0), SLOTS, res), jax.jit(method.step)
  mean = np.asarray(state.images)
  for t in range(3):
    x = method.inputs(np.random.default_rng(t), t, res)
    state, _ = step(jax.random.key(t), state, res, x)
    mean = 0.75 * mean + 0.25 * np.asarray(state.images)
  assert np.abs(mean - state.images).max() > 1e-4
  np.testing.assert_allclose(method.read(state).images, mean, rtol=1e-5, atol=1e-6)


def test_start_epochs_grow_to_the_last():
  options = {"min_start_epoch": 1, "first_max_start_epoch": 2, "max_start_epoch": 5}
  draw = make("datm", **options, growth_steps=10).inputs
  host = {"trajectories": np.arange(2 * 7 * 243, dtype=np.float32).reshape(2, 7, 243)}

  def epochs(t, draw=draw):
    firsts = [draw(np.random.default_rng(s), t, host)[0][0] for s in range(40)]
    return {int(first) // 243 % 7 for first in firsts}

  for t, most in ((0, 1), (3, 1), (4, 2), (6, 2), (7, 3), (9, 3), (10, 4), (999, 4)):
    assert epochs(t) == set(range(1, most + 1))  # T_i = 2 + floor(3 t / 10), exclusive
  at_once = make("datm", **options | {"first_max_start_epoch": None}).inputs
  assert epochs(0, at_once) == {1, 2, 3, 4}


def test_a_step_moves_labels_and_one_above_the_threshold_nothing():
  """With a small rate, L is below 1 for one of two targets on opposite sides of the start."""
  method, res = make("datm", student_lr=1e-4), small.resources()
  state = jax.jit(method.init)(jax.random.key(0), SLOTS, res)
  start, target = method.inputs(np.random.default_rng(0), 0, res)
  step = jax.jit(method.step)
  found = [step(jax.random.key(1), state, res, (start, x)) for x in (target, 2 * start - target)]
  (after, metrics), (skipped, others) = sorted(found, key=lambda pair: pair[1]["loss"])
  assert metrics["loss"] < 1 < others["loss"]
  assert (metrics["skipped"], others["skipped"], skipped.step) == (0, 1, 1)
  assert np.abs(after.soft_labels - state.soft_labels).max() > 0
  same = dataclasses.replace(state, step=skipped.step)
  jax.tree.map(np.testing.assert_array_equal, skipped, same)
  assert method.read(after).soft_labels is after.soft_labels


# ---- the first images ----

ENV = Env((2, 2, 1), 3, (0.5,), (0.25,))
#         image:  0  1  2  3  4  5  6  7
LABELS = np.array([0, 0, 0, 0, 1, 1, 1, 2])
SAYS = np.array([  # each expert's prediction of each image
  [0, 1, 0, 1, 0, 0, 0, 0],
  [0, 0, 1, 1, 1, 0, 0, 1],
  [0, 0, 0, 1, 1, 0, 1, 1],
])  # fmt: skip
SIZES = np.array([1, 1, 2])  # of the experts' logits


def drawn(slots, seed=0):
  """First images by the numbers that are their pixels, logits and whether they are predicted."""
  images = np.tile(np.arange(8, dtype=np.uint8)[:, None, None, None], (1, 2, 2, 1))
  res = {"images": images, "labels": LABELS, "experts": np.c_[SAYS, SIZES].astype(np.float32)}

  def logits_of(theta, x):
    row = jnp.round(255 * (x[:, 0, 0, 0] * 0.25 + 0.5)).astype(int)
    return theta[8] * jax.nn.one_hot(theta[row].astype(int), 3)

  found = jax.jit(lambda key: ftd_datm.predicted_images(logits_of, ENV, key, slots, res))(
    jax.random.key(seed)
  )
  numbers = np.round(255 * (np.asarray(found.images)[:, 0, 0, 0] * 0.25 + 0.5)).astype(int)
  return numbers, np.asarray(found.soft_labels), np.asarray(found.predicted)


def test_images_that_experts_predict_come_first_and_are_not_repeated_before_all_were_used():
  seen = set()
  for seed in range(6):
    numbers, logits, predicted = drawn(small.slots(4, 3, 2, order="class_major"), seed=seed)
    assert {*numbers[:2]} == {0, 2}  # by the first expert
    assert [*numbers[2:4]] == [1, numbers[0]]  # by the second; image 3 never
    assert [*numbers[4:7]] == [4, 6, 4]
    assert [*numbers[7:]] == [7, 7]  # no expert knows it
    np.testing.assert_array_equal(predicted, [True] * 7 + [False] * 2)
    np.testing.assert_array_equal(logits[7:], 0)
    seen.add(tuple(numbers))
  assert len(seen) == 2


def test_labels_are_the_mean_of_the_experts_that_are_right():
  numbers, logits, _ = drawn(small.slots(3, 2, 1, order="class_major"))
  want = {0: 4 / 3, 1: 1.5, 2: 1.5, 4: 1.5, 6: 2, 7: 0}  # of experts 123, 23, 13, 23, 3, none
  label = np.array([0, 0, 0, 1, 1, 2])
  np.testing.assert_allclose(logits, np.eye(3)[label] * [[want[n]] for n in numbers], rtol=1e-6)


def test_real_images_have_the_logits_of_the_first_expert():
  method, res = make("datm", init="real"), small.resources()
  state = jax.jit(method.init)(jax.random.key(0), SLOTS, res)
  want = ftd_datm.expert_network("datm", small.env(0))[0](res["experts"][0], state.images)
  np.testing.assert_allclose(state.soft_labels, want, rtol=1e-4, atol=1e-5)
  assert method.remarks(jax.device_get(state)) == ()


# ---- runs ----


def test_experts_are_the_ends_of_the_trajectories():
  ctx = SimpleNamespace(trajectories=lambda split: small.trajectories(), split_name=lambda _: None)
  found = RESOURCES["experts"].load(ctx, "mine")
  np.testing.assert_array_equal(found, small.trajectories()[:, 3])


def test_remarks_are_kept_with_a_finished_batch(tmp_path):
  method = make("datm")
  res = small.resources() | {"experts": np.zeros_like(small.resources()["experts"][:1])}
  session = loop.Session(scratch=files.path(tmp_path), show_progress=False)
  common = ("mine", method._replace(num_steps=0), small.env(0), SLOTS, res)
  first, again = (
    run_method(*common, on_host=("trajectories",), session=session).notes for _ in range(2)
  )
  assert first == again  # an expert of zeros says class 0 of everything
  (note,) = first
  assert note.startswith("no expert predicts a training image of classes [1, 2] correctly; their")


def test_published_settings():
  config = methods.ftd("cifar10", 50)
  assert (config.method["ema_decay"], config.method["student_lr"]) == (0.999, 0.01)
  assert {k: config.trajectories[k] for k in ("gsam_rho", "gsam_alpha", "num_epochs")} == {
    "gsam_rho": 0.01, "gsam_alpha": 1.0, "num_epochs": 50
  }  # fmt: skip
  assert methods.ftd("tiny_imagenet", 50) == methods.ftd("tiny_imagenet", 10)
  config = methods.datm("cifar100", 10)
  keys = ("first_max_start_epoch", "max_start_epoch", "growth_steps", "lr_labels", "num_steps")
  assert [config.method[key] for key in keys] == [30, 50, 2000, 10.0, 10_000]
  assert config.trajectories["num_epochs"] == 100
  assert methods.datm("cifar10", 700).method["min_start_epoch"] == 40
  assert methods.datm("cifar100", 50).method["init"] == "real"


@pytest.mark.parametrize("preset", ["smoke", "cpu", "full"])
def test_presets_keep_start_epochs_within_the_experts(preset):
  for ipc in (10, 50):  # CIFAR-100 has another schedule for each
    args = base.arguments(
      f"preset={preset},ipc={ipc},method=datm", method="", imbalance=10.0, ipc=1, seed=0, preset=""
    )
    config = base.finish(base.base(args, "cifar100"), args)
    mine, most = config.distil.methods.datm, config.trajectories.num_epochs
    assert mine.min_start_epoch < (mine.first_max_start_epoch or mine.max_start_epoch)
    assert mine.max_start_epoch - 1 + mine.expert_epochs <= most
    assert config.trajectories.gsam_rho == 0.01
    assert config.label.sources.learned.images == ("datm",)


@pytest.mark.parametrize(
  ("name", "kwargs", "message"),
  [
    ("ftd", {"ema_decay": 1.0}, r"'ftd': ema_decay is 1.0; expected a number in \[0, 1\)"),
    ("ftd", {"init": "predicted"}, "'ftd': 'predicted'. Known: imported, noise, real"),
    ("datm", {"init": "noise"}, "'datm': 'noise'. Known: imported, predicted, real"),
    ("datm", {"lr_labels": -1.0}, "lr_labels is -1.0; expected 0 or more"),
    ("datm", {"momentum_labels": 1.0}, "momentum_labels is 1.0; expected a number in"),
    ("datm", {"threshold": 0.0}, "threshold is 0.0; expected a positive number"),
    ("datm", {"growth_steps": 0}, "growth_steps is 0; expected 1 or more"),
    ("datm", {"min_start_epoch": -1}, "min_start_epoch is -1; expected 0 or more"),
    (
      "datm",
      {"min_start_epoch": 2, "first_max_start_epoch": None},
      "max_start_epoch is 2; expected a number above min_start_epoch, which is 2",
    ),
    (
      "datm",
      {"first_max_start_epoch": 3},
      "first_max_start_epoch is 3; expected .* above min_start_epoch, .* 0, and up to .* is 2",
    ),
  ],
)
def test_invalid_arguments(name, kwargs, message):
  with pytest.raises(LtddError, match=message):
    make(name, **kwargs)


def test_experts_of_another_network_are_refused():
  res = small.resources() | {"experts": np.zeros((2, 7), np.float32)}
  with pytest.raises(LtddError, match=r"'datm'.* of 7 parameters, but the network has 243"):
    make("datm").init(jax.random.key(0), SLOTS, res)
