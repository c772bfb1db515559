"""Tensors of PyTorch in `.pt` files: plain, and as DD-Ranking takes them. Needs torch.

    images.pt   (n, c, h, w) float32: pixels in [0, 1]; DD-Ranking: normalised, class after class
    labels.pt   (n,) int64; DD-Ranking: (n, k) float32 logits where there are soft labels
    soft_labels.pt, lr.pt   (n, k) and [] float32, where there are any

Whole levels of 0 to 255 come back from floats by rounding, exactly. Float pixels that were
normalised would not: DD-Ranking's folder has them beside it, in `pixels.npy`.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath

from ltdd_jax.core.types import LtddError
from ltdd_jax.interop.exports import record
from ltdd_jax.interop.exports.record import DistilledSet

IMAGES, LABELS = "images.pt", "labels.pt"
_CIFAR = ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
# What DD-Ranking normalises these data sets by; others by their own mean and std.
_DDRANKING = {"cifar10": _CIFAR, "cifar100": _CIFAR, "imagenet2012": _IMAGENET}


def write(found: DistilledSet, folder: epath.Path) -> None:
  """Writes tensors as training loops take them; they are not normalised."""
  arrays = {IMAGES: _channels_first(_unit(found.images)), LABELS: found.labels.astype(np.int64)}
  if found.soft_labels is not None:
    arrays["soft_labels.pt"] = found.soft_labels
  _save(found, folder, arrays, "torch")


def write_ddranking(found: DistilledSet, folder: epath.Path) -> None:
  """Writes DD-Ranking's layout; raises LtddError unless all classes have as many images."""
  k = len(found.class_names)
  counts = np.bincount(found.labels, minlength=k)
  if len(set(counts.tolist())) > 1:
    raise LtddError(
      f"--to ddranking: classes have {counts.min()} to {counts.max()} images; expected as many in "
      "each, since DD-Ranking takes image i for one of class i // IPC. Use --to torch"
    )
  order = np.argsort(found.labels, kind="stable")
  mean, std = _DDRANKING.get(str(found.meta.get("dataset")), (found.mean, found.std))
  pixels = (_unit(found.images[order]) - np.array(mean, np.float32)) / np.array(std, np.float32)
  labels = found.labels.astype(np.int64) if found.soft_labels is None else found.soft_labels
  if found.images.dtype != np.uint8:
    with (folder / "pixels.npy").open("wb") as file:
      np.save(file, found.images, allow_pickle=False)
  facts = {"order": order.tolist(), "normalised_by": {"mean": list(mean), "std": list(std)}}
  _save(found, folder, {IMAGES: _channels_first(pixels), LABELS: labels[order]}, "ddranking", facts)


def read(
  name: str, folder: epath.Path, about: Mapping[str, Any], num_classes: int
) -> dict[str, np.ndarray]:
  """Reads a folder of `images.pt` and `labels.pt`, exported or of others, without unpickling.

  Logits as `labels.pt` are soft labels of images that lie class after class.

  Raises:
    LtddError: a file is missing, damaged or holds more than a tensor, or torch is missing.
  """
  pixels, labels = _load(name, folder / IMAGES), _load(name, folder / LABELS)
  if pixels.ndim != 4 or pixels.shape[1] not in (1, 3):
    raise LtddError(f"{name}: {IMAGES} has shape {pixels.shape}; expected (n, 1 or 3, h, w)")
  if pixels.dtype not in (np.uint8, np.float32):
    raise LtddError(f"{name}: {IMAGES} is {pixels.dtype}; expected float32 or uint8 pixels")
  arrays = {"images": pixels.transpose(0, 2, 3, 1)} | record.learned(name, folder, about)
  for key, file in (("soft_labels", "soft_labels.pt"), ("student_lr", "lr.pt")):
    if (folder / file).is_file():
      arrays[key] = _load(name, folder / file)
  if labels.ndim == 2:
    if len(labels) % num_classes:
      raise LtddError(
        f"{name}: {LABELS} has logits of {len(labels)} images; expected as many in each of "
        f"{num_classes} classes, or the numbers of classes (n,)"
      )
    ipc = len(labels) // num_classes
    arrays |= {"soft_labels": labels, "labels": np.repeat(np.arange(num_classes), ipc)}
  elif labels.ndim == 1 and labels.dtype.kind in "iu" and len(labels):
    arrays["labels"] = labels
  else:
    raise LtddError(f"{name}: {LABELS} is {labels.dtype} {labels.shape}; expected (n,) or (n, k)")
  try:
    return _as_stored(name, folder, arrays, about) if about else arrays
  except (KeyError, IndexError, TypeError) as error:
    raise LtddError(
      f"{name}: {record.ABOUT} is damaged ({error!r}); copy the export again, or delete the file "
      "to read the tensors alone"
    ) from error


def _as_stored(
  name: str, folder: epath.Path, arrays: dict[str, np.ndarray], about: Mapping[str, Any]
) -> dict[str, np.ndarray]:
  """The arrays of an exported set as they were: its order, and its pixels to the same bits."""
  if about["format"] == "ddranking":
    for key in {"images", "labels", "soft_labels"} & set(arrays):
      arrays[key] = arrays[key][np.argsort(about["order"])]
    by = about["normalised_by"]
    std, mean = (np.array(by[key], np.float32) for key in ("std", "mean"))
    arrays["images"] = arrays["images"] * std + mean
  if about["image_dtype"] == "uint8":
    arrays["images"] = np.rint(255 * arrays["images"]).astype(np.uint8)
  elif (file := folder / "pixels.npy").is_file():
    arrays["images"] = record.load(name, file)
  return arrays


def _unit(images: np.ndarray) -> np.ndarray:
  """Pixels (n, h, w, c) as float32, from 0 to 1."""
  return images.astype(np.float32) / np.float32(255) if images.dtype == np.uint8 else images


def _channels_first(images: np.ndarray) -> np.ndarray:
  return images.transpose(0, 3, 1, 2)


def _torch() -> Any:
  try:
    import torch
  except ImportError as error:
    raise LtddError(
      "the formats torch and ddranking need the package torch; install it: pip install "
      "-e '.[torch]'"
    ) from error
  return torch


def _save(
  found: DistilledSet,
  folder: epath.Path,
  arrays: Mapping[str, np.ndarray],
  to: str,
  facts: Mapping[str, Any] | None = None,
) -> None:
  torch = _torch()
  lr = {} if found.student_lr is None else {"lr.pt": np.float32(found.student_lr)}
  for file, array in {**arrays, **lr}.items():
    torch.save(torch.from_numpy(np.array(array, order="C")), folder / file)
  record.save(folder, found, skip=("soft_labels",))
  (folder / record.ABOUT).write_text(record.describe(found, to, **(facts or {})))


def _load(name: str, file: epath.Path) -> np.ndarray:
  torch = _torch()
  try:
    found = torch.load(file, map_location="cpu", weights_only=True)
    return np.asarray(found.detach().float() if found.dtype == torch.bfloat16 else found.detach())
  except Exception as error:  # damaged files raise anything
    first = str(error).partition("\n")[0]
    raise LtddError(f"{name}: {file.name} is no readable file of one tensor ({first})") from error
