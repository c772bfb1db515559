"""Logits of any origin: every format gives what arrays give, streamed; outputs are whole."""

import importlib.util
import json
import types
import zipfile

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from ltdd_jax import adsa, calibrate, interop
from ltdd_jax.artefacts import provenance
from ltdd_jax.core.types import LtddError
from ltdd_jax.interop import inputs, job, read
from ltdd_jax.labels import store as label_store
from ltdd_jax.report import calibration

E, N, K = 2, 30, 5
COUNTS = np.array([300, 80, 20, 5, 1])
LABELS = np.arange(N) % K


def make_logits(dtype=np.float32, shape=(E, N, K), seed=0):
  random = np.random.default_rng(seed)
  prior = np.log(COUNTS / COUNTS.sum())
  return (random.standard_normal(shape) + 3 * np.eye(K)[LABELS] + prior).astype(dtype)


LOGITS = make_logits()


def close(a, b, atol=1e-5):
  np.testing.assert_allclose(np.asarray(a, np.float64), np.asarray(b, np.float64), atol=atol)


def softmax(z):
  p = np.exp(z - z.max(-1, keepdims=True))
  return p / p.sum(-1, keepdims=True)


def test_as_many_epochs_as_images_and_classes():
  labels = np.tile(np.arange(K), (K, 1))
  logits = np.random.default_rng(0).standard_normal((K, K, K)) + 3 * np.eye(K)[labels]
  found = interop.calibrate_logits(logits, labels, COUNTS)  # labels (k, k) are not one-hot
  assert found.soft_labels.shape == (K, K, K)


# ---- formats ----


def save(tmp_path, form, logits):
  """Writes logits in a format; returns the name to open."""
  path = tmp_path / f"z.{form.partition(' ')[0]}"
  if form == "npy":
    np.save(path, logits)
  elif form == "npy fortran":
    np.save(path, np.asfortranarray(logits))
  elif form == "npy big-endian":
    np.save(path, logits.astype(logits.dtype.newbyteorder(">")))
  elif form == "npz":
    np.savez(path, logits=logits, other=np.zeros(3))
  elif form == "npz compressed":
    np.savez_compressed(path, a=np.zeros(3), z=logits)
    return f"{path}:z"
  else:
    save_file({"bias": np.zeros(2, np.float32), "z": logits}, path)
    return f"{path}:z"
  return str(path)


FORMATS = ("npy", "npy fortran", "npy big-endian", "npz", "npz compressed", "safetensors")


@pytest.mark.parametrize("form", FORMATS)
def test_every_format_gives_the_rows_of_the_array(tmp_path, form):
  _, source = inputs.open_logits(save(tmp_path, form, LOGITS))
  flat = LOGITS.reshape(-1, K)
  assert source.dtype == np.float32
  assert source.shape == (E, N, K)
  for _ in range(2):  # passes
    for start in (*range(0, E * N - 7, 7), E * N - 7):  # the last one overlaps
      part = source.rows(start, start + 7)
      assert part.dtype.isnative
      np.testing.assert_array_equal(part, flat[start : start + 7])
  np.testing.assert_array_equal(source.rows(20, 23), flat[20:23])
  np.testing.assert_array_equal(source.rows(0, E * N), flat)


@pytest.mark.parametrize("form", ["npy", "npz", "npz compressed", "safetensors"])
@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_half_precision(tmp_path, form, dtype):
  logits = LOGITS.astype(dtype)
  _, source = inputs.open_logits(save(tmp_path, form, logits))
  np.testing.assert_array_equal(source.rows(3, 50), logits.reshape(-1, K)[3:50])


def test_npy_files_are_mapped_and_not_read(tmp_path):
  """So that they may be larger than memory."""
  for form in ("npy", "npy fortran", "npy big-endian"):
    source = read.rows_of(read.parse(save(tmp_path, form, LOGITS), "logits"))
    base = source._array
    while isinstance(base.base, np.ndarray):
      base = base.base
    assert isinstance(base, np.memmap)


@pytest.mark.parametrize("form", FORMATS)
def test_calibration_of_a_file_is_that_of_the_array(tmp_path, form):
  name = save(tmp_path, form, LOGITS)
  found = interop.calibrate_logits(name, LABELS, COUNTS)
  direct = adsa.fit(LOGITS, LABELS, COUNTS)
  assert found.tau == pytest.approx(direct.tau, abs=1e-6)
  prior = np.log(COUNTS / COUNTS.sum())
  close(found.soft_labels, softmax(LOGITS - direct.tau * prior))
  close(found.confidence_before, direct.confidence_before)
  close(found.confidence_after, direct.confidence_after, 1e-4)


@pytest.mark.parametrize("suffix", ["npy", "npz", "safetensors", "txt", "csv", "json"])
def test_labels_in_every_format(tmp_path, suffix):
  path = tmp_path / f"y.{suffix}"
  if suffix == "npy":
    np.save(path, LABELS.astype(">i4"))
  elif suffix == "npz":
    np.savez_compressed(path, y=LABELS)
  elif suffix == "safetensors":
    save_file({"y": LABELS}, path)
  elif suffix == "json":
    path.write_text(json.dumps(LABELS.tolist()))
  else:
    path.write_text((", " if suffix == "csv" else "\n").join(map(str, LABELS)) + "\n")
  _, found = inputs.open_vector(path, "labels")
  assert found.dtype.kind == "i"
  assert found.dtype.isnative
  np.testing.assert_array_equal(found, LABELS)


def test_one_archive_holds_all(tmp_path):
  name = tmp_path / "store.npz"
  np.savez(name, logits=LOGITS, labels=LABELS, counts=COUNTS)
  found = interop.calibrate_logits(name, name, name)
  close(found.soft_labels, interop.calibrate_logits(LOGITS, LABELS, COUNTS).soft_labels)


def test_arrays_of_notebooks(tmp_path):
  expected = interop.calibrate_logits(LOGITS, LABELS, COUNTS).soft_labels
  for value in (jax.numpy.asarray(LOGITS), LOGITS.tolist(), read.ArraySource(LOGITS)):
    value = np.asarray(value, np.float32) if isinstance(value, list) else value
    found = interop.calibrate_logits(value, LABELS.tolist(), COUNTS.tolist())
    np.testing.assert_array_equal(found.soft_labels, expected)


def test_torch_tensors_are_recognised_without_torch():
  class Tensor:
    dtype = "torch.bfloat16"

    def detach(self):
      return self

    cpu = detach

    def float(self):
      return types.SimpleNamespace(numpy=lambda: LOGITS)

  Tensor.__module__ = "torch"
  assert read.from_array(Tensor()) is LOGITS


# ---- what comes out ----


@pytest.mark.parametrize("name", sorted({*calibrate.CALIBRATORS} - {"adsa_probe"}))
@pytest.mark.parametrize("suffix", ["npz", "npy"])
def test_files_hold_what_the_array_holds(tmp_path, monkeypatch, name, suffix):
  monkeypatch.setattr(adsa, "CHUNK", 7 * 256)  # blocks of seven of 60: the last is smaller
  path = tmp_path / f"labels.{suffix}"
  memory = interop.calibrate_logits(LOGITS, LABELS, COUNTS, calibrator=name)
  file = interop.calibrate_logits(LOGITS, LABELS, COUNTS, calibrator=name, out=path)
  assert file.soft_labels is None
  assert file.tau == memory.tau
  stored = np.load(path, allow_pickle=False)
  np.testing.assert_array_equal(stored["labels"] if suffix == "npz" else stored, memory.soft_labels)
  close(memory.soft_labels.sum(-1), 1)
  assert [p.name for p in tmp_path.iterdir()] == [path.name]  # nothing temporary is left
  for _ in range(2):
    close(memory.confidence_before, true_class(softmax(LOGITS)))
    close(memory.confidence_after, true_class(memory.soft_labels))


def true_class(p):
  of_class = np.take_along_axis(p, np.broadcast_to(LABELS, p.shape[:-1])[..., None], -1)[..., 0]
  return [of_class[:, c == LABELS].mean() for c in range(K)]


def test_the_archive_says_how_labels_were_made(tmp_path):
  path, args = tmp_path / "o.npz", {"tau_range": (0.0, 2.0)}
  found = interop.calibrate_logits(
    LOGITS, LABELS, COUNTS, out=path, calibrator_args=args, temperature=2.0, dtype="float16"
  )
  with np.load(path, allow_pickle=False) as stored:
    assert stored["labels"].dtype == np.float16
    assert float(stored["tau"]) == found.tau
    np.testing.assert_array_equal(stored["class_counts"], COUNTS)
    np.testing.assert_array_equal(stored["class_confidence_before"], found.confidence_before)
    np.testing.assert_array_equal(stored["class_confidence_after"], found.confidence_after)
    about = json.loads(str(stored["report"]))
  assert about["calibrator_args"] == {"tau_range": [0.0, 2.0]}
  assert about["calibrator_version"] == 1
  assert about["versions"] == provenance.versions()
  assert (about["temperature"], about["kind"]) == (2.0, "probabilities")
  assert about["report"] == found.report
  twin = tmp_path / "twin.npz"
  interop.calibrate_logits(
    LOGITS, LABELS, COUNTS, out=twin, calibrator_args=args, temperature=2.0, dtype="float16"
  )
  assert twin.read_bytes() == path.read_bytes()
  assert path.stat().st_mode & 0o777 == 0o644


def test_what_was_written_can_be_read_back(tmp_path):
  path = tmp_path / "o.npz"
  interop.calibrate_logits(LOGITS, LABELS, COUNTS, out=path, kind="logits")
  again = interop.calibrate_logits(f"{path}:labels", LABELS, f"{path}:class_counts")
  assert again.tau == pytest.approx(0, abs=1e-3)


def test_a_tilde_is_the_home_folder_in_every_path(tmp_path, monkeypatch):
  monkeypatch.setenv("HOME", str(tmp_path))
  monkeypatch.chdir(tmp_path)
  np.savez("all.npz", logits=LOGITS, labels=LABELS, counts=COUNTS, q=np.full(K, 1 / K))
  (tmp_path / "out").mkdir()
  name = "~/all.npz"
  found = interop.calibrate_logits(
    name, name, f"{name}:counts", target_prior=f"{name}:q", out="~/out/labels.npy"
  )
  assert found.out == tmp_path / "out" / "labels.npy"
  assert np.load(found.out).shape == LOGITS.shape
  assert sorted(p.name for p in tmp_path.iterdir()) == ["all.npz", "out"]


def test_temperature_and_logits():
  whole = interop.calibrate_logits(LOGITS, LABELS, COUNTS, kind="logits")
  soft = interop.calibrate_logits(LOGITS, LABELS, COUNTS, temperature=4.0)
  close(soft.soft_labels, softmax(whole.soft_labels / 4))
  close(whole.soft_labels.mean(-1), LOGITS.mean(-1))  # for losses on raw logits
  np.testing.assert_array_equal(whole.confidence_after, soft.confidence_after)


@pytest.mark.parametrize("kind", job.KINDS)
def test_float64_with_large_offsets(kind):
  offset = 1e7 * np.arange(1, N + 1)[:, None]
  logits = make_logits(np.float64)
  plain = interop.calibrate_logits(logits, LABELS, COUNTS, kind=kind)
  moved = interop.calibrate_logits(logits + offset, LABELS, COUNTS, kind=kind)
  assert moved.tau == pytest.approx(plain.tau, abs=1e-4)
  expected = plain.soft_labels + (offset if kind == "logits" else 0)
  np.testing.assert_allclose(moved.soft_labels, expected, rtol=1e-6, atol=1e-4)


def test_labels_of_each_epoch_and_classes_without_an_image():
  labels = np.stack([LABELS, np.roll(LABELS, 1)])
  labels[labels == 4] = 0
  found = interop.calibrate_logits(LOGITS, labels, COUNTS)
  direct = adsa.fit(LOGITS, labels, COUNTS)
  assert found.tau == pytest.approx(direct.tau, abs=1e-6)
  close(found.confidence_after, direct.confidence_after, 1e-4)
  assert np.isnan(found.confidence_before[4])


def test_target_priors_and_intervals(tmp_path):
  """By Bayes' rule: labels for a test set with frequencies q. The interval comes from `report`."""
  q = np.array([0.1, 0.1, 0.2, 0.2, 0.4], np.float32)
  np.save(tmp_path / "q.npy", q)
  plain = interop.calibrate_logits(LOGITS, LABELS, COUNTS)
  found = interop.calibrate_logits(
    LOGITS, LABELS, COUNTS, target_prior=tmp_path / "q.npy", calibrator_args={"bootstrap": 20}
  )
  assert found.tau == plain.tau
  moved = plain.soft_labels * q
  close(found.soft_labels, moved / moved.sum(-1, keepdims=True))
  of_labels = np.take_along_axis(found.soft_labels, LABELS[None, :, None], -1).mean(0)[:, 0]
  of_labels = np.bincount(LABELS, of_labels) / np.bincount(LABELS)
  for after in (found.confidence_after, found.report["confidence_after"]):
    close(after, of_labels)
  close(found.report["confidence_aligned"], plain.confidence_after)
  assert "confidence_aligned" not in plain.report
  assert "The step to target_prior comes after that" in found.report["message"]
  assert "After is with the step to target_prior." in calibration.describe(found)
  assert "target_prior" not in calibration.describe(plain)
  low, high = found.report["tau_interval"]
  assert low < found.tau < high
  text = calibration.describe(found)
  assert f"95 % interval {low:.4f} to {high:.4f}" in text
  share = 100 * (LOGITS.argmax(-1) == LABELS).mean()
  assert f"The largest logit is that of the label in {share:.1f} % of rows (chance: 20.0 %)" in text


def test_what_a_bound_on_the_head_trades():
  found = interop.calibrate_logits(
    LOGITS, LABELS, COUNTS, calibrator_args={"max_head_drop": 0.01, "head": (0,)}
  )
  interval = {"free_tau": 0.75, "tau_interval": None, "free_tau_interval": [0.5, 1.0]}
  text = calibration.describe(found._replace(report=found.report | interval))
  bounded = f"tau = {found.tau:.4f}; without the bound on the head 0.7500, 95 % interval 0.5000 to"
  assert bounded in text
  text = text.split("Head and tail: ")[1]
  title, _, header, _, *rows = text.split("\n")
  assert title == "mean confidence along tau."
  assert [x.strip() for x in header.strip("|").split("|")] == ["tau", "objective", "head", "tail"]
  cells = [[float(x) for x in row.strip("|").split("|")] for row in rows]
  curve = found.report["head_curve"]
  assert len(cells) == 7
  keep = LABELS != K - 1  # no tail class has an image
  found = interop.calibrate_logits(
    LOGITS[:, keep], LABELS[keep], COUNTS, calibrator_args={"max_head_drop": 0.01}
  )
  assert calibration.describe(found).split("\n")[-1].split("|")[-2].strip() == "-"
  close(cells[0], curve[0], 1e-2)
  close(cells[-1], curve[-1], 1e-2)


def test_smoothing_adds_to_every_count():
  counts = COUNTS - 1
  found = interop.calibrate_logits(LOGITS, LABELS, counts, smoothing=1)
  np.testing.assert_array_equal(found.class_counts, COUNTS)


def test_parse_args():
  text = "criterion=marginal, tau_range=(0,2.5),groups=[[0,1],[2]],fast=true,x=None,n=3"
  assert interop.parse_args(text) == {
    "criterion": "marginal", "tau_range": (0, 2.5), "groups": [[0, 1], [2]],
    "fast": True, "x": None, "n": 3,
  }  # fmt: skip
  assert interop.parse_args(None) == interop.parse_args("") == {}
  assert interop.prepare(LOGITS, LABELS, COUNTS, calibrator_args="bootstrap=20").args == {
    "bootstrap": 20
  }
  for bad in ("tau", "=1", "tau=", "a b=1"):
    with pytest.raises(LtddError, match="expected key=value"):
      interop.parse_args(bad)
  with pytest.raises(LtddError, match="'tau' is given twice"):
    interop.parse_args("tau=1,tau=2")


def test_archives_of_other_writers(tmp_path):
  path = tmp_path / "z.npz"
  np.save(tmp_path / "z.npy", LOGITS)
  with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as archive:
    archive.writestr("README", "no array")
    archive.write(tmp_path / "z.npy", "logits.npy")
  _, source = inputs.open_logits(path)
  np.testing.assert_array_equal(source.rows(0, E * N), LOGITS.reshape(-1, K))
  with pytest.raises(LtddError, match="the member is no array"):
    inputs.open_logits(f"{path}:README")


def test_a_file_in_a_bucket_is_read_by_the_library_for_it(monkeypatch, tmp_path):
  """Without that library one line says what to install; what is mapped or written is local."""
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  with pytest.raises(LtddError, match=r"gs://bucket/z\.npz needs .* gcsfs; install it: pip"):
    read.parse("gs://bucket/z.npz", "logits")
  np.savez(tmp_path / "z.npz", logits=LOGITS)
  name = read.parse(tmp_path / "z.npz", "logits")
  far = name._replace(text="gs://b/z.npy", path=read.epath.Path("gs://b/z.npy"))
  with pytest.raises(LtddError, match=r"gs://b/z\.npy: expected a file on this machine"):
    read.rows_of(far)
  with pytest.raises(LtddError, match=r"out is gs://b/o\.npz: expected a file on this machine"):
    interop.prepare(LOGITS, LABELS, COUNTS, out="gs://b/o.npz")


def test_a_label_store_stands_for_logits(tmp_path):
  encoding = label_store.Encoding(dtype="float32")
  store = label_store.create(tmp_path / "s", LOGITS.shape, encoding, class_names=list("abcde"))
  store.write({e: jax.device_get(encoding.encode(z)) for e, z in enumerate(LOGITS)})
  found = interop.calibrate_logits(store, LABELS, COUNTS)
  expected = interop.calibrate_logits(LOGITS, LABELS, COUNTS)
  np.testing.assert_array_equal(found.soft_labels, expected.soft_labels)
