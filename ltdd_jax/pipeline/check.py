"""Everything that can be wrong with a config is found before any work starts.

`check` binds each group to the signatures of the functions that it configures; `check_with_data`
makes every part of the run once, on shapes alone, which finds the rest.
"""

import functools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from ltdd_jax import calibrate, distil, models
from ltdd_jax.artefacts import manifest
from ltdd_jax.core import config as config_lib
from ltdd_jax.core.config import Group, Key
from ltdd_jax.core.registry import check_at_least, check_choice, within
from ltdd_jax.core.types import LtddError, Slots
from ltdd_jax.data import augment, longtail, sources, whitening
from ltdd_jax.data import views as views_lib
from ltdd_jax.distil.run import check_options, run_method
from ltdd_jax.interop import view_labels
from ltdd_jax.labels import encoding
from ltdd_jax.labels import label as label_lib
from ltdd_jax.labels import sources as label_sources
from ltdd_jax.pipeline import continued, graph
from ltdd_jax.pipeline.context import HARD, Context, Row
from ltdd_jax.pipeline.resources import RESOURCES
from ltdd_jax.students import recipes
from ltdd_jax.students import train as student_training
from ltdd_jax.teachers import objectives, recalibrate, statistics_pass
from ltdd_jax.teachers import train as teacher_training
from ltdd_jax.teachers import trajectories as trajectories_lib
from ltdd_jax.training import losses, many, optimizers

_RUN = ("seed", "session")
_SPECS = Sequence[Mapping[str, Any]]
_NAMES = Sequence[str] | None


class _Named(Mapping[str, Group]):
  """Groups with a key `name`, which take what the factory of that name does, and keys of ours.

  It looks into the registry each time, so that what is registered later is known too.
  """

  def __init__(
    self, factories: Mapping[str, Callable[..., Any]], hidden: tuple[str, ...] = (), **own: Key
  ):
    self.factories, self.hidden, self.own = factories, hidden, own

  def __getitem__(self, name: str) -> Group:
    return Group((self.factories[name],), self.own, self.hidden)

  def __iter__(self) -> Iterator[str]:
    return iter(self.factories)

  def __len__(self) -> int:
    return len(self.factories)


_MODELS = _Named(models.MODELS, hidden=("num_classes", "image_shape"))

SCHEMA: config_lib.Schema = {
  "data": Group(
    (sources.open_source, longtail.make_split),
    own={
      "name": Key(str),
      "num_test": Key(int | None, None),
      "splits": Key(Mapping, {}),
      "whiten": Key(float | None, None),
      "stream_workers": Key(int | None, None),
    },
    hidden=("arrays", "seed"),
  ),
  "data.splits.*": Group((longtail.make_split,), hidden=("seed",)),
  "teacher": Group(
    (teacher_training.train_teachers,), own={"splits": Key(Mapping, {})}, hidden=_RUN
  ),
  "teacher.models.*": _MODELS,
  "teacher.optimizer": _Named(optimizers.OPTIMIZERS, lr=Key(float)),
  "teacher.schedule": optimizers.SCHEDULES,
  "teacher.objective": objectives.OBJECTIVES,
  "teacher.augment.*": augment.AUGMENTS,
  "teacher.derive.*": recalibrate.DERIVE,
  "statistics": Group(
    (statistics_pass.collect,), own={"augment": Key(_SPECS | None, None)}, hidden=_RUN
  ),
  "statistics.augment.*": augment.AUGMENTS,
  "trajectories": Group(
    (trajectories_lib.train_experts, trajectories_lib.train_classifiers), hidden=(*_RUN, "name")
  ),
  "trajectories.network": _MODELS,
  "trajectories.optimizer": _Named(optimizers.OPTIMIZERS, lr=Key(float)),
  "distil": Group(
    (run_method, distil.make_slots),
    {"methods": Key(Mapping), "teachers": Key(_NAMES, None), "compute_dtype": Key(str, "float32")},
    hidden=(*_RUN, "on_host"),
  ),
  "distil.methods.*": _Named(
    distil.METHODS,
    split=Key(str | None, None),
    teachers=Key(_NAMES, None),
    on_top_of=Key(str | None, None),
  ),
  "distil.methods.*.augment.*": augment.AUGMENTS,
  "distil.methods.*.network": _MODELS,
  "distil.methods.*.optimizer": _Named(optimizers.OPTIMIZERS, lr=Key(float)),
  "label": Group(
    (label_lib.label_images,),
    own={"sources": Key(Mapping, {"teacher": {"name": "teacher"}})},
    hidden=(*_RUN, "aggregate", "batch_norm", "class_names", "stage"),
  ),
  "label.views": views_lib.view_fn,
  "label.sources.*": _Named(
    label_sources.SOURCES, calibrators=Key(_NAMES, None), images=Key(_NAMES, None)
  ),
  "calibrate": Group(
    own={
      "calibrators": Key(Mapping),
      "fit_on": Key(str, "views"),
      "max_epochs": Key(int | None, 100),
    }
  ),
  "calibrate.calibrators.*": calibrate.CALIBRATORS,
  "student": Group(
    (student_training.train_students,),
    own={"hard_labels": Key(bool, True), "recipe": Key(str | None, None)},
    hidden=(*_RUN, "views", "view_key", "key_name"),
  ),
  "student.model": _MODELS,
  "student.optimizer": _Named(optimizers.OPTIMIZERS, lr=Key(float | None)),
  "student.schedule": _Named(optimizers.SCHEDULES, per_epoch=Key(bool, False)),
  "student.loss": losses.SOFT_LOSSES,
  "report": Group(own={"groups": Key(str, "thirds")}),
}
_POSITIVE = {
  "teacher": ("num_epochs", "num_steps", "batch_size", "views"),
  "statistics": ("tile", "batch_size"),
  "trajectories": ("num_experts", "num_epochs", "batch_size", "at_once"),
  "distil": ("images_per_class", "batch_size"),
  "label": ("num_epochs", "batch_size"),
  "calibrate": ("max_epochs",),
  "student": ("num_epochs", "batch_size", "num_seeds", "evaluations", "eval_batch_size"),
}


def check(config: Any) -> dict[str, Any]:
  """Checks a config's groups and keys, without touching data.

  Returns:
    A plain dict; what the config leaves out has its default.

  Raises:
    LtddError: an unknown, missing or ill-typed key, or a bad number.
  """
  plain = config.to_dict() if isinstance(config, ml_collections.ConfigDict) else dict(config)
  for optional in ("statistics", "trajectories", "report"):
    plain.setdefault(optional, {})
  config_lib.check_groups(plain, SCHEMA)
  for group, target in SCHEMA.items():
    if "." not in group and isinstance(target, Group):
      plain[group] = config_lib.with_defaults(target, plain[group])
  check_at_least("config.", 0, seed=plain["seed"])
  check_at_least("config.data.", 0, stream_workers=plain["data"]["stream_workers"] or 0)
  for group, keys in _POSITIVE.items():
    numbers = {key: plain[group][key] for key in keys if plain[group][key] is not None}
    check_at_least(f"config.{group}.", 1, **numbers)
  check_choice("config.calibrate.fit_on", plain["calibrate"]["fit_on"], ("views", "clean"))
  for group in ("teacher", "distil", "label", "student"):
    dtype = plain[group]["compute_dtype"]
    check_choice(f"config.{group}.compute_dtype", dtype, models.COMPUTE_DTYPES)
  for group in ("teacher", "student"):
    check_choice(f"config.{group}.parallel", plain[group]["parallel"], many.PARALLEL)
  for group in ("teacher", "statistics"):
    augment.compose(plain[group]["augment"] or ())
  encoding.from_config(plain["label"])
  _check_student(plain["student"])
  _check_splits(plain)
  _check_labels(plain)
  return plain


def _check_student(student: Mapping[str, Any]) -> None:
  hard_weight, ema = student["hard_weight"], student["ema"]
  if not 0 <= hard_weight < 1:
    raise LtddError(
      f"config.student.hard_weight is {hard_weight}; expected 0 or more and below 1. For hard "
      "labels alone set config.student.hard_labels=True"
    )
  if ema is not None and not 0 <= ema < 1:
    raise LtddError(f"config.student.ema is {ema}; expected a decay in [0, 1), or None for none")
  if student["recipe"] is not None:
    recipes.parse(student["recipe"])


def _check_splits(config: Mapping[str, Any]) -> None:
  """Splits and teachers that are named are there, under names for files; the own is no copy."""
  if config["data"]["rule"] == "matched":
    raise LtddError(
      "config.data.rule is 'matched', a rule for config.data.splits alone: it takes as many images "
      "as config.data has; expected 'ltdd', 'ldam', 'counts' or 'as_is'"
    )
  splits, networks = config["data"]["splits"], config["teacher"]["models"]
  for where, names in (("data.splits", splits), ("teacher.models", networks)):
    for name in names:  # of a file too
      manifest.check_name(f"config.{where}:", name)
  known = (None, *splits)
  for name, split in config["teacher"]["splits"].items():
    check_choice("a key of config.teacher.splits", name, [*networks])
    check_choice(f"config.teacher.splits.{name}", split, known)
  for name, entry in config["distil"]["methods"].items():
    check_choice(f"config.distil.methods.{name}.split", entry.get("split"), known)


def _check_labels(config: Mapping[str, Any]) -> None:
  """There are labels, and their names are no others'."""
  calibrators, labels = config["calibrate"]["calibrators"], config["label"]["sources"]
  images = graph.image_sources(config)
  for name, entry in labels.items():
    for part, known in (("calibrators", [*calibrators]), ("images", images)):
      for key in entry.get(part) or ():
        check_choice(f"an entry of config.label.sources.{name}.{part}", key, known)
    if entry["name"] == "imported" and entry.get("images") is None and len(images) > 1:
      raise LtddError(
        f"config.label.sources.{name} is 'imported', and a file has the logits of one image "
        f"source; this run has {', '.join(images)}. Name it, such as images=({images[0]!r},)"
      )
  if HARD in labels:
    raise LtddError(
      f"config.label.sources has a key {HARD!r}, which is the name of the labels without a source; "
      "use another"
    )
  if not config["distil"]["methods"]:
    raise LtddError("config.distil.methods is empty; expected {'random': {'name': 'random'}} or so")
  if not graph.rows(config):
    raise LtddError(
      "config.calibrate.calibrators or config.label.sources is empty and "
      "config.student.hard_labels is False, so that no student has labels; expected at least "
      "{'plain': {'name': 'none'}}"
    )


def check_with_data(ctx: Context, todo: Collection[str] | None = None) -> None:
  """Makes every part of a run once, on shapes.

  Args:
    ctx: of the run.
    todo: names of the stages that are to run; what none of them makes is not traced. None for all.

  Raises:
    LtddError: a data set that is not there, a split that it cannot give, or a part that cannot be
      made, such as an unknown model or a network too deep for the images.
  """
  config = ctx.config
  for split in (None, *config["data"]["splits"]):
    ctx.split(split)
  sources.test_indices(ctx.source, config["data"]["num_test"])
  if config["data"]["whiten"] is not None:
    whitening.check(config["data"]["whiten"], ctx.source.spec.image_shape)
  longtail.groups(ctx.counts, config["report"]["groups"])
  names = [stage.name for stage in graph.make_stages(ctx)] if todo is None else todo
  parts = [name.split("/") for name in names]
  kinds, images = {part[0] for part in parts}, {part[1] for part in parts if len(part) > 1}
  learned = {name: _check_method(ctx, name) for name in sorted(images)}
  for row in graph.rows(config):
    if row.images in images:
      _check_learned(ctx, row, learned[row.images])
    if row.calibrator is not None:
      _check_calibrator(ctx, row)
  if "teacher" in kinds:
    _check_teacher(ctx)
  if "trajectories" in kinds:
    _check_trajectories(ctx)
  if "label" in kinds:
    encoding.from_config(config["label"]).check(ctx.source.spec.num_classes)
  if kinds & {"student", "probe"}:
    _check_students(ctx)


def _check_teacher(ctx: Context) -> None:
  config = ctx.config["teacher"]
  for split in ctx.by_split(ctx.networks):
    counts = np.asarray(ctx.split(split).counts)
    objectives.make_objective(counts, views=config["views"], **config["objective"])
  for step in config["derive"]:
    recalibrate.make_step(**step)
    for name, model in ctx.networks.items():
      recalibrate.check_network(step["name"], name, ctx.variable_shapes(model))
  image = jax.ShapeDtypeStruct((1, *ctx.source.spec.image_shape), jnp.float32)
  jax.eval_shape(augment.compose(config["augment"]), jax.random.key(0), image)
  with within("config.teacher"):
    optimizers.make_optimizer(config["optimizer"], config["schedule"], 10)


def _check_trajectories(ctx: Context) -> None:
  config = ctx.config["trajectories"]
  names = (
    "num_experts", "num_epochs", "batch_size", "gsam_rho", "gsam_alpha", "augment", "at_once",
    "parallel",
  )  # fmt: skip
  trajectories_lib.check_options(**{name: config[name] for name in names})
  classifier_epochs = config["classifier_epochs"]
  check_at_least("config.trajectories.", 0, classifier_epochs=classifier_epochs)
  _ = ctx.expert_network
  with within("config.trajectories"):
    optimizers.make_optimizer(config["optimizer"], {"name": "constant"}, 10)


def _check_students(ctx: Context) -> None:
  """Makes students' network, optimiser, loss and views; the loss may refuse a number of classes."""
  config, spec = ctx.config["student"], ctx.source.spec
  _ = ctx.student_model
  optimizer = dict(config["optimizer"]) | ({"lr": 1.0} if ctx.own_lr else {})
  with within("config.student"):
    optimizers.make_optimizer(optimizer, config["schedule"], 10, 1.0)
  row = jax.ShapeDtypeStruct((2,), jnp.int32)
  logits = jax.ShapeDtypeStruct((2, spec.num_classes), jnp.float32)
  jax.eval_shape(losses.make_soft_loss(**config["loss"]), logits, logits, row)
  views_of = views_lib.view_fn(spec, **ctx.config["label"]["views"])
  image = jax.ShapeDtypeStruct((2, *spec.image_shape), jnp.uint8)
  jax.eval_shape(views_of, jax.random.key(0), image, row, row, row)
  if not any(map(ctx.file, ctx.config["distil"]["methods"])):
    _ = ctx.recipe


def _check_calibrator(ctx: Context, row: Row) -> None:
  """Makes a calibrator and its parameters for k classes, which may refuse that number of them."""
  calibrator, log_prior = ctx.calibrator(row), ctx.log_prior(row)
  with within(f"config.calibrate.calibrators.{row.calibrator}"):
    calibrate.check_classes(calibrator, len(log_prior))
  empty = np.flatnonzero(~np.isfinite(log_prior))
  if "prior" in calibrator.needs and len(empty):
    raise LtddError(
      f"calibrator {row.calibrator!r} needs the log frequency of every class, but classes "
      f"{empty.tolist()} of data source {ctx.source.spec.name!r} have no training image. "
      f"{longtail.WHY_EMPTY} Mend that, or use calibrators without a prior, such as 'none'"
    )


def _check_learned(ctx: Context, row: Row, learned: Collection[str]) -> None:
  """The labels and the rate that the config takes from a row's images are there."""
  name = ctx.config["distil"]["methods"][row.images]["name"]
  where = f"image source {row.images!r} (method {name!r})"
  if ctx.own_lr and "student_lr" not in learned and ctx.recipe_lr is None:
    raise LtddError(
      "config.student.optimizer.lr is None, which takes the rate that was learned with the images, "
      f"but {where} learns no rate, and the run has no recipe with one for that optimizer. Give a "
      "number, or recipe=NAME after the config file, or leave the image source out"
    )
  if row.labels == HARD:
    return
  made = ctx.label_source(row.labels)
  if found := ctx.folder_logits(row.labels):
    classes, fit_on = ctx.slots(row.images).labels, ctx.config["calibrate"]["fit_on"]
    view_labels.check_fits(found, row.images, classes, ctx.parts(row.images), fit_on)
  elif made.path is not None:
    shape = (len(ctx.slots(row.images).labels), ctx.source.spec.num_classes)
    logits = ctx.file_logits(row.labels)
    label_lib.check_logits(f"label source {row.labels!r}: logits for {where}", logits, shape)
  if made.kind == "learned" and "soft_labels" not in learned:
    raise LtddError(
      f"label source {row.labels!r} is 'learned', but {where} has no learned labels. Use a method "
      f"that learns labels, a label source 'teacher', or config.label.sources.{row.labels}.images "
      "with the names of the image sources that have some"
    )


def blank(tree: Any) -> Any:
  """Zeros in place of arrays that are not there yet, without memory of their own."""
  is_shape = lambda x: isinstance(x, jax.ShapeDtypeStruct)
  zeros = lambda x: np.broadcast_to(np.zeros((), x.dtype), x.shape) if is_shape(x) else x
  return jax.tree.map(zeros, tree)


def _check_method(ctx: Context, images: str) -> Collection[str]:
  """Traces a method on shapes, with the first k slots alone; returns names of what it gives."""
  method, env, slots = ctx.method(images), ctx.env(images), continued.new_slots(ctx, images)
  options = ("batch_size", "jpeg_quality", "dtype")
  check_options(method, **{k: ctx.config["distil"][k] for k in options})
  res = {need: RESOURCES[need].shapes(ctx, images) for need in method.needs}
  with within(f"data source {ctx.source.spec.name!r}"):
    distil.check_resources(images, method, slots, res, env)
  if "file" in method.needs:
    return res["file"].keys()
  few = Slots(*(x[: env.num_classes] for x in slots))
  key, x = jax.random.key(0), None
  if method.inputs is not None:
    x = method.inputs(np.random.default_rng(0), 0, blank(res))
  state = jax.eval_shape(method.init, key, few, res)
  for turn in range(method.turns):
    jax.eval_shape(functools.partial(method.step, turn=turn), key, state, res, x)
  given = jax.eval_shape(method.read, state)._asdict()
  names = [k for k, v in given.items() if v is not None]
  continued.check_given(ctx, images, names)
  return names
