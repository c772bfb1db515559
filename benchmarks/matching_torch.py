"""PyTorch's side of `matching.py`: the same steps, written as a PyTorch user would."""

from benchmarks import torch_steps  # first: it tunes the allocator before torch is imported

# isort: split
import time
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.recipes import CLASSES

DEVICE, SIDE = torch_steps.DEVICE, torch_steps.SIDE
IPC, REAL, FACTOR = 10, 64, 2
ON_REAL, BATCH = 512, 128  # images that DREAM's network is trained on in a step


class Side:
  """Runs steps of one method."""

  def handle(self, message: dict[str, Any]) -> dict[str, Any]:
    if "steps" in message:
      return self.run(message["steps"])
    self.sizes = message
    self.step = getattr(self, message["case"])
    data, labels = torch_steps.random_data(CLASSES * REAL)
    self.real = torch_steps.normalise(data.float() / 255)
    self.of_class = [self.real[labels == c] for c in range(CLASSES)]
    self.real_labels = labels
    self.labels = torch.arange(CLASSES, device=DEVICE).repeat_interleave(IPC)
    self.images = torch.randn(CLASSES * IPC, 3, SIDE, SIDE, device=DEVICE).requires_grad_()
    self.optimizer = torch.optim.SGD([self.images], 1e-3, 0.5)
    self.net = self.network()
    self.net_optimizer = torch.optim.SGD(self.net.parameters(), 0.01, 0.9, weight_decay=5e-4)
    self.names = [name for name, _ in self.net.named_parameters()]
    self.shapes = [p.shape for p in self.net.parameters()]
    self.start = torch.cat([p.detach().flatten() for p in self.net.parameters()])
    self.target = self.start + 0.01 * torch.randn_like(self.start)
    self.rate = torch.tensor(0.01, device=DEVICE, requires_grad=True)
    self.rate_optimizer = torch.optim.SGD([self.rate], 1e-5, 0.5)
    self.logits = F.one_hot(self.labels, CLASSES).float().requires_grad_()
    self.logits_optimizer = torch.optim.SGD([self.logits], 1.0, 0.9)
    self.run(1)
    return {"params": [self.start.numel()], "torch": torch.__version__}

  def network(self) -> torch_steps.ConvNet:
    model = torch_steps.ConvNet(3, self.sizes["width"], "instance")
    return model.to(DEVICE, memory_format=model.layout)

  def dm(self) -> None:
    """Mean features of each class in a network drawn for this step."""
    net = self.network()
    net.classifier = torch.nn.Identity()
    loss = torch.zeros((), device=DEVICE)
    for c in range(CLASSES):
      batch = self.of_class[c][torch.randperm(REAL, device=DEVICE)[: self.sizes["batch_real"]]]
      with torch.no_grad():
        target = net(batch).mean(0)
      loss = loss + (target - net(self.images[self.labels == c]).mean(0)).square().sum()
    self.move(loss, self.optimizer)

  def trained(self, targets: Tensor) -> Tensor:
    """L after the inner loop on soft targets, with a graph to images, targets and rate."""
    theta = self.start.clone().requires_grad_()
    sizes = [shape.numel() for shape in self.shapes]
    for _ in range(self.sizes["inner_steps"]):
      parts = zip(self.names, theta.split(sizes), self.shapes, strict=True)
      params = {name: part.view(shape) for name, part, shape in parts}
      logits = torch.func.functional_call(self.net, params, self.images)
      loss = F.cross_entropy(logits, targets)
      (grad,) = torch.autograd.grad(loss, theta, create_graph=True)
      theta = theta - self.rate * grad
    return (theta - self.target).square().sum() / (self.start - self.target).square().sum()

  def mtt(self) -> None:
    targets = F.one_hot(self.labels, CLASSES).float()
    self.move(self.trained(targets), self.optimizer, self.rate_optimizer)

  def datm(self) -> None:
    loss = self.trained(self.logits.softmax(1))
    if loss.item() <= 1e9:  # its threshold, which waits for the device
      self.move(loss, self.optimizer, self.rate_optimizer, self.logits_optimizer)

  def dream(self) -> None:
    """Gradients of the kernels of convolutions, class by class; then the network's training."""
    kernels = [p for p in self.net.parameters() if p.ndim == 4]
    for c in range(CLASSES):
      real, label = self.of_class[c], torch.full((REAL,), c, device=DEVICE)
      wanted = torch.autograd.grad(F.cross_entropy(self.net(real), label), kernels)
      parts = decoded(self.images[self.labels == c])
      label = torch.full((len(parts),), c, device=DEVICE)
      loss = F.cross_entropy(self.net(parts), label)
      found = torch.autograd.grad(loss, kernels, create_graph=True)
      pairs = zip(wanted, found, strict=True)
      self.move(sum((a - b).square().sum() for a, b in pairs), self.optimizer)
    order = torch.randperm(len(self.real), device=DEVICE)[:ON_REAL]
    for rows in order.split(BATCH):
      self.train_on_real(rows)

  def train_on_real(self, rows: Tensor) -> None:
    """One update, half of them with CutMix."""
    images, labels = self.real[rows], self.real_labels[rows]
    partner, share = torch.arange(len(rows), device=DEVICE), 1.0
    if torch.rand(()) < 0.5:
      partner = torch.randperm(len(rows), device=DEVICE)
      half = int(SIDE * torch.rand(()).sqrt()) // 2
      y, x = (int(torch.randint(SIDE, ())) for _ in range(2))
      box = (slice(max(0, y - half), y + half), slice(max(0, x - half), x + half))
      images = images.clone()
      images[:, :, *box] = images[partner][:, :, *box]
      share = 1 - images[0, 0, *box].numel() / SIDE**2
    logits = self.net(images)
    loss = share * F.cross_entropy(logits, labels)
    loss = loss + (1 - share) * F.cross_entropy(logits, labels[partner])
    self.move(loss, self.net_optimizer)

  def move(self, loss: Tensor, *optimizers: torch.optim.Optimizer) -> None:
    for optimizer in optimizers:
      optimizer.zero_grad()
    loss.backward()
    for optimizer in optimizers:
      optimizer.step()

  def run(self, steps: int) -> dict[str, Any]:
    start = time.perf_counter()
    for _ in range(steps):
      self.step()
    if DEVICE.type == "cuda":
      torch.cuda.synchronize()
    return {"seconds": time.perf_counter() - start, "steps": steps}


def decoded(images: Tensor) -> Tensor:
  """The small images that each image holds, at full size."""
  size = SIDE // FACTOR
  rows = images.split(size, 2)
  parts = torch.cat([part for row in rows for part in row.split(size, 3)])
  return F.interpolate(parts, (SIDE, SIDE), mode="bilinear", align_corners=False)


if __name__ == "__main__":
  torch_steps.serve(Side().handle)
