"""Label stores of runs as logits: "runs/a/label/edc/teacher", or the store's folder in it."""

import os
from typing import Any

import numpy as np

from ltdd_jax.artefacts import manifest
from ltdd_jax.core import files
from ltdd_jax.core.types import LtddError
from ltdd_jax.labels.label import STORE
from ltdd_jax.labels.store import LabelStore, open_store


class RunLabels:
  """A row source (e, n, k) that decodes what is asked for, with the classes of its images."""

  def __init__(self, store: LabelStore, labels: np.ndarray | None):
    self.shape, self.dtype, self.rows = store.shape, store.dtype, store.rows
    self.labels = labels  # (n,) int32; None for a store that was copied without its artefact


def is_folder(value: Any) -> bool:
  """Whether logits are given by the name of a folder."""
  return isinstance(value, str | os.PathLike) and files.path(value).is_dir()


def rows_of(value: str | os.PathLike[str]) -> RunLabels:
  """Opens the labels of a run: the artefact of a label stage, or its store.

  Raises:
    LtddError: neither is there, a label epoch is missing, or a file is damaged.
  """
  place = files.path(value)
  artefact = place.parent if place.name == STORE else place
  labels = None
  if (artefact / manifest.META).is_file():
    found = manifest.open_artefact(artefact)
    if not found.meta["stage"].startswith("label/"):
      raise LtddError(
        f"logits {place}: is the artefact of stage {found.meta['stage']}; expected one of a label "
        "stage, WORKDIR/label/IMAGES/LABELS"
      )
    place, labels = found.folder(STORE), np.asarray(found.arrays["labels"])
  elif not (place / "zarr.json").is_file():
    raise LtddError(
      f"logits {place} is a folder; expected a file with the logits, or the labels of a run: "
      "WORKDIR/label/IMAGES/LABELS"
    )
  store = open_store(place)
  if missing := sorted(set(range(store.shape[0])) - store.present()):
    raise LtddError(
      f"logits {place}: label epoch {missing[0]} of {store.shape[0]} is missing; finish the run "
      "that makes them"
    )
  return RunLabels(store, labels)
