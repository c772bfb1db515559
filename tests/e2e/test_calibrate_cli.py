"""The command `python -m launch.calibrate`: messages, memory, and what the docs say about it."""

import contextlib
import json
import os
import pathlib
import re
import signal
import struct
import subprocess
import sys
import time
import types

import numpy as np
import pytest
from PIL import Image

ROOT = pathlib.Path(__file__).parents[2]
K, N, E = 30, 120, 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  folder, random = tmp_path_factory.mktemp("logits"), np.random.default_rng(0)
  counts = (500 * (1 / 100) ** (np.arange(K) / (K - 1))).astype(int)
  labels = np.arange(N) % K
  logits = random.standard_normal((E, N, K)) + 3 * np.eye(K)[labels]
  np.save(folder / "z.npy", (logits + np.log(counts / counts.sum())).astype(np.float16))
  np.save(folder / "y.npy", labels)
  np.save(folder / "n.npy", counts)
  return folder


def test_help_does_not_wait_for_jax():
  """And is there at once."""
  code = """
import runpy, sys
sys.argv = ["calibrate", "--help"]
try:
  runpy.run_module("launch.calibrate", run_name="__main__")
finally:
  print({"jax", "numpy"} & set(sys.modules))
"""
  done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
  assert "--logits: (n, k) or (..., n, k) floats" in done.stdout
  assert "'criterion=marginal,tau_range=(0,2)'" in done.stdout
  assert done.stdout.endswith("set()\n")


def run(folder, *flags, inputs=("z.npy", "y.npy", "n.npy")):
  files = [
    f"--{k}={folder / v}" for k, v in zip(("logits", "labels", "counts"), inputs, strict=True)
  ]
  command = [sys.executable, "-m", "launch.calibrate", *files, *flags]
  return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)


def test_it_writes_prints_and_draws(folder, tmp_path):
  out, png = tmp_path / "labels.npz", tmp_path / "curve.png"
  done = run(
    folder, f"--out={out}", f"--plot={png}", "--dtype=float16",
    "--calibrator_args=tau_range=(-1,2),criterion=confidence",
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  stored = np.load(out, allow_pickle=False)
  tau = float(stored["tau"])
  assert 0.5 < tau < 1.5
  assert stored["labels"].shape == (E, N, K)
  assert f"tau = {tau:.4f}" in done.stdout
  rows = re.findall(r"^\| +(\S.*?) \| +(\S.*?) \| +([\d.]+) \| +([\d.]+) \|$", done.stdout, re.M)
  shown = {name: (float(before), float(after)) for name, _, before, after in rows}
  assert len([name for name in shown if name.startswith("class ")]) == 20
  assert {"class 0", f"class {K - 1}", "head, 10 classes", "mid, 10 classes"} <= set(shown)
  before, after = stored["class_confidence_before"], stored["class_confidence_after"]
  assert shown["class 0"] == (round(before[0], 3), round(after[0], 3))
  assert shown["tail, 10 classes"][1] == pytest.approx(after[20:].mean(), abs=1e-3)
  assert "10 more classes" in done.stdout
  assert f"wrote {out}: probabilities, float16 (2, 120, 30)" in done.stdout
  assert json.loads(str(stored["report"]))["calibrator_args"]["tau_range"] == [-1, 2]
  with Image.open(png) as picture:
    assert picture.format == "PNG"
    assert len(picture.getcolors(maxcolors=1 << 20)) > 2


def test_a_tilde_is_the_home_folder(folder, tmp_path, monkeypatch):
  monkeypatch.setenv("HOME", str(folder.parent))
  done = run(
    pathlib.Path("~") / folder.name, f"--out=~/{folder.name}/o.npy", f"--plot=~/{folder.name}/o.png"
  )
  assert done.returncode == 0, done.stderr
  assert f"wrote {folder / 'o.npy'}: " in done.stdout
  assert (folder / "o.png").exists()
  assert not (ROOT / "~").exists()


def test_a_dry_run_only_checks(folder, tmp_path):
  done = run(folder, f"--out={tmp_path / 'o.npy'}", "--dry_run", "--calibrator=fixed")
  assert done.returncode == 0, done.stderr
  assert "float16 (2, 120, 30), 240 rows of 30 classes" in done.stdout
  assert f"would write {tmp_path / 'o.npy'}" in done.stdout
  assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
  ("flags", "message"),
  [
    (["--out=o.npz", "--tua=1"], "Unknown command line flag 'tua'"),
    (["--out=o.npz", "--temperature=warm"], "flag --temperature=warm"),
    ([], "Flag --out must have a value"),
    (["--out=no/o.npz"], "there is no folder no"),
    (["--out=o.npz", "--calibrator=adas"], "unknown calibrator 'adas'. Did you mean 'adsa'?"),
    (["--out=o.npz", "--calibrator_args=tau"], "expected key=value"),
    (["--out=o.npz", "stray"], "unexpected arguments ['stray']"),
    (["--out=o.npz", "--plot=c.pdf"], "expected a name that ends in .png"),
  ],
)
def test_errors_are_one_message_and_exit_code_2(folder, flags, message):
  done = run(folder, *flags)
  assert done.returncode == 2
  assert done.stderr.startswith("error: ")
  assert message in done.stderr
  assert "Traceback" not in done.stderr


def test_an_error_in_a_file_too(folder, tmp_path):
  np.save(folder / "short.npy", np.arange(7))
  done = run(folder, f"--out={tmp_path / 'o.npz'}", inputs=("z.npy", "short.npy", "n.npy"))
  assert done.returncode == 2
  assert re.fullmatch(r"error: labels .*short\.npy: labels have shape \(7,\); .*\n", done.stderr)


# ---- memory ----

MEMORY = """
import pathlib, sys, threading
from ltdd_jax.core import startup
startup.tune_host()
import numpy as np
from ltdd_jax.interop import calibrate_logits

def anonymous():
  text = pathlib.Path("/proc/self/status").read_text()
  return int(text.split("RssAnon:")[1].split()[0]) * 1024

n, k = map(int, sys.argv[3:])
labels, counts = np.arange(n) % k, np.linspace(500, 5, k)
before, peak, done = anonymous(), [0], threading.Event()

def watch():
  while not done.wait(0.005):
    peak[0] = max(peak[0], anonymous() - before)

thread = threading.Thread(target=watch)
thread.start()
calibrate_logits(sys.argv[1], labels, counts, out=sys.argv[2], dtype="float16")
done.set()
thread.join()
print(peak[0])
"""


def write_large(path, n, k):
  """Writes float16 logits (n, k); all but the first k rows are zeros, which take no time."""
  z = np.lib.format.open_memmap(path.with_suffix(".npy"), "w+", np.float16, (n, k))
  z[:k] = np.random.default_rng(0).standard_normal((k, k)) + 3 * np.eye(k)
  if path.suffix == ".safetensors":
    entry = {"dtype": "F16", "shape": [n, k], "data_offsets": [0, z.nbytes]}
    header = json.dumps({"logits": entry}).encode()
    with open(path, "wb") as file:
      file.write(struct.pack("<Q", len(header)) + header)
      z.tofile(file)


@pytest.mark.skipif(not pathlib.Path("/proc/self/status").exists(), reason="needs Linux")
@pytest.mark.parametrize("suffix", [".npy", ".safetensors"])
def test_memory_does_not_grow_with_the_file(suffix, tmp_path):
  """400 MB of logits in, 400 MB of labels out, and little memory that is no page cache."""
  n, k = 400_000, 500
  path, out = tmp_path / f"z{suffix}", tmp_path / "o.npy"
  write_large(path, n, k)
  command = [sys.executable, "-c", MEMORY, str(path), str(out), str(n), str(k)]
  env = {k: v for k, v in os.environ.items() if k != "JAX_DISABLE_MOST_OPTIMIZATIONS"}
  done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, env=env)
  assert done.returncode == 0, done.stderr
  assert out.stat().st_size >= 400e6
  assert int(done.stdout) < 150e6


def test_a_stop_leaves_nothing(tmp_path):
  n, k = 200_000, 500
  write_large(tmp_path / "z.npy", n, k)
  np.save(tmp_path / "y.npy", np.arange(n) % k)
  np.save(tmp_path / "n.npy", np.linspace(500, 5, k))
  before = sorted(tmp_path.iterdir())
  names = {"logits": "z", "labels": "y", "counts": "n"}
  inputs = [f"--{flag}={tmp_path / name}.npy" for flag, name in names.items()]
  command = [sys.executable, "-m", "launch.calibrate", *inputs, f"--out={tmp_path / 'o.npy'}"]
  for _ in range(5):  # on a busy machine the signal may come after the end
    running = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    while running.poll() is None and sorted(tmp_path.iterdir()) == before:
      time.sleep(0.01)  # until it writes
    running.send_signal(signal.SIGTERM)
    _, errors = running.communicate(timeout=60)
    if running.returncode:
      break
    (tmp_path / "o.npy").unlink()
  assert errors.splitlines()[-1] == "error: stopped before the end; no file is half written."
  assert "Traceback" not in errors
  assert running.returncode == 130
  assert sorted(tmp_path.iterdir()) == before


# ---- docs ----


PAGE = ROOT / "docs" / "how-to" / "calibrate_logits.md"


class Tensor:
  """As much of torch.Tensor as the docs use, on NumPy."""

  def __init__(self, array):
    self.array = array

  def cpu(self):
    return self

  @property
  def shape(self):
    return self.array.shape

  def float(self):
    return Tensor(self.array.astype(np.float32))

  def numpy(self):
    return self.array


def test_the_documented_example_runs(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  random = np.random.default_rng(0)
  labels, counts = np.arange(50) % 10, np.linspace(500, 5, 10)
  logits = 3 * np.eye(10)[labels] + np.log(counts)
  torch = types.ModuleType("torch")
  torch.from_numpy = lambda array: Tensor(np.asarray(array))
  torch.stack = lambda parts: Tensor(np.stack([part.array for part in parts]))
  torch.bincount = lambda x, minlength: Tensor(np.bincount(x.array, minlength=minlength))
  torch.no_grad = contextlib.nullcontext
  monkeypatch.setitem(sys.modules, "torch", torch)

  class Teacher:
    eval = staticmethod(lambda: None)

    def __call__(self, images):
      return Tensor((images + random.standard_normal(images.shape)).astype(np.float16))

  scope = {
    "teacher": Teacher(),
    "views": lambda images: images,
    "images": logits,
    "labels": Tensor(labels),
    "train_labels": Tensor(np.repeat(np.arange(10), counts.astype(int))),
  }
  save, notebook = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S)
  exec("import numpy as np\n" + save, scope | {"torch": torch})
  (shell,) = re.findall(r"^    (python -m launch.calibrate .*)$", PAGE.read_text(), re.M)
  command = [sys.executable, *shell.split()[1:]]
  done = subprocess.run(
    command,
    capture_output=True,
    text=True,
    timeout=300,
    env={**os.environ, "PYTHONPATH": str(ROOT)},
  )
  assert done.returncode == 0, done.stderr
  with np.load("labels.npz") as written:
    soft_labels = written["labels"]
  assert soft_labels.shape == (10, 50, 10)
  assert soft_labels.dtype == np.float32
  np.testing.assert_allclose(soft_labels.sum(-1), 1, atol=1e-5)
  exec(notebook, scope)
  np.testing.assert_array_equal(scope["soft_labels"], soft_labels)
