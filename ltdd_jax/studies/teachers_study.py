"""Which teacher makes good students? Candidates scored on training images held out from them.

The strongest teacher is not the best one: students of few images learn of it what a network of
their kind can read off the views. So each candidate labels the distilled images, and a closed-form
student, in the features of a trained network of the students' kind (a reference), is fitted to
these labels and shown the images that were held out. The candidate whose closed-form student has
the least log-loss there is taken and trained on all images; random images beside others, the
control, decide nothing. Test data have no part in it. Ours, from no paper.

`workdir/references` and `workdir/<candidate>` are work directories of runs without the held-out
images, `workdir/chosen` is an ordinary one.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ltdd_jax.core.registry import check_at_least, check_share
from ltdd_jax.core.types import LtddError, Teacher
from ltdd_jax.data import augment
from ltdd_jax.models import taps
from ltdd_jax.pipeline import check, graph, stages
from ltdd_jax.pipeline import results as results_lib
from ltdd_jax.pipeline.context import Context, Row
from ltdd_jax.report import tables
from ltdd_jax.studies import closed_form, runs

SCORES = ("log_loss", "accuracy", "teacher")  # the one that decides, and two to compare
FOLDERS = {"references", "chosen"}  # of the study, beside those of the candidates
Look = Callable[[np.ndarray], np.ndarray]  # normalised images (n, h, w, c) -> features (n, f)


class Study(NamedTuple):
  """Numbers of the study, those of `run`."""

  num_views: int
  num_references: int
  penalty: float
  students: bool


def run(
  config: Mapping[str, Any],
  runner: runs.Runner,
  *,
  candidates: Mapping[str, Any],
  held_out: float = 0.1,
  num_views: int = 6000,
  num_references: int = 2,
  penalty: float = 0.01,
  students: bool = False,
) -> dict[str, Any] | None:
  """Runs the study.

  Args:
    config: of a run.
    runner: runs it.
    candidates: {name: what to change in `config.teacher`}.
    held_out: share of each class's training images, rounded down, that no candidate sees.
    num_views: views that the closed-form student sees, in whole label epochs, the run's at most.
    num_references: networks of the students' kind, trained as `config.teacher` says, whose features
      it has, one after the other; the score is the mean over them.
    penalty: of its weights, see `closed_form.student`.
    students: whether to train students of every candidate too, to see how well the score orders
      them.

  Returns:
    The contents of `report/teachers.json`, or None after a dry run.

  Raises:
    LtddError: no candidate, one with a name that is taken, a bad number, or a set with nothing to
      hold out in most classes.
  """
  if not candidates:
    raise LtddError(
      "config.study.candidates is empty; expected {name: {key of config.teacher: ...}}"
    )
  runs.check_names("config.study.candidates", candidates, FOLDERS)
  check_share("config.study.", below_one=True, held_out=held_out)
  check_at_least("config.study.", 1, num_views=num_views, num_references=num_references)
  closed_form.check_penalty(penalty)
  study = Study(num_views, num_references, penalty, students)
  config = check.check(config)
  rest = without_held_out(config, held_out)
  parts = {name: with_teacher(rest, changes) for name, changes in candidates.items()}
  network = config["student"]["model"]
  models = {f"reference{i}": network for i in range(num_references)}
  references = with_teacher(rest, {"models": models})
  for part in (references, *parts.values()):  # all of them, before the first is trained
    check.check_with_data(Context(check.check(part)))
  runner("references", references, stage="teacher")
  for name, part in parts.items():
    runner(name, part, stage=None if students else "calibrate")
  if runner.dry_run:
    return None
  contexts = {name: runner.context(name, part) for name, part in parts.items()}
  results = collect(runner.context("references", references), contexts, config, study)
  runner("chosen", with_teacher(config, candidates[results["chosen"]]))
  runner.write_report("teachers", results, render(results))
  return results


def without_held_out(config: Mapping[str, Any], share: float) -> dict[str, Any]:
  """The config of a run on the training images that are not held out."""
  ctx = Context(dict(config))
  whole = np.asarray(ctx.split().counts)
  counts = whole - np.floor(share * whole).astype(int)
  if (counts < whole).sum() < len(whole) / 2:
    raise LtddError(
      f"config.study.held_out is {share}, which holds out an image of {(counts < whole).sum()} of "
      f"{len(whole)} classes ({whole.min()} to {whole.max()} training images); expected one of at "
      "least half of them. Raise it"
    )
  data = config["data"] | {
    "rule": "counts",
    "imbalance_factor": 1.0,
    "counts": tuple(counts.tolist()),
  }
  part = {**config, "data": data}
  rest = Context(part)
  if len(np.setdiff1d(rest.split().indices, ctx.split().indices)):
    raise LtddError(
      f"config.data.rule is {config['data']['rule']!r}, whose smaller subsets are not inside "
      "its larger ones; the study of teachers needs 'ltdd', 'counts' or 'as_is'"
    )
  unseen = np.setdiff1d(ctx.split().indices, rest.split().indices)
  for name in data["splits"]:
    if seen := np.isin(unseen, rest.split(name).indices).sum():
      raise LtddError(
        f"config.data.splits.{name} has {seen} of the images that are held out, which no candidate "
        "may see; expected a split without them. Leave it out"
      )
  return part


def with_teacher(config: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
  """The config of a run with another teacher, which distils and labels in place of those named."""
  sources = {
    name: entry | ({"teachers": None} if "teachers" in entry else {})
    for name, entry in config["label"]["sources"].items()
  }
  return {
    **config,
    "teacher": config["teacher"] | dict(changes),
    "distil": config["distil"] | {"teachers": None},
    "label": config["label"] | {"sources": sources},
  }


# ---- scores ----


class Unseen(NamedTuple):
  """The training images that were held out, and their features in each reference."""

  images: np.ndarray  # (m, h, w, c) float32, normalised
  labels: np.ndarray  # (m,)
  features: tuple[np.ndarray, ...]  # (m, f)


def collect(
  references: Context,
  contexts: Mapping[str, Context],
  config: Mapping[str, Any],
  study: Study,
) -> dict[str, Any]:
  """Scores all candidates and takes the best, as plain values."""
  first, whole = next(iter(contexts.values())), Context(dict(config))
  looks = [features_of(teacher) for teacher in references.teachers()]
  unseen = held_out_images(whole, first, looks)
  rows = []
  for name, ctx in contexts.items():
    rows += [{"candidate": name} | row for row in scores(ctx, looks, unseen, study)]
  methods = config["distil"]["methods"]
  deciding = [r for r in rows if methods[r["images"]]["name"] != "random"] or rows
  best = min(deciding, key=lambda r: r["log_loss"])
  return runs.jsonable(
    {
      "dataset": first.source.spec.name,
      "imbalance_factor": whole.split().imbalance_factor,
      "held_out": len(unseen.labels),
      "smallest_held_out": np.bincount(unseen.labels, minlength=len(whole.counts)).min(),
      "study": study._asdict(),
      "rows": rows,
      "chosen": best["candidate"],
      "rank_correlation": {key: rank_correlation(rows, key) for key in SCORES},
    }
  )


def rank_correlation(rows: Sequence[Mapping[str, Any]], key: str) -> float | None:
  """Spearman's correlation with the students; None without them, or where all are alike."""
  from scipy import stats  # a second to import

  pairs = [(r[key], r["student"]["mean"]) for r in rows if r["student"] is not None]
  if not pairs or not all(map(np.ptp, zip(*pairs, strict=True))):
    return None
  return float(stats.spearmanr(*zip(*pairs, strict=True)).statistic)


def features_of(teacher: Teacher) -> Look:
  """What the classifier of a network gets, (n, f), of normalised images (n, h, w, c)."""
  return runs.in_batches(lambda x: taps.features(teacher.model, teacher.variables, x)[1])


def held_out_images(whole: Context, part: Context, looks: Sequence[Look]) -> Unseen:
  """The images of one run's split that are not in the other's."""
  split, spec = whole.split(), part.source.spec  # its whitening, which `whole` has not been run for
  rows = np.flatnonzero(~np.isin(split.indices, part.split().indices))
  pixels = whole.source.read("train", split.indices[rows])
  images = np.asarray(augment.normalize(pixels, spec.mean, spec.std))
  return Unseen(images, split.labels[rows], tuple(look(images) for look in looks))


def scores(
  ctx: Context, looks: Sequence[Look], unseen: Unseen, study: Study
) -> Iterator[dict[str, Any]]:
  """Scores the labels of a candidate's run: one entry for each row with soft labels."""
  teachers = {  # logits of the held-out images
    labels: runs.teacher_logits(ctx, labels)(unseen.images)
    for labels in ctx.config["label"]["sources"]
  }
  for images in graph.used_sources(ctx.config):
    epochs = -(-study.num_views // len(ctx.slots(images).labels))
    views = runs.make_views(ctx, images, epochs)
    shown = [look(views.reshape(-1, *views.shape[2:])) for look in looks]
    for row in graph.rows(ctx.config, images):
      if row.calibrator is not None:
        logits = np.concatenate(list(stages.label_chunks(ctx, row, len(views))))
        yield score(ctx, row, shown, logits, teachers[row.labels], unseen, study)


def score(
  ctx: Context,
  row: Row,
  shown: Sequence[np.ndarray],
  logits: np.ndarray,
  teacher: np.ndarray,
  unseen: Unseen,
  study: Study,
) -> dict[str, Any]:
  """The scores of a row's labels, and the naive one: the accuracy of the teachers themselves.

  Args:
    ctx: the candidate's run.
    row: of its report.
    shown: for each reference, features (e n, f) of the views.
    logits: (e, n, k) calibrated labels of these.
    teacher: (m, k) logits of the held-out images, not calibrated.
    unseen: the held-out images.
    study: its numbers.
  """
  students = [
    closed_form.student(
      views, logits.reshape(-1, logits.shape[-1]), features, penalty=study.penalty
    )
    for views, features in zip(shown, unseen.features, strict=True)
  ]
  own = runs.calibrate_logits(ctx, row, teacher)
  return {
    **row._asdict(),
    "log_loss": np.mean([closed_form.balanced_log_loss(s, unseen.labels) for s in students]),
    "accuracy": np.mean([closed_form.balanced_accuracy(s, unseen.labels) for s in students]),
    "teacher": closed_form.balanced_accuracy(own, unseen.labels),
    "student": results_lib.student_row(ctx, row, {})["top1"] if study.students else None,
  }


# ---- the report ----


def render(results: Mapping[str, Any]) -> str:
  """The report as Markdown."""
  rows = [
    [
      *(r[key] for key in ("candidate", "images", "labels", "calibrator")),
      f"{r['log_loss']:.3f}",
      f"{r['accuracy']:.1f}",
      f"{r['teacher']:.1f}",
      "-" if r["student"] is None else tables.plus_minus(r["student"]),
    ]
    for r in sorted(results["rows"], key=lambda r: r["log_loss"])
  ]
  header = [
    "teacher", "images", "labels", "calibrator", "log-loss", "accuracy", "its own", "students"
  ]  # fmt: skip
  parts = [
    f"# {results['dataset']}: which teacher?",
    f"Imbalance factor {results['imbalance_factor']:g}. Log-loss and accuracy are those of a "
    f"closed-form student, and its own accuracy that of the teacher, on {results['held_out']:,} "
    f"training images that no teacher has seen ({results['smallest_held_out']} of the smallest "
    "class); each class that has some counts the same. Students: top-1 of the test set, of the "
    "last step; nothing is chosen by it.",
    tables.table(header, rows),
    f"Taken: {results['chosen']}, trained on all images in `chosen/`. Random images beside others "
    "decide nothing.",
  ]
  found = {k: "-" if v is None else f"{v:.2f}" for k, v in results["rank_correlation"].items()}
  if results["study"]["students"]:
    parts.append(
      f"Spearman's rank correlation with the students: {found['log_loss']} of the log-loss, "
      f"{found['accuracy']} of the accuracy, {found['teacher']} of the teachers' own."
    )
  return "\n\n".join(parts) + "\n"
