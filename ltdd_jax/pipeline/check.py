"""Everything that can be wrong with a config is found before any work starts.

`check` binds each group to the signature of the function it configures; `check_with_data` makes
every model, optimiser, loss, view and method once, which costs milliseconds and finds the rest.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from ltdd_jax import calibrate, distil, models
from ltdd_jax.core import config as config_lib
from ltdd_jax.core.types import LtddError, Slots
from ltdd_jax.data import augment, longtail, sources
from ltdd_jax.distil.run import check_jpeg_quality
from ltdd_jax.labels import encoding
from ltdd_jax.labels import label as label_lib
from ltdd_jax.pipeline import stages as stages_lib
from ltdd_jax.students import recipes
from ltdd_jax.students import train as student_training
from ltdd_jax.students.recipes import changes
from ltdd_jax.teachers import aggregate as aggregate_lib
from ltdd_jax.teachers import train as teacher_training
from ltdd_jax.training import losses, supervised


def data_options(
  *,
  name: str,
  data_dir: str | None = None,
  image_size: int | None = None,
  on_unreadable: str = "error",
  rule: str = "ltdd",
  imbalance_factor: float = 1.0,
  counts: Sequence[int] | None = None,
  num_test: int | None = None,
  mean: Sequence[float] | None = None,
  std: Sequence[float] | None = None,
) -> None:
  """Schema of `config.data`: see `data.sources.open_source` and `data.longtail.make_split`."""


def statistics_options(
  *, tile: int = 4, batch_size: int = 256, augment: Sequence[Any] | None = None
) -> None:
  """Schema of `config.statistics`, which may be left out: see `collect.collect`.

  `augment=None` is that of the teachers, black padding and all, as the published methods have it;
  `()` is the plain images.
  """


def distil_options(
  *,
  methods: Mapping[str, Any],
  images_per_class: int = 1,
  slots_per_class: Sequence[int] | None = None,
  batch_size: int | None = 100,
  order: str = "interleaved",
  teachers: Sequence[str] | None = None,
  jpeg_quality: int | None = None,
) -> None:
  """Schema of `config.distil`: see `distil.run.run_method` and `distil.make_slots`.

  `teachers`: keys of `config.teacher.models` in the order of their turns; None for all, sorted.
  """


def label_options(
  *,
  num_epochs: int,
  views: Mapping[str, Any],
  dtype: str = "float16",
  top_k: int | None = None,
  batch_size: int = 500,
  online: bool = False,
  teachers: Sequence[str] | None = None,
  aggregate: str = "mean",
  teacher_bn: str = "eval",
) -> None:
  """Schema of `config.label`: see `labels.label.label_images`.

  `teachers`: keys of `config.teacher.models`; None for all.
  """


def calibrate_options(
  *, calibrators: Mapping[str, Any], fit_on: str = "views", max_epochs: int = 100
) -> None:
  """Schema of `config.calibrate`."""


def teacher_options(
  *,
  models: Mapping[str, Any],
  num_epochs: int,
  batch_size: int,
  optimizer: Mapping[str, Any],
  schedule: Mapping[str, Any],
  loss: Mapping[str, Any],
  augment: Sequence[Any] = (),
  parallel: str = "auto",
) -> None:
  """Schema of `config.teacher`: see `teachers.train.train_teachers`."""


def student_options(
  *,
  model: Mapping[str, Any],
  num_epochs: int,
  batch_size: int,
  optimizer: Mapping[str, Any],
  schedule: Mapping[str, Any],
  loss: Mapping[str, Any],
  hard_weight: float = 0.0,
  ema: float | None = None,
  bn_updates: int = 1,
  num_seeds: int = 3,
  evaluations: int = 5,
  eval_batch_size: int = 500,
  parallel: str = "auto",
  hard_labels: bool = True,
  recipe: str | None = None,
) -> None:
  """Schema of `config.student`: see `student.train_students`, and `recipes` for `recipe`."""


def report_options(*, groups: str = "thirds") -> None:
  """Schema of `config.report`: see `report.tables.write_report`."""


SCHEMA = {
  "data": data_options,
  "teacher": teacher_options,
  "statistics": statistics_options,
  "distil": distil_options,
  "label": label_options,
  "calibrate": calibrate_options,
  "student": student_options,
  "report": report_options,
}


def check(config: Any) -> dict[str, Any]:
  """Checks a config's groups and keys, without touching data.

  Args:
    config: a ConfigDict or a dict, as `get_config` makes it.

  Returns:
    A plain dict; what the config leaves out has the default of the schema.

  Raises:
    LtddError: an unknown, missing or ill-typed key, or a bad number.
  """
  plain = config.to_dict() if isinstance(config, ml_collections.ConfigDict) else dict(config)
  plain.setdefault("statistics", {})
  config_lib.check_groups(plain, SCHEMA)
  plain = {
    group: config_lib.with_defaults(SCHEMA[group], value) if group in SCHEMA else value
    for group, value in plain.items()
  }
  _check_choice("calibrate.fit_on", plain["calibrate"]["fit_on"], ("views", "clean"))
  for group in ("teacher", "student"):
    _check_choice(f"{group}.parallel", plain[group]["parallel"], teacher_training.PARALLEL)
  check_jpeg_quality(plain["distil"]["jpeg_quality"])
  aggregate_lib.distil_teachers(plain)
  aggregate_lib.label_teachers(plain)
  aggregate_lib.aggregate_fn(plain["label"]["aggregate"])
  _check_choice("label.teacher_bn", plain["label"]["teacher_bn"], ("eval", "train"))
  _check_labels(plain["label"], plain["student"])
  if plain["seed"] < 0:
    raise LtddError(f"config.seed is {plain['seed']}; expected 0 or more")
  for group in ("teacher", "statistics"):
    _check_unmixed(group, plain[group]["augment"] or ())
  for group, keys in _POSITIVE.items():
    for key in keys:
      if plain[group][key] is not None and plain[group][key] < 1:
        raise LtddError(f"config.{group}.{key} is {plain[group][key]}; expected 1 or more")
  if not plain["calibrate"]["calibrators"] and not plain["student"]["hard_labels"]:
    raise LtddError(
      "config.calibrate.calibrators is empty and config.student.hard_labels is False, so that no "
      "student has labels; expected at least {'plain': {'name': 'none'}}"
    )
  if stages_lib.HARD in plain["calibrate"]["calibrators"]:
    raise LtddError(
      f"config.calibrate.calibrators has a key {stages_lib.HARD!r}, which is the name of the "
      "regime without soft labels; use another"
    )
  return plain


def _check_unmixed(group: str, augment_specs: Sequence[Mapping[str, Any]]) -> None:
  for spec in augment_specs:
    if dict(spec).get("name") in ("cutmix", "mixup"):
      raise LtddError(
        f"config.{group}.augment has {spec['name']!r}, which mixes images: teachers and statistics "
        "know the label of one. Leave it out; students' views have it (config.label.views.mix)"
      )


def _check_labels(label: Mapping[str, Any], trained: Mapping[str, Any]) -> None:
  encoding.from_config(label)
  student_training.check_hard_weight(trained["hard_weight"])
  supervised.check_averages(trained["ema"], trained["bn_updates"])
  if trained["recipe"] is not None:
    recipes.parse(trained["recipe"])


def _check_choice(where: str, value: Any, options: tuple[str, ...]) -> None:
  if value not in options:
    raise LtddError(f"config.{where} is {value!r}; expected one of {', '.join(map(repr, options))}")


_POSITIVE = {
  "teacher": ("num_epochs", "batch_size"),
  "statistics": ("tile", "batch_size"),
  "distil": ("images_per_class", "batch_size"),
  "label": ("num_epochs", "batch_size"),
  "calibrate": ("max_epochs",),
  "student": ("num_epochs", "batch_size", "num_seeds", "evaluations", "eval_batch_size"),
}


def check_with_data(ctx: stages_lib.Context) -> None:
  """Makes every part of a run once.

  Raises:
    LtddError: a data set that is not there, a split that it cannot give, or a part that cannot be
      made, such as an unknown model or a network too deep for the images.
  """
  config, spec, counts = ctx.config, ctx.source.spec, ctx.counts
  teacher, trained = config["teacher"], config["student"]
  teacher_training.build_models(spec, teacher["models"])
  models.make_model(num_classes=spec.num_classes, image_shape=spec.image_shape, **trained["model"])
  for group, steps_per_epoch in ((teacher, None), (trained, 1.0)):
    supervised.make_tx(group["optimizer"], group["schedule"], 10, steps_per_epoch)
  losses.make_supervised_loss(class_counts=counts, **teacher["loss"])
  _check_loss(losses.make_soft_loss(**trained["loss"]), spec.num_classes)
  for specs in (teacher["augment"], config["statistics"]["augment"] or ()):
    augment.compose(specs)
  encoding.from_config(config["label"]).check(spec.num_classes)
  views_of = label_lib.view_fn(spec, **config["label"]["views"])
  image = jax.ShapeDtypeStruct((2, *spec.image_shape), jnp.uint8)
  row = jax.ShapeDtypeStruct((2,), jnp.int32)
  jax.eval_shape(views_of, jax.random.key(0), image, row, row, row)
  for name, calibrator in config["calibrate"]["calibrators"].items():
    _check_calibrator(name, calibrator, counts)
  for source in config["distil"]["methods"]:
    if source not in ctx.imported:
      _check_method(ctx, source)
  longtail.groups(counts, config["report"]["groups"])
  changes.sentence_of(ctx.config, len(ctx.slots().labels), len(ctx.counts))
  sources.test_indices(ctx.source, config["data"]["num_test"])


def _check_loss(loss_fn: losses.SoftLoss, k: int) -> None:
  """Traces a student's loss, which may refuse a number of classes."""
  row = jax.ShapeDtypeStruct((2, k), jnp.float32)
  jax.eval_shape(loss_fn, row, row, jax.ShapeDtypeStruct((2,), jnp.int32))


def _check_calibrator(key: str, config: Mapping[str, Any], counts: np.ndarray) -> None:
  """Makes a calibrator and its parameters for k classes, which may refuse that number of them."""
  calibrator = calibrate.make_calibrator(**config)
  try:
    calibrate.check_classes(calibrator, len(counts))
  except LtddError as error:
    raise LtddError(f"config.calibrate.calibrators.{key}: {error}") from error
  if config["name"] not in calibrate.WITHOUT_PRIOR and (counts == 0).any():
    raise LtddError(
      f"calibrator {key!r} needs the log frequency of every class, but classes "
      f"{np.flatnonzero(counts == 0).tolist()} have no training image. Leave them out of the "
      f"data set, or use {', '.join(calibrate.WITHOUT_PRIOR)} only"
    )


def _check_method(ctx: stages_lib.Context, source: str) -> None:
  """Traces a method's `init` and each turn of its `step` on shapes, with one slot a class."""
  method, env, slots = ctx.method(source), ctx.env(), ctx.slots(source)
  data, key = ctx.source.spec, jax.random.key(0)
  feed = distil.Feed(
    teachers=tuple(ctx.variable_shapes(o.model) for o in env.teachers),
    images=jax.ShapeDtypeStruct((len(ctx.split.labels), *data.image_shape), jnp.uint8),
    labels=ctx.split.labels,
    statistics=ctx.statistics_shapes() if "statistics" in method.needs else None,
  )
  distil.check_feed(source, method, slots, feed, env)
  few = Slots(*(x[: data.num_classes] for x in slots))
  state = jax.eval_shape(method.init, key, few, feed)
  for turn in range(method.turns):
    jax.eval_shape(functools.partial(method.step, turn=turn), key, state, feed)
