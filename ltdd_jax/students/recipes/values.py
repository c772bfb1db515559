"""The values of each recipe; docs/reference/recipes.md has sources and what we differ in."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from ltdd_jax import models
from ltdd_jax.data import dsa

Settings = dict[str, dict[str, Any]]  # {"student": {...}, "views": {...}}


class Case(NamedTuple):
  """What a recipe's values depend on."""

  dataset: str  # as `KNOWN` names it, or another
  ipc: float  # images per class, the mean over classes
  num_classes: int  # of the data set; 0 for others
  model: Mapping[str, Any]  # the student's {name, **kwargs}
  released: bool  # the released code's values where they differ from the paper's


class Recipe(NamedTuple):
  """Values by case; `datasets` None if it is for every data set.

  With a rate of None in them students take the one that was learned with the images; `lr` is the
  rate for images that came without one.
  """

  make: Callable[[Case], Settings]
  datasets: tuple[str, ...] | None
  released: bool = False  # whether paper and released code differ
  hard: bool = False  # hard labels only
  lr: float | None = None


MIRRORED = ("digits", "mnist", "svhn_cropped")  # a flip makes another class, or none, of a digit


def nearest_ipc(ipc: float, known: Sequence[int] = (1, 10, 50)) -> int:
  """The published number of images per class that is nearest by ratio; the lower of two."""
  return min(known, key=lambda p: (max(p / ipc, ipc / p), p))


# ---- pieces ----


def adamw(lr: float = 1e-3, weight_decay: float = 0.01, decay: str = "kernels") -> dict[str, Any]:
  """Weight decay leaves out biases and norms ("kernels") in most of the published code."""
  return {"name": "adamw", "lr": lr, "weight_decay": weight_decay, "decay": decay}


def sgd(
  lr: float | None, weight_decay: float, momentum: float = 0.9, decay: str = "kernels"
) -> dict:
  """See `adamw`."""
  return {
    "name": "sgd", "lr": lr, "momentum": momentum, "weight_decay": weight_decay, "decay": decay
  }  # fmt: skip


def schedule(name: str, per_epoch: bool = True, **kwargs: Any) -> dict[str, Any]:
  """The published code moves learning rates once an epoch."""
  return {"name": name, **kwargs, "per_epoch": per_epoch}


def kl(temperature: float, squared: bool = False) -> dict[str, Any]:
  """See `losses.kl`."""
  return {"name": "kl", "temperature": temperature, "squared": squared}


def dsa_strategy(dataset: str, strategy: str = dsa.STRATEGY) -> str:
  """A strategy of `data.dsa`, without the flip where that makes another class of an image."""
  names = strategy.split("_")
  return "_".join(name for name in names if name != "flip" or dataset not in MIRRORED)


def mse_gt(ce_weight: float) -> dict[str, Any]:
  """See `losses.mse_ce`."""
  return {"name": "mse_ce", "ce_weight": ce_weight}


def settings(
  num_epochs: int,
  batch_size: int,
  optimizer: dict[str, Any],
  rate: dict[str, Any],
  loss: dict[str, Any],
  crop_scale: tuple[float, float] | None,
  *,
  ema: float | None = None,
  num_seeds: int | None = None,
  **views: Any,
) -> Settings:
  """What a recipe sets of `config.student`, and all of `config.label.views`.

  Of the published recipes few say how many students there were; `num_seeds` None leaves it alone.
  """
  student = {
    "num_epochs": num_epochs,
    "batch_size": batch_size,
    "optimizer": optimizer,
    "schedule": rate,
    "loss": loss,
    "hard_weight": 0.0,
    "ema": ema,
  } | ({} if num_seeds is None else {"num_seeds": num_seeds})
  common = {"padding": 0, "flip": True, "mix": "cutmix", "mix_alpha": 1.0}
  return {"student": student, "views": {"crop_scale": crop_scale, **common, **views}}


# ---- recipes ----


def sre2l_kl(case: Case) -> Settings:
  """SRe2L, and CDA where it has been published; CIFAR-10 has CIFAR-100's values (ours)."""
  if case.dataset == "tiny":
    rate = schedule("warmup_cosine", warmup=0.05, start=0.01)
    optimizer = sgd(0.2, 1e-4, decay="all")
    return settings(100, 256, optimizer, rate, kl(20.0, squared=True), (0.08, 1.0), mix=None)
  rate = schedule("cosine")
  if case.dataset == "imagenet":
    return settings(300, 1024, adamw(), rate, kl(20.0), (0.08, 1.0))
  optimizer = adamw(decay="all")
  return settings(400, 128, optimizer, rate, kl(30.0), None, padding=4, mix="mixup", mix_alpha=0.8)


RDED_LR = {"vgg11": 5e-4, "efficientnet_b0": 2e-3, "mobilenet_v2": 2.5e-3, "alexnet": 1e-4}
RDED_BATCH = {1: 10, 10: 50, 50: 100}
RDED_BN_MOMENTUM = 0.81
"""Its code runs the student twice a step, the second time to log its accuracy: 0.9 * 0.9."""


def rded_kl(case: Case) -> Settings:
  """RDED: batches by images per class, at most the whole set; learning rates by network."""
  lr = RDED_LR.get(case.model["name"], 1e-3)
  batch = RDED_BATCH[nearest_ipc(case.ipc)] * (2 if case.num_classes >= 100 else 1)
  if case.dataset == "tiny":
    batch = 100
  conv3 = case.model["name"] == "convnet" and case.model.get("depth", 3) == 3
  if case.dataset == "cifar100" and conv3:  # its special case, conv3 taught by conv3
    lr, batch = 2e-3, 25
  batch = max(1, min(batch, round(case.ipc * case.num_classes)))
  found = settings(300, batch, adamw(lr), schedule("smooth", zeta=2.0), kl(20.0), None)
  if case.dataset == "imagenet":
    found["views"] |= {"crop_scale": (0.5, 1.0), "shuffle_patches": 2}
  if "bn_momentum" in inspect.signature(models.MODELS[case.model["name"]]).parameters:
    found["student"]["model"] = {**case.model, "bn_momentum": RDED_BN_MOMENTUM}
  return found


def gvbsm_mse_gt(case: Case) -> Settings:
  """G-VBSM: the same at any number of images per class."""
  epochs, batch, optimizer, ce_weight = {
    "cifar10": (1000, 100, adamw(weight_decay=0.0), 0.15),
    "cifar100": (1000, 64, sgd(0.1, 5e-4), 0.15),
    "tiny": (100, 100, sgd(0.1, 5e-4), 0.1),
    "imagenet": (300, 1024, adamw(), 0.1),
  }[case.dataset]
  return settings(epochs, batch, optimizer, schedule("cosine"), mse_gt(ce_weight), (0.08, 1.0))


def edc_mse_gt(case: Case) -> Settings:
  """EDC, of its paper, or of its scripts where these differ; averaged parameters are scored."""
  epochs, batch, scale = {
    "cifar10": (1000, 10 if case.released else 25, 0.08),
    "cifar100": (1000, 50, 0.5),
    "tiny": (1000 if nearest_ipc(case.ipc) == 1 else 300, 100, 0.5),
    "imagenet": (300, 100, 0.5),
  }[case.dataset]
  optimizer, rate = adamw(), schedule("smooth", zeta=2.0)
  if case.dataset == "cifar10":
    rate = schedule("multistep", milestones=(0.8, 0.9, 0.95), factor=0.5)
  if case.released and case.dataset in ("cifar100", "tiny"):
    optimizer = sgd(0.1, 5e-4, momentum=0.875)
  if case.released and case.dataset in ("cifar100", "imagenet"):
    rate = schedule({"cifar100": "ssrs", "imagenet": "linear"}[case.dataset], zeta=2.0)
  rand_augment = case.dataset != "imagenet"
  crop = (scale, 1.0)
  return settings(
    epochs, batch, optimizer, rate, mse_gt(0.025), crop, ema=0.99, rand_augment=rand_augment
  )


def rldd_mse_gt(case: Case) -> Settings:
  """RLDD: as EDC's, 1,000 epochs everywhere, five students."""
  batch, scale, ce_weight = 100, 0.5, 0.025
  optimizer, rate = adamw(), schedule("ssrs", zeta=2.0)
  if case.dataset == "cifar10":
    batch, scale = 25, 0.08
    rate = schedule("multistep", milestones=(0.8, 0.9, 0.95), factor=0.5)
  if case.dataset == "cifar100":
    ce_weight = 0.0
  if case.dataset == "tiny":
    rate = schedule("smooth", zeta=2.0)
  if case.dataset in ("cifar100", "tiny"):
    optimizer = sgd(0.1, 5e-4, momentum=0.875)
  loss, crop = mse_gt(ce_weight), (scale, 1.0)
  return settings(
    1000, batch, optimizer, rate, loss, crop, ema=0.99, num_seeds=5, rand_augment=True
  )


NCFM_EPOCHS = {1: 2000, 10: 300, 50: 40}  # on Tiny-ImageNet; 2,000 elsewhere
PARTS = 4  # of an image; a label epoch shows one


def ncfm_eval(case: Case) -> Settings:
  """NCFM with soft labels; its epochs show all four parts of an image, hence four times as many.

  Its views: a flip, colour, then a crop, scale or rotation for the whole batch, and CutMix for half
  of the batches. Ours have the flip, the crop and CutMix, always. Its last 5% have hard labels.
  """
  epochs = NCFM_EPOCHS[nearest_ipc(case.ipc)] if case.dataset == "tiny" else 2000
  rate = schedule("multistep", milestones=(0.2, 0.4, 0.6, 0.8), factor=0.5)
  padding = 8 if case.dataset == "tiny" else 4  # an eighth of the side
  optimizer = adamw(decay="all")
  return settings(PARTS * epochs, 128, optimizer, rate, kl(1.0), None, padding=padding)


DC_LR = 0.01


def dc_eval(case: Case) -> Settings:
  """DC's on CIFAR, on images as they are; the same at any number of images per class.

  Soft labels have KL at temperature 1, whose gradient is that of the cross-entropy. In what we
  differ: the released code makes one pass more, and forgets the momentum where the rate drops.
  """
  return _dc_family(300, 256, DC_LR)


def _dc_family(epochs: int, batch: int, lr: float | None, strategy: str = "") -> Settings:
  """The students of DC and what came after it; the same at any number of images per class."""
  optimizer = sgd(lr, 5e-4, decay="all")
  rate = schedule("multistep", milestones=(0.5,), factor=0.1)
  views: dict[str, Any] = {"flip": False, "mix": None} | ({"dsa": strategy} if strategy else {})
  return settings(epochs, batch, optimizer, rate, kl(1.0), None, **views)


def dsa_eval(case: Case) -> Settings:
  """DSA's and DM's: as `dc_eval`, for 1,000 epochs and on views of DSA."""
  return _dc_family(1000, 256, DC_LR, dsa_strategy(case.dataset))


def mtt_eval(case: Case) -> Settings:
  """MTT's, and TESLA's: as `dsa_eval`, at the learning rate that was learned with the images.

  TESLA's soft labels have the cross-entropy, whose gradient is that of KL at temperature 1.
  """
  return _dc_family(1000, 256, None, dsa_strategy(case.dataset))


def datm_eval(case: Case) -> Settings:
  """DATM's: as `mtt_eval`, in batches of 128, with soft labels at temperature 1."""
  return _dc_family(1000, 128, None, dsa_strategy(case.dataset))


FREPO_STEPS = {  # by images in all
  10: 1000, 100: 2000, 200: 20_000, 400: 5000, 500: 5000, 1000: 10_000, 2000: 40_000, 5000: 40_000
}  # fmt: skip


def frepo_eval(case: Case) -> Settings:
  """FRePo's: steps by the number of images, squared error to soft labels as they are.

  In what we differ: the views are DSA's, one operation a label epoch too, and not its own, which
  has weaker colours, translation, and edges repeated where DSA has zeros; batches are shuffled; the
  squares are averaged over the classes and not halved, which Adam does not see.
  """
  n = max(1, round(case.ipc * case.num_classes))
  steps, batch = FREPO_STEPS[nearest_ipc(n, tuple(FREPO_STEPS))], min(n, 500)
  rate = schedule("warmup_cosine", False, warmup=500 / steps, start=0.0, end=0.01)
  return settings(
    -(-steps * batch // n), batch, {"name": "adam", "lr": 3e-4}, rate, mse_gt(0.0), None,
    num_seeds=5, flip=False, mix=None, dsa=dsa_strategy(case.dataset),
  )  # fmt: skip


DREAM_VIEWS = "color_crop_flip_scale_rotate"


def dream_eval(case: Case) -> Settings:
  """DREAM's and IDC's; its epochs show all four parts of an image, hence four times as many.

  Its views: a flip, colour, then a crop, scale or rotation, and CutMix for half of them. In what we
  differ: the last step is the result, not the best of four.
  """
  optimizer = sgd(0.01, 5e-4, decay="all")
  rate = schedule("multistep", milestones=(2 / 3, 5 / 6), factor=0.2)
  return settings(
    PARTS * 1000, 64, optimizer, rate, kl(1.0), None, flip=False, mix_prob=0.5,
    dsa=dsa_strategy(case.dataset, DREAM_VIEWS), dsa_combined=True,
  )  # fmt: skip


def rd3(case: Case) -> Settings:
  """The neutral recipe: the same whatever made the images, and without hard labels in the loss.

  Every kind of label has KL, which compares what a label says and not the level of its logits. At
  temperature 20 with T^2 its gradient is of the size that the hard loss has.
  """
  optimizer, flip = {"name": "adam", "lr": 1e-3}, case.dataset not in MIRRORED
  rate = schedule("smooth", per_epoch=False, zeta=2.0)
  return settings(400, 50, optimizer, rate, kl(20.0, squared=True), (0.08, 1.0), flip=flip)


_FOUR = ("cifar10", "cifar100", "tiny", "imagenet")

RECIPES: dict[str, Recipe] = {
  "sre2l_kl": Recipe(sre2l_kl, _FOUR),
  "rded_kl": Recipe(rded_kl, _FOUR),
  "gvbsm_mse_gt": Recipe(gvbsm_mse_gt, _FOUR),
  "edc_mse_gt": Recipe(edc_mse_gt, _FOUR, released=True),
  "rldd_mse_gt": Recipe(rldd_mse_gt, _FOUR),
  "ncfm_eval": Recipe(ncfm_eval, ("cifar10", "cifar100", "tiny")),
  "dc_eval": Recipe(dc_eval, None),
  "dsa_eval": Recipe(dsa_eval, None),
  "mtt_eval": Recipe(mtt_eval, None, lr=DC_LR),
  "datm_eval": Recipe(datm_eval, None, lr=DC_LR),
  "dream_eval": Recipe(dream_eval, None),
  "frepo_eval": Recipe(frepo_eval, _FOUR),
  "hard": Recipe(rd3, None, hard=True),
  "rd3": Recipe(rd3, None),
}
