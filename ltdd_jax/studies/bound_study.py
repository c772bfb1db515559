"""The bound as runs: one for each imbalance factor, and a reference teacher.

`workdir/if1`, `workdir/if10`, ... are ordinary work directories of the same config at several
imbalance factors. `workdir/reference` holds a teacher trained on all images of the source, with
another seed than the others, so that at factor 1 the conditional term shows what two balanced
teachers differ by. Its penultimate features are the space of the marginal term, for all factors.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from ltdd_jax.core import registry, rng
from ltdd_jax.core.types import LtddError
from ltdd_jax.data import augment, sources
from ltdd_jax.labels import sources as label_sources
from ltdd_jax.models import taps
from ltdd_jax.pipeline import check, graph, stages
from ltdd_jax.pipeline import results as results_lib
from ltdd_jax.pipeline.context import Context
from ltdd_jax.report import tables
from ltdd_jax.studies import bound, bound_report, runs
from ltdd_jax.teachers import aggregate as aggregate_lib

_DRAWS = 10  # of the baseline


class Study(NamedTuple):
  """Numbers of the study, those of `run`."""

  dims: int
  neighbours: int
  view_epochs: int
  students: bool


class Reference(NamedTuple):
  """The balanced teacher, and the test set as it sees it."""

  logits_of: Callable[[np.ndarray], np.ndarray]  # normalised images -> (n, k)
  points_of: Callable[[np.ndarray], np.ndarray]  # normalised images -> (n, dims)
  test_images: np.ndarray  # (n, h, w, c) float32, normalised
  test_labels: np.ndarray  # (n,)
  test_logits: np.ndarray  # (n, k)
  test_points: np.ndarray  # (n, dims)


def run(
  config: Mapping[str, Any],
  runner: runs.Runner,
  *,
  imbalance_factors: Sequence[float] = (1.0, 10.0, 50.0, 100.0),
  dims: int = 4,
  neighbours: int = 1,
  view_epochs: int = 20,
  students: bool = True,
) -> dict[str, Any] | None:
  """Runs the study.

  Args:
    config: of a run.
    runner: runs it.
    imbalance_factors: of the runs, in place of `config.data.imbalance_factor`.
    dims: directions of the feature space that the marginal term is estimated in.
    neighbours: k of the nearest-neighbour estimator.
    view_epochs: label epochs whose views stand for the distilled distribution, the run's at most.
    students: whether to train students too, to show their accuracy beside the terms; without them
      calibrators that ask a student are left out.

  Returns:
    The contents of `report/bound.json`, or None after a dry run.
  """
  study = Study(dims, neighbours, view_epochs, students)
  config = runs.with_plain(check.check(config))
  _check_labels(config)
  if not students:
    config = runs.without_probes(config)
  if not imbalance_factors:
    raise LtddError("config.study.imbalance_factors is empty; expected numbers >= 1")
  if (eps := config["data"]["whiten"]) is not None:
    raise LtddError(
      f"config.data.whiten is {eps}: each run has a whitening of its own, and the study shows the "
      "same images to the networks of several; expected None"
    )
  reference = at_factor(config, 1.0) | {"seed": config["seed"] + 1}
  parts = {factor: at_factor(config, float(factor)) for factor in imbalance_factors}
  check_study(study, Context(reference))
  for part in parts.values():
    Context(part).split()  # refuses a factor that there is none of
  runner("reference", reference, stage="teacher")
  for factor, part in parts.items():
    runner(f"if{factor:g}", part, stage=None if students else "calibrate")
  if runner.dry_run:
    return None
  contexts = {f: runner.context(f"if{f:g}", part) for f, part in parts.items()}
  results = collect(runner.context("reference", reference), contexts, study)
  runner.write_report("bound", results, bound_report.render(results), bound_report.FIGURES)
  return results


def collect(balanced: Context, contexts: Mapping[float, Context], study: Study) -> dict[str, Any]:
  """Gathers the terms of all runs into plain values."""
  there = make_reference(balanced, study.dims)
  first = next(iter(contexts.values()))
  targets = first.distilled(graph.used_sources(first.config)[0])["labels"]
  results: dict[str, Any] = {
    "study": study._asdict(),
    "seed": first.config["seed"],
    "dataset": first.source.spec.name,
    "class_names": list(first.source.class_names),
    "plain": runs.plain_name(first.config),
    "reference_top1": 100.0 * np.mean(there.test_logits.argmax(1) == there.test_labels),
    "baseline": baseline(balanced, there, targets, study),
    "conditional": [],
    "marginal": [],
    "seconds": sum(map(runs.seconds, contexts.values())),
  }
  for factor, ctx in contexts.items():
    for source in graph.used_sources(ctx.config):
      about = {"imbalance": factor, "images": source}
      results["marginal"].append(about | marginal(ctx, source, there, study))
      results["conditional"] += [about | r for r in conditional(ctx, source, there, study)]
  return runs.jsonable(results)


def _check_labels(config: Mapping[str, Any]) -> None:
  """Refuses labels that are no function of an image: the bound then has no posterior to compare."""
  made = []
  for entry in config["label"]["sources"].values():
    kwargs = {k: v for k, v in entry.items() if k not in ("name", "calibrators", "images")}
    made.append(registry.make("label source", label_sources.SOURCES, entry["name"], kwargs))
  if len(made) != 1 or made[0].kind != "teacher":
    raise LtddError(
      f"config.label.sources has {', '.join(config['label']['sources'])}; the bound study needs "
      "one label source, of the kind 'teacher'"
    )
  by_batch = made[0].batch_norm != "eval" or made[0].aggregate in aggregate_lib.BY_BATCH
  if by_batch:
    raise LtddError(
      f"config.label.sources: batch_norm={made[0].batch_norm!r}, aggregate={made[0].aggregate!r}: "
      "what such teachers say of an image depends on the batch, so the bound has no posterior to "
      "compare; use batch_norm='eval' and aggregate='mean'"
    )


def check_study(study: Study, ctx: Context) -> None:
  """Refuses numbers that the estimators would, before anything is trained."""
  model, spec = ctx.networks[min(ctx.networks)], ctx.source.spec
  image = jax.ShapeDtypeStruct((1, *spec.image_shape), np.float32)
  features_of = lambda variables, x: taps.features(model, variables, x)[1]
  features = jax.eval_shape(features_of, ctx.variable_shapes(model), image)
  num_test = len(sources.test_indices(ctx.source, ctx.config["data"]["num_test"]))
  images = min(len(ctx.slots(source).labels) for source in ctx.config["distil"]["methods"])
  dims, neighbours = min(features.shape[1], num_test - 1), min(images, num_test - 1)
  expected = {
    "dims": (dims, f"1 to {dims}, for {features.shape[1]} features and {num_test} test images"),
    "neighbours": (neighbours, f"1 to {neighbours}, for {images} and {num_test} images"),
    "view_epochs": (np.inf, "1 or more"),
  }
  for key, (most, text) in expected.items():
    if not 1 <= (value := getattr(study, key)) <= most:
      raise LtddError(f"config.study.{key} is {value}; expected {text}")


def at_factor(config: Mapping[str, Any], factor: float) -> dict[str, Any]:
  """The config of the run at an imbalance factor."""
  rule = config["data"]["rule"]
  if rule not in ("ltdd", "ldam"):
    raise LtddError(
      f"config.data.rule is {rule!r}; the study sets imbalance factors, so it needs 'ltdd' or "
      "'ldam'"
    )
  return {**config, "data": {**config["data"], "imbalance_factor": factor}}


# ---- networks ----


def make_reference(ctx: Context, dims: int) -> Reference:
  """The reference teacher; of several, the mean of their logits and the first one's features."""
  test, spec = ctx.test_data, ctx.source.spec
  images = np.asarray(augment.normalize(test.images, spec.mean, spec.std))
  first = ctx.teachers()[0]
  features_of = runs.in_batches(lambda x: taps.features(first.model, first.variables, x)[1])
  logits_of = runs.teacher_logits(ctx, *ctx.config["label"]["sources"])
  features = features_of(images)
  project = bound.pca(features, dims)
  return Reference(
    logits_of=logits_of,
    points_of=lambda x: project(features_of(x)),
    test_images=images,
    test_labels=np.asarray(test.labels),
    test_logits=logits_of(images),
    test_points=project(features),
  )


# ---- the terms of one image source ----


def conditional(ctx: Context, source: str, there: Reference, study: Study) -> list[dict[str, Any]]:
  """The conditional term for each kind of soft label of an image source."""
  distilled = ctx.distilled(source)
  k, targets = ctx.source.spec.num_classes, np.asarray(distilled["labels"])
  views = runs.make_views(ctx, source, study.view_epochs)
  epochs = len(views)
  on_views = there.logits_of(views.reshape(-1, *views.shape[2:]))
  on_test = runs.teacher_logits(ctx, *ctx.config["label"]["sources"])(there.test_images)
  out = []
  for row in graph.rows(ctx.config, source):
    if row.calibrator is None:
      continue
    own = runs.calibrate_logits(ctx, row, on_test)
    seen = np.concatenate(list(stages.label_chunks(ctx, row, epochs))).reshape(-1, k)
    fitted = ctx.workdir.load(row.stage("calibrate")).meta["extra"]["report"]
    out.append(
      {
        "labels": row.calibrator,
        "tau": fitted.get("tau"),
        "kl_test": bound.conditional_kl(there.test_logits, own, there.test_labels, k),
        "log_loss": bound.log_loss(own, there.test_labels, k),
        "kl_views": bound.conditional_kl(on_views, seen, np.tile(targets, epochs), k, epochs),
        "top1": results_lib.student_row(ctx, row, {})["top1"] if study.students else None,
        "image_bytes": distilled["images"].nbytes,
        "label_bytes": stages.label_bytes(ctx, row),
      }
    )
  return out


def marginal(ctx: Context, source: str, there: Reference, study: Study) -> dict[str, Any]:
  """The marginal term of an image source: of its images as they are, and of its views."""
  spec = ctx.source.spec
  views = runs.make_views(ctx, source, study.view_epochs)
  plain = np.asarray(augment.normalize(ctx.distilled(source)["images"], spec.mean, spec.std))
  out = {}
  for name, images in {"images": plain, "views": views.reshape(-1, *views.shape[2:])}.items():
    points = there.points_of(images)
    out[f"gaussian_{name}"] = bound.gaussian_marginal(there.test_points, points)
    out[f"knn_{name}"] = bound.knn_marginal(there.test_points, points, neighbours=study.neighbours)
  return out


def baseline(
  ctx: Context, there: Reference, targets: np.ndarray, study: Study
) -> dict[str, dict[str, float | None]]:
  """What the estimators give for as many real images of each class, drawn from the balanced set.

  The truth is zero there, but for what the teacher knows of its training images: this is the bias
  of the estimators at this number of images.
  """
  data, spec = ctx.train_data(), ctx.source.spec
  points = there.points_of(np.asarray(augment.normalize(data.images, spec.mean, spec.std)))
  draw = rng.np_rng(ctx.config["seed"], "bound", "baseline")
  wanted = np.bincount(targets, minlength=spec.num_classes)
  members = [np.flatnonzero(np.asarray(data.labels) == c) for c in range(spec.num_classes)]
  found: dict[str, list[float]] = {"gaussian_images": [], "knn_images": []}
  for _ in range(_DRAWS):
    rows = np.concatenate(
      [draw.choice(m, n, replace=n > len(m)) for m, n in zip(members, wanted, strict=True)]
    )
    found["gaussian_images"].append(bound.gaussian_marginal(there.test_points, points[rows]).value)
    found["knn_images"].append(
      bound.knn_marginal(there.test_points, points[rows], neighbours=study.neighbours).value
    )
  return {name: tables.mean_std(np.array(values)) for name, values in found.items()}
