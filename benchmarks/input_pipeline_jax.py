"""The library's side of `input_pipeline.py`: `data.stream.batches`."""

import pathlib
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from benchmarks import timing
from ltdd_jax.core import mesh
from ltdd_jax.data import feed, sources, stream

_SET = "packed"  # name of the data set in records


class Side:
  """Reads as many batches as it is asked to."""

  def handle(self, message: dict[str, Any]) -> dict[str, Any]:
    if "batches" in message:
      return self.run(message["batches"])
    size, self.drained = message["size"], message["drained"]
    folder, half = message["folder"], (0.5,) * 3
    rest: dict[str, Any] = {"on_unreadable": "later"}
    if message["array_record"]:
      self.records = tempfile.TemporaryDirectory()
      rest = {"data_dir": self.records.name}
      _write_records(folder, self.records.name)
    name = _SET if message["array_record"] else f"folder:{folder}"
    source = sources.open_source(name, image_size=224, mean=half, std=half, **rest)
    n = len(source.train_labels)
    images = stream.HostImages(source, "train", np.arange(n), message["workers"])
    sampler = feed.BatchSampler(0, "benchmark", n, size)
    self.batches = stream.batches(
      images, lambda t: (sampler(t), sampler.epoch(t)), 1_000_000, seed=0, path="benchmark",
      mesh=mesh.make_mesh(), scale=(0.08, 1.0),
    )  # fmt: skip
    self.step = 0
    self.run(1)
    return {"params": [n], "device": jax.devices()[0].device_kind}

  def run(self, count: int) -> dict[str, Any]:
    for _ in range(self.drained):
      self.next()
    start = time.perf_counter()
    images = sum(self.next() for _ in range(count))
    return {"seconds": time.perf_counter() - start, "images": images}

  def next(self) -> int:
    """Takes a batch; returns its size."""
    self.step += 1
    return len(self.batches(self.step).pixels)


def _write_records(folder: str, data_dir: str) -> None:
  """Packs the files of a folder into ArrayRecord, by TFDS; a test image is of no account."""
  import tensorflow_datasets as tfds

  found = sorted(pathlib.Path(folder, "train").glob("*/*"))
  names = sorted({path.parent.name for path in found})

  class Packed(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[misc]
    name = _SET
    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> Any:
      image, label = tfds.features.Image(), tfds.features.ClassLabel(names=names)
      features = tfds.features.FeaturesDict({"image": image, "label": label})
      return tfds.core.DatasetInfo(
        builder=self, features=features, supervised_keys=("image", "label")
      )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
      return {"train": self._generate_examples(found), "test": self._generate_examples(found[:1])}

    def _generate_examples(self, paths: list[pathlib.Path]) -> Iterator[tuple[str, Any]]:
      for path in paths:
        yield str(path), {"image": str(path), "label": path.parent.name}

  Packed(data_dir=data_dir).download_and_prepare(file_format="array_record")


if __name__ == "__main__":
  timing.serve(Side().handle)
