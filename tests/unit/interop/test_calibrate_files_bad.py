"""Bad input: nothing is unpickled, nothing half written, and messages say what to do."""

import errno
import os
import pickle
import shutil
import struct
import sys
import zipfile

import numpy as np
import pytest

from ltdd_jax.core.types import LtddError
from ltdd_jax.interop import calibrate_logits, inputs, prepare
from tests.unit.interop.test_calibrate_files import (
  COUNTS,
  LABELS,
  LOGITS,
  K,
  write_parquet,
  write_safetensors,
)


def refused(match, logits=LOGITS, labels=LABELS, counts=COUNTS, **options):
  with pytest.raises(LtddError, match=match) as raised:
    calibrate_logits(logits, labels, counts, **options)
  text = str(raised.value)
  assert "\n" not in text
  assert len(text) < 600


class Bomb:
  """Unpickling it would be noticed."""

  def __reduce__(self):
    return os.mkdir, (self.folder,)


@pytest.fixture
def bomb(tmp_path):
  one = Bomb()
  one.folder = str(tmp_path / "exploded")
  yield one
  assert not os.path.exists(one.folder)


# ---- Parquet ----


def test_parquet_that_holds_no_logits(tmp_path, monkeypatch):
  import pyarrow as pa
  from pyarrow import parquet as pq

  path = tmp_path / "z.parquet"
  write_parquet(path, LOGITS, "lists")
  refused(r"found no column .* Did you mean 'label'\? Columns: z \(list", f"{path}:labl")
  refused(r"column 'label' is int64; expected one column of lists", f"{path}:label")
  refused(r"several arrays \(z, label\), none called 'labels'. Say which: .*:NAME", LOGITS, path)
  ragged = LOGITS[0].tolist()
  ragged[11] = ragged[11][:3]
  pq.write_table(pa.table({"z": ragged}), path)
  refused("row 11 is of 3 numbers; the first row has 5", path)
  ragged[11] = None
  pq.write_table(pa.table({"z": ragged}), path)
  refused("row 11 is null; the first row has 5", path)
  ragged[11] = [None, *ragged[12][1:]]
  pq.write_table(pa.table({"z": ragged}), path)
  refused(r"logits\[11\] is the first row with a NaN", path)
  for first, found in ((None, "null"), ([], "empty")):
    pq.write_table(pa.table({"z": [first, *ragged[1:]]}), path)
    refused(f"row 0 is {found}; expected a list of logits in each row", path)
  pq.write_table(pa.table({"z": ragged, "w": ragged}), path)
  refused(r"several arrays \(z, w\), none called 'logits'. Say which: .*:NAME", path)
  twice = pa.Table.from_arrays([pa.array(LABELS)] * 2, names=["y", "y"])
  pq.write_table(twice, path)
  refused("2 columns are called 'y'; expected one. Rename them", LOGITS, f"{path}:y")
  pq.write_table(twice.cast(pa.schema([("y", pa.float32())] * 2)), path)
  refused("2 columns are called 'y'", path)
  pq.write_table(pa.table({"y": [1, None, 2]}), path)
  refused("column 'y' has 1 nulls", LOGITS, path)
  monkeypatch.setitem(sys.modules, "pyarrow", None)
  refused(r"needs pyarrow\. Install it: pip install -e '\.\[files\]'", path)


# ---- objects and pickles ----


def test_objects_and_pickles_are_refused(tmp_path, bomb):
  objects = np.array([bomb, [1.0]], dtype=object)
  np.save(tmp_path / "z.npy", objects, allow_pickle=True)
  np.savez(tmp_path / "z.npz", logits=objects)
  (tmp_path / "p.npy").write_bytes(pickle.dumps(bomb))
  (tmp_path / "z.pt").write_bytes(pickle.dumps(bomb))
  for name in ("z.npy", "z.npz"):
    refused("is an array of Python objects, .* and is refused", tmp_path / name)
    refused("is an array of Python objects", LOGITS, tmp_path / name)
  refused("p.npy is a pickle, which runs code when it is read, and is refused", tmp_path / "p.npy")
  refused(r"\.pt files are pickles, .* np\.save\(.*\.detach\(\)\.cpu\(\)", tmp_path / "z.pt")
  refused("logits: object of shape", np.array([[bomb, 1], [2, 3]], object))


def test_records_are_refused(tmp_path):
  np.save(tmp_path / "z.npy", np.zeros(4, [("a", "f4"), ("b", "f4")]))
  refused(r"shape \(4,\); expected floats", tmp_path / "z.npy")


# ---- names ----


def test_names_of_files(tmp_path):
  np.save(tmp_path / "logits.npy", LOGITS)
  np.savez(tmp_path / "two.npz", first=LOGITS, second=LABELS)
  np.savez(tmp_path / "none.npz")
  refused(r"no file logit\.npy in .* Did you mean 'logits\.npy'\?", tmp_path / "logit.npy")
  refused("there is no file z.npy and no folder", tmp_path / "no" / "z.npy")
  refused("is a folder; expected a file with the logits", tmp_path)
  refused("an .npy file holds one array; leave out ':x'", f"{tmp_path / 'logits.npy'}:x")
  refused(
    r"has no 'frist'\. Did you mean 'first'\? It holds: first, second", f"{tmp_path}/two.npz:frist"
  )
  refused(
    "holds several arrays .* none called 'logits'. Say which: .*npz:NAME", f"{tmp_path}/two.npz"
  )
  refused("none.npz holds no array", f"{tmp_path}/none.npz")
  (tmp_path / "z.h5").write_bytes(b"")
  refused(
    r"\.h5 says nothing about the format of the logits; expected one of \.npy", tmp_path / "z.h5"
  )
  (tmp_path / "z.csv").write_text("1,2")
  refused(r"\.csv says nothing about the format of the logits", tmp_path / "z.csv")


def test_a_file_that_may_not_be_read(tmp_path, monkeypatch):
  np.save(tmp_path / "z.npy", LOGITS)

  def forbidden(*args, **kwargs):
    raise PermissionError(errno.EACCES, "Permission denied")

  monkeypatch.setattr("builtins.open", forbidden)
  refused("z.npy: cannot be read: Permission denied", tmp_path / "z.npy")


def test_fortran_order_in_a_compressed_archive(tmp_path):
  np.savez_compressed(tmp_path / "z.npz", np.asfortranarray(LOGITS))
  refused("is compressed and in Fortran order", tmp_path / "z.npz")


def test_an_archive_whose_sizes_disagree(tmp_path):
  np.save(tmp_path / "z.npy", LOGITS)
  data = (tmp_path / "z.npy").read_bytes()
  with zipfile.ZipFile(tmp_path / "z.npz", "w") as archive:
    archive.writestr("z.npy", data[:-40])
  refused("is damaged: float32 .* needs 1,200 bytes, z.npy has 1,160", tmp_path / "z.npz")


# ---- values ----


def test_logits():
  refused(r"logits: int64 of shape \(2, 30, 5\); expected floats", LOGITS.astype(int))
  refused(r"shape \(30,\); expected \(n, k\)", LOGITS[0, :, 0])
  refused(r"shape \(0, 5\); expected \(n, k\)", LOGITS[0, :0])
  refused(r"shape \(30, 1\); expected .* k at least 2", LOGITS[0, :, :1])
  p = np.exp(LOGITS) / np.exp(LOGITS).sum(-1, keepdims=True)
  refused("rows are probabilities: .* Expected logits, from before the softmax", p.astype("f2"))


@pytest.mark.parametrize("calibrator", ["none", "fixed", "adsa"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_the_first_bad_row_is_named(tmp_path, calibrator, value):
  logits = LOGITS.copy()
  logits[1, 17, 3] = logits[1, 20, 0] = value
  refused(
    r"\[1, 17\] is the first (row|one) with a NaN or infinite", logits, calibrator=calibrator,
    out=tmp_path / "o.npz",
  )  # fmt: skip
  assert list(tmp_path.iterdir()) == []  # nothing half written


def test_labels(tmp_path):
  whole = "They are whole numbers: save labels.astype"
  refused(
    rf"labels: float64 \(0, 1, 2, 3, \.\.\.\); expected integers\. {whole}", LOGITS, LABELS * 1.0
  )
  refused(r"expected integers\. Expected the number of the class", LOGITS, LABELS + 0.5)
  refused("expected integers", LOGITS, np.where(LABELS == 2, np.nan, LABELS))
  refused(r"labels: bool; expected integers", LOGITS, LABELS == 1)
  refused("look one-hot .* labels.argmax", LOGITS, np.eye(K)[LABELS])
  refused("look one-hot", LOGITS, np.eye(K, dtype=int)[LABELS])
  refused(
    r"shape \(29,\); logits of shape \(2, 30, 5\) need \(30,\) or \(2, 30\)", LOGITS, LABELS[1:]
  )
  refused(r"label 5 \(number 4\) is outside \[0, 5\).* Classes count from 0", LOGITS, LABELS + 1)
  refused(r"label -1 \(number 0\) is outside", LOGITS, LABELS - 1)
  refused("fewer than two classes have an image", LOGITS, LABELS * 0)
  refused("labels: no numbers; expected the classes of 30 images", LOGITS, [])
  (tmp_path / "y.txt").write_text("1\n2.0\n3")
  refused(
    r"labels .*y\.txt: float64 \(1, 2, 3, \.\.\.\); .* whole numbers", LOGITS, tmp_path / "y.txt"
  )
  for text in ("[1, [2]]", "[1, 2", "[" * 100_000, f"[1{'0' * 400}, 0.5]"):
    (tmp_path / "y.json").write_text(text)
    refused(r"y\.json: no list of numbers", LOGITS, tmp_path / "y.json")
  (tmp_path / "y.csv").write_text("label\n1")
  refused(r"y\.csv: no list of numbers: could not convert .*'label'", LOGITS, tmp_path / "y.csv")


def test_counts():
  bad = lambda match, counts, **options: refused(match, LOGITS, LABELS, counts, **options)
  bad(r"counts: shape \(4,\); logits of 5 classes need \(5,\)", COUNTS[1:])
  bad(r"shape \(30,\).* Are these the labels\? counts = np.bincount", LABELS)
  bad(r"class 1 \(and 1 more\) has 0 training images.* smoothing=1", [3, 0, 1, 2, 0])
  bad("class 2 has -1; expected a number of training images", [3, 1, -1, 2, 1])
  bad("class 2 has nan", [3, 1, np.nan, 2, 1])
  bad("counts: <U1; expected numbers", list("abcde"))
  bad("smoothing is -1.0; expected", COUNTS, smoothing=-1.0)


def test_target_priors():
  bad = lambda match, prior: refused(match, target_prior=prior)
  bad(r"sums to 1\.25; expected 1 within 0\.0001\. Save prior / prior.sum\(\)", np.full(K, 0.25))
  half = np.full(K, 0.2, np.float16)  # sums to 0.99976
  np.testing.assert_array_equal(inputs.check_prior("q", half, K), np.full(K, 1 / K))
  bad("sums to 0.999756; expected 1 within 0.0001", half.astype(np.float32))
  bad(
    r"float64 of shape \(4,\); logits of 5 classes need frequencies of shape \(5,\)",
    np.full(4, 0.25),
  )
  bad("class 1 has 0; expected a frequency above 0", [0.5, 0, 0.2, 0.2, 0.1])
  with pytest.raises(LtddError, match=r"calibrator 'em' takes none. Those that do: .*adsa"):
    calibrate_logits(LOGITS, LABELS, COUNTS, calibrator="em", target_prior=np.full(K, 0.2))


def test_options():
  refused("kind is 'logit'; expected probabilities or logits. Did you mean 'logits'?", kind="logit")
  refused("dtype is 'float64'; expected float16 or float32", dtype="float64")
  refused("temperature is 0.0; expected a number above 0", temperature=0.0)
  refused("temperature is 2.0 with kind 'logits'", temperature=2.0, kind="logits")
  refused("chunk_size is 0", chunk_size=0)
  refused("chunk_size is 2.5; expected a whole number of rows", chunk_size=2.5)
  refused("probabilities overflow; use a larger temperature", temperature=1e-38)
  refused("unknown calibrator 'adas'. Did you mean 'adsa'?", calibrator="adas")
  refused("unexpected key 'taus'", calibrator="fixed", calibrator_args={"taus": 1.0})
  refused("tau is 'one'", calibrator="fixed", calibrator_args={"tau": "one"})


@pytest.mark.parametrize(
  ("name", "args", "message"),
  [
    ("adsa", {"target_prior": (0.5, 0.5)}, "target_prior has 2 entries; there are 5"),
    ("adsa", {"max_head_drop": 0.1, "head": (7,)}, r"head is \(7,\); expected some"),
    ("adsa_vector", {"groups": ((0, 1), (2,))}, "groups hold 3 classes; there are 5"),
    ("ltkd", {"groups": ((0, 1), (2,))}, "groups hold 3 classes; there are 5"),
  ],
)
def test_options_for_another_number_of_classes_are_refused_before_any_work(name, args, message):
  with pytest.raises(LtddError, match=message):
    prepare(LOGITS, LABELS, COUNTS, calibrator=name, calibrator_args=args)


def test_a_target_prior_that_is_given_twice():
  args = {"target_prior": tuple(np.full(K, 1 / K))}
  refused("target_prior is given twice", target_prior=np.full(K, 1 / K), calibrator_args=args)


# ---- outputs ----


def test_outputs(tmp_path, monkeypatch):
  np.save(tmp_path / "z.npy", LOGITS)
  np.save(tmp_path / "there.npy", LABELS)
  to = lambda match, name, **options: refused(
    match, tmp_path / "z.npy", out=tmp_path / name, **options
  )
  to(r"ends in \.npz or \.npy", "o.pt")
  to(r"ends in \.npz or \.npy", "o.NPZ")
  os.mkdir(tmp_path / "runs")
  to("there is no folder .*run. Did you mean 'runs'\\? Make it first", "run/o.npz")
  to("is there already. Use another name, or overwrite", "there.npy")
  to("is one of the inputs", "z.npy", overwrite=True)
  os.mkdir(tmp_path / "folder.npz")
  to("which is a folder", "folder.npz", overwrite=True)
  with monkeypatch.context() as patch:
    patch.setattr(os, "access", lambda *_: False)
    to("in a folder that may not be written", "o.npz")
  usage = shutil.disk_usage(tmp_path)._replace(free=1000)
  monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
  to("the disk of .* has 1 kB free", "o.npz")


def test_a_disk_that_fills_up_leaves_nothing_and_keeps_the_old_file(tmp_path, monkeypatch):
  path = tmp_path / "o.npz"
  path.write_bytes(b"old")

  def full(_):
    raise OSError(errno.ENOSPC, "No space left on device")

  monkeypatch.setattr("os.fsync", full)
  refused("cannot be written: the disk", out=path, overwrite=True)
  monkeypatch.undo()
  assert [p.name for p in tmp_path.iterdir()] == ["o.npz"]
  assert path.read_bytes() == b"old"
  calibrate_logits(LOGITS, LABELS, COUNTS, out=path, overwrite=True)
  assert np.load(path)["labels"].shape == LOGITS.shape


def test_logits_too_large_for_float16(tmp_path):
  refused(
    "beyond float16; use float32", LOGITS + 1e5, kind="logits", dtype="float16",
    out=tmp_path / "o.npy",
  )  # fmt: skip
  assert list(tmp_path.iterdir()) == []


def test_safetensors_of_other_writers_are_padded(tmp_path):
  """The header may end in spaces; tensors may follow in any order."""
  path = tmp_path / "z.safetensors"
  write_safetensors(path, z=LOGITS)
  data = path.read_bytes()
  (length,) = struct.unpack("<Q", data[:8])
  text = data[8 : 8 + length] + b"   "
  path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])
  _, source = inputs.open_logits(path)
  np.testing.assert_array_equal(source.rows(0, 60), LOGITS.reshape(-1, K))
