"""Every command and Python snippet of the README and the tutorial on logits runs, made small."""

import os
import pathlib
import shlex
import subprocess
import sys
import tomllib

import jax
import numpy as np
import pytest
from PIL import Image

from tests import readme_commands
from tests.readme_commands import COMMANDS, INSTALL, ROOT

RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """A folder with what a reader of the README would have in it."""
  path = tmp_path_factory.mktemp("readme")
  os.symlink(ROOT / "configs", path / "configs")
  for name, array in logits().items():
    np.save(path / f"{name}.npy", array)
  labels = np.tile(np.arange(10), 12)
  images = RNG.integers(0, 256, (len(labels), 32, 32, 3), dtype=np.uint8)
  arrays = {"x_train": images, "y_train": labels, "x_test": images, "y_test": labels}
  np.savez(path / "cifar10.npz", **arrays)
  for split in ("train", "test"):
    for name, count in (("ant", 6), ("bee", 3)):
      here = path / "my" / "images" / split / name
      here.mkdir(parents=True)
      for i in range(count):
        Image.fromarray(images[i, : 9 + i]).save(here / f"{i}.png")
  return path


def logits():
  """Logits, labels and class counts of 20 images of 5 classes, by the names of their files."""
  labels = np.repeat(np.arange(5), 4)
  counts = np.array([500, 200, 60, 20, 5])
  z = RNG.normal(size=(3, 20, 5)) + 2.0 * np.eye(5)[labels] + 0.7 * np.log(counts)
  return {"z": z.astype(np.float32), "y": labels, "n": counts}


@pytest.mark.parametrize("command", [c for c in COMMANDS if c != INSTALL])
def test_command_runs(command, folder):
  replaced, added = COMMANDS[command]
  for old, new in replaced:
    assert command.count(old) == 1
    command = command.replace(old, new)
  words = [sys.executable if word == "python" else word for word in shlex.split(command)]
  env = os.environ | {"PYTHONPATH": str(ROOT), "JAX_COMPILATION_CACHE_DIR": str(folder / "xla")}
  done = subprocess.run(
    [*words, *added], cwd=folder, env=env, capture_output=True, text=True, check=False
  )
  assert done.returncode == 0, done.stderr[-3000:]
  out = pathlib.Path(words[-1])
  made = [out] if out.suffix else [out / "report" / name for name in ("report.md", "index.html")]
  assert all((folder / path).exists() for path in made)


def test_the_extras_that_are_installed_exist():
  project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
  assert INSTALL == "pip install -e '.[report]'"
  assert {"report", "cuda", "tpu", "dev"} <= set(project["optional-dependencies"])


def test_the_snippets_run(folder, monkeypatch):
  monkeypatch.chdir(folder)
  names = {}
  for block in readme_commands.blocks("python"):
    exec(compile(block, "README.md", "exec"), names)
  assert 0 < names["result"].tau < 3
  soft_labels = names["soft_labels"]
  assert soft_labels.shape == names["logits"].shape
  np.testing.assert_allclose(jax.device_get(soft_labels).sum(-1), 1, atol=1e-5)
