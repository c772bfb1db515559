"""torchvision's side of `input_pipeline.py`: ImageFolder, RandomResizedCrop and a DataLoader."""

from benchmarks import torch_steps  # first: it tunes the allocator before torch is imported

# isort: split
import time
from typing import Any

import torch
from torchvision import datasets, transforms


class Side:
  """Reads as many batches as it is asked to."""

  def handle(self, message: dict[str, Any]) -> dict[str, Any]:
    if "batches" in message:
      return self.run(message["batches"])
    size, self.drained = message["size"], message["drained"]
    crop = transforms.Compose([transforms.RandomResizedCrop(224), transforms.PILToTensor()])
    found = datasets.ImageFolder(f"{message['folder']}/train", crop)
    sampler = torch.utils.data.RandomSampler(found, replacement=True, num_samples=size * 100_000)
    loader = torch.utils.data.DataLoader(
      found, size, sampler=sampler, num_workers=message["workers"], drop_last=True
    )
    self.batches = iter(loader)
    self.run(1)
    return {"params": [len(found)], "torch": torch.__version__}

  def run(self, count: int) -> dict[str, Any]:
    for _ in range(self.drained):
      next(self.batches)
    start = time.perf_counter()
    images = sum(len(next(self.batches)[0]) for _ in range(count))
    return {"seconds": time.perf_counter() - start, "images": images}


if __name__ == "__main__":
  torch_steps.serve(Side().handle)
