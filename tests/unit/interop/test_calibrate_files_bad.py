"""Bad input: nothing is unpickled, nothing half written, and messages say what to do."""

import errno
import os
import pickle
import shutil

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from ltdd_jax.core.types import LtddError
from ltdd_jax.interop import calibrate_logits, inputs, prepare
from tests.unit.interop.test_calibrate_files import COUNTS, LABELS, LOGITS, K


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


# ---- objects and pickles ----


def test_objects_and_pickles_are_refused(tmp_path, bomb):
  objects = np.array([bomb, [1.0]], dtype=object)
  np.save(tmp_path / "z.npy", objects, allow_pickle=True)
  np.savez(tmp_path / "z.npz", logits=objects)
  (tmp_path / "p.npy").write_bytes(pickle.dumps(bomb))
  (tmp_path / "z.pt").write_bytes(pickle.dumps(bomb))
  for name in ("z.npy", "z.npz", "p.npy"):
    refused("but Python objects .a pickle., which run code .* and is refused", tmp_path / name)
    refused("holds no array of numbers, but Python objects", LOGITS, tmp_path / name)
  refused(
    r"\.pt is not read; .*pickles run code.* np\.save\(.*\.detach\(\)\.cpu\(\)", tmp_path / "z.pt"
  )
  refused("logits: object of shape", np.array([[bomb, 1], [2, 3]], object))


def test_records_are_refused(tmp_path):
  np.save(tmp_path / "z.npy", np.zeros(4, [("a", "f4"), ("b", "f4")]))
  refused(r"shape \(4,\); expected floats", tmp_path / "z.npy")


# ---- names ----


def test_names_of_files(tmp_path, monkeypatch):
  np.save(tmp_path / "logits.npy", LOGITS)
  np.savez(tmp_path / "two.npz", first=LOGITS, second=LABELS)
  np.savez(tmp_path / "none.npz")
  refused(r"no file logit\.npy in .* Did you mean 'logits\.npy'\?", tmp_path / "logit.npy")
  monkeypatch.chdir(tmp_path)
  refused(r"there is no file z\.npy in the folder '\.'\.$", "z.npy")
  refused("there is no file z.npy and no folder", tmp_path / "no" / "z.npy")
  refused("is a folder; expected a file with the logits", tmp_path)
  refused("a .npy file holds one array; leave out ':x'", f"{tmp_path / 'logits.npy'}:x")
  refused(
    r"has no array 'frist'\. Did you mean 'first'\? It holds: first, second",
    f"{tmp_path}/two.npz:frist",
  )
  listed = r"has no array 'logits'\. It holds: first, second\. Say which: .*two\.npz:NAME"
  refused(listed, f"{tmp_path}/two.npz")
  refused("none.npz has no array 'logits'. It holds: nothing", f"{tmp_path}/none.npz")
  save_file({"first": LOGITS, "second": LABELS}, tmp_path / "two.safetensors")
  refused(r"no array 'counts'\. It holds: first, second\.", counts=tmp_path / "two.safetensors")
  (tmp_path / "z.h5").write_bytes(b"")
  refused(
    r"\.h5 is not read; expected one of \.npy \.npz \.safetensors for the logits", tmp_path / "z.h5"
  )
  (tmp_path / "z.csv").write_text("1,2")
  refused(r"\.csv is not read; .* for the logits", tmp_path / "z.csv")


def test_a_file_that_may_not_be_read(tmp_path, monkeypatch):
  np.save(tmp_path / "z.npy", LOGITS)

  def forbidden(*args, **kwargs):
    raise PermissionError(errno.EACCES, "Permission denied")

  monkeypatch.setattr("builtins.open", forbidden)
  refused("z.npy: cannot be read: Permission denied", tmp_path / "z.npy")


# ---- values ----


def test_logits():
  refused(r"logits: int64 of shape \(2, 30, 5\); expected floats", LOGITS.astype(int))
  refused(r"shape \(30,\); expected \(n, k\) or \(\.\.\., n, k\)", LOGITS[0, :, 0])
  refused(r"shape \(0, 5\); expected \(n, k\)", LOGITS[0, :0])
  refused(r"shape \(30, 1\); expected .* k at least 2", LOGITS[0, :, :1])
  p = np.exp(LOGITS) / np.exp(LOGITS).sum(-1, keepdims=True)
  dead = "logits: .* the same for all classes in every row: the teacher is dead"
  for calibrator in ("none", "fixed", "adsa"):
    refused(dead, LOGITS * 0, calibrator=calibrator)
  refused("logits: rows are probabilities. Expected logits; if lost, give log", p.astype("f2"))


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
  bad = lambda match, labels: refused(match, LOGITS, labels)
  whole = "They are whole numbers: save labels.astype"
  bad(rf"labels: float64 \(0, 1, 2, 3, \.\.\.\); expected integers\. {whole}", LABELS * 1.0)
  bad(r"^labels: .* float64; expected integers", LABELS + 0.5)
  bad("float64; expected integers", np.where(LABELS == 2, np.nan, LABELS))
  bad(r"labels: .* bool; expected integers", LABELS == 1)
  bad("look one-hot .* labels.argmax", np.eye(K)[LABELS])
  bad("look one-hot", np.eye(K, dtype=int)[LABELS])
  bad(r"shape \(29,\); logits of shape \(2, 30, 5\) need \(30,\) or \(2, 30\)", LABELS[1:])
  bad(r"label -1 \(number 0\) is outside", LABELS - 1)
  bad(r"label 7 \(number 3\) is outside \[0, 5\)", np.where(LABELS == 3, 7, LABELS))
  bad("fewer than two classes have an image", LABELS * 0)
  bad("labels: no numbers; expected the classes of 30 images", [])
  (tmp_path / "y.txt").write_text("1\n2.0\n3")
  bad(r"labels .*y\.txt: float64 \(1, 2, 3, \.\.\.\); .* whole numbers", tmp_path / "y.txt")


def test_labels_that_start_at_one(tmp_path):
  one = "labels start at 1 and end at 5; expected classes from 0 to 4. Save labels - 1"
  np.save(tmp_path / "y.npy", LABELS + 1)
  refused(rf"labels .*y\.npy: {one}", LOGITS, tmp_path / "y.npy")
  refused(rf"labels: {one}", LOGITS, np.stack([LABELS, LABELS]) + 1)
  counts = np.bincount(LABELS + 1)
  refused(
    r"counts: shape \(6,\).* begin with 0, as np\.bincount .* save counts\[1:\]", counts=counts
  )


@pytest.mark.parametrize("wanted", ["labels", "counts"])
def test_columns_are_lists(wanted):
  """MedMNIST's labels have the shape (n, 1), as has a column of a table."""
  values = {"labels": LABELS, "counts": COUNTS}
  column = values | {wanted: values[wanted][:, None]}
  found = calibrate_logits(LOGITS, column["labels"], column["counts"])
  assert found.tau == calibrate_logits(LOGITS, LABELS, COUNTS).tau


# ---- lists of numbers ----


TEXTS = {
  "csv": "300,80,20,5,1\n",
  "column.csv": "300\r\n80\r\n20\r\n5\r\n1\r\n",
  "header.csv": "training images\n300\n80\n20\n5\n1",
  "wide.csv": "plane;car;bird;cat;deer\n300;80;20;5;1",
  "quotes.csv": '"count"\n"300"\n"80"\n"20"\n"5"\n"1"\n',
  "comment.txt": "# of the training set\n300 80\n20 5\n1\n",
  "json": "[300, 80, 20, 5, 1]",
  "quotes.json": '["300", "80", "20", "5", "1"]',
  "column.json": "[[300], [80], [20], [5], [1]]",
}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("form", TEXTS)
def test_counts_as_spreadsheets_write_them(tmp_path, form, encoding):
  path = tmp_path / f"n.{form}"
  path.write_bytes(TEXTS[form].encode(encoding))
  found = prepare(LOGITS, LABELS, path)
  np.testing.assert_array_equal(found.counts, COUNTS)


@pytest.mark.parametrize(
  ("form", "text", "cause"),
  [
    (
      "csv",
      "class,count\n0,300\n1,80\n2,20\n3,5\n4,1",
      r"shape \(5, 2\).* a table: keep the column",
    ),
    ("csv", "0,1,2,3,4\n300,80,20,5,1", r"shape \(2, 5\).* a table: keep the column \(or line\)"),
    ("csv", "plane,300\ncar,80", "no list of numbers: 'plane' is no number"),
    ("csv", '300\n"1,280"\n20\n5\n1', "'1,280' is no number"),
    ("csv", "300 80\n20\n5 1", "lines have 1 to 2 numbers; expected one in each"),
    ("csv", "training images", r"shape \(0,\); logits of 5 classes need \(5,\)"),
    ("json", '{"plane": 300, "car": 80}', "an object with the keys plane, car; expected a list"),
    ("json", '["many"]', "'many' is no number"),
    ("json", "[300, null]", "expected a list of numbers"),
    ("json", "[1, [2]]", "inhomogeneous"),
    ("json", "[1, 2", "Expecting ',' delimiter"),
    ("json", "[" * 100_000, "recursion"),
    ("json", f"[1{'0' * 400}, 0.5]", "expected a list of numbers"),
  ],
)
def test_lists_that_are_none_name_the_cause(tmp_path, form, text, cause):
  path = tmp_path / f"n.{form}"
  path.write_text(text)
  refused(rf"n\.{form}: .*{cause}", counts=path)


def test_counts():
  bad = lambda match, counts, **options: refused(match, LOGITS, LABELS, counts, **options)
  bad(r"counts: shape \(4,\); logits of 5 classes need \(5,\)", COUNTS[1:])
  bad(r"shape \(30,\).* Are these the labels\? counts = np.bincount", LABELS)
  bad(r"class 1 \(and 1 more\) has 0 training images.* smoothing=1", [3, 0, 1, 2, 0])
  bad("class 2 has -1; expected a number of training images", [3, 1, -1, 2, 1])
  bad("class 2 has nan", [3, 1, np.nan, 2, 1])
  bad("counts: <U1; expected numbers", list("abcde"))
  bad(r"the sum is 1, so these are frequencies, .* 0\.5 im", COUNTS / COUNTS.sum(), smoothing=0.5)
  bad("smoothing is -1.0; expected", COUNTS, smoothing=-1.0)


def test_target_priors():
  bad = lambda match, prior: refused(match, target_prior=prior)
  bad(r"sum is 1\.25; .* 1 within 0\.0001\. Save prior / prior.sum\(\)", np.full(K, 0.25))
  half = np.full(K, 0.2, np.float16)  # sums to 0.99976
  np.testing.assert_array_equal(inputs.check_prior("q", half, K), np.full(K, 1 / K))
  bad("the sum is 0.999756; .* 1 within 0.0001", half.astype(np.float32))
  bad(
    r"float64 of shape \(4,\); logits of 5 classes need frequencies of shape \(5,\)",
    np.full(4, 0.25),
  )
  bad("class 1 has 0, and .* expected frequencies above 0", [0.5, 0, 0.2, 0.2, 0.1])
  bad("class 1 has nan", [0.5, np.nan, 0.2, 0.2, 0.1])
  with pytest.raises(LtddError, match=r"calibrator 'em' takes none. Those that do: .*adsa"):
    calibrate_logits(LOGITS, LABELS, COUNTS, calibrator="em", target_prior=np.full(K, 0.2))


def test_options():
  refused("kind is 'logit'; expected one of 'probabilities', 'logits'", kind="logit")
  refused("dtype is 'float64'; expected one of 'float16', 'float32'", dtype="float64")
  refused("temperature is 0.0; expected a finite number above 0", temperature=0.0)
  refused("temperature is 2.0 with kind 'logits'", temperature=2.0, kind="logits")
  if jax.__version_info__ < (0, 12):  # whose compiler takes off the maximum first
    refused("probabilities overflow; use a larger temperature", temperature=1e-38)
  refused("unknown calibrator 'adas'. Did you mean 'adsa'?", calibrator="adas")
  refused("unexpected key 'taus'", calibrator="fixed", calibrator_args={"taus": 1.0})
  refused(r"argument 'taus'; .* goes into calibrator_args: \{'taus': 1\}", taus=1)
  refused("tau is 'one'", calibrator="fixed", calibrator_args={"tau": "one"})


@pytest.mark.parametrize(
  ("name", "args", "message"),
  [
    ("adsa", {"target_prior": (0.5, 0.5)}, "target_prior has 2 entries; there are 5"),
    ("adsa", {"max_head_drop": 0.1, "head": (7,)}, r"head is \(7,\); expected some"),
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
  to("there is no folder .*run. Make it first", "run/o.npz")
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


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_logits_too_large_for_float16(dtype, tmp_path):
  refused(
    r"reach 1e\+05, beyond float16; use float32", LOGITS.astype(dtype) + 1e5,
    kind="logits", dtype="float16", out=tmp_path / "o.npy",
  )  # fmt: skip
  assert list(tmp_path.iterdir()) == []
