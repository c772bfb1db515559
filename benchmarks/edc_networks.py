"""EDC's teachers in PyTorch, beside the ConvNets and ResNet-18 of `torch_steps.py`."""

import itertools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import torch_steps
from benchmarks.recipes import CLASSES


def conv_norm(i: int, o: int, k: int, stride: int = 1, groups: int = 1, relu: bool = True) -> Any:
  layers = [nn.Conv2d(i, o, k, stride, k // 2, groups=groups, bias=False), nn.BatchNorm2d(o)]
  return nn.Sequential(*layers, *([nn.ReLU()] if relu else []))


class Pooled(nn.Module):
  """A body, a global average, and a linear layer."""

  layout = torch.channels_last

  def __init__(self, body: nn.Module, width: int):
    super().__init__()
    self.body, self.classifier = body, nn.Linear(width, CLASSES)

  def forward(self, x: Tensor) -> Tensor:
    return self.classifier(self.body(x).mean((2, 3)))


class Inverted(nn.Module):
  """1x1 expansion, 3x3 depth-wise, 1x1 projection."""

  def __init__(self, i: int, o: int, stride: int, expand: int):
    super().__init__()
    hidden = i * expand
    self.skip = stride == 1 and i == o
    self.path = nn.Sequential(
      conv_norm(i, hidden, 1),
      conv_norm(hidden, hidden, 3, stride, hidden),
      conv_norm(hidden, o, 1, relu=False),
    )

  def forward(self, x: Tensor) -> Tensor:
    return x + self.path(x) if self.skip else self.path(x)


def mobilenet_v2() -> Pooled:
  """Half width, as on CIFAR."""
  stages = [(1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1),
            (6, 160, 3, 2), (6, 320, 1, 1)]  # fmt: skip
  layers, i = [conv_norm(3, 16, 3, 2)], 16
  for expand, width, blocks, stride in stages:
    for j in range(blocks):
      layers.append(Inverted(i, width // 2, stride if j == 0 else 1, expand))
      i = width // 2
  return Pooled(nn.Sequential(*layers, conv_norm(i, 1280, 1)), 1280)


class PreAct(nn.Module):
  """Norm, ReLU, convolution, twice, and a skip."""

  def __init__(self, i: int, o: int, stride: int):
    super().__init__()
    self.norm1, self.norm2 = nn.BatchNorm2d(i), nn.BatchNorm2d(o)
    self.conv1 = nn.Conv2d(i, o, 3, stride, 1, bias=False)
    self.conv2 = nn.Conv2d(o, o, 3, 1, 1, bias=False)
    self.project = nn.Conv2d(i, o, 1, stride, bias=False) if i != o else None

  def forward(self, x: Tensor) -> Tensor:
    active = F.relu(self.norm1(x))
    y = self.conv2(F.relu(self.norm2(self.conv1(active))))
    return y + (x if self.project is None else self.project(active))


def wide_resnet() -> Pooled:
  """WRN-16-2."""
  widths, strides = [16, 32, 32, 64, 64, 128, 128], [1, 1, 2, 1, 2, 1]
  blocks = map(PreAct, widths[:-1], widths[1:], strides)
  stem = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
  return Pooled(nn.Sequential(stem, *blocks, nn.BatchNorm2d(128), nn.ReLU()), 128)


class Shuffle(nn.Module):
  """A block of ShuffleNetV2; with `down` both branches stride."""

  def __init__(self, i: int, o: int, down: bool):
    super().__init__()
    half = o // 2
    stride, inputs = (2, i) if down else (1, half)
    self.left = None
    if down:
      depthwise = conv_norm(i, i, 3, 2, i, relu=False)
      self.left = nn.Sequential(depthwise, conv_norm(i, half, 1))
    self.right = nn.Sequential(
      conv_norm(inputs, half, 1),
      conv_norm(half, half, 3, stride, half, relu=False),
      conv_norm(half, half, 1),
    )

  def forward(self, x: Tensor) -> Tensor:
    left, right = (self.left(x), x) if self.left else x.chunk(2, 1)
    b, c, h, w = (y := torch.cat((left, self.right(right)), 1)).shape
    return y.view(b, 2, c // 2, h, w).transpose(1, 2).reshape(b, c, h, w)


def shufflenet_v2() -> Pooled:
  """x0.5, with the 1x1 stem of CIFAR."""
  layers: list[nn.Module] = [conv_norm(3, 24, 1)]
  for (i, o), blocks in zip(itertools.pairwise([24, 48, 96, 192]), (4, 8, 4), strict=True):
    layers += [Shuffle(i, o, True)] + [Shuffle(o, o, False) for _ in range(blocks - 1)]
  return Pooled(nn.Sequential(*layers, conv_norm(192, 1024, 1)), 1024)


MAKERS = {
  "mobilenet_v2": mobilenet_v2, "wide_resnet": wide_resnet, "shufflenet_v2": shufflenet_v2
}  # fmt: skip


def make(name: str, **kwargs: Any) -> nn.Module:
  """A teacher: eval mode, no gradients of its own."""
  return torch_steps.make_model(name, **kwargs).eval().requires_grad_(False)
