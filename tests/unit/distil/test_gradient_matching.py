"""DC, DSA and DREAM: networks over the steps, data with a known answer, their errors."""

import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import methods
from ltdd_jax import distil
from ltdd_jax.core.types import LtddError
from ltdd_jax.data import stream
from ltdd_jax.data.sources import open_source
from ltdd_jax.distil import gradient_matching as gm
from ltdd_jax.distil.dream import dream, subset
from ltdd_jax.distil.gradient_matching import dc, dsa
from ltdd_jax.distil.network_training import cutmix_batch, draw_batches
from ltdd_jax.distil.representatives import representatives
from tests import small

SIDE = 4
BLOBS = distil.Env((SIDE, SIDE, 1), 2, (0.5,), (0.25,))
COUNTS = (30, 6)
NET = {"name": "convnet", "depth": 1, "width": 4, "norm": "none"}
FACTORS = {"dc": 5, "dream": 4}  # by which the loss falls at least


def blobs():
  """Two Gaussian blobs: images bright on the left, and on the right."""
  draws, labels = np.random.RandomState(0), np.repeat([0, 1], COUNTS)
  left = (np.arange(SIDE) < SIDE // 2).astype(float)
  mean = 0.3 + 0.4 * np.where(labels[:, None] == 0, left, 1 - left)[:, None, :, None]
  pixels = mean + 0.05 * draws.normal(size=(len(labels), SIDE, SIDE, 1))
  images = jnp.asarray(np.clip(255 * pixels, 0, 255).astype(np.uint8))
  return {"images": images, "labels": jnp.asarray(labels, jnp.int32)}


def make(name, **kwargs):
  if name == "dream":
    small_one = {"num_clusters": 30, "interval": 5, "num_iterations": 3, "network_images": 4}
    defaults = small_one | {"lr": 0.5, "network_lr": 0.0, "augment": None, "network_augment": None}
    defaults |= {"factor": 1, "network": NET | {"norm": "instance"}}
  else:
    defaults = {"batch_real": 8, "epochs": 0, "lr": 1.0}
  return distil.METHODS[name](
    BLOBS, **{"network": NET, "steps_per_network": 100} | defaults | kwargs
  )


def run(method, steps, counts=(3, 1), res=None):
  res = res or blobs()
  slots = distil.make_slots(2, slots_per_class=counts)
  state, step = jax.jit(method.init)(jax.random.key(0), slots, res), jax.jit(method.step)
  for t in range(steps):
    x = method.inputs(np.random.default_rng(t), t, res)
    state, metrics = step(jax.random.key(t), state, res, x)
    yield state, float(metrics["loss"])


@pytest.mark.parametrize("name", FACTORS)
def test_the_loss_falls_on_two_blobs(name):
  """On one network, without training it."""
  method = make(name)
  states, losses = zip(*run(method, 30), strict=True)
  assert np.mean(losses[-5:]) < losses[0] / FACTORS[name]
  images, read = states[-1].images, method.read(states[-1]).images
  np.testing.assert_allclose(read, (images - 0.5) / 0.25 if name == "dream" else images, atol=1e-5)


def test_dream_starts_from_images_on_disk_as_from_those_in_memory():
  res = blobs()
  arrays = {f"train_{k}": np.asarray(v) for k, v in res.items()}
  arrays |= {f"test_{k}": np.asarray(v) for k, v in res.items()}
  source = open_source("arrays", arrays=arrays)
  on_disk = stream.HostImages(source, "train", np.arange(len(res["labels"])))
  (one, _), *_ = run(make("dream"), 1)
  (other, _), *_ = run(make("dream"), 1, res=res | {"images": on_disk})
  np.testing.assert_array_equal(one.images, other.images)


def test_networks_are_trained_between_steps_and_then_drawn_anew():
  method = make("dc", lr=0.0, epochs=2, network_batch=3, steps_per_network=2)
  nets = [state.network[0]["classifier"]["kernel"] for state, _ in run(method, 5)]
  moved = [float(abs(a - b).max()) for a, b in itertools.pairwise(nets)]
  # trained after steps 0, 2 and 4 alone: what step 1 leaves is the same
  assert moved[0] == moved[2] == 0
  assert min(moved[1], moved[3]) > 0.1


def test_an_epoch_trains_on_each_image_once():
  """Of rows of an identity matrix, by a linear network: with a small rate all count once."""

  class Linear(nn.Module):
    @nn.compact
    def __call__(self, images, *, train):
      weights = self.param("weights", nn.initializers.zeros, (5, 2))
      return images.reshape(len(images), -1)[:, :5] @ weights

  images = jnp.zeros((5, SIDE, SIDE, 1)).at[jnp.arange(5), 0, :, 0].set(jnp.eye(5)[:, :SIDE])
  images = images.at[4, 1, 0, 0].set(1.0)
  options = gm.Options(1, 0.1, 0.5, 1, NET, 2, 1, 1e-3, 2, None, "real")
  state = gm.MatchState(0, images, jnp.asarray([0, 0, 1, 1, 1]), None, None)
  tx, params = optax.sgd(1e-3), {"weights": jnp.zeros((5, 2))}
  train = lambda key: gm.train_on(
    Linear(), tx, (params, tx.init(params)), key, images, state, options
  )
  moved, _ = jax.jit(train)(jax.random.key(0))
  ratio = np.sort(np.abs(np.asarray(moved["weights"])).max(1)) / 5e-4
  np.testing.assert_allclose(ratio, [0.5, 0.5, 0.5, 0.5, 1], rtol=2e-3)  # the last batch has one


def test_representatives_are_those_nearest_the_centres_of_clusters():
  """Three clusters in class 0, each with an image at its centre; two images of class 2."""
  spread = np.array([[0, 0], [1, 0], [-1, 0], [0, 1], [0, -1]], np.float32)
  features = np.concatenate([spread + far for far in (0, 100, 200)])
  features = np.concatenate([features, [[7, 7], [8, 8]]]).astype(np.float32)
  labels = np.array([0] * 15 + [2] * 2, np.int32)
  fn = jax.jit(representatives, static_argnums=(3, 4, 5))
  for seed in range(5):
    rows, weights = fn(jax.random.key(seed), features, labels, 3, 3, 10)
    np.testing.assert_array_equal(weights, [[1, 1, 1], [0, 0, 0], [1, 1, 0]])
    assert set(np.asarray(rows[2, :2])) == {15, 16}
    owners = np.asarray(rows[0]) // 5
    assert set(np.asarray(rows[0])) == {0, 5, 10} or len(set(owners)) < 3  # a local optimum


def test_many_images_are_taken_in_parts():
  rng = np.random.RandomState(0)
  features = rng.normal(size=(1100, 2)).astype(np.float32)
  labels = np.zeros(1100, np.int32)
  fn = jax.jit(representatives, static_argnums=(3, 4, 5))
  rows, _ = fn(jax.random.key(0), features, labels, 1, 4, 30)
  centres = features[np.asarray(rows[0])]
  owner = np.square(features[:, None] - centres[None]).sum(-1).argmin(1)
  means = np.stack([features[owner == i].mean(0) for i in range(4)])
  np.testing.assert_allclose(centres, means, atol=0.15)


def test_a_subset_of_the_decoded_images_of_a_class(key):
  mine = jnp.array([True, False, True, True])
  np.testing.assert_array_equal(subset(key, mine, 4, 16)[:, 0], [1, 0, 1, 1])
  found = np.asarray(subset(key, mine, 4, 5))
  assert found.sum() == 5
  assert found[1].sum() == 0


def test_dream_hides_parts_behind_the_mean_colour(monkeypatch):
  """Views are of normalised images: of white ones, 2, the rest is 0. Real and distilled alike."""

  def class_gradient(matching, params, view, c, real, images, *rest):
    seen = view(jnp.concatenate([real[0], matching.decode(images)]))
    return seen.min() + seen.max(), jnp.zeros_like(images)

  monkeypatch.setattr(gm, "class_gradient", class_gradient)
  white = blobs() | {"images": jnp.full((36, SIDE, SIDE, 1), 255, jnp.uint8)}
  ((_, loss),) = run(make("dream", augment="cutout"), 1, res=white)
  assert loss == 2 + 2


def test_batches_of_training_images():
  rng = np.random.default_rng(0)
  rows, weights = draw_batches(rng, 10, 7, 4)
  assert rows.shape == (2, 4)
  assert weights.all()
  assert len(set(rows.ravel())) == 8
  rows, weights = draw_batches(rng, 3, 7, 2)
  np.testing.assert_array_equal(weights, [[1, 1], [1, 0]])
  assert set(rows.ravel()) == {0, 1, 2}


def test_cutmix_of_a_batch():
  images = jnp.broadcast_to(jnp.arange(1.0, 5).reshape(4, 1, 1, 1), (4, 6, 6, 1))
  fn = jax.jit(cutmix_batch, static_argnums=2)
  mixed, partner, own = fn(jax.random.key(1), images, 1.0)
  mean = own * images[:, 0, 0, 0] + (1 - own) * images[partner, 0, 0, 0]
  np.testing.assert_allclose(mixed.mean((1, 2, 3)), mean, rtol=1e-6)
  same, _, own = fn(jax.random.key(1), images, 0.0)
  np.testing.assert_array_equal(same, images)
  assert own == 1


def test_published_settings():
  steps = [methods.dc("cifar10", ipc).method["steps_per_network"] for ipc in (1, 2, 10, 45, 50)]
  assert steps == [1, 1, 10, 50, 50]
  ten, fifty = (methods.dsa("cifar100", ipc).method for ipc in (10, 50))
  assert (ten["epochs"], fifty["epochs"], fifty["num_steps"]) == (50, 10, 50_000)
  assert "flip" not in methods.dsa("mnist", 1).method["augment"]
  rates = [methods.dream(*case).method["lr"] for case in (("cifar10", 50), ("tiny_imagenet", 10))]
  np.testing.assert_allclose(rates, [0.025, 0.02])
  assert methods.dream("tiny_imagenet", 10).method["num_clusters"] == 64


@pytest.mark.parametrize(
  ("method", "kwargs", "message"),
  [
    (dc, {"num_steps": 0}, "'dc': num_steps is 0; expected 1 or more"),
    (dsa, {"epochs": -1}, "'dsa': epochs is -1; expected 0 or more"),
    (dsa, {"augment": "color_cutmix"}, "operation 'cutmix' is not known"),
    (dc, {"init": "rded"}, "'init' of method 'dc': 'rded'. .*: imported, noise, real"),
    (dc, {"momentum": 1.0}, r"momentum is 1.0; expected a number in \[0, 1\)"),
    (dsa, {"network": NET | {"norm": "batch"}}, "'dsa': network .* has batch norm"),
    (dream, {"factor": 9}, "'dream': factor is 9"),
    (dream, {"interval": 0}, "'dream': interval is 0; expected 1 or more"),
    (dream, {"network_augment": "blur"}, "operation 'blur' is not known"),
  ],
)
def test_invalid_arguments(method, kwargs, message):
  with pytest.raises(LtddError, match=message):
    method(small.env(0), **{"network": NET, **kwargs})


def test_dream_refuses_more_slots_than_clusters():
  method, have = make("dream", num_clusters=4, factor=2), np.array(COUNTS)
  assert len(method.notes(np.array([30, 3]), np.array([4, 1]))) == 2
  with pytest.raises(LtddError, match=r"class 1 has 5 slots.*num_clusters=4.*Raise num_clusters"):
    method.notes(have, np.array([4, 5]))
