"""What a data set is, in a few hashes: other data make other fingerprints of a run's stages."""

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from ltdd_jax.data import sources, whitening
from ltdd_jax.data.longtail import Split
from ltdd_jax.data.specs import DataSource

_SAMPLE = 256  # images that are hashed: of all it would take seconds at each start


def of(
  source: DataSource, split: Split, splits: Mapping[str, Split], num_test: int | None
) -> dict[str, Any]:
  """Facts of a data set, a run's own split, others by name, and as many test images."""
  spec = source.spec
  std = spec.std.channels if isinstance(spec.std, whitening.Whitening) else spec.std
  test = sources.test_indices(source, num_test)
  return {
    "split": split.sha256,
    "splits": {name: other.sha256 for name, other in splits.items()},
    "classes": list(source.class_names),
    "mean": list(spec.mean),
    "std": list(std),
    "train_pixels": _sample(source, "train", split.indices),
    "test_pixels": _sample(source, "test", test),
    "test_labels": hashlib.sha256(source.test_labels[test].tobytes()).hexdigest(),
  }


def _sample(source: DataSource, split: str, indices: np.ndarray) -> str:
  """A hash of some images, evenly spaced."""
  rows = indices[np.linspace(0, len(indices) - 1, min(_SAMPLE, len(indices))).astype(int)]
  return hashlib.sha256(np.ascontiguousarray(source.read(split, rows)).tobytes()).hexdigest()
