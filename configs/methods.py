"""The methods and their published settings, by data set: one table.

`configs/base.py` reads it: `method=edc` takes its settings for the data set, or those of CIFAR-10
for a set without any. Where paper and released code differ the paper's value is here, unless the
method is named after the code. Arguments that are not here have the factories'
defaults, which `base` fills in, so that a config shows all that runs and any of them can be
changed. Constants of normalisation are the data set's own, and images are stored without loss
(docs/reference/methods.md has the released ones). What has no published value for the data set is
marked "ours".
"""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

from ml_collections.config_dict import placeholder

from ltdd_jax.data.specs import SPECS
from ltdd_jax.students.recipes.values import MIRRORED, dsa_strategy, nearest_ipc

W128 = {"name": "convnet", "depth": 3, "width": 128, "norm": "instance"}
# G-VBSM's five networks, and EDC's eight, in the order of their turns.
FIVE: dict[str, dict[str, Any]] = {
  "resnet18": {"name": "resnet18", "stem": "cifar", "init": "kaiming"},
  "convnet_w128": W128,
  "mobilenet_v2": {"name": "mobilenet_v2", "layout": "cifar", "width": 0.5},
  "wrn16_2": {"name": "wide_resnet", "depth": 16, "widen": 2},
  "shufflenet_v2": {"name": "shufflenet_v2", "stem": "cifar"},
}
EIGHT = FIVE | {
  "convnet_d1": W128 | {"depth": 1},
  "convnet_d2": W128 | {"depth": 2},
  "convnet_w32": W128 | {"width": 32},
}

ROLL = {"name": "random_roll", "low": 0, "high": 4, "shared": True}
FLIP = {"name": "random_flip", "shared": True}


class Published(NamedTuple):
  """What a method sets; what it leaves out stays as in `configs.base.base`."""

  method: dict[str, Any]  # {name, **kwargs} of distil.METHODS
  recipe: str  # of students.recipes
  distil: dict[str, Any] = {}  # noqa: RUF012 (never changed)
  teacher: dict[str, Any] = {}  # noqa: RUF012
  student: dict[str, Any] = {"name": "resnet18", "stem": "cifar"}  # noqa: RUF012
  labelers: tuple[str, ...] | None = None  # teachers that label; all for None
  norm: str = "batch"  # of the teacher in small presets
  trajectories: dict[str, Any] = {}  # noqa: RUF012 (if the method matches them)
  learned_labels: bool = False  # whether students have those of the method beside a teacher's
  whiten: float | None = None  # of config.data


def crop(low: float) -> dict[str, Any]:
  """A random resized crop that all images of a step share."""
  return {"name": "random_resized_crop", "scale": (low, 1.0), "shared": True}


IDM = {  # by images per class: weight of the cross-entropy, steps of a network's training
  "cifar10": {1: (0.5, 10), 10: (0.5, 10), 50: (0.1, 10)},
  "cifar100": {1: (0.5, 10), 10: (0.1, 50), 50: (0.1, 10)},
  "tiny_imagenet": {1: (0.5, 10), 10: (0.5, 10), 50: (0.8, 50)},
}
SRE2L = {"num_steps": 1000, "lr": 0.25, "r_bn": 0.01, "first_bn_multiplier": 10.0}
GVBSM = {
  "name": "gvbsm",
  "num_steps": 4000,
  "lr": 0.05,
  "augment": (
    {"name": "random_crop", "padding": 4, "shared": True},
    FLIP,
    {"name": "random_roll", "low": 0, "high": 32, "shared": True},
  ),
}
MANY: dict[str, Any] = {  # teacher of G-VBSM and EDC: SGD 0.05 at a constant rate, no weight decay
  "models": FIVE,
  "batch_size": 64,
  "optimizer": {"name": "sgd", "lr": 0.05, "momentum": 0.9, "weight_decay": 0.0},
  "schedule": {"name": "constant"},
}
TINY: dict[str, Any] = MANY | {  # of EDC on Tiny-ImageNet
  "batch_size": 128,
  "optimizer": MANY["optimizer"] | {"lr": 0.1},
  "schedule": {"name": "cosine"},
  "augment": ({"name": "random_crop", "padding": 8}, {"name": "random_flip"}),
}
LARGER = ("cifar100", "tiny_imagenet")  # sets with more steps and epochs of EDC's
CLASS_MAJOR = {"order": "class_major", "batch_size": 100}


def sre2l(dataset: str, ipc: int) -> Published:
  """The released CIFAR-100 constants; there is no CIFAR-10 code."""
  return Published({"name": "sre2l", **SRE2L, "augment": (ROLL,)}, "sre2l_kl")


def cda(dataset: str, ipc: int) -> Published:
  """Ours: SRe2L's CIFAR constants with CDA's crops; CDA has no CIFAR code."""
  return Published({"name": "cda", **SRE2L, "augment": (FLIP, ROLL)}, "sre2l_kl")


def gvbsm(dataset: str, ipc: int) -> Published:
  """Five networks, 5 epochs each on CIFAR-10 and 50 on CIFAR-100 (released)."""
  epochs = 50 if dataset == "cifar100" else 5
  distil = CLASS_MAJOR | {"teachers": tuple(FIVE)}
  student = W128 if dataset == "cifar100" else FIVE["resnet18"]
  return Published(GVBSM, "gvbsm_mse_gt", distil, MANY | {"num_epochs": epochs}, student)


def edc(dataset: str, ipc: int) -> Published:
  """Eight networks, 10 epochs each on CIFAR-10 (paper), 50 on CIFAR-100; on Tiny-ImageNet five, 50.

  CIFAR-10: 75 steps of all images at once. The others: 2,000 steps of batches of 100.
  """
  steps, low, epochs = (2000, 0.5, 50) if dataset in LARGER else (75, 0.08, 10)
  few = dataset in SPECS and SPECS[dataset].num_classes <= 10
  batch = placeholder(int) if few else 100
  method = {"name": "edc", "num_steps": steps, "lr": 0.05, "augment": (crop(low), FLIP)}
  teacher = TINY if dataset == "tiny_imagenet" else MANY | {"models": EIGHT}
  teacher = teacher | {"num_epochs": epochs}
  distil = CLASS_MAJOR | {"batch_size": batch, "teachers": tuple(teacher["models"])}
  return Published(method, "edc_mse_gt", distil, teacher, FIVE["resnet18"])


def edc_released(dataset: str, ipc: int) -> Published:
  """As `edc`, with the scripts' 5 epochs on CIFAR-10.

  They label CIFAR-100 with five of the eight (`config.label.sources.teacher.teachers`, `FIVE`).
  """
  paper = edc(dataset, ipc)
  teacher = paper.teacher if dataset in LARGER else paper.teacher | {"num_epochs": 5}
  method = paper.method | {"name": "edc_released"}
  return paper._replace(method=method, recipe="edc_mse_gt:released", teacher=teacher)


def rldd(dataset: str, ipc: int) -> Published:
  """An observer and a labeler, debiased and recalibrated class by class.

  On CIFAR-10 they are one ConvNet-3 with batch norm; the public copy has instance norm there, of
  which nothing is recalibrated. Other sets than these three: CIFAR-10's networks (ours). The
  objective is the paper's. For orientation, test top-1 of one ConvNet-3 of width 64 after 20 passes
  over CIFAR-10-LT of factor 100: 45.8 by it, 58.1 by the copy's `rldd_released`, 45.4 by
  cross-entropy; at the best tau 64.5, 58.1 and 62.5. Nothing was chosen by these.
  """
  steps, low, depth = (2000, 0.5, 4) if dataset == "tiny_imagenet" else (75, 0.08, 3)
  if dataset == "cifar100":
    steps, low = 2000, 0.5
  labeler = W128 | {"depth": depth, "norm": "batch"}
  observer = {
    "cifar100": {"name": "resnet32"}, "tiny_imagenet": {"name": "resnet18", "stem": "cifar"}
  }.get(dataset)  # fmt: skip
  teacher = {
    "models": {"labeler": labeler} | ({"observer": observer} if observer else {}),
    "num_epochs": 200,
    "batch_size": 64,
    "optimizer": {"name": "sgd", "lr": 0.01, "momentum": 0.9, "weight_decay": 5e-3},
    "schedule": {"name": "cosine"},
    "objective": {"name": "rldd"},
    "views": 2,
    "derive": ({"name": "recalibrate_bn_by_class"},),
  }
  method = {"name": "rldd", "num_steps": steps, "lr": 0.05, "augment": (crop(low), FLIP)}
  distil = CLASS_MAJOR | {"teachers": ("observer" if observer else "labeler",)}
  student = W128 | {"depth": depth}
  return Published(method, "rldd_mse_gt", distil, teacher, student, ("labeler",))


def dm(dataset: str, ipc: int) -> Published:
  """The neutral recipe; DM's own students see DSA and hard labels (`dsa_eval`)."""
  method = {"name": "dm", "num_steps": 20_000, "lr": 1.0 if ipc <= 50 else 10.0, "network": W128}
  return Published(method | {"augment": dsa_strategy(dataset)}, "rd3", student=W128)


def idm(dataset: str, ipc: int) -> Published:
  """The commands file, by the nearest number of images per class; recipe and networks as in `dm`.

  Its rate of 0.2 and momentum of 0.5, class by class, are 0.4 for all classes at once. The code
  has a ConvNet-3 for Tiny-ImageNet's 64 pixels too. Other sets than these three: CIFAR-10's (ours).
  """
  near, like = nearest_ipc(ipc), dataset if dataset in IDM else "cifar10"
  ce_weight, train_steps = IDM[like][near]
  few = near == 1 and like != "tiny_imagenet"
  method = {
    "name": "idm",
    "num_steps": 20_000,
    "lr": 0.4,
    "batch_real": 5000 if few else 256,
    "ce_weight": ce_weight,
    "new_every": 5 if few else 30,
    "train_steps": train_steps,
    "network": W128,
    "augment": dsa_strategy(dataset),
  }
  return Published(method, "rd3", student=W128)


def ncfm(dataset: str, ipc: int) -> Published:
  """Twenty networks, their own training but for its colour and CutMix; the first one labels.

  AdamW everywhere but for CIFAR-100 with 10 images per class. The paper's 1,024 frequencies.
  """
  tiny = dataset == "tiny_imagenet"
  width_128 = W128 | {"depth": 4 if tiny else 3}
  method: dict[str, Any] = {"name": "ncfm", "num_steps": 20_000, "batch_real": 1024}
  if dataset == "cifar100" and nearest_ipc(ipc) == 10:
    method["optimizer"] = {"name": "sgd", "lr": 0.01, "momentum": 0.5}
  teacher = {
    "models": {f"net{i:02}": width_128 for i in range(20)},
    "num_epochs": 60,
    "batch_size": 128,
    "optimizer": {"name": "sgd", "lr": 0.01, "momentum": 0.9, "weight_decay": 5e-4},
    "schedule": {"name": "multistep", "milestones": (2 / 3, 5 / 6), "factor": 0.2},
    "augment": ({"name": "random_crop", "padding": 8 if tiny else 4},),
  }
  return Published(method, "ncfm_eval", {}, teacher, width_128, ("net00",), norm="instance")


def ncfm_released(dataset: str, ipc: int) -> Published:
  """As `ncfm`, with the code's frequencies: 4,096, normal."""
  paper = ncfm(dataset, ipc)
  return paper._replace(method=paper.method | {"name": "ncfm_released"})


# DC and DSA, by images per class: steps on one network, and its epochs between them.
DC = {1: (1, 1), 10: (10, 50), 20: (20, 25), 30: (30, 20), 40: (40, 15), 50: (50, 10)}


def dc(dataset: str, ipc: int) -> Published:
  """1,000 networks; the loops of the nearest number of images per class; students see no views."""
  steps, epochs = DC[nearest_ipc(ipc, tuple(DC))]
  method = {"name": "dc", "num_steps": 1000 * steps, "lr": 0.1, "network": W128}
  return Published(method | {"steps_per_network": steps, "epochs": epochs}, "dc_eval", student=W128)


def dsa(dataset: str, ipc: int) -> Published:
  """As `dc`, with views, without flips for digits; so do its students have them."""
  paper = dc(dataset, ipc)
  method = paper.method | {"name": "dsa", "augment": dsa_strategy(dataset)}
  return paper._replace(method=method, recipe="dsa_eval")


def dream(dataset: str, ipc: int) -> Published:
  """2,000 networks of 100 steps.

  Of MNIST and Fashion-MNIST the code compares gradients by their L1 distance; not here.
  """
  tiny = dataset == "tiny_imagenet"
  base = 1e-6 if tiny and ipc >= 50 else 5e-3
  method = {
    "name": "dream",
    "num_steps": 200_000,
    "lr": base * ipc / 10 * (4 if tiny else 1),  # (side / 32)^2
    "factor": 2,
    "num_clusters": 64 if tiny else 128,
    "network_images": {"cifar10": 2000, "cifar100": 2000, "tiny_imagenet": 1000}.get(dataset, 500),
    "network": W128,
  }
  return Published(method, "dream_eval", student=W128)


# MTT, by data set and images per class: inner steps, epochs of experts, epochs to start from,
# images in an inner step (0 for all), rates of images and of the rate, the rate at the start.
MTT: dict[tuple[str, int], tuple[Any, ...]] = {
  ("cifar10", 1): (50, 2, 2, 0, 1e2, 1e-7, 1e-2),
  ("cifar10", 10): (30, 2, 20, 0, 1e2, 1e-5, 1e-3),
  ("cifar10", 50): (30, 2, 40, 0, 1e3, 1e-5, 1e-3),
  ("cifar100", 1): (20, 3, 20, 0, 1e3, 1e-5, 1e-2),
  ("cifar100", 10): (20, 2, 20, 0, 1e3, 1e-5, 1e-2),
  ("cifar100", 50): (80, 2, 40, 125, 1e3, 1e-5, 1e-2),
  ("tiny_imagenet", 1): (10, 2, 10, 0, 1e4, 1e-4, 1e-2),
  ("tiny_imagenet", 10): (20, 2, 40, 200, 1e4, 1e-4, 1e-2),
  ("tiny_imagenet", 50): (20, 2, 40, 300, 1e4, 1e-4, 1e-2),
}
ZCA = 0.1  # config.data.whiten of MTT and of what came after it
WHITENED = {"cifar10": (1, 10), "cifar100": (1, 50)}  # images per class at which MTT whitens
# With TESLA's own two commands; the rates of images of its code, 1e3, are twice those as derived.
TESLA = MTT | {
  ("cifar10", 1): (50, 2, 5, 0, 5e2, 1e-7, 1e-2),
  ("cifar100", 50): (80, 2, 40, 125, 5e2, 1e-5, 1e-2),
}
# FTD's figure of parameters, in the same order, then alpha of GSAM and the decay of the images.
FTD = {
  ("cifar10", 1): (50, 2, 2, 0, 1e2, 1e-7, 1e-2, 0.3, 0.9999),
  ("cifar10", 10): (30, 2, 20, 0, 1e2, 1e-5, 1e-3, 0.3, 0.9995),
  ("cifar10", 50): (30, 2, 40, 0, 1e3, 1e-5, 1e-2, 1.0, 0.999),
  ("cifar100", 1): (40, 3, 20, 0, 1e3, 1e-5, 1e-2, 1.0, 0.9995),
  ("cifar100", 10): (20, 2, 40, 0, 1e3, 1e-5, 1e-2, 1.0, 0.9995),
  ("cifar100", 50): (80, 2, 40, 1000, 1e3, 1e-5, 1e-2, 1.0, 0.999),
  ("tiny_imagenet", 1): (30, 2, 10, 0, 1e4, 1e-4, 1e-2, 1.0, 0.999),
  ("tiny_imagenet", 10): (20, 2, 40, 500, 1e4, 1e-4, 1e-2, 1.0, 0.999),
}
# DATM's files, in the order of MTT's; then the first epoch to start from, the end of these epochs
# in the first step and the steps until it is the last end (None, 1 if it is from the first step
# on), the rate of labels, the threshold and how images start.
PREDICTED = "predicted"
DATM = {
  ("cifar10", 1): (80, 2, 4, 0, 1e2, 1e-7, 1e-2, 0, None, 1, 5.0, 1.1, PREDICTED),
  ("cifar10", 10): (80, 2, 20, 0, 1e2, 1e-5, 1e-2, 0, 10, 1000, 2.0, 1.0, PREDICTED),
  ("cifar10", 50): (80, 2, 40, 0, 1e3, 1e-5, 1e-2, 0, 20, 2000, 2.0, 1.0, PREDICTED),
  ("cifar10", 500): (40, 2, 60, 1000, 50.0, 1e-5, 1e-2, 40, None, 1, 10.0, 1.0, PREDICTED),
  ("cifar10", 1000): (100, 2, 60, 1000, 50.0, 1e-5, 1e-2, 40, None, 1, 10.0, 1.0, PREDICTED),
  ("cifar100", 1): (40, 3, 20, 0, 1e3, 1e-5, 1e-2, 0, 10, 1000, 10.0, 1.0, PREDICTED),
  ("cifar100", 10): (80, 2, 50, 0, 1e3, 1e-5, 1e-2, 0, 30, 2000, 10.0, 1.0, PREDICTED),
  ("cifar100", 50): (80, 2, 70, 1000, 1e3, 1e-5, 1e-2, 20, None, 1, 10.0, 1.0, "real"),
  ("cifar100", 100): (80, 2, 70, 1000, 50.0, 1e-5, 1e-2, 30, None, 1, 10.0, 1.0, PREDICTED),
  ("tiny_imagenet", 1): (40, 2, 20, 0, 1e4, 1e-4, 1e-2, 0, 15, 2000, 10.0, 1.0, PREDICTED),
  ("tiny_imagenet", 10): (40, 2, 50, 500, 1e2, 1e-4, 1e-2, 10, None, 1, 10.0, 1.0, PREDICTED),
  ("tiny_imagenet", 50): (20, 2, 70, 1000, 1e2, 1e-4, 1e-2, 40, None, 1, 10.0, 1.0, PREDICTED),
}


# DAMED's files of CIFAR-10-LT, by imbalance factor and images per class: steps of the second phase,
# the end of the start epochs in the first step, at last, and the steps until then (None, 1 if it is
# the last from the first step on), the rate of images and the weights of backbone and classifier.
DAMED_CIFAR10 = {
  (10, 10): (80, 10, 20, 1000, 100.0, 1.0, 0.2),
  (10, 20): (80, None, 40, 1, 100.0, 1.0, 0.2),
  (10, 50): (80, None, 40, 1, 1000.0, 1.0, 0.2),
  (50, 10): (80, None, 20, 1, 100.0, 1.0, 0.5),
  (50, 20): (80, 10, 20, 2000, 100.0, 0.5, 1.0),
  (50, 50): (80, 20, 40, 2000, 100.0, 0.5, 1.0),
  (100, 10): (80, None, 20, 1, 100.0, 0.5, 1.0),
  (100, 20): (80, 10, 20, 2000, 100.0, 0.5, 1.0),
  (100, 50): (60, None, 40, 1, 1000.0, 1.0, 0.5),
  (200, 10): (80, None, 20, 1, 100.0, 0.1, 1.0),
  (200, 20): (80, None, 40, 1, 1000.0, 0.1, 1.0),
  (200, 50): (80, None, 40, 1, 1000.0, 0.1, 1.0),
}
# Of Tiny-ImageNet-LT, by images per class: steps of both phases, images in them, the rate of the
# rate, the first epoch to start from and the end of these.
DAMED_TINY = {
  10: (25, 500, 1e-4, 10, 50), 20: (20, 500, 1e-4, 10, 50), 50: (10, 1000, 1e-5, 40, 70)
}  # fmt: skip


def _nearest(
  table: dict[tuple[str, int], tuple[Any, ...]], dataset: str, ipc: int
) -> tuple[Any, ...]:
  """The values of the nearest number of images per class; sets without any have CIFAR-10's."""
  like = dataset if dataset in {name for name, _ in table} else "cifar10"
  return table[like, nearest_ipc(ipc, [n for name, n in table if name == like])]


def _trajectory_matching(
  name: str, dataset: str, values: tuple[Any, ...], **experts: Any
) -> Published:
  """A trajectory-matching method, of values in the order of `MTT`."""
  steps, epochs, starts, batch, lr, lr_lr, rate = values
  method = {
    "name": name,
    "num_steps": 5000,
    "inner_steps": steps,
    "inner_batch_size": batch or placeholder(int),
    "expert_epochs": epochs,
    "max_start_epoch": starts,
    "lr": lr,
    "lr_lr": lr_lr,
    "student_lr": rate,
    "augment": dsa_strategy(dataset),
  }
  network = W128 | {"depth": 4} if dataset == "tiny_imagenet" else W128
  experts = {"network": network, "num_experts": 100, "num_epochs": 50} | experts
  experts["augment"] = method["augment"]
  return Published(method, "mtt_eval", trajectories=experts, student=network)


def mtt(dataset: str, ipc: int) -> Published:
  """The authors' commands, images whitened where they whiten them."""
  found = _trajectory_matching("mtt", dataset, _nearest(MTT, dataset, ipc))
  whitened = nearest_ipc(ipc, [1, 10, 50]) in WHITENED.get(dataset, ())
  return found._replace(whiten=ZCA if whitened else None)


def tesla(dataset: str, ipc: int) -> Published:
  """The authors' two commands, for which `lr` is half of theirs; elsewhere MTT's values (ours)."""
  own = (dataset, nearest_ipc(ipc, [1, 10, 50])) == ("cifar10", 1)  # a command without whitening
  found = _trajectory_matching("tesla", dataset, _nearest(TESLA, dataset, ipc))
  return found._replace(whiten=None if own else mtt(dataset, ipc).whiten)


def tesla_released(dataset: str, ipc: int) -> Published:
  """As `tesla`, with the rates of the code, which lacks a factor 2; where they are MTT's, twice."""
  paper = tesla(dataset, ipc)
  method = paper.method | {"name": "tesla_released", "lr": 2 * paper.method["lr"]}
  return paper._replace(method=method)


def ftd(dataset: str, ipc: int) -> Published:
  """The figure of parameters in its repository, which names no whitening; GSAM of radius 0.01."""
  *values, alpha, decay = _nearest(FTD, dataset, ipc)
  found = _trajectory_matching("ftd", dataset, tuple(values), gsam_rho=0.01, gsam_alpha=alpha)
  return found._replace(method=found.method | {"ema_decay": decay})


def datm(dataset: str, ipc: int) -> Published:
  """The authors' files; experts as FTD's, of 100 epochs. Students have the learned labels too.

  Images of CIFAR are whitened; theirs of Tiny-ImageNet are too, which `data.whitening` refuses.
  """
  values = _nearest(DATM, dataset, ipc)
  keys = (
    "min_start_epoch", "first_max_start_epoch", "growth_steps", "lr_labels", "threshold", "init"
  )  # fmt: skip
  own = dict(zip(keys, values[7:], strict=True))
  if own["first_max_start_epoch"] is None:
    own["first_max_start_epoch"] = placeholder(int)
  experts = {"num_epochs": 100, "gsam_rho": 0.01, "gsam_alpha": 0.3}
  found = _trajectory_matching("datm", dataset, values[:7], **experts)
  return found._replace(
    method=found.method | own | {"num_steps": 10_000},
    recipe="datm_eval",
    learned_labels=True,
    whiten=ZCA if dataset in WHITENED else None,
  )


def damed(dataset: str, ipc: int, imbalance: float = 100.0) -> Published:
  """The authors' files, by the nearest imbalance factor; experts as DATM's, with weight decay.

  Other sets than these three: CIFAR-10's (ours). A set that is taken as it is has imbalance 1, and
  so the values of factor 10. Where the files of CIFAR-10 stop with an error the values are those
  that they mean. Tiny-ImageNet has 10,000 steps here for factor 20 and 50 images a class too, where
  the file has 1,500, and is not whitened, as by `datm`.
  """
  ipc, factors = nearest_ipc(ipc, (10, 20, 50)), (10, 50, 100, 200)
  first, least, growth, second = None, 0, 1, None
  if dataset == "cifar100":
    steps, second, batch, lr, lr_lr, weights = 40, 20, 1000, 1000.0, 1e-5, (1.0, 0.1)
    first_file = ipc == 10 and nearest_ipc(imbalance, (10, 20)) == 10
    least, last = (30, 50) if first_file else (20, 70)
  elif dataset == "tiny_imagenet":
    steps, batch, lr_lr, least, last = DAMED_TINY[ipc]
    lr, weights = 100.0, (1.0, 0.1)
  else:
    steps, batch, lr_lr = 80, 500, 1e-5  # all images, for up to 50 a class
    second, first, last, growth, lr, *pair = DAMED_CIFAR10[nearest_ipc(imbalance, factors), ipc]
    weights = (pair[0], pair[1])
  large = dataset in ("cifar100", "tiny_imagenet")
  sgd = {"name": "sgd", "lr": 0.01, "momentum": 0.0, "weight_decay": 5e-3}
  experts = {"num_epochs": 100, "gsam_rho": 0.01, "gsam_alpha": 0.3, "optimizer": sgd}
  experts["classifier_epochs"] = 10
  values = (steps, 2, last, batch, lr, lr_lr, 0.01)
  found = _trajectory_matching("damed", dataset, values, **experts)
  own = {
    "num_steps": 10_000,
    "classifier_steps": second or steps,
    "min_start_epoch": least,
    "first_max_start_epoch": placeholder(int) if first is None else first,
    "growth_steps": growth,
    "backbone_weight": weights[0],
    "classifier_weight": weights[1],
    "lr_labels": 10.0 if large else 2.0,
    "init": "real" if large else PREDICTED,
  }
  return found._replace(
    method=found.method | own,
    recipe="datm_eval",
    learned_labels=True,
    whiten=ZCA if dataset in WHITENED else None,
  )


# config.data.whiten: FRePo's ridge of 0.1 for standardised channels, in units of pixels.
FREPO_ZCA = {"cifar10": 0.0063, "cifar100": 0.0071}


def frepo(dataset: str, ipc: int) -> Published:
  """The released constants; mirror images where there are few prototypes; students without norm.

  Its ZCA of CIFAR divides each channel by its own deviation first: ours has 0.1 of their mean
  variance for 0.1. Tiny-ImageNet is whitened too, which `data.whitening` refuses.
  """
  if dataset in ("cifar100", "tiny_imagenet"):
    flip = nearest_ipc(ipc) == 1
  else:
    flip = dataset not in (*MIRRORED, "fashion_mnist", "imagenet2012")
  network = W128 | {"norm": "batch", "layout": "frepo", "bn_momentum": 0.1}
  method = {"name": "frepo", "num_steps": 500_000, "flip": flip, "network": network}
  student = W128 | {"norm": "none", "layout": "frepo"}
  whiten = FREPO_ZCA.get(dataset)
  return Published(method, "frepo_eval", student=student, learned_labels=True, whiten=whiten)


def rded(dataset: str, ipc: int) -> Published:
  """One patch an image. The teachers' training is ours, SRe2L's: RDED gives none, only weights."""
  return Published({"name": "rded", "factor": 1, "num_crops": 5, "pool": 300}, "rded_kl")


def _coreset(name: str) -> Callable[[str, int], Published]:
  def coreset(dataset: str, ipc: int) -> Published:
    """A control; no recipe of its own, hence the neutral one."""
    return Published({"name": name}, "rd3")

  return coreset


METHODS: dict[str, Callable[..., Published]] = {
  "sre2l": sre2l,
  "cda": cda,
  "gvbsm": gvbsm,
  "edc": edc,
  "edc_released": edc_released,
  "rldd": rldd,
  "dc": dc,
  "dsa": dsa,
  "dream": dream,
  "dm": dm,
  "idm": idm,
  "ncfm": ncfm,
  "ncfm_released": ncfm_released,
  "mtt": mtt,
  "tesla": tesla,
  "tesla_released": tesla_released,
  "ftd": ftd,
  "datm": datm,
  "damed": damed,
  "frepo": frepo,
  "rded": rded,
  **{name: _coreset(name) for name in ("herding", "k_center", "kmeans", "random")},
}


def published(name: str, dataset: str, ipc: int, imbalance: float) -> Published:
  """The settings of a method; `imbalance` is for those whose published ones depend on it."""
  if dataset == "imagenet2012":
    from configs import imagenet  # which imports this module

    return imagenet.METHODS[name](ipc)
  known = inspect.signature(METHODS[name]).parameters
  return METHODS[name](dataset, ipc, **({"imbalance": imbalance} if "imbalance" in known else {}))
