"""By hand, where torch, torchvision and datasets are installed:

    pip install -e '.[dev,torch,huggingface]' torchvision
    pytest -m slow -n 0 tests/slow/test_exports_in_other_libraries.py

Each export is opened by the library that it is for, and imported again.
"""

import functools
import json
import pathlib
import re
import textwrap

import jax
import numpy as np
import pytest

from ltdd_jax.core.types import LtddError
from ltdd_jax.data import view_records
from ltdd_jax.data import views as views_lib
from ltdd_jax.data.specs import SPECS
from ltdd_jax.interop import distilled_sets, exports, view_labels
from ltdd_jax.interop.exports import fkd, record

pytestmark = pytest.mark.slow
SPEC = SPECS["cifar10"]
K, N, SIDE = 10, 30, 32
NAMES = ("a/b", "A|<b>\n", "..", "`c`", "nul\0", *"vwxyz")
LABELS = np.tile(np.arange(K), N // K).astype(np.int32)  # class after class only once sorted
LEVELS = np.arange(N * SIDE * SIDE * 3) % 256  # all 256
IMAGES = np.random.RandomState(0).permutation(LEVELS).astype(np.uint8).reshape(N, SIDE, SIDE, 3)
LOGITS = np.random.RandomState(1).normal(0, 5, (N, K)).astype(np.float32)
RATE = np.float32(0.0123)
META = {"dataset": "cifar10", "method": "<script>`|\n"}


@pytest.fixture
def torch():
  return pytest.importorskip("torch")


def distilled(**changes):
  whole = record.DistilledSet(
    IMAGES, LABELS, NAMES, SPEC.mean, SPEC.std, LOGITS, RATE, 2, meta=META
  )
  return whole._replace(**changes)


def floats():
  return np.random.RandomState(1).uniform(-0.02, 1.02, IMAGES.shape).astype(np.float32)


def assert_comes_back(path, want):
  got = distilled_sets.read("mine", str(path), SPEC, NAMES)
  for x, y in ((got.images, want.images), (got.labels, want.labels)):
    assert x.dtype == y.dtype
    assert x.tobytes() == y.tobytes()
  assert got.parts == 2
  assert set(got.learned) == {"soft_labels", "student_lr"} - (
    {"soft_labels"} if want.soft_labels is None else set()
  )
  if want.soft_labels is not None:
    assert got.learned["soft_labels"].tobytes() == want.soft_labels.tobytes()
  assert got.learned["student_lr"].tobytes() == want.student_lr.tobytes()
  assert len(got.notes) == 1


@pytest.mark.parametrize("images", [IMAGES, floats()], ids=["uint8", "float32"])
@pytest.mark.parametrize("soft", [LOGITS, None], ids=["soft", "hard"])
@pytest.mark.parametrize("to", ["torch", "ddranking", "huggingface"])
def test_what_goes_out_comes_in_again(to, soft, images, tmp_path):
  pytest.importorskip("datasets" if to == "huggingface" else "torch")
  found = distilled(images=images, soft_labels=soft)
  assert_comes_back(exports.write(found, to, tmp_path / "set"), found)


def test_class_folders_in_torchvision(tmp_path):
  datasets = pytest.importorskip("torchvision.datasets")
  path = exports.write(distilled(), "folder", tmp_path / "set")
  found = datasets.ImageFolder(path)
  assert len(found) == N
  for file, label in found.samples:
    number = int(pathlib.Path(file).stem)
    assert label == LABELS[number]
    np.testing.assert_array_equal(np.asarray(found.loader(file)), IMAGES[number])


def test_tensors(torch, tmp_path):
  path = exports.write(distilled(), "torch", tmp_path / "set")
  load = lambda name: torch.load(path / name, weights_only=True)
  images, labels = load("images.pt"), load("labels.pt")
  assert (images.dtype, tuple(images.shape)) == (torch.float32, (N, 3, SIDE, SIDE))
  to_tensor = pytest.importorskip("torchvision.transforms.functional").to_tensor
  for i in range(N):
    assert torch.equal(images[i], to_tensor(IMAGES[i]))
  assert labels.dtype == torch.int64
  np.testing.assert_array_equal(labels, LABELS)
  np.testing.assert_array_equal(load("soft_labels.pt"), LOGITS)
  assert load("lr.pt").shape == ()
  assert load("lr.pt").item() == RATE


def test_the_layout_of_dd_ranking(torch, tmp_path):
  """Class after class, normalised by its constants, not by those of the run (CIFAR-100's here)."""
  cifar100 = SPECS["cifar100"]
  found = distilled(mean=cifar100.mean, std=cifar100.std, meta={"dataset": "cifar100"})
  path = exports.write(found, "ddranking", tmp_path / "set")
  load = lambda name: torch.load(path / name, weights_only=True)
  images, logits = load("images.pt"), load("labels.pt")
  order = [i for c in range(K) for i in range(N) if LABELS[i] == c]
  assert LABELS[order].tolist() == [i // (N // K) for i in range(N)]
  transforms = pytest.importorskip("torchvision.transforms")
  normalize = transforms.Compose(
    [
      transforms.ToTensor(),
      transforms.Normalize((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    ]
  )
  for row, i in enumerate(order):
    torch.testing.assert_close(images[row], normalize(IMAGES[i]), rtol=0, atol=1e-6)
    np.testing.assert_array_equal(logits[row], LOGITS[i])
  assert load("lr.pt").item() == RATE
  hard = exports.write(found._replace(soft_labels=None), "ddranking", tmp_path / "hard")
  assert torch.load(hard / "labels.pt", weights_only=True).tolist() == LABELS[order].tolist()


def test_tensors_of_others(torch, tmp_path):
  """A folder of two files; logits are of class after class. Pickles are refused."""
  torch.save(torch.from_numpy(IMAGES).permute(0, 3, 1, 2), tmp_path / "images.pt")
  torch.save(torch.from_numpy(LOGITS), tmp_path / "labels.pt")
  got = distilled_sets.read("mine", str(tmp_path), SPEC, NAMES)
  np.testing.assert_array_equal(got.images, IMAGES)
  assert got.labels.tolist() == [i // (N // K) for i in range(N)]
  np.testing.assert_array_equal(got.learned["soft_labels"], LOGITS)
  for bad, message in (
    (pathlib.Path("x"), r"labels\.pt is no readable file of one tensor"),
    ({"labels": torch.zeros(N)}, r"labels\.pt is no readable file of one tensor"),
    (torch.zeros(N), r"labels\.pt is float32 \(30,\); expected \(n,\) or \(n, k\)"),
    (torch.zeros(31, K), "logits of 31 images; expected as many in each of 10 classes"),
  ):
    torch.save(bad, tmp_path / "labels.pt")
    with pytest.raises(LtddError, match=message):
      distilled_sets.read("mine", str(tmp_path), SPEC, NAMES)


def test_a_damaged_tensor_is_named(torch, tmp_path):
  torch.save(torch.from_numpy(IMAGES), tmp_path / "images.pt")
  whole = (tmp_path / "images.pt").read_bytes()
  (tmp_path / "images.pt").write_bytes(whole.replace(b"little", b"middle"))
  (tmp_path / "labels.pt").touch()
  with pytest.raises(LtddError, match=r"images\.pt is no readable file .*endianness type: middle"):
    distilled_sets.read("mine", str(tmp_path), SPEC, NAMES)


@pytest.mark.parametrize("soft", [LOGITS, None], ids=["soft", "hard"])
def test_load_dataset(soft, tmp_path):
  datasets = pytest.importorskip("datasets")
  path = exports.write(distilled(soft_labels=soft), "huggingface", tmp_path / "set")
  found = datasets.load_dataset(str(path), cache_dir=str(tmp_path / "cache"))
  assert list(found) == ["train"]
  found = found["train"]
  assert found.features["label"].names == list(NAMES)
  assert found["label"][:] == LABELS.tolist()
  for i in range(N):
    np.testing.assert_array_equal(np.asarray(found[i]["image"]), IMAGES[i])
  if soft is None:
    assert "soft_label" not in found.features
  else:
    got = np.asarray(found.with_format("numpy")["soft_label"][:], np.float32)
    np.testing.assert_array_equal(got, LOGITS)
  card = (path / "README.md").read_text()
  assert "<script>" not in card
  about = json.loads(re.search(r"```json\n(.*?)\n```", card, re.S)[1])
  assert about["meta"] == META
  assert about["mean"] == list(SPEC.mean)


def test_load_dataset_with_float_pixels(tmp_path):
  datasets = pytest.importorskip("datasets")
  pixels = floats()
  path = exports.write(distilled(images=pixels), "huggingface", tmp_path / "set")
  found = datasets.load_dataset(str(path), cache_dir=str(tmp_path / "cache"), split="train")
  np.testing.assert_array_equal(found.with_format("numpy")[3]["image"], pixels[3])


@pytest.mark.parametrize("mix", ["cutmix", "mixup", None])
def test_views_are_replayed_by_torchvision(torch, mix, tmp_path):
  """By the code of the docstring; the views are those of the library."""
  pytest.importorskip("torchvision")
  key, numbers = jax.random.key(7), np.arange(N, dtype=np.int32)
  epochs = np.full(N, 1, np.int32)
  records = view_records.record_fn(SPEC.image_shape, N, mix=mix)(key, numbers, epochs)
  read = lambda epoch: fkd.arrays_of(records, LOGITS, SPEC.image_shape)
  found = distilled(views=record.LabelledViews(1, mix, read))
  path = exports.write(found, "fkd", tmp_path / "set")
  assert_comes_back(path, found)
  scope = {}
  exec(textwrap.dedent(fkd.__doc__[fkd.__doc__.index("    import torch") :]), scope)
  images = torch.from_numpy(IMAGES).permute(0, 3, 1, 2) / 255
  epoch = fkd.read_epoch(path, 0)
  views = scope["views_of"](images, epoch, mix).permute(0, 2, 3, 1).numpy()
  want = views_lib.view_fn(SPEC, mix=mix)(key, IMAGES, LABELS, numbers, epochs)
  pixels = np.asarray(want.images) * np.float32(SPEC.std) + np.float32(SPEC.mean)
  np.testing.assert_allclose(views, pixels, atol=2e-5)  # rounding of two resizers


@pytest.mark.parametrize("mix", ["cutmix", "mixup", None])
def test_batches_of_sre2l_are_converted(torch, mix, tmp_path):
  """By the code of the docstring: views are those of the images that were in the batches."""
  resize = functools.partial(torch.nn.functional.interpolate, size=[SIDE] * 2, mode="bilinear")
  random, images = np.random.RandomState(3), torch.from_numpy(IMAGES).permute(0, 3, 1, 2) / 255
  sampler = torch.utils.data.RandomSampler(range(N), generator=torch.Generator().manual_seed(5))
  loader = torch.utils.data.DataLoader(torch.arange(N), batch_size=8, sampler=sampler)
  shown = np.zeros((2, *IMAGES.shape), np.float32)
  for e in range(2):
    (tmp_path / f"epoch_{e}").mkdir()
    for b, numbers in enumerate(loader):
      crops = [(*random.randint(0, 9, 2).tolist(), 20, 23) for _ in numbers]
      flips = torch.from_numpy(random.rand(len(numbers)) < 0.5)
      both = zip(numbers, crops, strict=True)
      own = [resize(images[i : i + 1, :, y : y + h, x : x + w])[0] for i, (y, x, h, w) in both]
      own = torch.stack([x.flip(-1) if f else x for x, f in zip(own, flips, strict=True)])
      index, lam, box = torch.randperm(len(own)), 0.7, [np.int64(x) for x in (3, 20, 13, 32)]
      views = own.clone()
      if mix == "cutmix":
        views[:, :, 3:13, 20:32] = own[index, :, 3:13, 20:32]
      elif mix == "mixup":
        views, box = lam * own + (1 - lam) * own[index], None
      else:
        index = lam = box = None
      shown[e, numbers] = views.permute(0, 2, 3, 1)
      logits = numbers[:, None] + torch.arange(K, dtype=torch.float16)
      batch = [torch.tensor(crops) / SIDE, flips, index, lam, box, logits]
      torch.save(batch, tmp_path / f"epoch_{e}" / f"batch_{b}.tar")
  scope = {}
  exec(textwrap.dedent(view_labels.__doc__[view_labels.__doc__.index("    import json") :]), scope)
  scope["convert"](tmp_path, tmp_path / "out", NAMES, N, SIDE, 2, mix, seed=5)
  found = view_labels.open_folder("mine", str(tmp_path / "out"), SPEC, NAMES)
  assert (found.shape, found.dtype, found.labels) == ((2, N, K), "float16", None)
  records, logits = zip(*map(found.read, range(2)), strict=True)
  np.testing.assert_array_equal(logits[1][:, 0], np.arange(N))
  records = jax.tree.map(lambda *x: np.stack(x), *records)
  kwargs = view_records.facts_of(records, mix, SPEC.image_shape)
  numbers = np.arange(N, dtype=np.int32)
  views_of = view_records.replay_fn(SPEC, **kwargs)
  for e in range(2):
    got = np.asarray(views_of(records, IMAGES, LABELS, numbers, np.full(N, e, np.int32)).images)
    np.testing.assert_allclose(
      got * np.float32(SPEC.std) + np.float32(SPEC.mean), shown[e], atol=2e-5
    )
