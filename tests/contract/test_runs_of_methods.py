"""What methods may be, each run from data to students: learned labels and rates, host inputs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ltdd_jax import distil, pipeline
from ltdd_jax.artefacts.workdir import Workdir
from ltdd_jax.core import rng
from ltdd_jax.core.types import Distilled, LtddError
from ltdd_jax.data import longtail
from ltdd_jax.labels import label as label_lib
from ltdd_jax.labels import store as label_store
from ltdd_jax.pipeline import check, graph, stages
from ltdd_jax.pipeline.context import Context
from ltdd_jax.students import train as student_training
from tests import small

VERSION = 1  # of the methods below
CALIBRATORS = {"plain": {"name": "none"}, "adsa": {"name": "adsa"}}


def learner(env, /, *, num_steps=3):
  """Learns images, their soft labels and a rate: each moves by a fixed part in a step."""

  def init(key, slots, res):
    images = 3 * jax.random.normal(key, (len(slots.labels), *env.image_shape))
    tilt = jnp.log(1 + jnp.bincount(res["labels"], length=env.num_classes))
    logits = 2 * jax.nn.one_hot(slots.labels, env.num_classes) + tilt[None]
    return Distilled(images, jnp.asarray(slots.labels), logits, jnp.float32(0.4))

  def step(key, state, res, x, *, turn=0):
    rate = 0.5 * state.student_lr
    images, labels = 0.9 * state.images, 1.1 * state.soft_labels
    moved = Distilled(images, state.labels, labels, rate)
    return moved, {"rate": rate}

  return distil.Method(
    init, step, lambda state: state, ("labels",), num_steps, batching="joint", dtype="float32"
  )


def averager(env, /, *, num_steps=3):
  """Images are the mean of one real image for each step, which the host draws."""

  def init(key, slots, res):
    return Distilled(jnp.zeros((len(slots.labels), *env.image_shape)), jnp.asarray(slots.labels))

  def inputs(generator, t, host):
    row = generator.integers(len(host["images"]))
    return {"image": host["images"][row].astype(np.float32) / 255, "step": np.float32(t)}

  def step(key, state, res, x, *, turn=0):
    return state._replace(images=state.images + x["image"][None] / num_steps), {"step": x["step"]}

  return distil.Method(
    init, step, lambda state: state, ("images",), num_steps, batching="joint", inputs=inputs,
    dtype="float32",
  )  # fmt: skip


@pytest.fixture(autouse=True)
def methods(monkeypatch):
  monkeypatch.setitem(distil.METHODS, "learner", learner)
  monkeypatch.setitem(distil.METHODS, "averager", averager)


def run(config, workdir):
  results = pipeline.run(config, workdir, show_progress=False)
  return results, lambda stage: Workdir(workdir).load(stage)


def learned_config(folder):
  config = small.run_config(folder, {"mine": {"name": "learner"}}, CALIBRATORS)
  config["label"]["sources"] = {"own": {"name": "learned"}}
  config["student"]["optimizer"] = {"name": "sgd", "lr": None}
  return config


def store_of(artefact):
  return label_store.open_store(artefact.folder(label_lib.STORE)).logits()


def test_learned_labels_and_rate_reach_students_with_every_calibrator(tmp_path):
  config = learned_config(tmp_path)
  results, load = run(config, tmp_path / "run")
  assert not (tmp_path / "run" / "teacher").exists()
  rows = [(r["images"], r["labels"], r["calibrator"]) for r in results["rows"]]
  assert rows == [("mine", "hard", None), ("mine", "own", "plain"), ("mine", "own", "adsa")]
  made = load("distil/mine").arrays
  assert made["student_lr"] == np.float32(0.05)  # 0.4, three times halved
  tilt, classes = np.log(1 + small.COUNTS), np.eye(3)[made["labels"]]
  np.testing.assert_allclose(made["soft_labels"], 1.1**3 * (2 * classes + tilt), rtol=1e-5)
  labels = load("label/mine/own")
  np.testing.assert_array_equal(store_of(labels)[0], made["soft_labels"])
  np.testing.assert_array_equal(labels.arrays["clean_logits"], made["soft_labels"])
  assert results["rows"][2]["tau"] > 0.2  # the tilt is along the prior
  # The rate is the learned one: a run that is given its number trains the same students.
  config["calibrate"]["calibrators"] = {"adsa": CALIBRATORS["adsa"]}
  config["student"]["optimizer"]["lr"] = float(made["student_lr"])
  _, same = run(config, tmp_path / "given")
  config["student"]["optimizer"]["lr"] = 0.1
  _, other = run(config, tmp_path / "other")
  for labels in ("hard", "own/adsa"):
    trees = [where(f"student/mine/{labels}").tree("students") for where in (load, same, other)]
    leaves = [jax.tree.leaves(tree) for tree in trees]
    assert all(np.array_equal(a, b) for a, b in zip(*leaves[:2], strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(leaves[0], leaves[2], strict=True))


def test_images_stay_float_to_the_end(tmp_path, monkeypatch):
  """`config.distil.dtype` turns that off, and on for a method that publishes uint8."""
  seen, train = [], student_training.train_students

  def recorded(name, images, *args, **kwargs):
    seen.append(images)
    return train(name, images, *args, **kwargs)

  monkeypatch.setattr(student_training, "train_students", recorded)
  cases = (
    ("learner", None, "float32"),
    ("learner", "uint8", "uint8"),
    ("random", None, "uint8"),
    ("random", "float32", "float32"),
  )
  for name, dtype, kept in cases:
    config = small.run_config(tmp_path, {"mine": {"name": name}})
    config["distil"]["dtype"] = dtype
    workdir = tmp_path / f"{name}-{dtype}"
    _, load = run(config, workdir)
    stored = load("distil/mine").arrays["images"]
    assert stored.dtype == seen[-1].dtype == kept
    np.testing.assert_array_equal(seen[-1], stored)
    assert (workdir / "report" / "images-mine.png").exists()
    if (name, kept) == ("learner", "float32"):  # noise wider than pixels: nothing is clipped
      assert stored.min() < -0.5
      assert stored.max() > 1.5


def test_host_inputs_are_those_of_their_step(tmp_path):
  config = small.run_config(tmp_path, {"mine": {"name": "averager"}}, CALIBRATORS)
  results, load = run(config, tmp_path / "run")
  assert len(results["rows"]) == 3
  real, want = small.train_data().images, 0
  for t in range(3):
    row = rng.np_rng(0, "distil/mine/0", "inputs", t).integers(len(real))
    want = want + real[row] / 255 / 3
  want = want * small.SPEC.std + small.SPEC.mean
  images = load("distil/mine").arrays["images"]
  np.testing.assert_allclose(images, np.broadcast_to(want, images.shape), atol=1e-6)


def test_labels_from_a_file(tmp_path):
  config = small.run_config(tmp_path, {"random": {"name": "random"}}, CALIBRATORS)
  logits = np.random.RandomState(0).standard_normal((6, 3)).astype(np.float32)
  prints = []
  for name, values in (("a", logits), ("b", logits), ("c", 2 * logits)):
    np.save(tmp_path / f"{name}.npy", values)
    config["label"]["sources"] = {
      "file": {"name": "imported", "path": str(tmp_path / f"{name}.npy")}
    }
    ctx = Context(check.check(config))
    prints.append({s.name: s.fingerprint for s in graph.make_stages(ctx)})
    np.save(tmp_path / f"{name}.npy", 3 * values)  # too late: a run takes what it has named
    np.testing.assert_array_equal(ctx.file_logits("file"), values)
    np.save(tmp_path / f"{name}.npy", values)
  assert prints[0] == prints[1]  # known by what is in the file
  assert {n.split("/")[0] for n in prints[0] if prints[0][n] != prints[2][n]} == {
    "label", "calibrate", "student"
  }  # fmt: skip
  results, load = run(config, tmp_path / "run")
  assert not (tmp_path / "run" / "teacher").exists()
  np.testing.assert_array_equal(store_of(load("label/random/file"))[0], 2 * logits)
  assert [r["calibrator"] for r in results["rows"]] == [None, "plain", "adsa"]
  config["distil"]["methods"]["other"] = {"name": "random"}
  with pytest.raises(LtddError, match="has the logits of one image source"):
    check.check(config)
  config["label"]["sources"]["file"]["images"] = ("random",)
  rows = graph.rows(check.check(config))
  assert [r.images for r in rows if r.labels == "file"] == ["random", "random"]
  del config["distil"]["methods"]["other"]
  np.save(tmp_path / "c.npy", logits[:5])
  with pytest.raises(LtddError, match=r"'file'.*shape \(5, 3\); expected .* shape \(6, 3\)"):
    check.check_with_data(Context(check.check(config)))


def test_a_rate_or_labels_that_no_method_learned_are_refused(tmp_path):
  config = learned_config(tmp_path)
  check.check_with_data(Context(check.check(config)))
  config["distil"]["methods"]["random"] = {"name": "random"}
  match = r"optimizer\.lr is None.*'random' \(method 'random'\) learns no rate"
  with pytest.raises(LtddError, match=match):
    pipeline.run(config, tmp_path / "run", show_progress=False)
  config["student"]["optimizer"]["lr"] = 0.1
  match = r"'own' is 'learned', but image source 'random' \(method 'random'\) has no learned labels"
  with pytest.raises(LtddError, match=match):
    pipeline.run(config, tmp_path / "run", show_progress=False)
  assert not (tmp_path / "run").exists()  # found before any work


def test_a_control_takes_the_rate_of_the_recipe(tmp_path):
  config = small.run_config(tmp_path, {"mine": {"name": "learner"}, "random": {"name": "random"}})
  config["student"] |= {"recipe": "rd3", "optimizer": {"name": "sgd", "lr": None}}
  with pytest.raises(LtddError, match=r"'random'\) learns no rate, .*recipe with one for that opt"):
    check.check_with_data(Context(check.check(config)))
  config["student"]["optimizer"]["name"] = "adam"  # as in rd3
  results, load = run(config, tmp_path / "run")
  notes = {note.split(":")[0]: note for note in results["notes"] if "rate" in note}
  assert "learning rate 0.05, learned with the images" in notes["student/mine/hard"]
  assert "learning rate 0.001 of recipe rd3" in notes["student/random/hard"]
  config["student"]["optimizer"]["lr"] = 0.001
  del config["distil"]["methods"]["mine"]
  _, same = run(config, tmp_path / "given")
  trees = [where("student/random/hard").tree("students") for where in (load, same)]
  jax.tree.map(np.testing.assert_array_equal, *trees)


def test_hard_labels_of_random_images_need_no_teacher(tmp_path):
  config = small.run_config(tmp_path, {"random": {"name": "random"}})
  results, _ = run(config, tmp_path / "run")
  assert [*results["stages"]] == ["data", "distil/random", "student/random/hard"]
  assert results["teachers"] == []
  assert not (tmp_path / "run" / "teacher").exists()
  assert np.isfinite(results["rows"][0]["top1"]["mean"])


def test_learned_labels_are_biased_by_the_split_of_their_images(tmp_path):
  config = learned_config(tmp_path)
  config["data"]["splits"] = {"few": {"rule": "counts", "counts": (2, 2, 1)}}
  config["distil"]["methods"]["mine"] |= {"split": "few", "teachers": ("a",)}
  ctx = Context(check.check(config))
  (row,) = [r for r in graph.rows(ctx.config) if r.calibrator == "adsa"]
  np.testing.assert_allclose(ctx.log_prior(row), longtail.log_prior(np.array([2, 2, 1])))
  assert stages._student_arguments(ctx, row, np.float32(0.25))["optimizer"]["lr"] == 0.25


GROUPS = ("teacher", "distil", "label", "student")


def test_bfloat16_is_one_value_of_each_stage(tmp_path):
  """Everything that is kept is float32 as ever, and its numbers are near those of float32."""
  methods = {"sre2l": {"num_steps": 2}, "dm": {"num_steps": 2, "network": small.NET}}
  methods = {name: kwargs | {"name": name} for name, kwargs in methods.items()}
  config = small.run_config(tmp_path, methods, {"adsa": {"name": "adsa"}})
  config["student"]["hard_labels"] = False
  config["distil"]["dtype"] = "float32"
  _, exact = run(config, tmp_path / "float32")
  for group in GROUPS:
    config[group]["compute_dtype"] = "bfloat16"
  _, rough = run(config, tmp_path / "bfloat16")
  pairs = [[load("teacher").tree("a") for load in (exact, rough)]]
  for name in methods:
    pairs += (
      [load(f"student/{name}/teacher/adsa").tree("students") for load in (exact, rough)],
      [load(f"distil/{name}").arrays["images"] for load in (exact, rough)],
      [store_of(load(f"label/{name}/teacher")) for load in (exact, rough)],
    )
  for one, other in pairs:
    leaves = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    assert all(a.dtype == b.dtype for a, b in leaves)
    flat = [np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)]) for tree in (one, other)]
    assert 0 < np.linalg.norm(flat[0] - flat[1]) < 0.1 * np.linalg.norm(flat[0])


@pytest.mark.parametrize("group", GROUPS)
def test_other_dtypes_of_computation_are_refused(tmp_path, group):
  config = small.run_config(tmp_path, {"mine": {"name": "random"}}, CALIBRATORS)
  config[group]["compute_dtype"] = "float16"
  with pytest.raises(LtddError, match=rf"config\.{group}\.compute_dtype.*float16.*bfloat16"):
    check.check(config)
