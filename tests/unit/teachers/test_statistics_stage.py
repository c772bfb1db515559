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
from ltdd_jax.pipeline import check, graph, plan, run
from ltdd_jax.pipeline.context import Context
from ltdd_jax.teachers import statistics as statistics_lib

VERSION = 1  # of the method below


def darkest(env, /):
  """Images of the mean colour of their class: a method that reads nothing but statistics."""

  def init(key, slots, res):
    (seen,) = res["statistics"]
    target = statistics_lib.per_class(seen.layers[0])
    colour = target.mean[slots.labels][:, None, None, :]
    images = jnp.broadcast_to(colour, (len(slots.labels), *env.image_shape))
    return Distilled(images, jnp.asarray(slots.labels))

  def step(key, state, res, x, *, turn=0):
    return state, {}

  return distil.Method(init, step, lambda state: state, needs=("statistics",), num_steps=0)


@pytest.fixture
def config(monkeypatch):
  monkeypatch.setitem(distil.METHODS, "darkest", darkest)
  config = digits_lt.get_config("preset=smoke,method=random").to_dict()
  config["distil"]["methods"]["darkest"] = {"name": "darkest"}
  return config


def test_names_needs_and_fingerprints(config):
  config = check.check(config)
  assert config["statistics"] == {"tile": 4, "batch_size": 256, "augment": None}
  made = lambda config: {s.name: s for s in graph.make_stages(Context(config))}
  fingerprints = lambda config: {name: s.fingerprint for name, s in made(config).items()}
  with_it = made(config)
  assert list(with_it)[:3] == ["data", "teacher", "statistics"]
  assert with_it["distil/darkest"].inputs.keys() == {"data", "statistics"}
  assert with_it["statistics"].inputs.keys() == {"data", "teacher"}
  assert with_it["distil/random"].inputs.keys() == {"data"}
  other = copy.deepcopy(config)
  other["statistics"]["tile"] = 2
  prints, changed = (fingerprints(c) for c in (config, other))
  differ = {name for name in prints if prints[name] != changed[name]}
  assert {"statistics", "distil/darkest", "label/darkest/teacher"} <= differ
  assert not any("random" in name for name in differ)
  two = copy.deepcopy(config)
  two["teacher"]["models"]["other"] = dict(two["teacher"]["models"]["teacher"])
  subset = copy.deepcopy(two)
  subset["distil"]["teachers"] = ("teacher",)
  assert fingerprints(subset)["statistics"] != fingerprints(two)["statistics"]
  assert fingerprints(subset)["teacher"] == fingerprints(two)["teacher"]
  del other["distil"]["methods"]["darkest"]
  without = fingerprints(other)
  assert "statistics" not in without
  assert without == {name: prints[name] for name in without}


def test_options_are_checked(config):
  for key in ("tile", "batch_size"):
    with pytest.raises(LtddError, match=rf"config\.statistics\.{key} is 0; expected 1 or more"):
      check.check(config | {"statistics": {key: 0}})
  with pytest.raises(LtddError, match=r"config\.statistics\.augment\.0: unknown name 'cutmix'"):
    check.check(config | {"statistics": {"augment": ({"name": "cutmix"},)}})


def test_collected_stored_and_fed(config, tmp_path):
  config["teacher"]["num_epochs"] = 1
  config["teacher"]["models"]["teacher"] |= {"depth": 1, "width": 4}
  del config["distil"]["methods"]["random"]
  run(config, tmp_path, stage="distil", show_progress=False)
  ctx = Context(check.check(config), Workdir(tmp_path))
  names = ctx.teacher_names("darkest")
  (seen,) = ctx.statistics(names)
  np.testing.assert_array_equal(seen.counts, ctx.counts)
  line = plan.statistics(ctx, names=names)
  assert line.startswith("teacher (2 layers), 10 classes: ")
  assert f"{statistics_lib.num_bytes(seen):,} bytes" in line
  assert jax.tree.structure(seen) == jax.tree.structure(ctx.statistics_shapes(names)[0])
  spec = ctx.source.spec
  images, labels = (ctx.distilled("darkest")[k] for k in ("images", "labels"))
  colour = seen.layers[0].channels.mean[labels] * spec.std[0] + spec.mean[0]
  np.testing.assert_allclose(images[:, 0, 0] / 255, colour, atol=1 / 255)
