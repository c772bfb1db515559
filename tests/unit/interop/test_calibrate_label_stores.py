"""Labels of a run as logits: what they hold is calibrated as an array of it would be."""

import shutil

import numpy as np
import pytest

from launch import calibrate as command
from ltdd_jax import interop
from ltdd_jax.artefacts.workdir import Workdir
from ltdd_jax.core.types import LtddError
from ltdd_jax.labels import store as label_store
from ltdd_jax.labels.encoding import Encoding

E, N, K = 3, 20, 5
LABELS = (np.arange(N) % K).astype(np.int32)
COUNTS = np.array([100, 50, 20, 10, 5])
DTYPES = [Encoding("float32"), Encoding("uint8"), Encoding("bfloat16", top_k=2)]


def artefact(folder, encoding=DTYPES[0], epochs=range(E), stage="label/edc/teacher"):
  """The labels of a run; returns their folder, and the decoded logits (e, n, k)."""
  random, names = np.random.RandomState(0), list("abcde")
  logits = random.standard_normal((E, N, K)) + 3 * np.eye(K)[LABELS] + np.log(COUNTS)
  store = label_store.create(folder / "scratch", (E, N, K), encoding, class_names=names)
  store.write({e: encoding.encode(logits[e].astype(np.float32)) for e in epochs})
  with Workdir(folder / "run") as work:
    work.commit(
      stage, config={}, inputs={}, arrays={"labels": LABELS}, class_names=names,
      folders={"labels.zarr": store.path},
    )  # fmt: skip
  return folder / "run" / stage, store


@pytest.mark.parametrize("encoding", DTYPES, ids=str)
def test_a_store_is_calibrated_as_its_decoded_array(tmp_path, encoding):
  folder, store = artefact(tmp_path, encoding)
  want = interop.calibrate_logits(store.logits(), LABELS, COUNTS)
  for place in (str(folder), folder / "labels.zarr"):
    out = tmp_path / "labels.npz"
    done = interop.calibrate_logits(place, None, COUNTS, out=out, overwrite=True)
    assert done.tau == want.tau
    with np.load(out) as file:
      assert file["labels"].shape == (E, N, K)
      np.testing.assert_array_equal(file["labels"], want.soft_labels)


def test_labels_may_be_given_and_must_be_for_a_store_alone(tmp_path):
  folder, store = artefact(tmp_path)
  other = (LABELS + 1) % K
  want = interop.calibrate_logits(store.logits(), other, COUNTS)
  assert interop.calibrate_logits(folder, other, COUNTS).tau == want.tau
  alone = shutil.copytree(folder / "labels.zarr", tmp_path / "alone")
  assert interop.calibrate_logits(alone, other, COUNTS).tau == want.tau
  for logits in (alone, store.logits()):
    with pytest.raises(LtddError, match="labels are missing, and the logits come without"):
      interop.calibrate_logits(logits, None, COUNTS)


def test_other_folders_are_refused(tmp_path):
  unfinished, _ = artefact(tmp_path / "a", epochs=[0, 2])
  with pytest.raises(LtddError, match="label epoch 1 of 3 is missing; finish the run"):
    interop.calibrate_logits(unfinished, None, COUNTS)
  images, _ = artefact(tmp_path / "b", stage="distil/edc")
  with pytest.raises(LtddError, match="stage distil/edc; expected one of a label stage"):
    interop.calibrate_logits(images, None, COUNTS)
  with pytest.raises(LtddError, match=r"is a folder; expected a file with the logits, or the lab"):
    interop.calibrate_logits(tmp_path, LABELS, COUNTS)


def test_the_command_needs_no_labels(tmp_path, capsys):
  folder, _ = artefact(tmp_path)
  np.save(tmp_path / "n.npy", COUNTS)
  args = [f"--logits={folder}", f"--counts={tmp_path}/n.npy", f"--out={tmp_path}/out.npz"]
  command.flags.FLAGS(["calibrate", *args, "--dry_run"])
  assert command.main(["calibrate"]) == 0
  assert "(3, 20, 5)" in capsys.readouterr().out
