"""Scores of a distilled set beside real images: DD-Ranking's, and a self-test of leakage.

  python -m launch.score runs/edc --images edc --labels plain,adsa

Each accuracy is one of ordinary runs without a report, in folders of the study: `real`, the
training set itself; `set-VIEWS` and `random-VIEWS`, the distilled set and as many random real
images, with views of the config (`recipe`), of DSA (`dsa`) and none (`none`). `report.scores` has
the formulas.

Long-tailed variants, ours: `real` students have plain cross-entropy on the long-tailed training
set, without mixed views; `random` images are drawn from it, and repeat those of a class with fewer
images than slots; accuracies are those of the balanced test set. They are DD-Ranking's where the
set is balanced. Random images have labels as the set has them. Where these are learned or from a
file, they have a teacher's, with the same calibrator: so has DD-Ranking. In what we differ:
students of hard labels too see views, and one random subset is drawn for all runs.
"""

import copy
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ltdd_jax.artefacts import workdir as workdir_lib
from ltdd_jax.core import files
from ltdd_jax.core.registry import check_choice
from ltdd_jax.core.types import LtddError
from ltdd_jax.data import augment, crops, longtail
from ltdd_jax.pipeline import check
from ltdd_jax.pipeline.context import Context, Row
from ltdd_jax.report import leakage, scores, scores_report, tables
from ltdd_jax.studies import runs, scores_runs


def run(
  config: Mapping[str, Any],
  runner: runs.Runner,
  *,
  images: str,
  labels: Sequence[str] | None = None,
  preset: str | None = None,
  real: Mapping[str, Any] | None = None,
  of: str | None = None,
) -> dict[str, Any] | None:
  """Runs the study.

  Args:
    config: of a run.
    runner: runs it.
    images: the image source to score, a key of `config.distil.methods`.
    labels: of its students: "hard", "adsa" or "learned/plain", calibrators after label sources
      other than "teacher"; None for all that the config has.
    preset: "ddr" for DD-Ranking's protocol: each run has the learning rate of
      `scores_runs.RATES` and the evaluation, ten epochs apart, that are best on the test set. A
      rate of None in the config gives the set the rate that was learned with it, without a search.
      None for the config's own rate and the last step.
    real: what `config.student` has otherwise for the training set itself. Without it these students
      have epochs, batch size, optimiser (with "ddr" SGD at 0.01) and schedule of `config.teacher`.
    of: work directory of a finished run with this config, whose artefacts are taken; its report
      then shows the nearest training image of each image.

  Returns:
    The contents of `report/scores.json`, or None after a dry run.

  Raises:
    LtddError: an unknown name, labels without a control, or a class without a distilled image.
  """
  check_choice("config.study.preset", preset, scores_runs.PRESETS)
  config = check.check(config)
  if of is not None:
    config = scores_runs.with_artefacts(config, runner, of, images)
  config = scores_runs.with_learned(config, scores_runs.checked_source(config, images))
  pairs = scores_runs.chosen(config, images, labels)
  configs = scores_runs.parts(config, pairs, images, preset, real or {})
  for part in configs.values():  # all of them, before the first is trained
    check.check_with_data(Context(check.check(part)))
  for name, part in configs.items():
    runner(name, part, stage="student")  # without a report
  if runner.dry_run:
    return None
  ctx = runner.context(next(name for name in configs if name.startswith("set-")), config)
  results = collect(ctx, runner, pairs, images, preset)
  runner.write_report("scores", results, scores_report.render(results))
  return results


def study_config(
  config: Mapping[str, Any] | None,
  workdir: files.Pathlike | None,
  *,
  images: str | None,
  file: str | None = None,
  labels: Sequence[str] | None = None,
  preset: str | None = None,
) -> dict[str, Any]:
  """Makes the config of the study.

  Args:
    config: of a run; None for that of `workdir`.
    workdir: of a run that has been started; None if there is none.
    images: the image source to score, or what to call the images of `file`: "set" by default.
    file: images from elsewhere, see `interop.distilled_sets`, or None.
    labels: see `run`.
    preset: see `run`.

  Raises:
    LtddError: `workdir` is not one of a run.
  """
  if config is None:
    stored = files.path(workdir or "") / "config.json"
    if not stored.is_file():
      raise LtddError(f"{workdir} is no work directory of a run: there is no {stored.name} in it")
    config = json.loads(stored.read_text())
  config = copy.deepcopy({k: v for k, v in config.items() if k != "study"})
  if file is not None:
    images = images or "set"
    config["distil"]["methods"][images] = {"name": "imported", "path": file}
  of = None if workdir is None else str(workdir)
  study = {"name": "scores", "images": images, "labels": labels, "preset": preset, "of": of}
  return config | {"study": study}


def collect(
  ctx: Context,
  runner: runs.Runner,
  pairs: Sequence[scores_runs.Pair],
  images: str,
  preset: str | None,
) -> dict[str, Any]:
  """Gathers accuracies and scores of all runs into plain values."""
  groups = longtail.groups(ctx.split(ctx.split_name(images)).counts, ctx.config["report"]["groups"])
  found = Correct(runner, ctx.config, preset)
  k = ctx.source.spec.num_classes
  tested = np.bincount(ctx.test_data.labels, minlength=k)
  rows = [
    {"labels": pair.name, "random_labels": scores_runs.name_of(pair.random), "classes": name}
    | row_scores(found, pair, images, None if name == "all" else members)
    for pair in pairs
    for name, members in ({"all": range(k)} | groups).items()
    if tested[[*members]].any()
  ]
  return runs.jsonable(
    {
      "dataset": ctx.source.spec.name,
      "imbalance_factor": ctx.split(ctx.split_name(images)).imbalance_factor,
      "images": images,
      "counts": scores_runs.slots_of(ctx, images),
      "accuracy": "best on test" if preset == "ddr" else "last step",
      "preset": preset,
      "recipe": ctx.recipe,
      "runs": ctx.config["student"]["num_seeds"],
      "rows": rows,
      "leakage": {name: leakage_of(c, name) for name, c in _sets(ctx, runner, images, preset)},
    }
  )


class Correct(NamedTuple):
  """Reads the accuracies of all runs."""

  runner: runs.Runner
  config: dict[str, Any]
  preset: str | None

  def __call__(self, side: str, kind: str, row: Row, classes: Sequence[int] | None) -> np.ndarray:
    """The accuracy of each student (s,) as a fraction: of all test images, or the classes' mean."""
    names = ["real"]
    if side != "real":
      names = [
        scores_runs.run_name(side, kind, rate)
        for rate in scores_runs.rates(self.config, side, self.preset)
      ]
    load = lambda name: workdir_lib.Workdir(self.runner.workdir / name).load(row.stage("student"))
    arrays = [load(name).arrays for name in names]
    correct, total = np.concatenate([a["correct"] for a in arrays], 1), arrays[0]["total"]
    at = correct.sum(-1).argmax(1) if self.preset == "ddr" else np.full(len(correct), -1)
    correct = correct[np.arange(len(correct)), at]  # (s, k)
    if classes is None:
      return correct.sum(1) / total.sum()
    tested = [c for c in classes if total[c]]
    return (correct[:, tested] / total[tested]).mean(1)


def row_scores(
  found: Correct, pair: scores_runs.Pair, images: str, classes: Sequence[int] | None
) -> dict[str, Any]:
  """Accuracies and scores of one row, as means and deviations over runs."""
  acc = {
    "real": found("real", "", Row("real"), classes),
    "hard": found("set", "recipe", Row(images), classes),
  }
  for kind in ("recipe", "dsa", "none"):
    acc[f"own, {kind}"] = found("set", kind, pair.own, classes)
    acc[f"random, {kind}"] = found("random", kind, pair.random, classes)
  better = {
    kind: scores.improvement_over_random(acc[f"own, {kind}"], acc[f"random, {kind}"])
    for kind in ("recipe", "dsa", "none")
  }
  hlr, ior = scores.hard_label_recovery(acc["real"], acc["hard"]), better["recipe"]
  each = {
    "hlr": hlr,
    "ior": ior,
    "lrs": scores.label_robust_score(ior, hlr),
    "ars": scores.augmentation_robust_score(better["dsa"], better["none"]),
  }
  over_runs = lambda values: {k: tables.mean_std(v) | {"runs": v} for k, v in values.items()}
  return {"scores": over_runs(each), "accuracies": over_runs(acc)}


def _sets(
  ctx: Context, runner: runs.Runner, images: str, preset: str | None
) -> Iterator[tuple[str, Context]]:
  """The scored images and the control, each with its run."""
  yield images, ctx
  name = scores_runs.run_name(
    "random", "recipe", scores_runs.rates(ctx.config, "random", preset)[0]
  )
  methods = ctx.config["distil"]["methods"] | {
    scores_runs.RANDOM: scores_runs.random_entry(ctx.config, images)
  }
  config = {**ctx.config, "distil": ctx.config["distil"] | {"methods": methods}}
  yield scores_runs.RANDOM, runner.context(name, config)


def leakage_of(ctx: Context, images: str) -> dict[str, Any]:
  """The self-test of an image source, of the classes that have training and test images."""
  train, test = ctx.train_data(ctx.split_name(images)), ctx.test_data
  distilled, parts = ctx.distilled(images), ctx.parts(images)
  pixels, labels = distilled["images"], distilled["labels"]
  if parts > 1:  # as views show them
    cut = crops.partition(augment.to_pixels(pixels), parts)
    pixels = np.asarray(crops.enlarge(cut, *pixels.shape[1:3])).reshape(-1, *pixels.shape[1:])
    labels = np.tile(labels, parts**2)
  keep = np.isin(labels, train.labels) & np.isin(labels, test.labels)
  found = leakage.self_test(
    pixels[keep], labels[keep], train.images, train.labels, test.images, test.labels
  )
  nearest = {"distance": found.nearest.distance, "row": found.nearest.row}
  return found._asdict() | {"nearest": nearest, "images": int(keep.sum())}
