"""Expert trajectories: what they hold, going on after a stop, and the stage of a run."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ltdd_jax import distil, pipeline
from ltdd_jax.artefacts.workdir import Workdir
from ltdd_jax.core import files, rng
from ltdd_jax.core.types import LtddError
from ltdd_jax.data import augment, feed
from ltdd_jax.models.flat import flat_params
from ltdd_jax.pipeline import check, graph, plan
from ltdd_jax.pipeline.context import Context
from ltdd_jax.teachers import trajectories
from ltdd_jax.training import gsam, loop, losses
from tests import small
from tests.contract.test_methods import KWARGS, TRAJECTORIES

OPTIONS = {
  "network": small.NET, "num_experts": 3, "num_epochs": 2, "batch_size": 4, "augment": None,
  "optimizer": {"name": "sgd", "lr": 0.1, "momentum": 0.0},
}  # fmt: skip


def train(session=None, **kwargs):
  return trajectories.train_experts(
    small.train_data(), small.SPEC, **OPTIONS | kwargs, session=session
  )


def test_all_processes_look_for_snapshots_before_one_makes_them(tmp_path, monkeypatch):
  said, file = [], tmp_path / "trajectories" / "x" / "snapshots.npy"
  note = lambda name: said.append((name.rpartition(" ")[0], file.exists()))
  monkeypatch.setattr(trajectories.mesh_lib, "barrier", note)
  for _ in range(2):  # the second finds them
    trajectories._open(session_in(tmp_path), "trajectories/x", (1, 2, 3))
  looked, opened = "trajectories looked", "trajectories"
  assert said == [(looked, False), (opened, True), (looked, True)]


def session_in(folder):
  return loop.Session(
    scratch=files.path(folder), checkpoint_seconds=0, log_every=2, show_progress=False
  )


@functools.cache
def whole():
  return train(loop.Session(show_progress=False))


def test_in_a_bucket_a_stopped_run_begins_anew(tmp_path, recorded, monkeypatch):
  there = types.SimpleNamespace(**vars(files) | {"is_local": lambda name: False})
  monkeypatch.setattr(trajectories, "files", there)
  with pytest.raises(KeyboardInterrupt):
    train(session_in(tmp_path))
  np.testing.assert_array_equal(train(session_in(tmp_path)), whole())
  assert not list(tmp_path.rglob("snapshots.npy"))


@pytest.mark.parametrize("rho", [0.0, 0.2])
def test_snapshots_are_those_of_sgd_after_each_epoch(rho):
  data = small.train_data()
  found = train(num_experts=2, gsam_rho=rho, gsam_alpha=0.5) if rho else whole()
  model, flat = small.expert(), flat_params(small.expert(), small.SPEC.image_shape)
  assert (found.shape[1:], found.dtype) == ((3, flat.size), np.float32)
  images = augment.normalize(data.images, small.SPEC.mean, small.SPEC.std)

  @jax.jit
  def move(theta, x, y):
    loss = lambda t: losses.cross_entropy(
      model.apply({"params": flat.unravel(t)}, x, train=True), y
    )
    return theta - 0.1 * gsam.value_and_grad(loss, rho=rho, alpha=0.5)(theta)[1]

  sampler = feed.BatchSampler(0, "trajectories/experts/1", len(data.labels), 4)
  theta, ends = jnp.asarray(found[1, 0]), {3: 1, 6: 2}  # batches that complete 11 and 22 images
  for t in range(6):
    rows = sampler(t)
    theta = move(theta, images[rows], jnp.asarray(data.labels[rows]))
    if t + 1 in ends:
      np.testing.assert_allclose(found[1, ends[t + 1]], theta, rtol=1e-4, atol=1e-6)
  assert np.array_equal(found, whole()[: len(found)]) == (rho == 0)


def test_experts_differ_and_depend_on_nothing_but_their_number():
  found = whole()
  assert len({row.tobytes() for row in found.reshape(9, -1)}) == 9
  np.testing.assert_array_equal(train(num_experts=1, num_epochs=1), found[:1, :2])
  together = train(parallel="vmap", at_once=2)
  np.testing.assert_allclose(together, found, rtol=1e-3, atol=1e-5)


@pytest.fixture
def recorded(monkeypatch):
  """What is recorded, (name, epoch); the fifth time stops the run."""
  steps, record = [], trajectories._record

  def killed(snapshots, epoch, ravel, networks, state):
    record(snapshots, epoch, ravel, networks, state)
    steps.append((networks[0].name, epoch))
    if len(steps) == 5:
      raise KeyboardInterrupt

  monkeypatch.setattr(trajectories, "_record", killed)
  return steps


def test_a_stopped_run_goes_on_with_its_expert_and_ends_with_the_same_bits(tmp_path, recorded):
  with pytest.raises(KeyboardInterrupt):
    train(session_in(tmp_path), num_experts=2)
  assert recorded[-1] == ("trajectories/experts/1", 1)
  found = train(session_in(tmp_path), num_experts=2)
  assert isinstance(found, np.memmap)
  np.testing.assert_array_equal(found, whole()[:2])
  again = [step for step in recorded[5:] if step[1] > 0]  # not expert 0
  assert again == [("trajectories/experts/1", 1), ("trajectories/experts/1", 2)]
  path = tmp_path / "trajectories" / "experts" / "snapshots.npy"
  path.write_bytes(path.read_bytes()[:-8])  # its checkpoints say that all is done
  np.testing.assert_array_equal(train(session_in(tmp_path), num_experts=2), whole()[:2])


def train_classifiers(session=None, **kwargs):
  options = {k: v for k, v in OPTIONS.items() if k not in ("num_experts", "num_epochs")}
  options |= {"classifier_epochs": 2, "optimizer": OPTIONS["optimizer"] | {"weight_decay": 0.5}}
  session = session or loop.Session(show_progress=False)
  return trajectories.train_classifiers(
    small.train_data(), small.SPEC, whole()[:2], **options | kwargs, session=session
  )


@functools.cache
def classifiers():
  return train_classifiers()


@pytest.mark.parametrize("rho", [0.0, 0.2])
def test_classifiers_move_alone_on_balanced_batches(rho):
  """The weight decay of the experts is not theirs, and norms of GSAM are of the classifier."""
  data, model = small.train_data(), small.expert()
  flat = flat_params(model, small.SPEC.image_shape)
  found = train_classifiers(gsam_rho=rho, gsam_alpha=0.5) if rho else classifiers()
  features, first = np.split(whole()[1, -1], [flat.num_features])
  assert found.shape == (2, 3, len(first))
  np.testing.assert_array_equal(found[1, 0], first)
  images = augment.normalize(data.images, small.SPEC.mean, small.SPEC.std)

  @jax.jit
  def move(classifier, x, y):
    def loss(classifier):
      params = flat.unravel(jnp.concatenate([features, classifier]))
      return losses.cross_entropy(model.apply({"params": params}, x, train=True), y)

    return classifier - 0.1 * gsam.value_and_grad(loss, rho=rho, alpha=0.5)(classifier)[1]

  sampler = feed.ClassAwareSampler(0, "trajectories/classifiers/1", data.labels, 4)
  ends = {6: 1, 11: 2}  # batches that complete 21 and 42 images
  for t in range(11):
    rows = sampler(t)
    first = move(first, images[rows], jnp.asarray(data.labels[rows]))
    if t + 1 in ends:
      np.testing.assert_allclose(found[1, ends[t + 1]], first, rtol=1e-4, atol=1e-6)


def test_classifiers_go_on_after_a_stop_and_end_with_the_same_bits(tmp_path, recorded):
  with pytest.raises(KeyboardInterrupt):
    train_classifiers(session_in(tmp_path))
  assert recorded[-1] == ("trajectories/classifiers/1", 1)
  np.testing.assert_array_equal(train_classifiers(session_in(tmp_path)), classifiers())
  assert {name for name, epoch in recorded[5:] if epoch} == {"trajectories/classifiers/1"}


@pytest.mark.parametrize(
  ("kwargs", "message"),
  [
    ({"num_experts": 0}, r"config\.trajectories\.num_experts is 0; expected 1 or more"),
    ({"num_epochs": -1}, r"config\.trajectories\.num_epochs is -1"),
    ({"gsam_rho": -0.1}, r"config\.trajectories\.gsam_rho is -0.1; expected 0 or more"),
    ({"at_once": 0}, r"config\.trajectories\.at_once is 0"),
    ({"augment": "color_cutmix"}, "operation 'cutmix' is not known"),
    ({"network": small.NET | {"norm": "batch"}}, r"trajectories\.network: ConvNet has batch norms"),
    ({"network": {"name": "convnett"}}, r"config\.trajectories\.network: unknown model 'convnett'"),
    ({"parallel": "all"}, r"config\.trajectories\.parallel is 'all'"),
    ({"optimizer": {"name": "sgd", "lr": 1e30}}, r"experts/0: .*expected .*finite"),
  ],
)
def test_invalid_arguments(kwargs, message):
  with pytest.raises(LtddError, match=message):
    train(loop.Session(show_progress=False), **kwargs)


# ---- the stage, and the methods that read it ----


def config_of(folder, **method):
  methods = {"mine": {"name": "tesla"} | TRAJECTORIES | method}
  config = small.run_config(folder, methods)
  config["trajectories"] = OPTIONS | {"num_experts": 2}
  config["student"]["optimizer"] = {"name": "sgd", "lr": None}
  return config


def run(config, workdir, **kwargs):
  return pipeline.run(config, workdir, show_progress=False, **kwargs)


def test_a_run_has_the_stage_if_a_method_needs_it(tmp_path):
  config = check.check(config_of(tmp_path))
  made = {s.name: s for s in graph.make_stages(Context(config))}
  assert list(made) == ["data", "trajectories", "distil/mine", "student/mine/hard"]
  assert made["distil/mine"].inputs.keys() == {"data", "trajectories"}
  size = 4 * 2 * 3 * whole().shape[-1]
  line = plan.trajectories(Context(config), splits=(None,))
  assert f"2 x convnet ({whole().shape[-1]} parameters): 6 steps" in line
  assert f"{size:,} bytes" in line
  config["distil"]["methods"] = {"random": {"name": "random"}}
  assert "trajectories" not in [s.name for s in graph.make_stages(Context(config))]


def test_experts_of_the_split_of_each_image_source(tmp_path):
  config = config_of(tmp_path)
  config["data"]["splits"] = {"few": {"rule": "counts", "counts": (2, 2, 1)}}
  config["teacher"]["models"]["b"] = config["teacher"]["models"]["a"]
  config["teacher"]["splits"] = {"b": "few"}
  config["distil"]["methods"]["other"] = config["distil"]["methods"]["mine"] | {"split": "few"}
  made = {s.name: s for s in graph.make_stages(Context(check.check(config)))}
  assert made["trajectories"].about == {"splits": (None, "few")}


def test_from_experts_to_students_and_what_is_refused(tmp_path):
  config = config_of(tmp_path, expert_labels=True)
  results = run(config, tmp_path / "run")
  load = Workdir(tmp_path / "run").load
  found = load("trajectories")
  np.testing.assert_array_equal(found.arrays["experts"], whole()[:2])
  made = load("distil/mine").arrays
  assert made["images"].dtype == np.float32
  assert made["soft_labels"].shape == (6, 3)
  assert made["student_lr"] > 0
  (note,) = [note for note in results["notes"] if "rate" in note]
  assert note.endswith("learned with the images")
  other = config_of(tmp_path, expert_labels=True)
  other["trajectories"]["network"] = small.NET | {"width": 5}
  with pytest.raises(LtddError, match=r"trajectories(.|\n)*network\.width: 4 -> 5"):
    run(other, tmp_path / "run")
  other = config_of(tmp_path, expert_labels=True)
  other["data"] |= {"rule": "counts", "counts": (5, 3, 1)}
  with pytest.raises(LtddError, match=r"data(.|\n)*counts"):
    run(other, tmp_path / "run")
  path = tmp_path / "run" / "trajectories" / "experts.npy"
  content = bytearray(path.read_bytes())
  content[-1] ^= 1
  path.write_bytes(content)
  with pytest.raises(LtddError, match=r"experts\.npy is damaged: its content was altered"):
    Workdir(tmp_path / "run").load("trajectories")


def damed_config(folder, classifier_epochs, **method):
  config = config_of(folder, name="damed", **KWARGS["damed"] | method)
  config["trajectories"] |= {"classifier_epochs": classifier_epochs}
  return config


def test_classifier_experts_of_a_run(tmp_path):
  config = damed_config(tmp_path, 2)
  line = plan.trajectories(Context(check.check(config)), splits=(None,))
  assert "their classifiers (195 parameters): 11 steps, 3 snapshots" in line
  run(config, tmp_path / "run")
  assert Workdir(tmp_path / "run").load("distil/mine").arrays["soft_labels"].shape == (6, 3)
  found = Workdir(tmp_path / "run").load("trajectories").arrays
  assert found["classifiers"].shape == (2, 3, 195)
  np.testing.assert_array_equal(found["experts"], whole()[:2])


def test_missing_classifier_experts_are_refused_before_work(tmp_path):
  with pytest.raises(LtddError, match=r"trajectories\.classifier_epochs is 0, but .*; expected 1"):
    run(damed_config(tmp_path, 0), tmp_path / "run")
  message = (
    "expert_epochs is 2, but the classifier experts have 1 epochs; lower it, or raise .*to 2"
  )
  with pytest.raises(LtddError, match=message):
    run(damed_config(tmp_path, 1, expert_epochs=2, max_start_epoch=1), tmp_path / "run")
  assert not (tmp_path / "run").exists()


def test_epochs_beyond_the_snapshots_are_refused_before_work(tmp_path):
  message = "max_start_epoch is 2 and expert_epochs is 2, .* after 3 epochs, .* have 2; .* to 3"
  with pytest.raises(LtddError, match=message):
    run(config_of(tmp_path, expert_epochs=2), tmp_path / "run")
  assert not (tmp_path / "run").exists()


def test_no_experts_and_unknown_optimizers_are_refused_with_their_key(tmp_path):
  config = config_of(tmp_path)
  config["trajectories"] = OPTIONS | {"num_experts": 0}
  with pytest.raises(LtddError, match=r"config\.trajectories\.num_experts is 0; expected 1"):
    check.check(config)
  idm = {"name": "idm", "optimizer": {"name": "sdg", "lr": 0.1}}
  config = config_of(tmp_path) | {"distil": {"methods": {"other": idm}}}
  with pytest.raises(LtddError, match=r"methods\.other\.optimizer: unknown name 'sdg'"):
    check.check(config)


def test_a_rate_that_turns_negative_stops_with_the_step(tmp_path):
  message = r"distil/mine/0: student_lr is -\S+ at step [12], expected a positive number; lower"
  with pytest.raises(LtddError, match=message):
    run(config_of(tmp_path, lr_lr=1e6), tmp_path / "run")


def test_vectors_of_another_network_are_refused():
  method = distil.make_method(small.env(), "mtt", **TRAJECTORIES)
  host = {"trajectories": np.zeros((2, 4, 7), np.float32)}
  with pytest.raises(LtddError, match="of 7 parameters, but the network has 243; expected"):
    method.inputs(rng.np_rng(0), 0, host)
