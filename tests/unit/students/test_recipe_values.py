"""Published settings of the methods, number by number, as their scripts and papers have them.

Written from those (docs/reference/methods.md names them), not from `configs/methods.py`: a change
of either has to be made twice. Where there is no released code the comment says whose value it is.
"""

import pytest

from configs import cifar10_lt, cifar100_lt

FLIP = {"name": "random_flip", "shared": True}
ROLL_4 = {"name": "random_roll", "low": 0, "high": 4, "shared": True}
ROLL_32 = {"name": "random_roll", "low": 0, "high": 32, "shared": True}
PAD_4 = {"name": "random_crop", "padding": 4, "shared": True}


def crop(low):
  return {"name": "random_resized_crop", "scale": (low, 1.0), "shared": True}


# SRe2L's CIFAR-100 script; CIFAR-10 has none and borrows it.
SRE2L = {
  "name": "sre2l", "num_steps": 1000, "lr": 0.25, "r_bn": 0.01, "first_bn_multiplier": 10.0,
  "init": "noise", "augment": (ROLL_4,),
}  # fmt: skip
# CDA has no CIFAR script: SRe2L's constants, CDA's curriculum over the whole run.
CDA = SRE2L | {
  "name": "cda", "curriculum": "cosine", "milestone": 1.0, "min_scale": 0.08,
  "augment": (FLIP, ROLL_4),
}  # fmt: skip
GVBSM = {
  "name": "gvbsm", "num_steps": 4000, "lr": 0.05, "r_stats": 0.01, "first_multiplier": 10.0,
  "densify": 1.0, "ema": 0.8, "ema_init": "zero", "conv_drop": 0.4, "target_batch": None,
  "init": "noise", "augment": (PAD_4, FLIP, ROLL_32),
}  # fmt: skip
EDC = {
  "name": "edc", "lr": 0.05, "r_stats": 0.01, "first_multiplier": 10.0, "alpha": 0.5,
  "flatness": 0.25, "flatness_decay": 0.99, "ema": 0.8, "ema_init": "zero", "init": "real",
}  # fmt: skip
RDED = {
  "name": "rded", "factor": 1, "num_crops": 5, "pool": 300, "chunk_size": 500,
}  # fmt: skip
METHODS = {
  ("cifar10", "sre2l"): SRE2L,
  ("cifar100", "sre2l"): SRE2L,
  ("cifar10", "cda"): CDA,
  ("cifar100", "cda"): CDA,
  ("cifar10", "gvbsm"): GVBSM,
  ("cifar100", "gvbsm"): GVBSM,
  ("cifar10", "edc"): EDC | {"num_steps": 75, "augment": (crop(0.08), FLIP)},
  ("cifar100", "edc"): EDC | {"num_steps": 2000, "augment": (crop(0.5), FLIP)},
  ("cifar10", "rded"): RDED,
  ("cifar100", "rded"): RDED,
}

FIVE = ("resnet18", "convnet_w128", "mobilenet_v2", "wrn16_2", "shufflenet_v2")
EIGHT = (*FIVE, "convnet_d1", "convnet_d2", "convnet_w32")
# Order of slots, images optimised together, and teachers in the order of their turns.
RECOVER = {
  ("cifar10", "sre2l"): ("interleaved", 100, None),
  ("cifar100", "sre2l"): ("interleaved", 100, None),
  ("cifar10", "gvbsm"): ("class_major", 100, FIVE),
  ("cifar100", "gvbsm"): ("class_major", 100, FIVE),
  ("cifar10", "edc"): ("class_major", None, EIGHT),
  ("cifar100", "edc"): ("class_major", 100, EIGHT),
}
# Epochs, batch, lr, weight decay, schedule. SRe2L's is the CIFAR-100 script's; EDC's 10 epochs on
# CIFAR-10 are the paper's (its script: 5).
SQUEEZE = {
  ("cifar10", "sre2l"): (200, 128, 0.1, 5e-4, "cosine"),
  ("cifar100", "sre2l"): (200, 128, 0.1, 5e-4, "cosine"),
  ("cifar10", "gvbsm"): (5, 64, 0.05, 0.0, "constant"),
  ("cifar100", "gvbsm"): (50, 64, 0.05, 0.0, "constant"),
  ("cifar10", "edc"): (10, 64, 0.05, 0.0, "constant"),
  ("cifar100", "edc"): (50, 64, 0.05, 0.0, "constant"),
}
NETWORKS = {
  "resnet18": {"name": "resnet18", "stem": "cifar", "init": "kaiming"},
  "convnet_w128": {"name": "convnet", "depth": 3, "width": 128, "norm": "instance"},
  "mobilenet_v2": {"name": "mobilenet_v2", "layout": "cifar", "width": 0.5},
  "wrn16_2": {"name": "wide_resnet", "depth": 16, "widen": 2},
  "shufflenet_v2": {"name": "shufflenet_v2", "stem": "cifar"},
  "convnet_d1": {"name": "convnet", "depth": 1, "width": 128, "norm": "instance"},
  "convnet_d2": {"name": "convnet", "depth": 2, "width": 128, "norm": "instance"},
  "convnet_w32": {"name": "convnet", "depth": 3, "width": 32, "norm": "instance"},
}


def config(dataset, method):
  module = {"cifar10": cifar10_lt, "cifar100": cifar100_lt}[dataset]
  return module.get_config(f"method={method},preset=full").to_dict()


@pytest.mark.parametrize(("dataset", "method"), METHODS)
def test_constants_of_distil(dataset, method):
  assert config(dataset, method)["distil"]["methods"][method] == METHODS[dataset, method]


@pytest.mark.parametrize(("dataset", "method"), RECOVER)
def test_batches_of_images_and_turns(dataset, method):
  found = config(dataset, method)["distil"]
  batch = (found["order"], found["batch_size"], found["teachers"])
  assert batch == RECOVER[dataset, method]


@pytest.mark.parametrize(("dataset", "method"), SQUEEZE)
def test_training_of_teachers(dataset, method):
  found = config(dataset, method)["teacher"]
  epochs, batch, lr, decay, schedule = SQUEEZE[dataset, method]
  assert (found["num_epochs"], found["batch_size"]) == (epochs, batch)
  sgd = {"name": "sgd", "lr": lr, "momentum": 0.9, "weight_decay": decay}
  assert found["optimizer"] == sgd
  assert found["schedule"] == {"name": schedule}
  assert found["objective"] == {"name": "cross_entropy", "label_smoothing": 0.0}
  assert found["augment"] == (
    {"name": "random_crop", "padding": 4},
    {"name": "random_flip"},
  )
  turns = RECOVER[dataset, method][2]
  want = {"teacher": {"name": "resnet18", "stem": "cifar"}}
  assert found["models"] == ({name: NETWORKS[name] for name in turns} if turns else want)
