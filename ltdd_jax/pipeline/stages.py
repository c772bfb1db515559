"""What each stage of the pipeline reads, computes and stores.

A stage is a function from artefacts to one artefact; `pipeline.py` decides which run. The names of
stages are the names of their folders in the work directory: `data`, `teacher`, `statistics` (if a
method needs it), `distil/<source>`, `label/<source>`, `calibrate/<source>/<calibrator>`,
`student/<source>/<labels>`.
"""

import functools
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from ltdd_jax import calibrate, distil
from ltdd_jax.data import longtail
from ltdd_jax.distil.run import run_method
from ltdd_jax.interop import distilled_sets
from ltdd_jax.labels import label as label_lib
from ltdd_jax.pipeline import plan
from ltdd_jax.pipeline import probing as probe
from ltdd_jax.pipeline import supervision as label_sources
from ltdd_jax.pipeline.context import Context as Context
from ltdd_jax.pipeline.supervision import HARD as HARD
from ltdd_jax.pipeline.supervision import load_params as load_params
from ltdd_jax.students import train as student_training
from ltdd_jax.teachers import statistics, statistics_pass
from ltdd_jax.teachers import train as teacher_training
from ltdd_jax.training import loop


class Product(NamedTuple):
  """What a stage leaves behind."""

  arrays: dict[str, np.ndarray]
  trees: dict[str, Any] = {}  # noqa: RUF012 (never changed)
  extra: dict[str, Any] = {}  # noqa: RUF012
  folders: dict[str, pathlib.Path] = {}  # noqa: RUF012 (of its scratch, moved into the artefact)


class Stage(NamedTuple):
  """One stage of one run."""

  name: str
  config: dict[str, Any]  # the part of the config that it depends on
  inputs: tuple[str, ...]  # stages that it reads
  build: Callable[[Context, loop.Session], Product]
  plan: Callable[[Context], str]  # one line for --dry_run

  @property
  def kind(self) -> str:
    """The first part of the name."""
    return self.name.split("/")[0]


# ---- the stages ----


def _data(ctx: Context, session: loop.Session) -> Product:
  split = ctx.split
  arrays = {"indices": split.indices, "labels": split.labels, "counts": ctx.counts}
  extra = {
    "dataset": ctx.source.spec.name,
    "rule": split.rule,
    "imbalance_factor": split.imbalance_factor,
    "counts": [int(n) for n in split.counts],
    "test_counts": np.bincount(
      ctx.test_data.labels, minlength=ctx.source.spec.num_classes
    ).tolist(),
    "notes": list(ctx.source.notes),
  }
  return Product(arrays, extra=extra)


def _teacher(ctx: Context, session: loop.Session) -> Product:
  teachers = teacher_training.train_teachers(
    ctx.train_data,
    ctx.source.spec,
    ctx.counts,
    **ctx.config["teacher"],
    seed=ctx.config["seed"],
    session=session,
  )
  scores = [
    teacher_training.evaluate(t, ctx.test_data, ctx.source.spec, mesh=session.mesh)
    for t in teachers
  ]
  arrays = {
    "test_correct": np.stack([np.asarray(s.correct) for s in scores]),
    "test_total": np.asarray(scores[0].total),
  }
  extra = {"teachers": [t.name for t in teachers]}
  return Product(arrays, trees={t.name: t.variables for t in teachers}, extra=extra)


def _statistics(ctx: Context, session: loop.Session) -> Product:
  names = [t.name for t in ctx.distil_teachers]
  config = dict(ctx.config["statistics"])
  if config["augment"] is None:
    config["augment"] = ctx.config["teacher"]["augment"]
  found = statistics_pass.collect(
    ctx.train_data,
    ctx.source.spec,
    ctx.distil_teachers,
    **config,
    seed=ctx.config["seed"],
    session=session,
  )
  layers = {
    name: [[x.path, x.kind] for x in one.layers] for name, one in zip(names, found, strict=True)
  }
  trees = {name: statistics.to_tree(one) for name, one in zip(names, found, strict=True)}
  return Product({}, trees=trees, extra={"layers": layers})


def _distil(ctx: Context, session: loop.Session, *, source: str) -> Product:
  if there := ctx.imported.get(source):
    return Product(there.arrays, extra={"notes": list(there.notes)})
  method = ctx.method(source)
  fed = distil.Feed(
    teachers=tuple(t.variables for t in ctx.distil_teachers)
    if "teachers" in method.needs
    else None,
    images=ctx.train_data.images if "images" in method.needs else None,
    labels=ctx.train_data.labels if "labels" in method.needs else None,
    statistics=ctx.statistics if "statistics" in method.needs else None,
  )
  result = run_method(
    source,
    method,
    ctx.env(),
    ctx.slots(source),
    fed,
    batch_size=ctx.config["distil"]["batch_size"],
    jpeg_quality=ctx.config["distil"]["jpeg_quality"],
    seed=ctx.config["seed"],
    session=session,
  )
  arrays = {"images": result.images, "labels": result.labels}
  return Product(arrays, extra={"notes": list(result.notes)})


def _label(ctx: Context, session: loop.Session, *, source: str) -> Product:
  images, targets = ctx.images(source)
  config = {k: v for k, v in ctx.config["label"].items() if k not in ("online", "teachers")}
  labelled = label_lib.label_images(
    source,
    images,
    targets,
    ctx.label_teachers,
    ctx.source.spec,
    **config,
    class_names=ctx.source.class_names,
    seed=ctx.config["seed"],
    session=session,
  )
  arrays = {"clean_logits": labelled.clean_logits, "labels": targets}
  return Product(arrays, folders={label_lib.STORE: labelled.store.path})


def _calibrate(ctx: Context, session: loop.Session, *, source: str, name: str) -> Product:
  config = ctx.config["calibrate"]
  calibrator = calibrate.make_calibrator(**config["calibrators"][name])
  arrays = ctx.workdir.load(f"label/{source}").arrays
  if config["fit_on"] == "views":  # streamed from the store
    logits = label_sources.open_store(ctx, source).first(config["max_epochs"])
  else:
    logits = arrays["clean_logits"]
  targets, log_prior = arrays["labels"], longtail.log_prior(ctx.counts)
  params = calibrator.fit(logits, targets, log_prior)
  if calibrator.refine is not None:
    trained = student_numbers(ctx.config)
    unseen = probe.unseen_logits(ctx, source, name, calibrator, params, trained, session)
    params = calibrator.refine(params, *unseen, log_prior)
  arrays = {f"param{i}": np.asarray(x) for i, x in enumerate(jax.tree.leaves(params))}
  return Product(arrays, extra={"report": calibrator.report(params)})


def _student(ctx: Context, session: loop.Session, *, source: str, regime: str) -> Product:
  images, targets = ctx.images(source)
  config, seed = student_numbers(ctx.config), ctx.config["seed"]
  result = student_training.train_students(
    f"student/{source}/{regime}",
    images,
    targets,
    label_sources.of_regime(ctx, source, regime),
    ctx.test_data,
    ctx.source.spec,
    **config,
    views=ctx.config["label"]["views"],
    view_key=label_lib.view_key(seed, source),
    seed=seed,
    session=session,
  )
  arrays = {"correct": result.correct, "total": result.total, "steps": result.steps}
  return Product(arrays, trees={"students": result.variables})


# ---- their order and their configs ----


def regimes(config: Mapping[str, Any]) -> tuple[str, ...]:
  """Names of the label regimes: hard labels if asked for, then calibrators in registry order."""
  hard = (HARD,) if config["student"]["hard_labels"] else ()
  calibrators = config["calibrate"]["calibrators"]
  rank = [*calibrate.CALIBRATORS].index
  return hard + tuple(sorted(calibrators, key=lambda k: (rank(calibrators[k]["name"]), k)))


def image_sources(config: Mapping[str, Any]) -> tuple[str, ...]:
  """Names of the image sources; random real images, the control, come last."""
  methods = config["distil"]["methods"]
  return tuple(sorted(methods, key=lambda k: (methods[k]["name"] == "random", k)))


def make_stages(
  config: Mapping[str, Any],
  identity: Mapping[str, Any] | None = None,
  found: Mapping[str, distilled_sets.Imported] | None = None,
) -> list[Stage]:
  """Lists the stages of a config in the order in which they run.

  Args:
    config: as `check.check` returns it.
    identity: `Context.identity` of the data set: what it is counts, and not where it lies.
    found: `Context.imported`, of which the content counts too.
  """
  config = distilled_sets.by_content(config, found or {})
  seed = {"seed": config["seed"]}
  data = {k: v for k, v in config["data"].items() if k != "data_dir"}
  stages = [
    Stage("data", {"data": data, "identity": identity or {}}, (), _data, plan.data),
    Stage(
      "teacher", seed | {"teacher": _settings(config, "teacher")}, ("data",), _teacher, plan.teacher
    ),
  ]
  if any(map(_needs_statistics, config["distil"]["methods"].values())):
    stages.append(_statistics_stage(config, seed))
  for kind in (_distil_stage, _label_stage, _calibrate_stages, _student_stages):
    for source in image_sources(config):
      stages += kind(config, seed, source)
  return stages


LATER: dict[str, dict[str, Any]] = {
  "teacher": {"parallel": "auto"},
  "distil": {"teachers": None, "jpeg_quality": None},
  "label": {"teachers": None, "aggregate": "mean", "teacher_bn": "eval"},
  "student": {"ema": None},
}
"""Arguments that came later: at these values fingerprints are what they were."""


def _settings(config: Mapping[str, Any], group: str) -> dict[str, Any]:
  """A group without the later arguments that have their defaults."""
  later = LATER.get(group, {})
  return {k: v for k, v in config[group].items() if not (k in later and v == later[k])}


def _needs_statistics(method: Mapping[str, Any]) -> bool:
  return method["name"] in distil.NEEDS_STATISTICS


def _statistics_stage(config: Mapping[str, Any], seed: dict[str, Any]) -> Stage:
  part = _settings(config, "distil")
  group = seed | {"statistics": config["statistics"]}
  if "teachers" in part:
    group["teachers"] = part["teachers"]
  return Stage("statistics", group, ("data", "teacher"), _statistics, plan.statistics)


def _distil_stage(config: Mapping[str, Any], seed: dict[str, Any], source: str) -> list[Stage]:
  part = _settings(config, "distil")
  part["method"] = part.pop("methods")[source]
  name = part["method"]["name"]
  if name in distil.SELECT:
    del part["order"], part["batch_size"]
  if name in distil.WITHOUT_TEACHERS:
    part.pop("teachers", None)
  group = seed | {"distil": part}
  inputs = ("data",) if name in distil.WITHOUT_TEACHERS else ("data", "teacher")
  if distilled_sets.is_imported(part["method"]):  # seed, slots and teachers have no part in it
    group, inputs = {"distil": {"method": part["method"]}}, ("data",)
  elif _needs_statistics(part["method"]):
    inputs += ("statistics",)
  bind = functools.partial
  return [
    Stage(
      f"distil/{source}",
      group,
      inputs,
      bind(_distil, source=source),
      bind(plan.distil, source=source),
    )
  ]


def _label_stage(config: Mapping[str, Any], seed: dict[str, Any], source: str) -> list[Stage]:
  if not config["calibrate"]["calibrators"]:  # hard labels alone
    return []
  return [
    Stage(
      f"label/{source}",
      seed | {"label": _settings(config, "label")},
      ("teacher", f"distil/{source}"),
      functools.partial(_label, source=source),
      functools.partial(plan.label, source=source),
    )
  ]


def _calibrate_stages(config: Mapping[str, Any], seed: dict[str, Any], source: str) -> list[Stage]:
  part = dict(config["calibrate"])
  stages = []
  for name, calibrator in part.pop("calibrators").items():
    group: dict[str, Any] = {"calibrate": part | {"calibrator": calibrator}}
    if (version := calibrate.VERSIONS.get(calibrator["name"], 1)) > 1:
      group["version"] = version
    inputs = ("data", f"label/{source}")
    if calibrator["name"] in calibrate.WITH_STUDENT:
      part = {"probe": probe.numbers(student_numbers(config))}
      group |= seed | part | {"views": config["label"]["views"]}
      inputs += (f"distil/{source}",)
    build = functools.partial(_calibrate, source=source, name=name)
    described = functools.partial(plan.calibrate, calibrator=calibrator)
    stages.append(Stage(f"calibrate/{source}/{name}", group, inputs, build, described))
  return stages


def student_numbers(config: Mapping[str, Any]) -> dict[str, Any]:
  """What students depend on: names that only say where numbers come from are left out."""
  left_out = ("hard_labels", "recipe")
  return {k: v for k, v in _settings(config, "student").items() if k not in left_out}


def _student_stages(config: Mapping[str, Any], seed: dict[str, Any], source: str) -> list[Stage]:
  stages = []
  for regime in regimes(config):
    part = student_numbers(config)
    inputs = ("data", f"distil/{source}")
    if regime == HARD:
      part = {k: v for k, v in part.items() if k not in ("loss", "hard_weight")}
    else:
      inputs += (f"label/{source}", f"calibrate/{source}/{regime}")
    views = {"views": config["label"]["views"]}
    stages.append(
      Stage(
        f"student/{source}/{regime}",
        seed | {"student": part} | views,
        inputs,
        functools.partial(_student, source=source, regime=regime),
        functools.partial(plan.student, source=source),
      )
    )
  return stages
