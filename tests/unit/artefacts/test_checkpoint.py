"""Checkpoints of work in progress, and signals."""

import os
import pathlib
import signal
import subprocess
import sys
import textwrap
import threading

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from absl import logging

from ltdd_jax.artefacts import checkpoint
from ltdd_jax.core import files
from ltdd_jax.core.types import LtddError, TrainState

ROOT = str(pathlib.Path(checkpoint.__file__).parents[2])


@pytest.fixture
def progress(tmp_path):
  progress = checkpoint.Progress(tmp_path / "loop", every_seconds=0.0)
  yield progress
  progress.close()


def assert_same(a, b):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    assert type(x) is type(y)
    assert x.dtype == y.dtype
    np.testing.assert_array_equal(x, y)


def train_state(seed=0.0, ema=False):
  params = {"conv": {"kernel": jnp.full((3, 2), 1.5 + seed), "none": {}}}
  tx = optax.chain(optax.clip(1.0), optax.adamw(optax.cosine_decay_schedule(0.1, 10)))
  return TrainState(
    step=jnp.asarray(3, jnp.int32), params=params, batch_stats={}, opt_state=tx.init(params),
    ema=jax.tree.map(lambda x: 2 * x, params) if ema else None,
  )  # fmt: skip


@pytest.mark.parametrize("ema", [False, True])
def test_a_train_state_survives(progress, ema):
  state = train_state(ema=ema)
  progress.save(3, state)
  step, back = progress.restore(train_state(seed=7.0, ema=ema))
  assert step == 3
  assert_same(back, state)


@flax.struct.dataclass
class Odd:
  a: object
  b: object = None


def test_odd_leaves_survive(progress):
  state = {
    "kinds": [
      jnp.full((2,), 1.5, d) for d in (jnp.bfloat16, jnp.float16, jnp.uint8, jnp.int32, jnp.bool_)
    ],
    "empty": {},
    "none": None,
    "nothing": jnp.zeros((0, 3)),
    "host": np.arange(3, dtype=np.int64),
    "scalar": jnp.asarray(2.5),
    "tuple": (jnp.ones(1), Odd(jnp.zeros(2))),
    "count": 7,
  }
  progress.save(1, state)
  template = jax.tree.map(
    lambda x: x if isinstance(x, int) else x ^ x if x.dtype == bool else x * 0, state
  )
  step, back = progress.restore(template)
  assert step == 1
  assert back.pop("count") == state.pop("count")
  assert_same(back, state)


def test_restore_into_shapes(progress):
  state = train_state()
  progress.save(3, state)
  template = jax.eval_shape(lambda: train_state())
  assert_same(progress.restore(template)[1], state)


def test_restore_into_shardings(progress):
  mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
  sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
  progress.save(1, {"x": jnp.arange(4.0)})
  for template in (
    {"x": jax.device_put(jnp.zeros(4), sharding)},
    {"x": jax.ShapeDtypeStruct((4,), jnp.float32, sharding=sharding)},
  ):
    back = progress.restore(template)[1]["x"]
    assert back.sharding == sharding
    np.testing.assert_array_equal(back, np.arange(4.0))


def test_uncommitted_arrays_stay_so(progress):
  """A restored counter must not pin a computation to one device of a mesh."""
  progress.save(1, {"x": jnp.arange(4.0)})
  assert not progress.restore({"x": jnp.zeros(4)})[1]["x"].committed
  on_device = jax.device_put(jnp.zeros(4), jax.devices()[0])
  assert progress.restore({"x": on_device})[1]["x"].committed


def test_nothing_to_restore(progress):
  assert progress.restore({"x": jnp.zeros(4)}) is None


def test_the_newest_are_kept(tmp_path):
  progress = checkpoint.Progress(tmp_path, keep=2)
  for step in (1, 5, 9):
    progress.save(step, {"x": jnp.full(2, float(step))})
  progress.save(9, {"x": jnp.full(2, 9.0)})  # the same again
  progress.close()
  assert sorted(p.name for p in tmp_path.iterdir()) == ["5", "9"]
  again = checkpoint.Progress(tmp_path)
  step, state = again.restore({"x": jnp.zeros(2)})
  again.close()
  assert step == 9
  np.testing.assert_array_equal(state["x"], [9.0, 9.0])


def test_saves_by_time(tmp_path, monkeypatch):
  now = [100.0]
  monkeypatch.setattr(checkpoint.time, "monotonic", lambda: now[0])
  progress = checkpoint.Progress(tmp_path, every_seconds=30.0)
  saved = []
  for step in range(1, 100):
    now[0] += 1.0
    if progress.due():
      progress.save(step, {"x": jnp.zeros(1)})
      saved.append(step)
  progress.close()
  assert saved == [30, 60, 90]


def test_discarded_checkpoints_are_gone(tmp_path):
  progress = checkpoint.Progress(tmp_path / "loop")
  progress.save(1, {"x": jnp.zeros(2)})
  progress.close()
  checkpoint.discard(tmp_path / "loop")
  checkpoint.discard(tmp_path / "loop")
  assert list(tmp_path.iterdir()) == []


# ---- damage and mistakes ----


def damage(folder):
  """Halves every data file of a checkpoint, as a power cut may."""
  for path in folder.rglob("*"):
    if path.is_file() and "/d/" in str(path):
      with open(path, "r+b") as file:
        file.truncate(path.stat().st_size // 2)


def remove_data(folder):
  for path in folder.rglob("*"):
    if path.is_file() and "/d/" in str(path):
      path.unlink()


def remove_manifest(folder):
  (folder / "default" / "manifest.ocdbt").unlink()


def remove_description(folder):
  (folder / "_CHECKPOINT_METADATA").unlink()


def halve_description(folder):
  path = folder / "_CHECKPOINT_METADATA"
  path.write_text(path.read_text()[:10])


@pytest.mark.parametrize(
  "harm",
  [damage, remove_data, remove_manifest, remove_description, halve_description],
)
def test_a_damaged_checkpoint_falls_back_to_the_one_before(progress, harm, caplog):
  for step in (4, 8):
    progress.save(step, {"x": jnp.arange(1000.0) * step})
  harm(pathlib.Path(progress.folder) / "8")
  step, state = progress.restore({"x": jnp.zeros(1000)})
  assert step == 4
  np.testing.assert_array_equal(state["x"], np.arange(1000.0) * 4)
  assert f"checkpoint {progress.folder / '8'} is damaged" in caplog.text
  progress.save(8, {"x": jnp.arange(1000.0) * 8})  # takes the place of the damaged one
  assert progress.restore({"x": jnp.zeros(1000)})[0] == 8


def test_only_damaged_checkpoints_are_an_error(progress):
  progress.save(4, {"x": jnp.arange(1000.0)})
  damage(pathlib.Path(progress.folder) / "4")
  with pytest.raises(
    LtddError, match=rf"all checkpoints in .* \(4\) are damaged. Delete {progress.folder}"
  ):
    progress.restore({"x": jnp.zeros(1000)})


@pytest.mark.parametrize(
  ("template", "text"),
  [
    ({"x": jnp.zeros(3)}, r"state\['x'\]: float32\[2\] in the checkpoint, float32\[3\] expected"),
    ({"x": jnp.zeros(2, jnp.int32)}, r"float32\[2\] in the checkpoint, int32\[2\] expected"),
    ({"x": np.zeros(2)}, r"float32\[2\] in the checkpoint, float64\[2\] expected"),
    (
      {"y": jnp.zeros(2)},
      r"\['x'\]: float32\[2\] in the checkpoint, absent expected\n.*\['y'\]: abs",
    ),
  ],
)
def test_another_structure_is_an_error(progress, template, text):
  progress.save(1, {"x": jnp.zeros(2)})
  with pytest.raises(LtddError, match=text) as error:
    progress.restore(template)
  assert f"Delete {progress.folder} to start this loop anew" in str(error.value)
  assert progress.restore({"x": jnp.zeros(2)})[0] == 1


def test_a_full_disk_keeps_what_was_there(progress, monkeypatch):
  progress.save(1, {"x": jnp.zeros(2)})

  def full(*args, **kwargs):
    raise ValueError("RESOURCE_EXHAUSTED: Failed to write: No space left on device")

  with monkeypatch.context() as m:
    m.setattr(progress._manager, "save", full)
    with pytest.raises(LtddError, match="checkpoint of step 2 needs 8 bytes and cannot be written"):
      progress.save(2, {"x": jnp.zeros(2)})
  usage = type("usage", (), {"free": 3})
  with monkeypatch.context() as m:
    m.setattr(files.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(LtddError, match="has 3 bytes free"):
      progress.save(2, {"x": jnp.zeros(2)})
  assert progress.restore({"x": jnp.zeros(2)})[0] == 1


def test_orbax_is_quiet(tmp_path, caplog, capfd):
  before = logging.get_verbosity()
  logging.set_verbosity(logging.DEBUG)
  try:
    progress = checkpoint.Progress(tmp_path)
    progress.save(1, {"x": jnp.zeros(2)})
    progress.restore({"x": jnp.zeros(2)})
    progress.close()
    checkpoint.save_tree(tmp_path / "tree", {"w": np.zeros(2)})
  finally:
    logging.set_verbosity(before)
  assert [r for r in caplog.records if "orbax" in r.pathname] == []
  assert capfd.readouterr() == ("", "")


def test_killed_while_saving(tmp_path):
  """After `kill -9` the newest whole checkpoint is there, and it is the right one."""
  child = textwrap.dedent("""
    import sys
    import jax.numpy as jnp
    from ltdd_jax.artefacts import checkpoint
    progress = checkpoint.Progress(sys.argv[1])
    for step in range(1, 10_000):
      progress.save(step, {"x": jnp.full((300, 300), float(step))})
      print(step, flush=True)
  """)
  env = os.environ | {"PYTHONPATH": ROOT}
  with subprocess.Popen(
    [sys.executable, "-c", child, tmp_path], stdout=subprocess.PIPE, env=env
  ) as process:
    for _ in range(4):
      last = int(process.stdout.readline())
    process.kill()
    last = max([last, *map(int, process.stdout.read().split())])
  progress = checkpoint.Progress(tmp_path)
  step, state = progress.restore({"x": jnp.zeros((300, 300))})
  progress.close()
  assert step in (last, last + 1)
  np.testing.assert_array_equal(state["x"], np.full((300, 300), float(step)))
  assert not [p for p in tmp_path.iterdir() if "tmp" in p.name]


# ---- trees ----


def test_trees(tmp_path):
  tree = {"params": {"w": np.ones((2, 2), jnp.bfloat16), "e": {}}, "list": [np.zeros(1), None]}
  checkpoint.save_tree(tmp_path / "t", tree)
  back = checkpoint.load_tree(tmp_path / "t")
  assert_same(back, tree)


# ---- signals ----


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_asks_to_stop(number, capfd):
  assert not checkpoint.stop_requested()
  with checkpoint.interruptible():
    os.kill(os.getpid(), number)
    assert checkpoint.stop_requested()
  assert not checkpoint.stop_requested()
  assert f"{number.name}: saving, then stopping" in capfd.readouterr().err


def test_a_second_ctrl_c_quits_at_once(request):
  before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may ignore it
  request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))

  def nested():
    with checkpoint.interruptible():
      os.kill(os.getpid(), signal.SIGINT)
      os.kill(os.getpid(), signal.SIGINT)
      pytest.fail("went on")

  with pytest.raises(KeyboardInterrupt):
    nested()
  assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_handlers_come_back():
  before = signal.getsignal(signal.SIGTERM)
  with checkpoint.interruptible():
    assert signal.getsignal(signal.SIGTERM) is not before
  assert signal.getsignal(signal.SIGTERM) is before


def test_other_threads_do_without_handlers():
  seen = []

  def work():
    with checkpoint.interruptible():
      seen.append(checkpoint.stop_requested())

  thread = threading.Thread(target=work)
  thread.start()
  thread.join()
  assert seen == [False]
