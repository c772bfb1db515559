"""The library's side of `input_pipeline.py`: `data.stream.batches`."""

import time
from typing import Any

import jax
import numpy as np

from benchmarks import timing
from ltdd_jax.core import mesh
from ltdd_jax.data import feed, sources, stream


class Side:
  """Reads as many batches as it is asked to."""

  def handle(self, message: dict[str, Any]) -> dict[str, Any]:
    if "batches" in message:
      return self.run(message["batches"])
    size, self.drained = message["size"], message["drained"]
    half = (0.5,) * 3
    source = sources.open_source(
      f"folder:{message['folder']}", image_size=224, on_unreadable="later", mean=half, std=half
    )
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


if __name__ == "__main__":
  timing.serve(Side().handle)
