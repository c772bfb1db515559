"""The loop: resumes bit for bit, stops on bad numbers, scans where it may."""

import dataclasses
import json
import os
import zipfile

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ltdd_jax.artefacts import checkpoint
from ltdd_jax.core.types import LtddError
from ltdd_jax.training import loop


def walk(state, consts, x):
  """A step that depends on everything it should: state, constants and input."""
  noise = jax.random.normal(jax.random.fold_in(consts["key"], state["step"]), (3,))
  position = state["position"] * 0.9 + noise + x
  new = {"step": state["step"] + 1, "position": position}
  return new, {"loss": jnp.sum(position)}


def start():
  return {"step": jnp.zeros((), jnp.int32), "position": jnp.zeros(3)}


def run(session, num_steps=20, step_fn=walk, **kwargs):
  return loop.run(
    step_fn, start(), {"key": jax.random.key(0)}, num_steps=num_steps, session=session,
    name="walk", inputs=lambda t: np.float32(t), **kwargs,
  )  # fmt: skip


QUIET = loop.Session(show_progress=False, log_every=4, checkpoint_seconds=0.0)


def test_resumes_bit_for_bit(tmp_path, monkeypatch):
  whole = run(QUIET)
  session = dataclasses.replace(QUIET, scratch=tmp_path)
  calls = iter([False] * 6 + [True] * 100)
  monkeypatch.setattr(checkpoint, "stop_requested", lambda: next(calls))
  with pytest.raises(checkpoint.Interrupted, match="stopped after step 7 of 20"):
    run(session)
  monkeypatch.setattr(checkpoint, "stop_requested", lambda: False)
  seen = []

  def spy(t):
    seen.append(t)
    return np.float32(t)

  resumed = loop.run(
    walk, start(), {"key": jax.random.key(0)}, num_steps=20, session=session, name="walk",
    inputs=spy,
  )  # fmt: skip
  assert seen == list(range(7, 20))
  np.testing.assert_array_equal(resumed["position"], whole["position"])


def test_a_finished_loop_is_not_run_again(tmp_path):
  session = dataclasses.replace(QUIET, scratch=tmp_path)
  first = run(session)
  again = run(session, step_fn=lambda *_: pytest.fail("a step was run"))
  np.testing.assert_array_equal(first["position"], again["position"])


def test_many_steps_in_one_dispatch_equal_one_by_one():
  scanned = run(Scanning(show_progress=False, log_every=8), num_steps=18)
  np.testing.assert_allclose(scanned["position"], run(QUIET, 18)["position"], rtol=1e-6)


def double(state, consts, x):
  """Another step with the same state and metrics."""
  del consts
  new = {"step": state["step"] + 1, "position": 2 * state["position"] - x}
  return new, {"loss": jnp.max(new["position"])}


class Scanning(loop.Session):
  def steps_per_call(self):
    return 4


def test_step_functions_take_turns_and_compile_once_each():
  steps = [chex.assert_max_traces(f, n=1) for f in (walk, double)]
  compiled = {}
  state = run(QUIET, num_steps=5, step_fn=steps, compiled=compiled)
  state = loop.run(
    steps, state, {"key": jax.random.key(0)}, num_steps=5, session=QUIET, name="walk",
    inputs=lambda t: np.float32(t), first_turn=5 % 2, compiled=compiled,
  )  # fmt: skip
  want = start()
  for t in range(10):
    want, _ = (walk, double)[t % 2](want, {"key": jax.random.key(0)}, np.float32(t % 5))
  assert len(compiled) == 2
  np.testing.assert_allclose(state["position"], want["position"], rtol=1e-5)


def test_turns_in_one_dispatch_equal_one_by_one():
  steps = [chex.assert_max_traces(f, n=1) for f in (walk, double)]
  compiled = {}
  # 18 steps and 4 in a call: calls of 2, so that no step is compiled in the scan and alone.
  scanned = run(Scanning(show_progress=False, log_every=8), 18, steps, compiled=compiled)
  assert list(compiled) == [(2, 0)]
  alone = run(QUIET, 18, [walk, double])
  np.testing.assert_allclose(scanned["position"], alone["position"], rtol=1e-5)


def test_a_loss_that_is_not_finite_stops_and_keeps_the_checkpoint(tmp_path):
  def diverge(state, consts, x):
    new, metrics = walk(state, consts, x)
    return new, {"loss": jnp.where(x == 9, jnp.nan, metrics["loss"])}

  session = dataclasses.replace(QUIET, scratch=tmp_path)
  with pytest.raises(LtddError, match=r"walk: loss is nan at step 10.*checkpoint is kept"):
    run(session, step_fn=diverge)
  progress = checkpoint.Progress(tmp_path / "walk")
  step, state = progress.restore(start())
  progress.close()
  assert step == 8
  assert np.isfinite(state["position"]).all()


def test_a_state_that_is_not_finite_is_not_saved(tmp_path):
  def diverge(state, consts, x):
    new, metrics = walk(state, consts, x)
    return new | {"position": jnp.where(x == 19, jnp.inf, new["position"])}, metrics

  session = dataclasses.replace(QUIET, scratch=tmp_path)
  with pytest.raises(LtddError, match="after step 20 holds NaN or infinity"):
    run(session, step_fn=diverge)


@pytest.mark.parametrize("has_metrics", [True, False])
def test_few_steps_wait_for_the_device(has_metrics):
  """So that a stop does not wait for many of them."""
  losses, ahead = [], []

  @jax.jit
  def slow(state, consts, x):
    work = jnp.full((1500, 1500), state["position"][0]) @ jnp.full((1500, 1500), x)
    return walk(state | {"position": state["position"] + 1e-9 * work[0, 0]}, consts, x)

  def tracked(*args):
    state, metrics = slow(*args)
    losses.append(metrics["loss"])
    return state, metrics if has_metrics else {}

  def spy(t):
    ahead.append(sum(not loss.is_ready() for loss in losses))
    return np.float32(t)

  session = dataclasses.replace(QUIET, log_every=100)
  loop.run(
    slow, start(), {"key": jax.random.key(0)}, num_steps=20, session=session, name="walk",
    inputs=spy, compiled={(1, 0): tracked},
  )  # fmt: skip
  assert len(losses) == 20
  assert max(ahead) <= 4
  assert max(ahead) > 0 or not has_metrics


def test_hooks_are_called_after_their_steps():
  called = []

  def hook(state):
    called.append(int(state["step"]))
    return state

  run(QUIET, hooks={5: hook, 20: hook})
  assert called == [5, 20]


def test_metrics_are_written(tmp_path):
  run(dataclasses.replace(QUIET, metrics=tmp_path))
  lines = (tmp_path / "walk" / "metrics.jsonl").read_text().splitlines()
  assert [json.loads(x)["step"] for x in lines] == [4, 8, 12, 16, 20]


@pytest.mark.parametrize("end", ["stop", "nan"])
def test_metrics_up_to_an_early_end_are_written(tmp_path, monkeypatch, end):
  def step(state, consts, x):
    bad = (x == 7) & (end == "nan")
    return walk(state, consts, x)[0], {"loss": jnp.where(bad, jnp.nan, x + 1)}

  asked = iter([False] * 6 + [True])
  if end == "stop":
    monkeypatch.setattr(checkpoint, "stop_requested", lambda: next(asked))
  session = dataclasses.replace(QUIET, metrics=tmp_path, scratch=tmp_path / "scratch")
  with pytest.raises((checkpoint.Interrupted, LtddError)):
    run(session, step_fn=step)
  lines = (tmp_path / "walk" / "metrics.jsonl").read_text().splitlines()
  assert [json.loads(line) for line in lines] == [
    {"step": 4, "loss": 2.5},
    {"step": 7, "loss": 6.0},
  ]


# ---- finished parts ----


def test_a_finished_part_is_kept_without_its_checkpoints(tmp_path):
  session = dataclasses.replace(QUIET, scratch=tmp_path)
  assert session.kept("walk") is None
  session.keep("walk", {"position": np.asarray(run(session)["position"])})
  session.discard("walk")
  found = dataclasses.replace(QUIET, scratch=tmp_path).kept("walk")
  np.testing.assert_array_equal(found["position"], run(QUIET)["position"])
  files = [p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file()]
  assert files == ["finished/walk.npz"]


def test_a_part_is_kept_whole_or_not_at_all(tmp_path, monkeypatch, caplog):
  session = dataclasses.replace(QUIET, scratch=tmp_path)
  session.keep("a/0", {"x": np.arange(3)})

  def killed(*args):
    raise KeyboardInterrupt

  with monkeypatch.context() as m:
    m.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
      session.keep("a/0", {"x": np.arange(4)})
    with pytest.raises(KeyboardInterrupt):
      session.keep("a/1", {"x": np.arange(4)})
  assert session.kept("a/0")["x"].tolist() == [0, 1, 2]
  assert session.kept("a/1") is None
  part = tmp_path / "finished" / "a" / "0.npz"
  with zipfile.ZipFile(part, "w") as archive:  # whole, but for the header of its array
    archive.writestr("x.npy", b"\x93NUMPY\x01\x00\x76\x00" + b"{(".ljust(118))
  assert session.kept("a/0") is None
  part.write_bytes(b"PK")
  assert session.kept("a/0") is None
  assert "0.npz is damaged" in caplog.text


def test_without_a_folder_nothing_is_kept():
  QUIET.keep("a", {"x": np.arange(3)})
  assert QUIET.kept("a") is None
  QUIET.discard("a")
