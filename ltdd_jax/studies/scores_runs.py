"""What the scores study scores, and the configs of its runs: see `scores_study`."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ltdd_jax.artefacts import workdir as workdir_lib
from ltdd_jax.core.registry import check_choice
from ltdd_jax.core.types import LtddError
from ltdd_jax.pipeline import graph
from ltdd_jax.pipeline.context import HARD, Context, Row
from ltdd_jax.students.recipes import values
from ltdd_jax.studies import runs

RANDOM = "random"  # the control's name, which no scored images may have
RATES = (0.001, 0.005, 0.01, 0.05, 0.1)
PRESETS = (None, "ddr")
DDR_REAL = {"optimizer": values.sgd(0.01, 5e-4, decay="all")}
NO_VIEWS = {"crop_scale": None, "flip": False, "mix": None}

Config = dict[str, Any]


class Pair(NamedTuple):
  """Labels to score: the row of the distilled set, and that of random images beside it."""

  name: str
  own: Row
  random: Row


def checked_source(config: Config, images: str) -> str:
  """The name of an image source, if it is there and has an image of every class."""
  methods = {name: entry for name, entry in config["distil"]["methods"].items() if name != RANDOM}
  check_choice("config.study.images", images, methods)
  ctx = Context(config)
  empty = np.flatnonzero(slots_of(ctx, images) == 0)
  if len(empty):
    raise LtddError(
      f"image source {images!r} has no image of classes {empty.tolist()}, and scores compare whole "
      "sets on the whole test set; expected one or more of each class. Add some"
    )
  return images


def slots_of(ctx: Context, images: str | None) -> np.ndarray:
  """Images of each class (k,) of an image source; None for the config's budget."""
  return np.bincount(ctx.slots(images).labels, minlength=ctx.source.spec.num_classes)


def with_artefacts(config: Config, runner: runs.Runner, of: str, images: str) -> Config:
  """Shares the artefacts of a finished run; its images are taken as they are if they would not be.

  They would be made again if the code has changed since, or if the run has further methods.
  """
  work, methods = workdir_lib.Workdir(of, cache=runner.cache), config["distil"]["methods"]
  if not runner.dry_run:
    work.share(stage.name for stage in graph.make_stages(Context(config)))
  if images not in methods or methods[images]["name"] == "imported":
    return config
  if not work.exists(f"distil/{images}"):
    raise LtddError(f"{of} has no images {images!r} yet; run it to the end of stage distil first")
  alone = part_of(config, {images: methods[images]}, [Row(images)])
  (stage,) = (s for s in graph.make_stages(Context(alone)) if s.name == f"distil/{images}")
  if stage.fingerprint == work.load(stage.name).meta["fingerprint"]:
    return config
  entry = _origin(config, images) | {"name": "imported", "path": str(work.folder(stage.name))}
  return {**config, "distil": config["distil"] | {"methods": methods | {images: entry}}}


def with_learned(config: Config, images: str) -> Config:
  """A config with a source of the soft labels that a file has beside its images."""
  file, sources = Context(config).file(images), config["label"]["sources"]
  if file is None or "soft_labels" not in file.learned:
    return config
  learned = {k: {**v, "images": None} for k, v in sources.items() if v["name"] == "learned"}
  sources = {**sources, **(learned or {"learned": {"name": "learned", "images": (images,)}})}
  return {**config, "label": config["label"] | {"sources": sources}}


def chosen(config: Config, images: str, labels: Sequence[str] | None) -> list[Pair]:
  """The rows to score, each with its control."""
  hard = {**config, "student": config["student"] | {"hard_labels": True}}
  known = {name_of(row): row for row in graph.rows(hard, images)}
  if labels is None:
    labels = [name_of(row) for row in graph.rows(config, images)]
  for name in labels:
    check_choice("an entry of config.study.labels", name, known)
  if not labels:
    raise LtddError(f"config.study.labels is empty; expected some of {', '.join(known)}, or None")
  return [Pair(name, known[name], control(config, known[name])) for name in dict.fromkeys(labels)]


def name_of(row: Row) -> str:
  """What labels a row has: "hard", "adsa" or "learned/adsa"."""
  own = () if row.labels in (HARD, "teacher") else (row.labels,)
  return "/".join([*own, row.calibrator or HARD])


def control(config: Config, row: Row) -> Row:
  """The row of random images: of the same labels, or of a teacher's with the same calibrator."""
  sources = config["label"]["sources"]
  if row.labels == HARD or sources[row.labels]["name"] == "teacher":
    return row._replace(images=RANDOM)
  for name, entry in sources.items():
    allowed = entry.get("calibrators")
    if entry["name"] == "teacher" and (allowed is None or row.calibrator in allowed):
      return Row(RANDOM, name, row.calibrator)
  raise LtddError(
    f"labels {name_of(row)!r} are of the images alone, and random images need labels to compare "
    f"with: expected a label source 'teacher' with the calibrator {row.calibrator!r} in "
    "config.label.sources. Add one, or score labels 'hard'"
  )


# ---- the runs ----


def parts(
  config: Config, pairs: Sequence[Pair], images: str, preset: str | None, real: Mapping[str, Any]
) -> dict[str, Config]:
  """The configs of all runs, by name."""
  ctx = Context(config)
  methods = {images: config["distil"]["methods"][images], RANDOM: random_entry(config, images)}
  found = {"real": real_part(ctx, images, preset, real)}
  if preset == "ddr":
    evaluations = -(-config["student"]["num_epochs"] // 10)
    config = {**config, "student": config["student"] | {"evaluations": evaluations}}
  budget = {} if np.array_equal(slots_of(ctx, images), slots_of(ctx, None)) else {
    "slots_per_class": tuple(slots_of(ctx, images).tolist())
  }  # fmt: skip
  for side, source in (("set", images), ("random", RANDOM)):
    rows = [pair.own if side == "set" else pair.random for pair in pairs]
    own = config if side == "set" else {**config, "distil": config["distil"] | budget}
    for kind, views in view_kinds(ctx, images).items():
      needed = [*rows, Row(images)] if (side, kind) == ("set", "recipe") else rows
      part = part_of(own, {source: methods[source]}, needed)
      part["label"] = part["label"] | views
      for rate in rates(config, side, preset):
        found[run_name(side, kind, rate)] = with_rate(part, rate)
  return found


def random_entry(config: Config, images: str) -> Config:
  """Random images of the split that the scored ones are of."""
  return _origin(config, images) | {"name": "random"}


def _origin(config: Config, images: str) -> Config:
  """The split that an image source is of, and its teachers, without whom a split may have none."""
  entry = config["distil"]["methods"][images]
  return {key: entry[key] for key in ("split", "teachers") if entry.get(key) is not None}


def run_name(side: str, kind: str, rate: float | None) -> str:
  """The folder of a run."""
  return f"{side}-{kind}" + ("" if rate is None else f"-lr{rate:g}")


def rates(config: Config, side: str, preset: str | None) -> Sequence[float | None]:
  """The learning rates to try; None for the config's."""
  learned = side == "set" and config["student"]["optimizer"]["lr"] is None
  return RATES if preset == "ddr" and not learned else (None,)


def with_rate(config: Config, rate: float | None) -> Config:
  """A config with another learning rate."""
  if rate is None:
    return config
  optimizer = config["student"]["optimizer"] | {"lr": rate}
  return {**config, "student": config["student"] | {"optimizer": optimizer}}


def view_kinds(ctx: Context, images: str) -> dict[str, Config]:
  """What each kind of views changes in `config.label`.

  Images without augmentation have the same labels in all epochs, or one for each of their parts.
  """
  own = ctx.config["label"]["views"]
  strategy = values.dsa_strategy(ctx.source.spec.name)
  if not own.get("flip", True):  # as the views of the recipes of DSA are, whose DSA flips
    strategy = "_".join(op for op in strategy.split("_") if op != "flip")
  dsa = {k: own[k] for k in ("dsa", "dsa_combined") if own.get(k)} or {"dsa": strategy}
  epochs = min(ctx.config["label"]["num_epochs"], ctx.parts(images) ** 2)
  return {
    "recipe": {},
    "dsa": {"views": NO_VIEWS | dsa},
    "none": {"views": NO_VIEWS, "num_epochs": epochs},
  }


def part_of(config: Config, methods: Mapping[str, Any], rows: Sequence[Row]) -> Config:
  """The config of a run of these rows alone."""
  wanted: dict[str, list[str]] = {}
  for row in rows:
    if row.calibrator is not None:
      wanted.setdefault(row.labels, []).append(row.calibrator)
  sources, calibrators = config["label"]["sources"], config["calibrate"]["calibrators"]
  used = {
    name: {k: v for k, v in sources[name].items() if k != "images"} | {"calibrators": tuple(own)}
    for name, own in wanted.items()
  }
  named = {name for own in wanted.values() for name in own}
  return {
    **config,
    "distil": config["distil"] | {"methods": dict(methods)},
    "label": config["label"] | {"sources": used},
    "calibrate": config["calibrate"] | {"calibrators": {k: calibrators[k] for k in named}},
    "student": config["student"] | {"hard_labels": any(row.labels == HARD for row in rows)},
  }


def real_part(ctx: Context, images: str, preset: str | None, changes: Mapping[str, Any]) -> Config:
  """The config of a run with hard labels on the training set: as many slots as images.

  These students are trained as teachers are, and see the config's views unmixed.
  """
  config, counts = ctx.config, ctx.split(ctx.split_name(images)).counts
  teacher, views = config["teacher"], config["label"]["views"] | {"mix": None}
  keys = ("num_epochs", "batch_size", "optimizer", "schedule")
  student = config["student"] | {key: teacher[key] for key in keys}
  if (steps := teacher["num_steps"]) is not None:
    student["num_epochs"] = max(1, round(steps * teacher["batch_size"] / sum(counts)))
  student |= (DDR_REAL if preset == "ddr" else {}) | dict(changes)
  if student["num_seeds"] != config["student"]["num_seeds"]:
    raise LtddError(
      f"config.study.real has num_seeds={student['num_seeds']} and config.student "
      f"{config['student']['num_seeds']}, but a score is of a run of each kind; leave it out"
    )
  if preset == "ddr" and "evaluations" not in changes:
    student["evaluations"] = -(-student["num_epochs"] // 10)
  part = part_of(config, {"real": random_entry(config, images)}, [Row("real")])
  whole = {"slots_per_class": tuple(counts), "jpeg_quality": None, "dtype": None}
  return part | {
    "distil": part["distil"] | whole,
    "label": part["label"] | {"num_epochs": student["num_epochs"], "views": views},
    "student": student | {"hard_labels": True},
  }
