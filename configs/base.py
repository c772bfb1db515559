"""What the configs share: the groups of a run, and the image sources and labels to compare.

A config is a dict of groups; a group is the keyword arguments of the functions named beside it.
Every config file takes arguments after a colon, `configs/cifar10_lt.py:ipc=50,preset=cpu`. Any key
can be set on the command line, `--config.student.num_epochs=300` or `--config.label.top_k=None`,
whether it is listed here or not.
"""

import importlib
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from configs import methods, teachers
from ltdd_jax import distil
from ltdd_jax.core.config import parse_arg, suggest, with_defaults
from ltdd_jax.core.registry import check_choice
from ltdd_jax.core.types import LtddError
from ltdd_jax.data.specs import SPECS
from ltdd_jax.labels import sources as label_sources
from ltdd_jax.students import recipes
from ltdd_jax.teachers import trajectories

PRESETS = ("smoke", "cpu", "full")

CROPS_AND_CUTMIX = {"crop_scale": (0.08, 1.0), "flip": True, "mix": "cutmix", "mix_alpha": 1.0}

# What numbers of methods and experts are lowered to, see `limit`; of one method by its name.
CPU: dict[str, Any] = {
  "num_steps": 300, "batch_real": 256,
  "num_networks": 20, "new_every": 10, "train_steps": 5, "train_batch": 128,  # IDM
  "num_frequencies": 1024,  # NCFM
  "epochs": 10, "dc": {"batch_real": 64}, "dsa": {"batch_real": 64},
  "num_clusters": 64, "network_images": 512,
  "dream": {"num_steps": 100, "steps_per_network": 25, "num_iterations": 10},
  "inner_steps": 5, "classifier_steps": 5, "max_start_epoch": 3,  # MTT and its kin
  "frepo": {"num_steps": 500, "network_batch": 250},
  "min_start_epoch": 1, "first_max_start_epoch": 2, "growth_steps": 100, "ema_decay": 0.99,
  "trajectories": {"num_experts": 6, "num_epochs": 6, "classifier_epochs": 2},
}  # fmt: skip
SMOKE: dict[str, Any] = {
  "num_steps": 3, "batch_real": 16,
  "num_networks": 4, "train_steps": 1, "train_batch": 16,
  "num_frequencies": 64,
  "epochs": 1,
  "num_clusters": 16, "network_images": 64,
  "inner_steps": 2, "classifier_steps": 2, "max_start_epoch": 1, "expert_epochs": 1,
  "min_start_epoch": 0, "first_max_start_epoch": 1, "ema_decay": 0.5,
  "trajectories": {"num_experts": 2, "num_epochs": 1, "classifier_epochs": 1},
}  # fmt: skip

CALIBRATORS: dict[str, dict[str, Any]] = {
  "plain": {"name": "none"},
  "tau1": {"name": "fixed", "tau": 1.0},
  "adsa": {"name": "adsa", "bootstrap": 200},
  "vector": {"name": "adsa_vector"},
  "probe": {"name": "adsa_probe"},  # the best so far (docs/results/README.md)
}
MORE_CALIBRATORS: dict[str, dict[str, Any]] = {
  "adsa_nll": {"name": "adsa", "criterion": "nll", "bootstrap": 200},
  "adsa_marginal": {"name": "adsa", "criterion": "marginal"},
  "adsa_head10": {"name": "adsa", "max_head_drop": 0.1},
  "adsa_nll_head10": {"name": "adsa", "criterion": "nll", "max_head_drop": 0.1},
  "vector_marginal": {"name": "adsa_vector", "criterion": "marginal"},
  "em": {"name": "em"},
  "matching": {"name": "em", "known": "uniform"},
  "temperature": {"name": "temperature"},
  "vector_scaling": {"name": "vector_scaling"},
}
TAUS: dict[str, dict[str, Any]] = {  # a grid to compare ADSA's tau with: tau050 is tau = 0.5
  f"tau{percent:03}": {"name": "fixed", "tau": percent / 100} for percent in range(25, 201, 25)
}


def arguments(arg: str | None, **defaults: Any) -> SimpleNamespace:
  """Parses a config's argument and checks the names in it."""
  defaults = {"calibrators": "few", "recipe": "", "teacher": ""} | defaults
  args = parse_arg(arg, **defaults)
  if args.preset == "smoke":
    args = parse_arg(arg, **defaults | {"ipc": 2})
  check_choice("preset", args.preset, PRESETS)
  check_choice("method", args.method, methods.METHODS)
  if args.teacher:
    check_choice("teacher", args.teacher, teachers.TEACHERS)
  return args


def of_dataset(args: SimpleNamespace, **values: Any) -> ConfigDict:
  """The config of `configs/<dataset>_lt.py` with the arguments of a study."""
  keys = ("method", "ipc", "seed", "preset", "calibrators", "recipe", "teacher")
  values = {key: getattr(args, key) for key in keys} | values
  text = ",".join(f"{key}={value}" for key, value in values.items() if value != "")
  return importlib.import_module(f"configs.{args.dataset}_lt").get_config(text)


def calibrators(kind: str, imbalance: float, dataset: str) -> dict[str, dict[str, Any]]:
  """Those to compare: "few", "all", some by name with + between them, or "priors".

  "priors" is for test sets that are not balanced. They are as long-tailed as the square root of the
  training set: `head` along it, `tail` against it.
  """
  known = CALIBRATORS | MORE_CALIBRATORS
  if kind in ("few", "all"):
    return known if kind == "all" else CALIBRATORS
  if kind != "priors":
    known |= TAUS
    names = kind.split("+")
    if unknown := [name for name in names if name not in known]:
      raise LtddError(
        f"calibrators={kind}: {unknown[0]!r} is unknown; expected few, all, priors, or names with "
        f"+ between them out of {', '.join(known)}. {suggest(unknown[0], known)}".rstrip(". ")
      )
    return {name: known[name] for name in names}
  if dataset not in SPECS:
    raise LtddError(f"calibrators=priors: expected a data set of {[*SPECS]}, not {dataset!r}")
  num_classes = SPECS[dataset].num_classes
  head = imbalance ** (-np.arange(num_classes) / (num_classes - 1) / 2)
  head = head / head.sum()
  targets = {"head": tuple(head.tolist()), "tail": tuple(head[::-1].tolist())}
  return {name: known[name] for name in ("plain", "adsa", "adsa_nll")} | {
    f"{criterion}_{name}": {"name": "adsa", "criterion": criterion, "target_prior": q}
    for criterion in ("confidence", "nll")
    for name, q in targets.items()
  }


def base(args: SimpleNamespace, dataset: str, like: str | None = None) -> ConfigDict:
  """SRe2L's released CIFAR recipe, with another method's way to make images if that is asked for.

  In what we differ: the teacher's batch norms use their running statistics (the released code
  forgets to ask for that), labels are stored and not made on line, a batch of images holds several
  images of each class where there are fewer than 100 classes, and images are stored lossless.
  """
  args.like = like or dataset  # whose settings methods have
  method = methods.published(args.method, args.like, args.ipc, args.imbalance)
  config = ConfigDict()
  config.seed = args.seed
  config.data = {  # data.sources.open_source and data.longtail.make_split
    "name": dataset,
    "data_dir": placeholder(str),
    "image_size": placeholder(int),
    "crop_pct": 1.0,  # of test images; 0.875 is 224 pixels out of 256
    "on_unreadable": "error",
    "lists": placeholder(tuple),  # files that list the images of a folder
    "stream_workers": placeholder(int),  # images stay on disk, and so many processes read ahead
    "mean": placeholder(tuple),
    "std": placeholder(tuple),
    "whiten": placeholder(float),  # 0.1 whitens images as MTT, TESLA and DATM do (data.whitening)
    "rule": "ltdd",
    "imbalance_factor": float(args.imbalance),
    "counts": placeholder(tuple),
    "num_test": placeholder(int),
    "splits": {},  # more splits by name, for teachers and images of other ones
  }
  if method.whiten is not None:
    config.data.whiten = method.whiten
  config.teacher = {  # teachers.train.train_teachers
    "models": {"teacher": {"name": "resnet18", "stem": "cifar"}},
    "num_epochs": 200,
    "num_steps": placeholder(int),  # in place of epochs
    "batch_size": 128,
    "optimizer": {"name": "sgd", "lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4},
    "schedule": {"name": "cosine"},
    "objective": {"name": "cross_entropy", "label_smoothing": 0.0},
    "augment": ({"name": "random_crop", "padding": 4}, {"name": "random_flip"}),
    "views": 1,
    "derive": (),
    "lookahead": False,
    "parallel": "auto",
    "compute_dtype": "float32",  # or "bfloat16", on accelerators; likewise below
    "splits": {},  # {teacher: split of config.data.splits}
  }
  for key in ("objective", "views", "derive"):  # what teachers are for, whatever their size
    config.teacher[key] = method.teacher.get(key, config.teacher[key])
  settings = with_defaults(distil.METHODS[args.method], method.method)
  config.distil = {  # distil.run.run_method, distil.make_slots, distil.METHODS
    "images_per_class": args.ipc,
    "slots_per_class": placeholder(tuple),
    "batch_size": 100,
    "order": "interleaved",
    "teachers": placeholder(tuple),
    "dtype": placeholder(str),  # "float32" keeps images as they were optimised
    "compute_dtype": "float32",
    "jpeg_quality": placeholder(int),  # 75 in the released code of some (docs/reference/methods.md)
    "methods": {args.method: settings, "random": {"name": "random"}},
  }
  config.distil.update(method.distil)
  if method.trajectories:  # teachers.trajectories.train_experts and train_classifiers
    experts = with_defaults(trajectories.train_experts, method.trajectories)
    experts.setdefault("classifier_epochs", 0)
    own = ("name", "seed", "session")  # the program's
    config.trajectories = {k: v for k, v in experts.items() if k not in own}
  learned = {"name": "learned", "images": (args.method,)}
  config.statistics = {"tile": 4, "batch_size": 256}  # teachers.statistics_pass.collect
  config.label = {  # labels.label.label_images
    "num_epochs": 400,
    "dtype": "float16",
    "top_k": placeholder(int),
    "batch_size": 500,
    "compute_dtype": "float32",
    "sources": {"teacher": with_defaults(label_sources.teacher, {"name": "teacher"})}
    | ({"learned": learned} if method.learned_labels else {}),
    "views": {  # data.views.view_fn
      "crop_scale": None,
      "padding": 4,
      "flip": True,
      "mix": "mixup",
      "mix_alpha": 0.8,
    },
  }
  config.calibrate = {  # calibrate.make_calibrator
    "fit_on": "views",
    "max_epochs": 100,
    "calibrators": calibrators(args.calibrators, args.imbalance, dataset),
  }
  config.student = {  # students.train.train_students; a rate of None is the one that was learned
    "model": {"name": "resnet18", "stem": "cifar"},
    "num_epochs": 400,
    "batch_size": 128,
    "optimizer": {"name": "adamw", "lr": 1e-3, "weight_decay": 0.01},
    "schedule": {"name": "cosine"},
    "loss": {"name": "kl", "temperature": 30.0},
    "hard_weight": 0.0,
    "ema": placeholder(float),
    "recipe": placeholder(str),
    "num_seeds": 3,
    "evaluations": 5,
    "eval_batch_size": 500,
    "parallel": "auto",
    "compute_dtype": "float32",
    "hard_labels": True,
  }
  config.report = {"groups": "thirds"}  # pipeline.results.write_report
  return config


def small_networks(
  config: ConfigDict,
  args: SimpleNamespace,
  *,
  depth: int,
  width: int,
  student_norm: str = "instance",
) -> None:
  """Puts one ConvNet in the teachers' place, and others in student's and methods'."""
  net = {"name": "convnet", "depth": depth, "width": width}
  norm = methods.published(args.method, args.like, args.ipc, args.imbalance).norm
  config.teacher.models = {"teacher": net | {"norm": norm}}
  config.student.model = net | {"norm": student_norm}
  config.distil.teachers = None
  for method in config.distil.methods.values():
    if "network" in method:
      method.network.update(net)  # instance norm stays, or what the method has in its place
  if "trajectories" in config:
    config.trajectories.network = net | {"norm": "instance"}


def deepen(config: ConfigDict) -> None:
  """Puts a ConvNet-4, for images of 64 pixels, where there is a ConvNet-3, for 32."""
  networks = [config.student.model, *config.teacher.models.values()]
  networks += [m.network for m in config.distil.methods.values() if "network" in m]
  networks += [config.trajectories.network] if "trajectories" in config else []
  for network in networks:
    if network.name == "convnet" and network.depth == 3:
      network.depth = 4


def shrink(config: ConfigDict, **values: Any) -> None:
  """Sets `group__key=value` pairs, as the presets do."""
  for path, value in values.items():
    group, key = path.split("__")
    config[group][key] = value


def finish(config: ConfigDict, args: SimpleNamespace) -> ConfigDict:
  """Applies the preset, the published teachers and recipe or small ones, and a named teacher."""
  {"full": full, "cpu": cpu, "smoke": smoke}[args.preset](config, args)
  return teachers.apply(config, args.teacher)


def full(config: ConfigDict, args: SimpleNamespace) -> None:
  """The method's own teachers and evaluation recipe, for an accelerator."""
  method = methods.published(args.method, args.like, args.ipc, args.imbalance)
  for key, value in method.teacher.items():
    config.teacher[key] = value
  config.student.model = method.student
  if method.labelers:
    config.label.sources.teacher.teachers = method.labelers
  recipe(config, args.recipe or method.recipe)


def recipe(config: ConfigDict, name: str) -> None:
  """Sets the students' training to a recipe; sets without published values borrow CIFAR-10's."""
  ours = recipes.parse(name).dataset or config.data.name in recipes.KNOWN
  recipes.apply(config, name, dataset=None if ours else "cifar10")


def with_values_of(name: str, dataset: str) -> str:
  """A recipe with a data set's values, where it has any and no other set's are asked for."""
  ref = recipes.parse(name)
  if ref.dataset is None and dataset in (recipes.RECIPES[ref.name].datasets or ()):
    ref = ref._replace(dataset=dataset)
  return str(ref)


def cpu(config: ConfigDict, args: SimpleNamespace) -> None:
  """Two cores and half an hour: a narrow ConvNet-3, 300 distil steps, fewer passes.

  Small batches, since the time goes by images: 2,000 steps of 10 images, and not 400 of 50, which
  leave students far from trained (docs/results/README.md). `recipe=NAME` keeps all else of a
  recipe. Trajectories are of 6 experts of width 32 in 6 epochs, matched in 5 inner steps.

  By the time of single updates on one core, the images of DC and DSA take about 20 minutes and
  DREAM's 10; by 100 GFLOP/s, IDM's take 10 and NCFM's, with one network, 8. Whole runs were not
  timed.
  """
  small_networks(config, args, depth=3, width=64, student_norm="batch")
  if args.recipe:
    recipe(config, args.recipe)
  else:
    config.label.views = CROPS_AND_CUTMIX
    hard = 0.0 if args.method == "frepo" else 0.025  # whose labels are targets, smaller than these
    config.student.loss = {"name": "mse_ce", "ce_weight": hard}
  passes = 200 if args.ipc <= 10 else 40
  shrink(
    config,
    teacher__num_epochs=30,
    teacher__batch_size=64,
    student__num_epochs=passes,
    student__num_seeds=3,
    student__batch_size=10,
    label__num_epochs=passes,
    student__evaluations=1,  # the last step is the result; 10,000 images take a while
  )
  config.teacher.optimizer.lr = 0.05
  limit(config, CPU)
  if "trajectories" in config:
    config.trajectories.network.width = 32


def limit(config: ConfigDict, most: Mapping[str, Any]) -> None:
  """Lowers numbers of methods and of experts to those of `most`: fewer and shorter steps.

  G-VBSM's 4,000 steps are small ones. So that images get away from noise in fewer, its learning
  rate becomes SRe2L's (0.25), with which Adam can go as far in `most` steps as SRe2L does. In fewer
  inner steps images lead less far: the rate of an inner loop starts at 0.01 at least. And a running
  mean of images (FTD) forgets the first ones in fewer steps. FRePo's rate is ten times as high.
  """
  for method in config.distil.methods.values():
    if method.name == "gvbsm" and method.num_steps > most["num_steps"]:
      method.lr = methods.SRE2L["lr"]
    if method.name == "frepo":
      method.lr = max(method.lr, 3e-3)
    if "inner_steps" in method:
      method.student_lr = max(method.student_lr, 0.01)
    _lower(method, {**most, **most.get(method.name, {})})
  if "trajectories" in config:
    _lower(config.trajectories, most["trajectories"])


def _lower(group: ConfigDict, most: Mapping[str, Any]) -> None:
  for key in most.keys() & group.keys():
    if group[key] is not None:
      group[key] = min(group[key], most[key])


def smoke(config: ConfigDict, args: SimpleNamespace) -> None:
  """A minute or two: everything runs and nothing is learned; the split is the real one.

  Two images a class, unless `ipc` says otherwise (`arguments`).
  """
  small_networks(config, args, depth=2, width=8)
  if args.recipe:
    recipe(config, args.recipe)
  shrink(
    config,
    data__num_test=200,
    teacher__num_epochs=1,
    teacher__batch_size=256,
    label__num_epochs=3,
    student__num_epochs=3,
    student__num_seeds=2,
    student__evaluations=2,
  )
  limit(config, SMOKE)
