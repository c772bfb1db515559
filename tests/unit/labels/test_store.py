"""The label store: encodings on disk, whole epochs, several readers, what is refused."""

import json
import pathlib
import re
import subprocess
import sys
import types

import jax
import numpy as np
import pytest
import tensorstore
from etils import epath

from ltdd_jax import adsa
from ltdd_jax.adsa import Rows
from ltdd_jax.calibrate import criteria
from ltdd_jax.core.types import LtddError
from ltdd_jax.labels import store as label_store
from ltdd_jax.labels import zarr_files
from ltdd_jax.labels.encoding import Encoding

E, N, K = 3, 5, 4
NAMES = ("a", "b", "c", "d")
LOGITS = np.random.RandomState(0).randn(E, N, K).astype(np.float32) * 5
ENCODINGS = [
  Encoding("float32"),
  Encoding("float16"),
  Encoding("bfloat16", top_k=2),
  Encoding("uint8"),
  Encoding("uint8", top_k=2),
  Encoding("uint8", top_k=3),
]


HALF = Encoding()


def make(path, encoding=HALF, facts=None, **kwargs):
  kwargs = {"shape": (E, N, K), "class_names": NAMES} | kwargs
  return label_store.create(path, encoding=encoding, facts=facts, **kwargs)


def encoded(encoding, epochs=range(E)):
  return {e: jax.device_get(encoding.encode(LOGITS[e])) for e in epochs}


def filled(path, encoding=HALF):
  store = make(path, encoding)
  store.write(encoded(encoding))
  return store


@pytest.mark.parametrize("encoding", ENCODINGS, ids=str)
def test_what_is_read_is_what_was_encoded(tmp_path, encoding):
  written = filled(tmp_path / "s", encoding)
  store = label_store.open_store(tmp_path / "s", class_names=NAMES)
  assert store.shape == (E, N, K)
  assert store.encoding == encoding
  arrays = encoded(encoding)
  for name, x in store.read().items():
    assert x.dtype == arrays[0][name].dtype
    np.testing.assert_array_equal(x, np.stack([arrays[e][name] for e in range(E)]))
  want = np.stack([encoding.decode(arrays[e], K) for e in range(E)])
  np.testing.assert_array_equal(store.logits(), want)
  for start, stop in ((0, 15), (1, 3), (4, 6), (3, 12), (5, 10), (14, 15)):
    np.testing.assert_array_equal(store.rows(start, stop), want.reshape(-1, K)[start:stop])
  assert store.nbytes == written.nbytes == label_store.disk_bytes((E, N, K), encoding)
  np.testing.assert_array_equal(store.first(2).logits(), want[:2])
  assert store.first(9).shape == (E, N, K)


class Group:
  """As much of a zarr group as the docs use, on tensorstore."""

  def __init__(self, path):
    self.path = pathlib.Path(path)
    self.attrs = json.loads((self.path / "zarr.json").read_text())["attributes"]

  def __getitem__(self, name):
    kvstore = {"driver": "file", "path": str(self.path / name)}
    array = tensorstore.open({"driver": "zarr3", "kvstore": kvstore}, read=True).result()
    return array.read().result()


@pytest.mark.parametrize("encoding", ENCODINGS, ids=str)
def test_the_documented_reader_reads_any_store(tmp_path, monkeypatch, encoding):
  store = filled(tmp_path / "s", encoding)
  zarr = types.ModuleType("zarr")
  zarr.open_group = lambda path, mode: Group(path)
  monkeypatch.setitem(sys.modules, "zarr", zarr)
  docs = pathlib.Path(__file__).parents[3] / "docs"
  text = (docs / "how-to" / "read_a_label_store.md").read_text()
  (code,) = re.findall(r"```python\n(import numpy.*?)```", text, re.S)
  scope = {}
  exec(code, scope)
  np.testing.assert_array_equal(scope["read_labels"](tmp_path / "s"), store.logits())
  np.testing.assert_array_equal(scope["read_labels"](tmp_path / "s", 1, 2), store.logits(1, 2))


def test_a_label_epoch_is_one_file_an_array(tmp_path):
  filled(tmp_path / "s", Encoding("uint8", top_k=2))
  files = sorted(p.relative_to(tmp_path / "s").as_posix() for p in tmp_path.rglob("c.*"))
  assert files == [f"{name}/c.{e}.0.0" for name in ("indices", "rows", "values") for e in range(E)]


def test_large_epochs_are_shards(tmp_path, monkeypatch):
  monkeypatch.setattr(zarr_files, "_CHUNK_BYTES", 16)  # two rows of float16
  store = filled(tmp_path / "s")
  meta = json.loads((tmp_path / "s" / "values" / "zarr.json").read_text())
  assert meta["codecs"][0]["name"] == "sharding_indexed"
  assert len(list((tmp_path / "s" / "values").glob("c.*"))) == E
  assert store.nbytes == label_store.disk_bytes((E, N, K), Encoding())
  np.testing.assert_array_equal(store.rows(3, 12), store.logits().reshape(-1, K)[3:12])


def test_calibration_streams_the_store(tmp_path):
  store = filled(tmp_path / "s", Encoding("float32"))
  labels, counts = np.array([0, 1, 2, 3, 0]), np.array([9, 5, 2, 1])
  whole = adsa.fit(LOGITS[:2], labels, counts)
  rows = Rows(store.first(2), labels)
  rows.size = 3
  streamed = criteria.fit(rows, np.log(counts / 17), "confidence", (0, 3))
  assert streamed.tau == pytest.approx(whole.tau, abs=1e-5)


def test_an_epoch_of_zeros_is_there(tmp_path):
  store = make(tmp_path / "s")
  store.write({1: {"values": np.zeros((N, K), np.float16)}})
  assert store.present() == {1}
  np.testing.assert_array_equal(store.logits(1, 2), np.zeros((1, N, K)))


def test_an_epoch_that_is_not_there_is_no_zeros(tmp_path):
  store = make(tmp_path / "s")
  store.write(encoded(Encoding(), [0, 2]))
  assert store.present() == {0, 2}
  with pytest.raises(LtddError, match=r"values/c\.1\.0\.0.*is missing.*same command again"):
    store.rows(0, 15)
  store.rows(0, 5)


def test_an_epoch_without_its_values_is_not_there(tmp_path):
  """What a kill between two arrays leaves: values are written last."""
  encoding = Encoding("uint8", top_k=2)
  store = filled(tmp_path / "s", encoding)
  (tmp_path / "s" / "values" / "c.1.0.0").unlink()
  assert store.present() == {0, 2}
  store.write(encoded(encoding, [1]))
  assert store.present() == {0, 1, 2}


@pytest.mark.parametrize(
  ("epoch", "change", "message"),
  [
    (E, lambda x: x, f"epochs {E} to {E + 1} of label store .*; expected 0 <= start"),
    (-1, lambda x: x, "epochs -1 to 0 of label store"),
    (0, lambda x: x[:1], r"label epoch 0 has .*\(1, 4\).*; expected .*\(5, 4\)"),
    (0, lambda x: x.astype(np.float32), r"label epoch 0 has .*float32.*; expected .*float16"),
  ],
)
def test_what_is_not_of_the_store_is_not_written(tmp_path, epoch, change, message):
  store, arrays = make(tmp_path / "s"), encoded(HALF)[0]
  with pytest.raises(LtddError, match=message):
    store.write({epoch: {name: change(x) for name, x in arrays.items()}})


@pytest.mark.parametrize("cut", [True, False])
def test_a_damaged_file_is_named(tmp_path, cut):
  store = filled(tmp_path / "s")
  path = tmp_path / "s" / "values" / "c.1.0.0"
  content = bytearray(path.read_bytes())
  content[5] ^= 1
  path.write_bytes(content[:7] if cut else content)
  with pytest.raises(LtddError, match=r"values/c\.1\.0\.0"):
    store.logits()


READER = """
import sys, hashlib
from ltdd_jax.labels import store as label_store
store = label_store.open_store(sys.argv[1])
for _ in range(20):
  print(hashlib.sha256(store.logits().tobytes()).hexdigest())
"""


def test_two_processes_read_at_once(tmp_path):
  filled(tmp_path / "s", Encoding("uint8", top_k=2))
  command = [sys.executable, "-c", READER, str(tmp_path / "s")]
  readers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
  found = [line for r in readers for line in r.communicate()[0].splitlines()]
  assert [r.returncode for r in readers] == [0, 0]
  assert len(found) == 40
  assert len(set(found)) == 1


@pytest.mark.parametrize("encoding", ENCODINGS, ids=str)
def test_no_rows_are_asked_for(tmp_path, encoding):
  store = filled(tmp_path / "s", encoding)
  for row in (0, 4, 5, 15):
    assert store.rows(row, row).shape == (0, K)
  assert store.logits(3).shape == (0, N, K)


def test_bytes_and_presence_are_of_the_epochs_of_the_store_alone(tmp_path):
  store = filled(tmp_path / "s", Encoding("uint8", top_k=2))
  (tmp_path / "s" / "values" / "c.1.0.0.__lock").write_bytes(b"killed")
  assert store.nbytes == label_store.disk_bytes((E, N, K), store.encoding)
  assert store.first(2).nbytes == label_store.disk_bytes((2, N, K), store.encoding)
  assert store.first(2).present() == {0, 1}


# ---- what is refused ----


@pytest.mark.parametrize(
  ("read", "message"),
  [
    (lambda s: s.read(2, 9), "label epochs 2 to 9 of .*s; expected 0 <= start <= stop <= 3, the"),
    (lambda s: s.read(-1), "label epochs -1 to 3 of"),
    (lambda s: s.logits(2, 1), "label epochs 2 to 1 of"),
    (lambda s: s.rows(10, 20), "rows 10 to 20 of .*s; expected 0 <= start <= stop <= 15, the"),
    (lambda s: s.rows(-3, 2), "rows -3 to 2 of"),
    (lambda s: s.first(2).logits(0, 3), "label epochs 0 to 3 of .*<= 2"),
    (lambda s: s.first(2).rows(10, 15), "rows 10 to 15 of .*<= 10"),
    (lambda s: s.first(0), "first 0 label epochs of .*s; expected 1 or more"),
    (lambda s: s.first(-1), "first -1 label epochs"),
  ],
)
def test_what_the_store_does_not_have_is_not_called_damage(tmp_path, read, message):
  store = filled(tmp_path / "s")
  with pytest.raises(LtddError, match=message) as error:
    read(store)
  assert "delete" not in str(error.value)


@pytest.mark.parametrize(
  ("names", "message"),
  [
    ("acbd", r"class 1 is 'b' there \(of 4\) and 'c' here \(of 4\)"),
    ("abc", r"class 3 is 'd' there \(of 4\) and None here \(of 3\)"),
  ],
)
def test_another_class_map_is_refused_and_the_first_difference_is_shown(tmp_path, names, message):
  filled(tmp_path / "s")
  for reopen in (label_store.open_store, make):
    kwargs = {} if reopen is label_store.open_store else {"shape": (E, N, len(names))}
    with pytest.raises(LtddError, match=message) as error:
      reopen(tmp_path / "s", class_names=list(names), **kwargs)
    assert "'a'" not in str(error.value)


@pytest.mark.parametrize("number", [7, "1"])
def test_another_format_is_refused_and_both_are_shown(tmp_path, number):
  filled(tmp_path / "s")
  path = tmp_path / "s" / "zarr.json"
  path.write_text(path.read_text().replace('"format": 1', f'"format": {json.dumps(number)}'))
  for reopen in (label_store.open_store, make):
    with pytest.raises(LtddError, match=rf"damaged: format is {number!r}; expected 1, "):
      reopen(tmp_path / "s")


def test_a_store_of_other_labels_is_not_gone_on_with(tmp_path):
  make(tmp_path / "s", facts={"teachers": "x"})
  make(tmp_path / "s", facts={"teachers": "x"})
  with pytest.raises(LtddError, match=r'facts\.teachers: "x" -> "y"'):
    make(tmp_path / "s", facts={"teachers": "y"})
  with pytest.raises(LtddError, match=r'encoding\.dtype: "float16" -> "uint8"'):
    make(tmp_path / "s", Encoding("uint8"), facts={"teachers": "x"})


@pytest.mark.parametrize(
  ("key", "value"),
  [
    ("shape", None), ("shape", [3, 4]), ("shape", [3, 4, "5"]), ("encoding", None),
    ("shape", [3, 0, 5]), ("encoding", {"dtype": "float16"}),
    ("encoding", {"dtype": "float99", "top_k": None}),
    ("encoding", {"dtype": "float16", "top_k": "x"}),
    ("encoding", {"dtype": "float16", "top_k": 9}), ("class_names", None),
    ("class_names", ["a"]), ("class_names", [1, 2, 3, 4]), ("facts", None), ("facts", [1]),
  ],
)  # fmt: skip
def test_damaged_attributes_are_named(tmp_path, key, value):
  filled(tmp_path / "s")
  path = tmp_path / "s" / "zarr.json"
  group = json.loads(path.read_text())
  about = group["attributes"][label_store.KEY]
  del about[key]
  if value is not None:
    about[key] = value
  path.write_text(json.dumps(group))
  for reopen in (label_store.open_store, make):
    with pytest.raises(LtddError, match=rf"s is damaged: {key} is .*; expected .* Delete .* anew"):
      reopen(tmp_path / "s")


def test_a_store_may_be_in_an_object_store():
  spec = zarr_files.spec(epath.Path("gs://bucket/s/values"), E, N, K, np.dtype(np.float16))
  assert tensorstore.KvStore.Spec(spec["kvstore"]).to_json() == {
    "driver": "gcs",
    "bucket": "bucket",
    "path": "s/values/",
  }


def test_the_home_folder_is_expanded(tmp_path, monkeypatch):
  monkeypatch.setenv("HOME", str(tmp_path))
  filled("~/s")
  assert label_store.open_store("~/s").present() == {0, 1, 2}
  assert (tmp_path / "s" / "values").is_dir()


def test_what_is_no_store_is_refused(tmp_path):
  (tmp_path / "zarr.json").write_text('{"zarr_format": 3, "node_type": "group"}')
  with pytest.raises(LtddError, match="no label store of ltdd_jax"):
    label_store.open_store(tmp_path)
  with pytest.raises(LtddError, match="no label store of ltdd_jax"):
    label_store.open_store(tmp_path / "nothing")
  (tmp_path / "files").mkdir()
  (tmp_path / "files" / "x").write_text("mine")
  with pytest.raises(LtddError, match="files has files, but is no label store; use another folder"):
    make(tmp_path / "files")
  with pytest.raises(LtddError, match="x is a file, but is no label store; use another folder"):
    make(tmp_path / "files" / "x")
  (tmp_path / "zarr.json").write_text("[" * 100_000)
  with pytest.raises(LtddError, match=r"no label store of ltdd_jax.*RecursionError"):
    label_store.open_store(tmp_path)


def test_a_kill_while_the_store_is_made_does_not_block_the_next_start(tmp_path):
  left = tmp_path / "s" / ".ltdd-tmp-abc"
  left.parent.mkdir()
  left.write_text("{")
  make(tmp_path / "s")
  assert not left.exists()


@pytest.mark.parametrize(
  ("kwargs", "message"),
  [
    ({"shape": (0, N, K)}, r"s cannot be made: shape is \[0, 5, 4\]; expected three sizes"),
    ({"class_names": ("a",)}, r"class_names is \['a'\]; expected 4 names, one for each class"),
  ],
)
def test_what_could_not_be_opened_is_not_made(tmp_path, kwargs, message):
  with pytest.raises(LtddError, match=message):
    make(tmp_path / "s", **kwargs)
  assert not (tmp_path / "s").exists()


def test_attributes_of_another_store_are_refused_and_both_shapes_are_shown(tmp_path):
  filled(tmp_path / "s")
  make(tmp_path / "t", shape=(2, N, K))
  (tmp_path / "t" / "zarr.json").replace(tmp_path / "s" / "zarr.json")
  with pytest.raises(LtddError, match=r"label_epoch.: \[0, 2\).*label_epoch.: \[0, 3\*\).*\. If"):
    label_store.open_store(tmp_path / "s")


def test_a_store_without_an_array_is_refused(tmp_path):
  filled(tmp_path / "s")
  (tmp_path / "s" / "values" / "zarr.json").unlink()
  with pytest.raises(LtddError, match=r"cannot be read.*values/"):
    label_store.open_store(tmp_path / "s")


@pytest.mark.parametrize("text", ["", "garbage", "{}"])
def test_a_damaged_array_is_named_when_it_is_gone_on_with(tmp_path, text):
  filled(tmp_path / "s")
  (tmp_path / "s" / "values" / "zarr.json").write_text(text)
  for reopen in (label_store.open_store, make):
    with pytest.raises(LtddError, match=r"s cannot be read.*values/zarr\.json.*delete .*s and"):
      reopen(tmp_path / "s")


@pytest.mark.parametrize("dtype", ["float16", "uint8"])
def test_logits_too_large_for_float16_become_infinite_and_are_refused(tmp_path, dtype):
  encoding = Encoding(dtype)
  store = make(tmp_path / "s", encoding)
  arrays = jax.device_get(encoding.encode(-1e5 + 1e4 * LOGITS[0]))
  with pytest.raises(LtddError, match=f"may not fit into {dtype}"):
    store.write({0: arrays})
  store.write({})
  assert store.present() == set()


@pytest.mark.parametrize(
  ("kwargs", "message"),
  [
    ({"dtype": "int8"}, "dtype is 'int8'; expected one of 'float32', 'float16', 'bfloat16'"),
    ({"top_k": 0}, "top_k is 0; expected 1 or more"),
    ({"top_k": 2.5}, "top_k is 2.5; expected 1 or more classes, a whole number"),
    ({"top_k": True}, "top_k is True; expected 1 or more"),
    ({"top_k": "x"}, "top_k is 'x'; expected 1 or more"),
    ({"top_k": 5}, "top_k is 5; expected 1 to 4, the number of classes"),
  ],
)
def test_bad_encodings_are_refused(tmp_path, kwargs, message):
  with pytest.raises(LtddError, match=message):
    make(tmp_path / "s", Encoding(**kwargs))


def test_bytes_of_a_label():
  bytes_of = lambda k, *args, **kwargs: Encoding(*args, **kwargs).row_bytes(k)
  assert bytes_of(10) == 20
  assert bytes_of(10, "uint8") == 10 + 4  # levels, scale and offset
  assert bytes_of(100, "uint8", top_k=5) == 5 + 5 + 6  # and classes, and the rest
  assert bytes_of(1000, "float16", top_k=10) == 20 + 20 + 2  # classes in two bytes
  assert bytes_of(10, "float32", top_k=10) == 40  # nothing is left out
