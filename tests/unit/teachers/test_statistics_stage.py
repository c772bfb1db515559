"""The stage `statistics`: there if a method needs it, collected, stored, and fed to the method."""

import copy

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import digits_lt
from ltdd_jax import distil
from ltdd_jax.artefacts.workdir import Workdir
from ltdd_jax.core.types import Distilled, LtddError
from ltdd_jax.pipeline import check, plan, stages
from ltdd_jax.pipeline.run import fingerprints, run
from ltdd_jax.teachers import statistics as statistics_lib


def darkest(env, /):
  """Images of the mean colour of their class: a method that reads nothing but statistics."""

  def init(key, slots, feed):
    (seen,) = res["statistics"]
    target = statistics_lib.per_class(seen.layers[0])
    colour = target.mean[slots.labels][:, None, None, :]
    images = jnp.broadcast_to(colour, (len(slots.labels), *env.image_shape))
    return Distilled(images, jnp.asarray(slots.labels))

  def step(key, state, feed, x, *, turn=0):
    return state, {}

  return distil.Method(init, step, lambda state: state, needs=("statistics",), num_steps=0)


@pytest.fixture
def config(monkeypatch):
  monkeypatch.setitem(distil.METHODS, "darkest", darkest)
  monkeypatch.setattr(distil, "NEEDS_STATISTICS", frozenset({"darkest"}))
  config = digits_lt.get_config("preset=smoke,method=random").to_dict()
  config["distil"]["methods"]["darkest"] = {"name": "darkest"}
  return config


def test_names_needs_and_fingerprints(config):
  config = check.check(config)
  assert config["statistics"] == {"tile": 4, "batch_size": 256, "augment": None}
  with_it = {s.name: s for s in stages.make_stages(config)}
  assert list(with_it)[:3] == ["data", "teacher", "statistics"]
  assert with_it["distil/darkest"].inputs == ("data", "teacher", "statistics")
  assert with_it["distil/random"].inputs == ("data",)
  other = copy.deepcopy(config)
  other["statistics"]["tile"] = 2
  prints, changed = (fingerprints(stages.make_stages(c)) for c in (config, other))
  differ = {name for name in prints if prints[name] != changed[name]}
  assert {"statistics", "distil/darkest", "label/darkest"} <= differ
  assert not any("random" in name for name in differ)
  subset = copy.deepcopy(config)
  subset["distil"]["teachers"] = ("teacher",)
  assert fingerprints(stages.make_stages(subset))["statistics"] != prints["statistics"]
  del other["distil"]["methods"]["darkest"]
  without = fingerprints(stages.make_stages(other))
  assert "statistics" not in without
  assert without == {name: prints[name] for name in without}


def test_options_are_checked(config):
  for key in ("tile", "batch_size"):
    with pytest.raises(LtddError, match=rf"config\.statistics\.{key} is 0; expected 1 or more"):
      check.check(config | {"statistics": {key: 0}})
  with pytest.raises(LtddError, match=r"config\.statistics\.augment has 'cutmix', which mixes"):
    check.check(config | {"statistics": {"augment": ({"name": "cutmix"},)}})


def test_collected_stored_and_fed(config, tmp_path):
  config["teacher"]["num_epochs"] = 1
  config["teacher"]["models"]["teacher"] |= {"depth": 1, "width": 4}
  del config["distil"]["methods"]["random"]
  run(config, tmp_path, stage="distil", show_progress=False)
  ctx = stages.Context(check.check(config), Workdir(tmp_path))
  (seen,) = ctx.statistics
  np.testing.assert_array_equal(seen.counts, ctx.counts)
  line = plan.statistics(ctx)
  assert line.startswith("teacher (2 layers), 10 classes: ")
  assert f"{statistics_lib.num_bytes(seen):,} bytes" in line
  assert jax.tree.structure(seen) == jax.tree.structure(ctx.statistics_shapes()[0])
  spec = ctx.source.spec
  images, labels = ctx.images("darkest")
  colour = seen.layers[0].mean[labels] * spec.std[0] + spec.mean[0]
  np.testing.assert_allclose(images[:, 0, 0] / 255, colour, atol=1 / 255)
