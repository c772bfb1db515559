"""PyTorch's side of `edc.py`: the same steps, written as a PyTorch user would, with hooks."""

from benchmarks import torch_steps  # first: it tunes the allocator before torch is imported

# isort: split
import math
import time
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import edc_networks
from benchmarks import edc_recipe as recipe
from benchmarks.recipes import CLASSES

DEVICE, SIDE = torch_steps.DEVICE, torch_steps.SIDE


def tiles(x: Tensor, q: int) -> Tensor:
  """Tiles (b, c, rows, q, columns, q) of a map resized up to a multiple of q."""
  b, c, h, w = x.shape
  rows, columns = -(-h // q), -(-w // q)
  if (rows * q, columns * q) != (h, w):
    x = F.interpolate(x, (rows * q, columns * q), mode="bilinear", align_corners=False)
  return x.reshape(b, c, rows, q, columns, q)


def moments(x: Tensor, axes: tuple[int, ...]) -> tuple[Tensor, Tensor]:
  """Mean and biased variance; two passes where `var_mean` is slow, see `torch_steps.moments`."""
  if torch_steps.CPU:
    mean = x.mean(axes)
    centred = x - x.mean(axes, keepdim=True).detach()
    return mean, centred.square().mean(axes)
  var, mean = torch.var_mean(x, axes, correction=0)
  return mean, var


class Hook:
  """Distance of the running means of a layer's statistics from two sets of targets."""

  def __init__(self, module: nn.Module):
    self.conv = isinstance(module, nn.Conv2d)
    self.running: list[Tensor] | None = None
    module.register_forward_pre_hook(self)

  def __call__(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    (x,) = inputs
    stats = [*moments(x, (0, 2, 3))]
    if self.conv:
      stats += [s.flatten() for s in moments(tiles(x, recipe.TILE), (0, 1, 3, 5))]
    if self.running is None:
      self.running = [torch.zeros_like(s) for s in stats]
      self.targets = [torch.ones_like(s) for s in stats]
      self.of_class = [torch.ones(CLASSES, len(s), device=DEVICE) for s in stats]
    distance = 0.0
    for i, s in enumerate(stats):
      self.running[i] = recipe.EMA * self.running[i] + (1 - recipe.EMA) * s.detach()
      shown = self.running[i] + s - s.detach()
      category = self.of_class[i][self.labels].mean(0)
      distance = distance + recipe.ALPHA * torch.norm(self.targets[i] - shown)
      distance = distance + (1 - recipe.ALPHA) * torch.norm(category - shown)
    self.distance = distance


class Network:
  """A network and its hooks, in the order of modules."""

  def __init__(self, name: str, labels: Tensor):
    self.model = edc_networks.make(**recipe.OBSERVERS[name])
    kinds = (nn.Conv2d, nn.BatchNorm2d)
    self.hooks = [Hook(m) for m in self.model.modules() if isinstance(m, kinds)]
    for hook in self.hooks:
      hook.labels = labels

  def loss(self, views: Tensor, labels: Tensor) -> Tensor:
    ce = F.cross_entropy(self.model(views), labels)
    distances = [hook.distance for hook in self.hooks]
    return ce + recipe.R_STATS * (recipe.FIRST * distances[0] + sum(distances[1:]))


def crop_box(draws: np.random.Generator) -> tuple[int, int, int, int]:
  """torchvision's RandomResizedCrop: top, left, height, width."""
  for _ in range(10):
    area = SIDE * SIDE * draws.uniform(*recipe.SCALE)
    aspect = math.exp(draws.uniform(*map(math.log, recipe.RATIO)))
    w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
    if 0 < w <= SIDE and 0 < h <= SIDE:
      return int(draws.integers(SIDE - h + 1)), int(draws.integers(SIDE - w + 1)), h, w
  return 0, 0, SIDE, SIDE


def view(images: Tensor, draws: np.random.Generator) -> Tensor:
  """One crop and one flip for the whole batch."""
  top, left, h, w = crop_box(draws)
  crop = images[:, :, top : top + h, left : left + w]
  crop = F.interpolate(crop, (SIDE, SIDE), mode="bilinear", align_corners=False)
  return torch_steps.channels_last(crop.flip(3) if draws.random() < 0.5 else crop)


class Side:
  """Runs cycles of all teachers."""

  def handle(self, message: dict[str, Any]) -> dict[str, Any]:
    if "steps" in message:
      return self.run(message["steps"])
    batch = message["batch"]
    self.labels = torch.arange(CLASSES, device=DEVICE).repeat_interleave(batch // CLASSES)
    self.teachers = [Network(name, self.labels) for name in message["teachers"]]
    images = torch.randn(batch, 3, SIDE, SIDE, device=DEVICE)
    self.images = torch_steps.channels_last(images).requires_grad_()
    self.optimizer = torch.optim.Adam([self.images], recipe.LR, betas=(0.5, 0.9), fused=True)
    mean, std = (
      torch_steps.constant(v).view(1, 3, 1, 1) for v in (torch_steps.MEAN, torch_steps.STD)
    )
    self.range = (-mean / std, (1 - mean) / std)
    self.draws = np.random.default_rng(0)
    first = self.run(len(self.teachers))
    params = [torch_steps.count(o.model) for o in self.teachers]
    return {"params": params, "first_seconds": first["seconds"], "torch": torch.__version__}

  def run(self, steps: int) -> dict[str, Any]:
    start = time.perf_counter()
    for t in range(steps):
      teacher = self.teachers[t % len(self.teachers)]
      teacher.loss(view(self.images, self.draws), self.labels).backward()
      self.optimizer.step()
      self.optimizer.zero_grad()
      with torch.no_grad():
        self.images.clamp_(*self.range)
    if DEVICE.type == "cuda":
      torch.cuda.synchronize()
    return {"seconds": time.perf_counter() - start, "steps": steps}


if __name__ == "__main__":
  torch_steps.serve(Side().handle)
