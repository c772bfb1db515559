"""PyTorch's side of `steps.py`: the same steps, written as a PyTorch user would.

A worker process in an environment with PyTorch and NumPy; `steps.py` starts it. Networks are
channels_last where that is the faster layout, optimisers fused, batches made on the device in
whole-batch operations. With
`--tuned` the allocator keeps its pages, by the call that the library makes for itself; with
`--compile` the part from the batch to the loss is compiled.
"""

import sys

from ltdd_jax.core import startup  # imports the standard library only

if "--tuned" in sys.argv:
  startup.tune_host()  # before torch is imported

import itertools
import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import recipes, timing

CPU = "--cpu" in sys.argv or not torch.cuda.is_available()
COMPILE = "--compile" in sys.argv
DEVICE = torch.device("cpu" if CPU else "cuda")
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
SIDE, CLASSES = recipes.IMAGE_SHAPE[0], recipes.CLASSES

Taps = list[tuple[Tensor, nn.BatchNorm2d]] | None


# ---- networks ----


def normalised(x: Tensor, norm: nn.Module, taps: Taps) -> Tensor:
  """Applies a normalisation, and keeps its input where statistics are to be matched."""
  if taps is not None:
    taps.append((x, norm))
  return norm(x)


class ConvNet(nn.Module):
  """depth x (conv 3x3, norm, ReLU, average pool), then a linear layer."""

  def __init__(self, depth: int, width: int, norm: str):
    super().__init__()
    channels = [3] + [width] * depth
    self.convs = nn.ModuleList(
      nn.Conv2d(i, o, 3, padding=1) for i, o in itertools.pairwise(channels)
    )
    make = nn.BatchNorm2d if norm == "batch" else lambda c: nn.GroupNorm(c, c)
    self.norms = nn.ModuleList(make(width) for _ in range(depth))
    slow = norm == "instance" and CPU and not COMPILE  # GroupNorm's backward in channels_last
    self.layout = torch.contiguous_format if slow else torch.channels_last
    self.classifier = nn.Linear(width * (SIDE >> depth) ** 2, CLASSES)

  def forward(self, x: Tensor, taps: Taps = None) -> Tensor:
    x = x.contiguous(memory_format=self.layout)
    for conv, norm in zip(self.convs, self.norms, strict=True):
      x = F.avg_pool2d(F.relu(normalised(conv(x), norm, taps)), 2)
    return self.classifier(x.flatten(1))


class Block(nn.Module):
  """Two 3x3 convolutions and a shortcut."""

  def __init__(self, inputs: int, width: int, stride: int):
    super().__init__()
    self.conv1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False)
    self.norm1 = nn.BatchNorm2d(width)
    self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
    self.norm2 = nn.BatchNorm2d(width)
    self.project = stride != 1 or inputs != width
    if self.project:
      self.conv3 = nn.Conv2d(inputs, width, 1, stride, bias=False)
      self.norm3 = nn.BatchNorm2d(width)

  def forward(self, x: Tensor, taps: Taps) -> Tensor:
    y = F.relu(normalised(self.conv1(x), self.norm1, taps))
    y = normalised(self.conv2(y), self.norm2, taps)
    return F.relu(y + (normalised(self.conv3(x), self.norm3, taps) if self.project else x))


class ResNet18(nn.Module):
  """ResNet-18 with the stem for small images: a 3x3 convolution, no pooling."""

  layout = torch.channels_last

  def __init__(self, stem: str = "cifar"):
    assert stem == "cifar"
    super().__init__()
    self.conv = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
    self.norm = nn.BatchNorm2d(64)
    widths = [64, 64, 64, 128, 128, 256, 256, 512, 512]
    strides = [1, 1, 2, 1, 2, 1, 2, 1]
    self.blocks = nn.ModuleList(map(Block, widths[:-1], widths[1:], strides))
    self.classifier = nn.Linear(512, CLASSES)

  def forward(self, x: Tensor, taps: Taps = None) -> Tensor:
    x = F.relu(normalised(self.conv(x), self.norm, taps))
    for block in self.blocks:
      x = block(x, taps)
    return self.classifier(x.mean((2, 3)))


def make_model(name: str, **kwargs: Any) -> nn.Module:
  from benchmarks import edc_networks

  makers = {"convnet": ConvNet, "resnet18": ResNet18, **edc_networks.MAKERS}
  model = makers[name](**kwargs)
  return model.to(DEVICE, memory_format=model.layout)


def make_optimizer(parameters: Any, name: str, lr: float, **kwargs: Any) -> torch.optim.Optimizer:
  return {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW}[name](
    parameters, lr, fused=True, **kwargs
  )


# ---- batches ----


def random_data(n: int) -> tuple[Tensor, Tensor]:
  """Images (n, h, w, c) uint8 and labels (n,) on the device."""
  images, labels = recipes.random_images(n)
  return torch.from_numpy(images).to(DEVICE), torch.from_numpy(labels).long().to(DEVICE)


def channels_last(images: Tensor) -> Tensor:
  """Copies images only if they lie otherwise."""
  return images.contiguous(memory_format=torch.channels_last)


def constant(values: tuple[float, ...]) -> Tensor:
  return torch.tensor(values, device=DEVICE)


def integers(high: int | Tensor, n: int) -> Tensor:
  """Integers uniform below `high`, which may differ for each of the n."""
  return (torch.rand(n, device=DEVICE) * high).long()


def normalise(pixels: Tensor) -> Tensor:
  """Pixels (b, h, w, c) in [0, 1] to normalised images (b, c, h, w), channels_last."""
  return channels_last(((pixels - constant(MEAN)) / constant(STD)).permute(0, 3, 1, 2))


def crop_and_flip(images: Tensor, padding: int = 4) -> Tensor:
  """Random crop of the padded image and random flip, for each of uint8 (b, h, w, c)."""
  b = len(images)
  canvas = F.pad(images, (0, 0, padding, padding, padding, padding))
  line = torch.arange(SIDE, device=DEVICE)
  columns = torch.where(torch.rand(b, 1, device=DEVICE) < 0.5, line.flip(0), line)
  rows = line + integers(2 * padding + 1, b)[:, None]
  columns = columns + integers(2 * padding + 1, b)[:, None]
  batch = torch.arange(b, device=DEVICE)[:, None, None]
  return normalise(canvas[batch, rows[:, :, None], columns[:, None, :]].float() / 255)


def crop_grid(b: int) -> Tensor:
  """Sampling grid (b, h, w, 2) of random resized crops (0.08 to 1, 3/4 to 4/3) with flips."""
  area = SIDE * SIDE * (0.08 + 0.92 * torch.rand(b, 10, device=DEVICE))
  aspect = torch.exp((2 * torch.rand(b, 10, device=DEVICE) - 1) * math.log(4 / 3))
  sides = torch.stack((torch.sqrt(area / aspect), torch.sqrt(area * aspect)), -1).round()
  fits = ((sides > 0) & (sides <= SIDE)).all(-1)
  first = fits.float().argmax(1)
  size = sides[torch.arange(b, device=DEVICE), first]
  size = torch.where(fits.any(1)[:, None], size, float(SIDE))  # (b, 2): height, width
  start = torch.floor(torch.rand(b, 2, device=DEVICE) * (SIDE - size + 1))
  line = torch.arange(SIDE, device=DEVICE) + 0.5
  source = line[None, None] * (size / SIDE)[..., None] - 0.5
  source = start[..., None] + torch.clamp(source, min=0).minimum(size[..., None] - 1)
  source = 2 * source / (SIDE - 1) - 1  # (b, 2, side), in [-1, 1] between outer pixel centres
  rows, columns = source[:, 0], source[:, 1]
  columns = torch.where(torch.rand(b, 1, device=DEVICE) < 0.5, columns.flip(1), columns)
  grid = (columns[:, None, :].expand(b, SIDE, SIDE), rows[:, :, None].expand(b, SIDE, SIDE))
  return torch.stack(grid, -1)


def cutmix_views(images: Tensor, indices: Tensor) -> Tensor:
  """Crops and flips the images and random partners, and pastes a box of one into the other."""
  b = len(indices)
  both = torch.cat((indices, integers(len(images), b)))
  pixels = images[both].permute(0, 3, 1, 2).float() / 255
  views = F.grid_sample(pixels, crop_grid(2 * b), align_corners=True)
  views = views.permute(0, 2, 3, 1)
  half = torch.floor(SIDE * torch.sqrt(torch.rand(b, 1, device=DEVICE))) // 2
  line = torch.arange(SIDE, device=DEVICE)
  inside = []
  for _ in range(2):
    centre = integers(SIDE, b)[:, None]
    inside.append((line >= centre - half) & (line < centre + half))
  mask = (inside[0][:, :, None] & inside[1][:, None, :])[..., None]
  return normalise(torch.where(mask, views[b:], views[:b]))


# ---- steps ----


def teacher_step(case: dict[str, Any]) -> tuple[Callable[[int], None], int]:
  images, labels = random_data(case["images"])
  model = make_model(**case["model"])
  optimizer = make_optimizer(model.parameters(), **case["optimizer"])

  def loss(indices: Tensor) -> Tensor:
    return F.cross_entropy(model(crop_and_flip(images[indices])), labels[indices])

  return trainer(loss, optimizer, case), count(model)


def student_step(case: dict[str, Any]) -> tuple[Callable[[int], None], int]:
  images, labels = random_data(case["images"])
  model = make_model(**case["model"])
  optimizer = make_optimizer(model.parameters(), **case["optimizer"])
  stored = recipes.random_logits(case["label_epochs"], case["images"])
  stored = torch.from_numpy(stored).to(DEVICE)
  log_prior = torch.from_numpy(recipes.long_tail()).float().log().to(DEVICE)
  log_prior = log_prior - log_prior.mean()
  ce_weight = case["loss"]["ce_weight"]

  def loss(indices: Tensor, epochs: Tensor) -> Tensor:
    target = stored[epochs % len(stored), indices].float() - log_prior
    logits = model(cutmix_views(images, indices))
    return F.mse_loss(logits, target) + ce_weight * F.cross_entropy(logits, labels[indices])

  return trainer(loss, optimizer, case, with_epochs=True), count(model)


def trainer(
  loss: Callable[..., Tensor],
  optimizer: torch.optim.Optimizer,
  case: dict[str, Any],
  with_epochs: bool = False,
) -> Callable[[int], None]:
  """A supervised step; batches come from a new permutation every epoch."""
  n, batch = case["images"], case["batch"]
  draws = np.random.default_rng(0)
  orders: dict[int, np.ndarray] = {}
  loss = maybe_compile(loss)

  def step(t: int) -> None:
    epoch, start = divmod(t * batch, n - n % batch)
    if epoch not in orders:
      orders.clear()
      orders[epoch] = draws.permutation(n)
    indices = torch.from_numpy(orders[epoch][start : start + batch]).to(DEVICE)
    epochs = (torch.full((batch,), epoch, device=DEVICE),) if with_epochs else ()
    loss(indices, *epochs).backward()
    optimizer.step()
    optimizer.zero_grad()

  return step


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
  """Mean and biased variance of each channel.

  Uncompiled on CPU, `var_mean` takes 1.5 times as long as two passes; the gradient of a variance
  through the mean is zero.
  """
  if COMPILE or not CPU:
    var, mean = torch.var_mean(x, (0, 2, 3), correction=0)
    return mean, var
  mean = x.mean((0, 2, 3))
  return mean, (x - mean.detach()[None, :, None, None]).square().mean((0, 2, 3))


def recover_step(case: dict[str, Any]) -> tuple[Callable[[int], None], int]:
  """SRe2L: Adam on pixels; cross-entropy and the distance from running statistics."""
  model = make_model(**case["model"]).eval().requires_grad_(False)
  size = case["batch"]
  labels = (torch.arange(size) % CLASSES).to(DEVICE)
  images = torch.randn(size, 3, SIDE, SIDE, device=DEVICE)
  images = channels_last(images).requires_grad_()
  optimizer = torch.optim.Adam([images], 0.25, betas=(0.5, 0.9), fused=True)
  mean, std = (constant(v).view(1, 3, 1, 1) for v in (MEAN, STD))
  low, high = -mean / std, (1 - mean) / std
  draws = np.random.default_rng(0)

  def loss(images: Tensor) -> Tensor:
    taps: Taps = []
    total = F.cross_entropy(model(images, taps), labels)
    for i, (x, norm) in enumerate(taps):
      mean, var = moments(x)
      distance = torch.norm(norm.running_var - var) + torch.norm(norm.running_mean - mean)
      total = total + 0.01 * (10 if i == 0 else 1) * distance
    return total

  loss = maybe_compile(loss)

  def step(t: int) -> None:
    shift = tuple(draws.integers(0, 5, 2).tolist())
    loss(channels_last(torch.roll(images, shift, (2, 3)))).backward()
    optimizer.step()
    optimizer.zero_grad()
    with torch.no_grad():
      images.clamp_(low, high)

  return step, count(model)


def maybe_compile(fn: Callable[..., Tensor]) -> Callable[..., Tensor]:
  return torch.compile(fn, dynamic=False) if COMPILE else fn


def count(model: nn.Module) -> int:
  return sum(p.numel() for p in model.parameters())


STEPS = {"teacher": teacher_step, "distil": recover_step, "student": student_step}


class Side:
  """Runs one case, some steps at a time."""

  def __init__(self) -> None:
    self.done = 0

  def handle(self, message: dict[str, Any]) -> dict[str, Any]:
    """{"case": ...} prepares and compiles; {"steps": n} runs n steps."""
    if "case" in message:
      self.step, params = STEPS[message["case"]["stage"]](message["case"])
      first = self.run(1)
      return {
        "params": params, "first_seconds": first["seconds"], "torch": torch.__version__
      }  # fmt: skip
    return self.run(message["steps"])

  def run(self, steps: int) -> dict[str, Any]:
    start = time.perf_counter()
    for t in range(self.done, self.done + steps):
      self.step(t)
    if DEVICE.type == "cuda":
      torch.cuda.synchronize()
    self.done += steps
    return {"seconds": time.perf_counter() - start, "steps": steps}


def serve(handle: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
  """Answers messages, with PyTorch set up as all its sides are."""
  torch.manual_seed(0)
  torch.set_num_threads(timing.cores())
  torch.set_float32_matmul_precision("high")  # TF32 on a GPU, as XLA has it
  timing.serve(handle)


if __name__ == "__main__":
  serve(Side().handle)
