"""Labels of views, as FKD stores them, for programs that replay the views: NumPy files alone.

`interop.view_labels` reads them again, for the label source `imported`.

    set.npz                         the images, as `--to npz` writes them
    labels/epoch_00000.npz  ...     a label epoch each, a row for each image:
      coords     (n, 4) float32     the crop: top / h, left / w, height / h, width / w
      flip       (n,) bool          whether it is mirrored after that
      mix_index  (n,) int32         the image whose view of the same epoch is mixed in
      mix_lam    (n,) float32       the share of the image itself
      mix_bbox   (n, 4) int32       CutMix's box: first row and column, last ones, exclusive
      logits     (n, k)             of the view

FKD's batches have one lambda and one box, and here each view has its own: an epoch is one batch. In
PyTorch, the views of images (n, c, h, w) from 0 to 1 in an epoch; export.json says which mix:

    import torch
    from torchvision.transforms import functional


    def views_of(images, epoch, mix):
      h, w = images.shape[2:]
      boxes = (epoch["coords"] * [h, w, h, w]).round().astype(int).tolist()
      own = [functional.resized_crop(x, *box, [h, w]) for x, box in zip(images, boxes)]
      own = torch.stack([x.flip(-1) if f else x for x, f in zip(own, epoch["flip"])])
      other, out = own[epoch["mix_index"]], own.clone()
      for i, (top, left, bottom, right) in enumerate(epoch["mix_bbox"]):
        out[i, :, top:bottom, left:right] = other[i, :, top:bottom, left:right]
      if mix != "mixup":
        return out
      share = torch.from_numpy(epoch["mix_lam"])[:, None, None, None]
      return share * own + (1 - share) * other
"""

from collections.abc import Mapping

import numpy as np
from etils import epath

from ltdd_jax.core.types import LtddError
from ltdd_jax.data import arrays as arrays_lib
from ltdd_jax.data.view_records import Records
from ltdd_jax.interop.exports import npz, record
from ltdd_jax.interop.exports.record import DistilledSet

SET = "set.npz"
ARRAYS = ("coords", "flip", "mix_index", "mix_lam", "mix_bbox", "logits")


def write(found: DistilledSet, folder: epath.Path) -> None:
  """Writes one label epoch at a time; raises LtddError if the set came without labels of views."""
  if found.views is None:
    raise LtddError(
      "--to fkd: the set came without labels of views; expected --labels with a label source "
      "'teacher'"
    )
  npz.write(found._replace(views=None), folder / SET)
  (folder / "labels").mkdir()
  for epoch in range(found.views.num_epochs):
    with label_file(folder, epoch).open("wb") as file:
      np.savez(file, allow_pickle=False, **found.views.read(epoch))
  facts = {"num_epochs": found.views.num_epochs, "mix": found.views.mix}
  (folder / record.ABOUT).write_text(record.describe(found, "fkd", **facts))


def arrays_of(
  records: Records, logits: np.ndarray, image_shape: tuple[int, int, int]
) -> dict[str, np.ndarray]:
  """The arrays of a label epoch."""
  h, w, _ = image_shape
  sides = np.array([h, w, h, w], np.float32)
  return {
    "coords": np.asarray(records.crop, np.float32) / sides,
    "flip": np.asarray(records.flip),
    "mix_index": np.asarray(records.partner, np.int32),
    "mix_lam": np.asarray(records.weight, np.float32),
    "mix_bbox": np.asarray(records.box, np.int32),
    "logits": np.asarray(logits),
  }


def read_epoch(folder: epath.Path, epoch: int) -> Mapping[str, np.ndarray]:
  """Reads the arrays of a label epoch; LtddError for a file that is missing or damaged."""
  file = label_file(epath.Path(folder), epoch)
  return arrays_lib.read_npz(str(file), file, [ARRAYS])


def label_file(folder: epath.Path, epoch: int) -> epath.Path:
  """The file of a label epoch."""
  return folder / "labels" / f"epoch_{epoch:05d}.npz"
