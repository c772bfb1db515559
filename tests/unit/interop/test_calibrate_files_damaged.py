"""Damaged files: each reader refuses them in one line. Byte order that is wrong is recognised."""

import json
import random
import struct
import zipfile

import jax.numpy as jnp
import numpy as np
import pytest

from ltdd_jax.core.types import LtddError
from ltdd_jax.interop import arrays, calibrate_logits, inputs, names
from tests.unit.interop.test_calibrate_files import (
  COUNTS,
  LABELS,
  LOGITS,
  E,
  K,
  N,
  save,
  write_safetensors,
)
from tests.unit.interop.test_calibrate_files_bad import refused


@pytest.mark.parametrize("form", ["npy", "npz", "npz compressed", "safetensors", "parquet lists"])
@pytest.mark.parametrize("keep", [0.0, 0.02, 0.5, 0.97])
def test_truncated(tmp_path, form, keep):
  name = save(tmp_path, form, LOGITS)
  path = tmp_path / f"z.{form.split()[0]}"
  path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])
  refused(r"z\.\w+(:z)? is truncated", name)


@pytest.mark.parametrize("form", ["npz compressed", "parquet lists"])
def test_damaged_in_the_middle(tmp_path, form):
  name = save(tmp_path, form, LOGITS)
  path = tmp_path / f"z.{form.split()[0]}"
  data = bytearray(path.read_bytes())
  data[len(data) // 3 : len(data) // 2] = bytes(len(data) // 2 - len(data) // 3)
  path.write_bytes(data)
  refused(r"z\.\w+(:z)? (is damaged|is truncated|.* row \d+)", name)


def test_raw_files_say_how_many_rows_they_have(tmp_path):
  path = tmp_path / "z.raw"
  LOGITS.tofile(path)
  refused("raw bytes have no type and shape. Say them after a colon: .*z.raw:float16,300x50", path)
  refused(r"takes 1,220 bytes, the file has 1,200, which is 60 rows of 5", f"{path}:float32,61x5")
  refused("'float31,60x5' is no type and shape; expected for example", f"{path}:float31,60x5")
  refused("'float32,60xk' is no type and shape", f"{path}:float32,60xk")
  for kind in ("object", "S", "U4", "V"):
    refused(f"'{kind},60x5' cannot be read", f"{path}:{kind},60x5")
  big = tmp_path / "big.raw"
  LOGITS.astype(">f4").tofile(big)
  np.testing.assert_array_equal(
    calibrate_logits(f"{big}:>f4,{E}x{N}x{K}", LABELS, COUNTS).soft_labels,
    calibrate_logits(LOGITS, LABELS, COUNTS).soft_labels,
  )


def test_truncated_raw_files(tmp_path):
  name = save(tmp_path, "raw", LOGITS)
  path = tmp_path / "z.raw"
  for keep, rows in ((1190, r"59\.5"), (0, "0")):
    path.write_bytes(path.read_bytes()[:keep])
    refused(f"takes 1,200 bytes, the file has {keep:,}, which is {rows} rows of 5", name)


def write_vector(folder, form, x):
  """Writes labels, counts or a prior in a format; returns the name to open."""
  path = folder / f"x.{form.split()[0]}"
  if form == "parquet":
    import pyarrow as pa
    from pyarrow import parquet as pq

    pq.write_table(pa.table({"x": x}), path)
  elif form == "json":
    path.write_text(json.dumps(x.tolist()))
  elif form == "raw":
    x.tofile(path)
    return f"{path}:{x.dtype},{len(x)}"
  elif form == "safetensors":
    write_safetensors(path, x=x)
  else:
    {"npy": np.save, "npz": np.savez, "npz compressed": np.savez_compressed}[form](path, x)
  return str(path)


VECTORS = {
  "labels": LABELS, "counts": COUNTS, "target_prior": np.full(K, 1 / K, np.float32),
}  # fmt: skip


@pytest.mark.parametrize("wanted", VECTORS)
@pytest.mark.parametrize(
  "form", ["npy", "npz", "npz compressed", "safetensors", "raw", "parquet", "json"]
)
def test_damaged_labels_counts_and_priors(tmp_path, form, wanted):
  name = write_vector(tmp_path, form, VECTORS[wanted])
  np.testing.assert_array_equal(inputs.open_vector(name, wanted)[1], VECTORS[wanted])
  path = tmp_path / f"x.{form.split()[0]}"
  data = path.read_bytes()
  for keep in (0.0, 0.1, 0.5, 0.97):
    path.write_bytes(data[: int(keep * len(data))])
    refused(r"x\.\w+(:\S+)?:? (is truncated|no list|\w+ of shape|holds)", **{wanted: name})
  if form in ("npz", "npz compressed", "parquet"):  # others have no checksums
    path.write_bytes(data[: len(data) // 3] + bytes(40) + data[len(data) // 3 + 40 :])
    refused(r"x\.\w+ (is truncated|is damaged)", **{wanted: name})


def test_damaged_archives(tmp_path):
  path = tmp_path / "z.npz"
  np.savez(path, logits=LOGITS)
  data = path.read_bytes()
  path.write_bytes(data[:26] + b"\xff" * 4 + data[30:])  # lengths in the local header
  refused(r"no \.npz archive: File name in directory .*\.\.\.\. Copy it", path)
  np.save(tmp_path / "z.npy", LOGITS)
  with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as archive:
    archive.write(tmp_path / "z.npy", "logits.npy")
  data = path.read_bytes()
  np.testing.assert_array_equal(inputs.open_logits(path)[1].rows(0, 60), LOGITS.reshape(-1, K))
  path.write_bytes(data[:200] + bytes(300) + data[500:])
  refused("is truncated, damaged or no", path)


def test_safetensors_headers_that_lie(tmp_path):
  path = tmp_path / "z.safetensors"

  def header(**changes):
    entry = {"dtype": "F32", "shape": [60, 5], "data_offsets": [0, 1200]} | changes
    text = json.dumps({"z": entry}).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(1200))

  header(shape=[61, 5])
  refused(r"'z' is F32 of shape \(61, 5\), which takes 1,220 bytes, but its header gives", path)
  header(dtype="F8_E4M3")
  refused(r"is F8_E4M3; expected one of F64, F32, F16, BF16\. Convert it", path)
  refused("is F8_E4M3; expected one of F64, .* I64, .*U8, BOOL", LOGITS, path)
  header(data_offsets=[1200, 2400])
  refused("truncated", path)
  for lie in (
    {"data_offsets": None}, {"data_offsets": [0.0, 1200.0]}, {"data_offsets": [0, 600, 1200]},
    {"dtype": ["F32"]}, {"shape": [60.0, 5]}, {"shape": [float("inf"), 5]}, {"shape": [True, 300]},
    {"shape": [-60, -5]}, {"shape": [-1, 5]}, {"shape": [10**30, 0], "data_offsets": [0, 0]},
    {"shape": [0] * 9999},
  ):  # fmt: skip
    header(**lie)
    refused("the header of 'z' is damaged", path)
  header(data_offsets=[-100, 1100])
  refused("the file is damaged", path)
  path.write_bytes(struct.pack("<Q", 1 << 60) + b"{}")
  refused("its header does not fit", path)
  path.write_bytes(struct.pack("<Q", 2) + b"[]")
  refused("no safetensors file: its header is no JSON object", path)
  text = b"[" * 50_000
  path.write_bytes(struct.pack("<Q", len(text)) + text)
  refused("no safetensors file: maximum recursion depth", path)


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
    refused(r"z\.npy is truncated, damaged or no \.npy array: ", path)
  path.write_bytes(npy_bytes("(60,)", "('<f4', (5,))"))
  refused("its header says .* of shape", path)


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
      arrays.read(arrays.locate(names.parse(name, "logits")))  # as labels and counts are
    except LtddError as error:
      refusals.append(str(error))
  assert 50 < len(refusals) < 300
  assert max(map(len, refusals)) < 600


# ---- byte order ----


@pytest.mark.parametrize("kind", ["f2", "f4", "f8"])
def test_the_other_byte_order_is_recognised(tmp_path, kind):
  path, z = tmp_path / "z.raw", np.random.default_rng(0).standard_normal((1000, 100))
  labels, counts = np.arange(1000) % 100, np.arange(100, 0, -1)
  z.astype(f">{kind}").tofile(path)
  refused(r"turned round: .*'>f4' is big-endian", f"{path}:{kind},1000x100", labels, counts)
  np.save(tmp_path / "z.npy", z.astype(kind).byteswap())
  refused("numbers make no sense as float", tmp_path / "z.npy", labels, counts)


@pytest.mark.parametrize(
  ("half", "kind"),
  [("float16", "f4"), ("float16", "f8"), ("bfloat16", "f4"), ("bfloat16", "f8"), ("f4", "f8")],
)
def test_the_other_byte_order_is_recognised_where_low_bits_are_zero(half, kind):
  z = LOGITS.astype(jnp.dtype(half)).astype(kind)
  refused(f"numbers make no sense as {z.dtype}", z.byteswap())
  masked = np.where(np.arange(K) == 2, 0, z)
  refused(f"numbers make no sense as {z.dtype}", masked.byteswap())


@pytest.mark.parametrize("kind", ["float16", "bfloat16", "float32", "float64"])
def test_logits_in_their_own_byte_order_are_taken(kind):
  draw = np.random.default_rng(0)
  z = draw.standard_normal((1000, 100)).astype(jnp.dtype(kind))
  large = (2e4 + 50 * draw.standard_normal((1000, 100))).astype(z.dtype)
  masked = np.where(np.arange(10) == 3, -np.inf, np.round(4 * z[:, :10].astype("f4")) / 4)
  small = (1e-3 * z[:30].astype("f4")).astype(z.dtype)
  smaller = (1e-5 * z[:30].astype("f4")).astype(z.dtype)  # denormal in float16
  zeros = np.zeros((10, 5), z.dtype)
  nan = np.full((10, 5), np.nan, z.dtype)
  for logits in (z, large, masked.astype(z.dtype), small, smaller, zeros, nan):
    inputs._check_byte_order("logits", logits, most=1e3)


@pytest.mark.parametrize("kind", ["i4", "i8", "u8", "f4", "f8"])
def test_the_other_byte_order_of_counts_is_recognised(tmp_path, kind):
  path, counts = tmp_path / "n.raw", COUNTS.astype(kind)
  counts.byteswap().tofile(path)
  refused(rf"numbers make no sense as {counts.dtype}.*other byte order", counts=f"{path}:{kind},5")
  refused("numbers make no sense", counts=counts.byteswap())
  big_endian = counts.astype(f">{kind}")
  for known in (counts, big_endian, COUNTS * 256, np.full(K, 2**20), COUNTS * 1000):
    np.testing.assert_array_equal(inputs.open_vector(known.astype(kind), "counts")[1], known)
  assert inputs.open_vector(big_endian, "counts")[1] is big_endian


def test_the_other_byte_order_of_labels_and_priors_is_recognised():
  refused("labels: numbers make no sense as int64", labels=LABELS.byteswap())
  refused("target_prior: numbers make no sense", target_prior=np.full(K, 0.2).byteswap())


@pytest.mark.parametrize("kind", ["f2", "f4", "f8"])
def test_fractions_in_their_own_byte_order_are_taken(kind):
  counts = COUNTS.astype("f8")
  for values in (counts / counts.sum(), counts / 1e4, 2.0 ** -np.arange(K), counts + 0.5):
    inputs.open_vector(values.astype(kind), "counts")
