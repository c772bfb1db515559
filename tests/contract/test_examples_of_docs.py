"""The examples of the how-to pages run: methods, a teacher's loss, a config of combinations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ltdd_jax.core.types import LtddError
from ltdd_jax.pipeline import check, graph
from ltdd_jax.pipeline.context import Context
from tests import readme_commands, small
from tests.contract.test_methods import SLOTS

PAGES = readme_commands.ROOT / "docs" / "how-to"


def names_of(page):
  """What the Python blocks of a page define, each complete by itself."""
  names = {}
  for block in readme_commands.blocks("python", PAGES / page):
    own = {}
    exec(compile(block, page, "exec"), own)
    names |= own
  return names


@pytest.mark.parametrize(("name", "kwargs"), [("certain", {"num_steps": 2}), ("mean_image", {})])
def test_methods(name, kwargs, key):
  method = names_of("add_a_method.md")[name](small.env(), **kwargs)
  res, (init_key, step_key) = small.resources(), jax.random.split(key)
  state = method.init(init_key, SLOTS, res)
  for t in range(method.num_steps):
    state, _ = method.step(jax.random.fold_in(step_key, t), state, res, None)
  made = method.read(state)
  np.testing.assert_array_equal(made.labels, SLOTS.labels)
  assert jnp.isfinite(made.images).all()


def test_a_loss_of_teachers(key):
  objective = names_of("add_a_teacher_loss.md")["two_views"](small.COUNTS, weight=2.0)
  model, variables = small.teacher().model, small.teacher().variables
  image = jax.random.normal(key, (4, 8, 8, 1))
  batch = jnp.stack([image, image]), jnp.array([0, 1, 2, 0])
  parts = variables["params"], variables["batch_stats"]
  loss, (batch_stats, metrics) = objective(model.apply, *parts, batch, None, 0.0)
  assert metrics["apart"] == 0  # the same view twice
  assert jnp.isfinite(loss)
  assert batch_stats.keys() == variables["batch_stats"].keys()


def test_combinations(tmp_path):
  config = names_of("combine_images_and_labels.md")["get_config"]("preset=smoke").to_dict()
  data = small.run_config(tmp_path, {})["data"]
  n = np.repeat(np.arange(small.K), 2).astype(np.int32)
  logits = 2 * np.eye(small.K, dtype=np.float32)[n]
  np.savez(tmp_path / "images.npz", images=small.images(6), labels=n, soft_labels=logits)
  np.save(tmp_path / "logits.npy", logits)
  config["data"] |= data | {"imbalance_factor": 1.0, "num_test": None}
  config["distil"]["methods"]["mine"]["path"] = str(tmp_path / "images.npz")
  config["label"]["sources"]["file"]["path"] = str(tmp_path / "logits.npy")
  config["label"]["views"] = {"crop_scale": None, "flip": False, "mix": None}
  plain = check.check(config)
  check.check_with_data(Context(plain))
  rows = {(r.images, r.labels) for r in graph.rows(plain) if r.calibrator}
  assert rows == {
    ("mine", "own"), ("mine", "file"), *((x, "teacher") for x in ("mine", "sre2l", "random"))
  }  # fmt: skip
  plain["label"]["sources"]["own"]["images"] = ("random",)
  with pytest.raises(LtddError, match="no learned labels"):
    check.check_with_data(Context(plain))
