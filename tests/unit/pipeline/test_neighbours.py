"""Nearest training images for the report: of the same class, blank where a class has none."""

import types

import numpy as np

from ltdd_jax.core.types import ArrayData
from ltdd_jax.interop import distilled_sets
from ltdd_jax.pipeline import neighbours
from tests import small


def context(parts=1):
  """Classes 0 and 1 have three training images each, class 2 none."""
  images = np.arange(6, dtype=np.uint8).repeat(64).reshape(6, 8, 8, 1) * 40
  train = ArrayData(images, np.array([0, 1, 0, 1, 0, 1], np.int32))
  own = np.array([79, 81, 200], np.uint8).repeat(64).reshape(3, 8, 8, 1)
  stored = {"images": own, "labels": np.array([0, 1, 2], np.int32)}
  return types.SimpleNamespace(
    distilled=lambda images: stored,
    train_data=lambda split: train,
    split_name=lambda images: None,
    parts=lambda images: parts,
    source=types.SimpleNamespace(spec=small.SPEC),
  )


def test_the_nearest_is_of_the_same_class():
  near = neighbours.find(context(), "x")
  assert near[:, 0, 0, 0].tolist() == [80, 120, 0]  # 80 is nearer to the second, but of class 0


def test_they_are_written_with_the_hash_of_the_images(tmp_path):
  ctx = context()
  neighbours.write(ctx, "x", tmp_path)
  stored = ctx.distilled("x")
  with np.load(tmp_path / "neighbours-x.npz") as found:
    assert found["images"].shape == (3, 8, 8, 1)
    assert str(found["of"]) == distilled_sets.content_sha256(stored["images"], stored["labels"])


def test_what_holds_small_images_or_takes_long_has_none(tmp_path, monkeypatch):
  neighbours.write(context(parts=2), "x", tmp_path)
  monkeypatch.setattr(neighbours, "_MOST", 100)
  neighbours.write(context(), "x", tmp_path)
  assert list(tmp_path.iterdir()) == []
