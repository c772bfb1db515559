"""Logits of views from a folder, with what made the views: what `launch.export --to fkd` writes.

    config.label.sources.NAME = {"name": "imported", "path": FOLDER}

The layout is that of `interop.exports.fkd`. `set.npz` may be missing. It has the classes of the
images, which are compared, and the logits of the images as they are, on which calibrators with
`config.calibrate.fit_on="clean"` are fitted.

The batches `epoch_E/batch_B.tar` that SRe2L's relabelling writes are not read: they do not name
their images, whose order is that of a seeded sampler of torch. In PyTorch, of the version that
wrote them, for n images of side x side pixels in the order of `ImageFolder`:

    import json
    import pathlib

    import numpy as np
    import torch


    def convert(batches, out, class_names, n, side, epochs, mix, seed=42):
      sampler = torch.utils.data.RandomSampler(
        range(n), generator=torch.Generator().manual_seed(seed)
      )
      names = "coords", "flip", "mix_index", "mix_lam", "mix_bbox", "logits"
      pathlib.Path(out, "labels").mkdir(parents=True)
      for e in range(epochs):
        order, start, rows = np.array(list(sampler)), 0, []
        while start < n:
          file = f"{batches}/epoch_{e}/batch_{len(rows)}.tar"
          crop, flip, index, share, box, logits = torch.load(file, weights_only=False)
          b, box = len(flip), np.array(box or [0] * 4, np.int32)
          numbers, start = order[start : start + b], start + b
          others = numbers if mix is None else numbers[index.numpy()]
          if mix != "mixup":
            share = 1 - np.prod(box[2:] - box[:2]) / side**2
          share, box = np.full(b, share, np.float32), np.tile(box, (b, 1))
          rows.append((crop.numpy(), flip.numpy(), others, share, box, logits.numpy()))
        arrays = [np.concatenate(x)[np.argsort(order)] for x in zip(*rows)]
        np.savez(f"{out}/labels/epoch_{e:05d}.npz", **dict(zip(names, arrays)))
      about = {"format": "fkd", "version": 1, "mix": mix, "num_epochs": epochs, "num_images": n}
      about |= {"class_names": class_names, "image_dtype": "uint8", "image_shape": [side, side, 3]}
      pathlib.Path(out, "export.json").write_text(json.dumps(about))
"""

import hashlib
import zipfile
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from etils import epath

from ltdd_jax.core import files
from ltdd_jax.core.registry import check_choice
from ltdd_jax.core.types import LtddError
from ltdd_jax.data import arrays as arrays_lib
from ltdd_jax.data import views as views_lib
from ltdd_jax.data.specs import DatasetSpec
from ltdd_jax.data.view_records import Records
from ltdd_jax.interop import distilled_sets
from ltdd_jax.interop.exports import fkd, folders, record

_DTYPES = {
  "coords": ("float32", "float64"),
  "flip": ("bool",),
  "mix_index": ("int32", "int64"),
  "mix_lam": ("float32", "float64"),
  "mix_bbox": ("int32", "int64"),
  "logits": ("float16", "float32"),
}
_MEND = "Export the set again, or mend the program that wrote it"


class ViewLabels(NamedTuple):
  """A folder of labels of views; `read` reads and checks a label epoch."""

  name: str  # for messages
  folder: epath.Path
  mix: str | None
  shape: tuple[int, int, int]  # (e, n, k)
  dtype: str  # of the label store: "float16" or "float32"
  sides: tuple[int, int]  # h, w
  sha256: str  # of mix, and the sizes and CRC-32 of all arrays: none is read whole for it
  labels: np.ndarray | None  # (n,) the classes of the images
  clean_logits: np.ndarray | None  # (n, k) float32, of the images as they are

  def read(self, epoch: int) -> tuple[Records, np.ndarray]:
    """Records (n, ...) and logits (n, k) of a label epoch.

    Raises:
      LtddError: a damaged file, or numbers that no view or label has.
    """
    stored, (h, w) = fkd.read_epoch(self.folder, epoch), self.sides
    pixels = stored["coords"] * np.array([h, w, h, w], np.float64)
    crop = np.rint(np.nan_to_num(pixels, nan=-1, posinf=-1, neginf=-1)).astype(np.int32)
    for key, (good, expected) in _expected(stored, pixels, crop, self.sides, self.mix).items():
      if len(bad := np.flatnonzero(~good)):
        raise LtddError(
          f"{fkd.label_file(self.folder, epoch)}: {key}[{bad[0]}] is {stored[key][bad[0]]}; "
          f"expected {expected}. {_MEND}"
        )
    partner, box = (stored[key].astype(np.int32) for key in ("mix_index", "mix_bbox"))
    weight = stored["mix_lam"].astype(np.float32)
    return Records(crop, stored["flip"], partner, weight, box), stored["logits"]


def _expected(
  stored: Mapping[str, np.ndarray],
  pixels: np.ndarray,
  crop: np.ndarray,
  sides: tuple[int, int],
  mix: str | None,
) -> dict[str, tuple[np.ndarray, str]]:
  """Which rows (n,) of each array are good, and what a good one is."""
  (h, w), partner, share = sides, stored["mix_index"], stored["mix_lam"]
  n, says = len(partner), f"since mix is {mix!r} in {record.ABOUT}"
  corners = stored["mix_bbox"][:, :2], stored["mix_bbox"][:, 2:]
  start, size = crop[:, :2], crop[:, 2:]
  whole = (np.abs(pixels - crop) < 0.01).all(1)  # shares of sides are rounded
  numbers = (partner >= 0) & (partner < n), f"the number of an image, 0 to {n - 1}"
  shares = (share >= 0) & (share <= 1), "a share from 0 to 1"
  if mix is None:
    numbers = partner == np.arange(n), f"the image's own number, {says}"
  if mix != "mixup":
    outside = 1 - np.prod(corners[1] - corners[0], 1) / (h * w)
    shares = np.abs(share - outside) < 1e-3, f"the share outside mix_bbox, {says}"
  return {
    "coords": (
      whole & ((start >= 0) & (size > 0) & (start + size <= sides)).all(1),
      f"a box of whole pixels inside images of {h} x {w}, as shares of the sides",
    ),
    "mix_index": numbers,
    "mix_bbox": (
      ((corners[0] >= 0) & (corners[0] <= corners[1]) & (corners[1] <= sides)).all(1),
      f"a box inside images of {h} x {w} pixels",
    ),
    "mix_lam": shares,
    "logits": (np.isfinite(stored["logits"]).all(1), "finite logits"),
  }


def open_folder(where: str, path: str, spec: DatasetSpec, class_names: Sequence[str]) -> ViewLabels:
  """Opens a folder; checks descriptions, types and shapes of all files, and not yet their values.

  Args:
    where: what is being configured, for messages: "config.label.sources.NAME".
    path: the folder.
    spec: facts of the data set.
    class_names: (k,) its class map.

  Raises:
    LtddError: it is no such folder, of another data set, or a file is missing or damaged.
  """
  name, folder = f"{where}: {path}", files.path(path)
  file = folder / record.ABOUT
  about = record.read_description(name, file.read_text()) if file.is_file() else {}
  if about.get("format") != "fkd":
    raise LtddError(
      f"{name} is a folder without labels of views; expected one that launch.export --to fkd "
      "wrote, or a file of logits (n, k)"
    )
  distilled_sets.check_classes(name, about["class_names"], class_names)
  folders.check_shape(name, about.get("image_shape", spec.image_shape), spec)
  mix, n, k = about.get("mix"), about["num_images"], len(class_names)
  check_choice(f"{name}: mix in {record.ABOUT}", mix, (*views_lib.MIXES, None))
  epochs, digest = _label_files(name, folder, about.get("num_epochs")), hashlib.sha256()
  dtypes = {_check_file(epoch, n, k, digest) for epoch in epochs}
  labels, clean = _of_images(f"{name}/{fkd.SET}", folder / fkd.SET, n, k)
  digest.update(repr((mix, labels is None, clean is None)).encode())
  for array in (labels, clean):
    digest.update(b"" if array is None else array.tobytes())
  dtype = "float32" if "float32" in dtypes else "float16"
  h, w, _ = spec.image_shape
  sha256, shape = digest.hexdigest(), (len(epochs), n, k)
  return ViewLabels(name, folder, mix, shape, dtype, (h, w), sha256, labels, clean)


def _label_files(name: str, folder: epath.Path, num_epochs: int | None) -> list[epath.Path]:
  """The files of label epochs; raises LtddError unless there are those of the description."""
  want = [fkd.label_file(folder, epoch) for epoch in range(num_epochs or 0)]
  found = {p.name for p in (folder / "labels").glob("epoch_*.npz")}
  if not want or (wrong := found ^ {p.name for p in want}):
    first = min(wrong) if want else "epoch_00000.npz"
    raise LtddError(
      f"{name}: labels/{first} is {'' if first in found else 'not '}there, and num_epochs is "
      f"{num_epochs} in {record.ABOUT}; expected a file for each label epoch from 0 on. {_MEND}"
    )
  return want


def _check_file(file: epath.Path, n: int, k: int, digest: "hashlib._Hash") -> str:
  """Checks types and shapes of a label epoch, adds its check sums; returns the dtype of logits."""
  shapes, dtype = {"coords": (n, 4), "mix_bbox": (n, 4), "logits": (n, k)}, np.dtype("float32")
  try:
    with file.open("rb") as opened, zipfile.ZipFile(opened) as archive:
      for key, dtypes in _DTYPES.items():
        info, want = archive.getinfo(f"{key}.npy"), shapes.get(key, (n,))
        digest.update(repr((key, info.file_size, info.CRC)).encode())
        with archive.open(info) as member:
          np.lib.format.read_magic(member)
          shape, _, dtype = np.lib.format.read_array_header_1_0(member)
        if dtype.name not in dtypes or shape != want:
          raise LtddError(
            f"{file}: {key} is {dtype} {shape}; expected {' or '.join(dtypes)} {want}, for {n} "
            f"images and {k} classes. {_MEND}"
          )
  except LtddError:
    raise
  except Exception as error:  # as of `arrays.read_npz`
    raise LtddError(
      f"{file} is damaged, or no npz file of {', '.join(_DTYPES)} ({error}). {_MEND}"
    ) from error
  return dtype.name


def _of_images(
  name: str, file: epath.Path, n: int, k: int
) -> tuple[np.ndarray | None, np.ndarray | None]:
  """Classes (n,) and logits (n, k) of the images as they are, where the file has them."""
  if not file.is_file():
    return None, None
  stored = arrays_lib.read_npz(name, file, [("labels",)], ("soft_labels",))
  labels = arrays_lib.check_integers(f"{name}: labels", stored["labels"])
  labels = arrays_lib.check_labels(f"{name}: labels", labels, k, n)
  if "soft_labels" not in stored:
    return labels, None
  return labels, distilled_sets.check_learned(name, "soft_labels", stored["soft_labels"], (n, k))


def check_fits(found: ViewLabels, images: str, labels: np.ndarray, parts: int, fit_on: str) -> None:
  """Raises LtddError if labels are not of these images, or not what calibrators are fitted on.

  Args:
    found: the labels of views.
    images: name of the image source.
    labels: (n,) the classes of its images.
    parts: f, if each image holds f x f small ones, which records of views do not describe.
    fit_on: of `config.calibrate`.
  """
  n, wrong = found.shape[1], None
  if len(labels) != n:
    wrong = f"{n} images, and image source {images!r} has {len(labels)}"
  elif found.labels is not None and (found.labels != labels).any():
    wrong = f"images of other classes than those of image source {images!r}"
  elif parts != 1:
    wrong = f"whole images, and those of image source {images!r} hold {parts} x {parts} small ones"
  if wrong:
    raise LtddError(
      f"{found.name} has labels of views of {wrong}; expected the images that were exported with "
      "them, by an image source 'imported' of the same path"
    )
  if fit_on == "clean" and found.clean_logits is None:
    raise LtddError(
      f"config.calibrate.fit_on is 'clean', and {found.name} has no logits of the images as they "
      f"are, soft_labels in {fkd.SET}; expected 'views'"
    )
