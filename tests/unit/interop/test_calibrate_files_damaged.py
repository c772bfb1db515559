"""Damaged files: each reader refuses them in one line."""

import json
import random
import struct
import zipfile

import numpy as np
import pytest
from safetensors.numpy import save_file

from ltdd_jax.core.types import LtddError
from ltdd_jax.interop import inputs, read
from tests.unit.interop.test_calibrate_files import COUNTS, LABELS, LOGITS, K, save
from tests.unit.interop.test_calibrate_files_bad import refused


@pytest.mark.parametrize("form", ["npy", "npz", "npz compressed", "safetensors"])
@pytest.mark.parametrize("keep", [0.0, 0.02, 0.5, 0.97])
def test_truncated(tmp_path, form, keep):
  name = save(tmp_path, form, LOGITS)
  path = tmp_path / f"z.{form.split()[0]}"
  path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])
  refused(r"z\.\w+(:z)? is truncated", name)


@pytest.mark.parametrize("form", ["npz compressed"])
def test_damaged_in_the_middle(tmp_path, form):
  name = save(tmp_path, form, LOGITS)
  path = tmp_path / f"z.{form.split()[0]}"
  data = bytearray(path.read_bytes())
  data[len(data) // 3 : len(data) // 2] = bytes(len(data) // 2 - len(data) // 3)
  path.write_bytes(data)
  refused(r"z\.\w+(:z)? (is damaged|is truncated|.* row \d+)", name)


def write_vector(folder, form, x):
  """Writes labels, counts or a prior in a format; returns the name to open."""
  path = folder / f"x.{form.split()[0]}"
  if form == "json":
    path.write_text(json.dumps(x.tolist()))
  elif form == "safetensors":
    save_file({"x": x}, path)
  else:
    {"npy": np.save, "npz": np.savez, "npz compressed": np.savez_compressed}[form](path, x)
  return str(path)


VECTORS = {
  "labels": LABELS, "counts": COUNTS, "target_prior": np.full(K, 1 / K, np.float32),
}  # fmt: skip


@pytest.mark.parametrize("wanted", VECTORS)
@pytest.mark.parametrize("form", ["npy", "npz", "npz compressed", "safetensors", "json"])
def test_damaged_labels_counts_and_priors(tmp_path, form, wanted):
  name = write_vector(tmp_path, form, VECTORS[wanted])
  np.testing.assert_array_equal(inputs.open_vector(name, wanted)[1], VECTORS[wanted])
  path = tmp_path / f"x.{form.split()[0]}"
  data = path.read_bytes()
  for keep in (0.0, 0.1, 0.5, 0.97):
    path.write_bytes(data[: int(keep * len(data))])
    refused(r"x\.\w+(:\S+)?:? (is truncated|no list|\w+ of shape|holds)", **{wanted: name})
  if form in ("npz", "npz compressed"):  # others have no checksums
    path.write_bytes(data[: len(data) // 3] + bytes(40) + data[len(data) // 3 + 40 :])
    refused(r"x\.\w+ (is truncated|is damaged)", **{wanted: name})


def test_damaged_archives(tmp_path):
  path = tmp_path / "z.npz"
  np.savez(path, logits=LOGITS)
  data = path.read_bytes()
  path.write_bytes(data[:26] + b"\xff" * 4 + data[30:])  # lengths in the local header
  refused(r"no \.npz file: File name in directory .*\.\.\.\. Copy it", path)
  np.save(tmp_path / "z.npy", LOGITS)
  with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as archive:
    archive.write(tmp_path / "z.npy", "logits.npy")
  data = path.read_bytes()
  np.testing.assert_array_equal(inputs.open_logits(path)[1].rows(0, 60), LOGITS.reshape(-1, K))
  path.write_bytes(data[:200] + bytes(300) + data[500:])
  refused("is truncated, damaged or no", path)


def test_safetensors_headers_that_lie(tmp_path):
  path = tmp_path / "z.safetensors"
  entry = {"dtype": "F32", "shape": [60, 5], "data_offsets": [0, 1200]}
  lies = (
    {"shape": [61, 5]}, {"shape": [-60, -5]}, {"shape": None}, {"dtype": "F31"},
    {"dtype": ["F32"]}, {"data_offsets": [1200, 2400]}, {"data_offsets": [0, 600, 1200]},
  )  # fmt: skip
  texts = [json.dumps({"z": entry | lie}).encode() for lie in lies]
  for text in (*texts, b"[]", b"{", b"[" * 50_000):
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(1200))
    refused("is truncated, damaged or no .safetensors file", path)
  text = json.dumps({"z": entry | {"dtype": "F8_E4M3", "data_offsets": [0, 300]}}).encode()
  path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(300))
  refused(r"has a type that NumPy lacks \(.*float8.*\): convert the tensor to float32", path)
  refused("has a type that NumPy lacks", LOGITS, path)
  path.write_bytes(struct.pack("<Q", 1 << 60) + b"{}")
  refused("is truncated, damaged or no .safetensors file", path)


def npy_bytes(shape="(60, 5)", descr="'<f4'"):
  """An .npy file whose header says anything."""
  text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}}}\n".encode()
  return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + LOGITS.tobytes()


def test_npy_headers_that_lie(tmp_path):
  path = tmp_path / "z.npy"
  path.write_bytes(npy_bytes())
  np.testing.assert_array_equal(inputs.open_logits(path)[1].rows(0, 60), LOGITS.reshape(-1, K))
  sizes = ("(-1, 5)", "(-60, -5)", "(True, 5)", "(60, 5.0)", f"(1{'0' * 30}, 0)", f"({'1,' * 65})")
  brackets = ("((60, 5)", "(" * 5000, f"({'-' * 9900}1, 5)", f"(60, 5), 'x': '{'x' * 50_000}'")
  for lie in sizes + brackets:
    path.write_bytes(npy_bytes(lie))
    refused(r"z\.npy is truncated, damaged or no \.npy file: ", path)


@pytest.mark.filterwarnings("ignore")  # Python and NumPy warn of some headers before they fail
@pytest.mark.parametrize("form", ["npy", "npz", "npz compressed", "safetensors"])
def test_files_with_wrong_bytes_are_read_or_refused(tmp_path, form):
  """Most bytes of small files are headers. Cases are the same in every run."""
  name = save(tmp_path, form, LOGITS)
  path = tmp_path / f"z.{form.split()[0]}"
  data, draw = path.read_bytes(), random.Random(0)
  refusals = []
  for _ in range(300):
    wrong = bytearray(data)
    for _ in range(draw.choice((1, 1, 2, 4))):
      end = draw.randrange(min(len(data), 250))  # headers lie at both ends
      wrong[draw.choice((end, -1 - end, draw.randrange(len(data))))] = draw.choice(
        (0, 255, draw.randrange(256), ord(draw.choice("()[]{}'-1")))
      )
    path.write_bytes(wrong[: draw.choice((len(wrong),) * 4 + (draw.randrange(len(wrong)),))])
    try:
      _, source = inputs.open_logits(name)
      source.rows(0, source.shape[-2])
      read.array_of(read.parse(name, "logits"))  # as labels and counts are
    except LtddError as error:
      refusals.append(str(error))
  assert 50 < len(refusals) < 300
  assert max(map(len, refusals)) < 600


def test_archives_larger_than_memory(tmp_path, monkeypatch):
  name = save(tmp_path, "npz", LOGITS)

  def full(*args, **kwargs):
    raise MemoryError("Unable to allocate 3 TiB")

  monkeypatch.setattr(np, "load", full)
  refused(r"z\.npz does not fit into memory.*3 TiB\. Save large logits as \.npy", name)
