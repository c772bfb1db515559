"""PyTorch's side of `relabel.py`: the same labels, written as a PyTorch user would."""

from benchmarks import torch_steps  # first: it tunes the allocator before torch is imported

# isort: split
import time
from typing import Any

import torch

from benchmarks import edc_networks
from benchmarks import edc_recipe as recipe

SIZE = 500  # views in a pass, as in the library


class Side:
  """Labels as often as it is asked to."""

  def handle(self, message: dict[str, Any]) -> dict[str, Any]:
    if "epochs" in message:
      return self.run(message["epochs"])
    self.models = [edc_networks.make(**recipe.OBSERVERS[name]) for name in message["teachers"]]
    self.images, _ = torch_steps.random_data(recipe.BATCH)
    self.run(1)
    return {"params": [*map(torch_steps.count, self.models)], "torch": torch.__version__}

  @torch.inference_mode()
  def run(self, epochs: int) -> dict[str, Any]:
    start = time.perf_counter()
    n = len(self.images)
    rows = torch.arange(epochs * n, device=self.images.device) % n
    parts = []
    for i in range(0, len(rows), SIZE):
      views = torch_steps.cutmix_views(self.images, rows[i : i + SIZE])
      logits = torch.stack([model(views) for model in self.models]).mean(0)
      parts.append(logits.half().cpu())
    labels = torch.cat(parts)
    return {"seconds": time.perf_counter() - start, "labels": len(labels)}


if __name__ == "__main__":
  torch_steps.serve(Side().handle)
