"""A distilled set of a finished run, with its labels, from artefacts.

No data set is opened, but for what is of one of `config.data.splits`.

export.write("runs/a", "npz", "edc.npz", labels="teacher", calibrator="adsa")
"""

import json
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ltdd_jax import calibrate
from ltdd_jax.artefacts.manifest import META, Artefact
from ltdd_jax.artefacts.workdir import Workdir, check_same_classes
from ltdd_jax.core import files
from ltdd_jax.core.registry import check_choice
from ltdd_jax.core.types import LtddError
from ltdd_jax.data import longtail, view_records
from ltdd_jax.interop import exports
from ltdd_jax.interop.exports import fkd, record
from ltdd_jax.interop.exports.record import WHITENING
from ltdd_jax.labels import label as label_lib
from ltdd_jax.labels import store as label_store
from ltdd_jax.pipeline import check, stages
from ltdd_jax.pipeline.context import Context, Row


def write(
  workdir: files.Pathlike,
  to: str,
  out: files.Pathlike,
  *,
  images: str | None = None,
  labels: str | None = None,
  calibrator: str | None = None,
  overwrite: bool = False,
) -> tuple[record.DistilledSet, pathlib.Path]:
  """Writes a distilled set of a run in a format of `interop.exports.FORMATS`.

  Args:
    workdir: of the run.
    to: the format.
    out: file or folder to write.
    images: an image source; None for the only one that is no random control.
    labels: a label source, whose logits of the images as they are become soft labels (`fkd`: those
      of the views too); None for those that were learned with the images, if any.
    calibrator: a calibrator of these labels in the run; None for logits as they are.
    overwrite: whether an export that is there may be replaced.

  Raises:
    LtddError: see `distilled_set` and `exports.write`.
  """
  check_choice("--to", to, exports.FORMATS)
  found = distilled_set(workdir, images=images, labels=labels, calibrator=calibrator)
  if labels is not None and found.soft_labels is None and to != "fkd":
    raise LtddError(
      f"--labels is {labels!r}, whose logits of views were imported without those of the images as "
      "they are; expected --to fkd, or no --labels"
    )
  return found, exports.write(found, to, out, overwrite=overwrite)


def distilled_set(
  workdir: files.Pathlike,
  *,
  images: str | None = None,
  labels: str | None = None,
  calibrator: str | None = None,
) -> record.DistilledSet:
  """Loads a distilled set; arguments are those of `write`.

  Raises:
    LtddError: the run has no such images, labels or calibrator, or an artefact is damaged.
  """
  if labels is None and calibrator is not None:
    raise LtddError(f"--calibrator is {calibrator!r} without --labels; expected a label source too")
  work = Workdir(workdir)
  images = _images(work, images)
  data, distilled = work.load("data"), work.load(f"distil/{images}")
  check_same_classes(distilled, data)
  arrays, identity = distilled.arrays, data.meta["config"]["identity"]
  white = [data.arrays[key] for key in WHITENING if key in data.arrays]
  found = record.DistilledSet(
    arrays["images"],
    arrays["labels"],
    tuple(data.meta["class_names"]),
    tuple(identity["mean"]),
    tuple(identity["std"]),
    arrays.get("soft_labels"),
    arrays.get("student_lr"),
    distilled.meta["extra"].get("parts", 1),
    (white[0], white[1]) if white else None,
    meta=_meta(work, data, distilled, images),
  )
  if labels is None:
    return found
  check_choice("--labels", labels, _names(work, f"label/{images}"))
  return _labelled(work, found, Row(images, labels, calibrator))


def _labelled(work: Workdir, found: record.DistilledSet, row: Row) -> record.DistilledSet:
  """The set with the logits of a label source, calibrated if the row says so."""
  artefact = work.load(row.stage("label"))
  check_same_classes(artefact, work.load("data"))
  aligned, facts = _calibration(work, row)
  views = None
  if artefact.meta["extra"]["per_view"]:
    views = _views(artefact, row, found, aligned)
  meta = {**found.meta, "labels": row.labels, "calibrator": row.calibrator, **facts}
  clean = artefact.arrays.get("clean_logits")  # imported views may have come without
  soft_labels = None if clean is None else aligned(clean)
  return found._replace(soft_labels=soft_labels, views=views, meta=meta)


class _Aligned(NamedTuple):
  """A fitted calibrator, or None for logits as they are."""

  calibrator: calibrate.Calibrator | None = None
  params: Any = None
  log_prior: Any = None

  def __call__(self, logits: np.ndarray) -> np.ndarray:
    if self.calibrator is None:
      return np.asarray(logits, np.float32)
    return np.asarray(self.calibrator.apply(self.params, jnp.asarray(logits), self.log_prior))


def _calibration(work: Workdir, row: Row) -> tuple[_Aligned, dict[str, Any]]:
  if row.calibrator is None:
    return _Aligned(), {}
  known = _names(work, f"calibrate/{row.images}/{row.labels}")
  check_choice("--calibrator", row.calibrator, known)
  artefact = work.load(row.stage("calibrate"))
  made = calibrate.make_calibrator(**artefact.meta["config"]["calibrate"]["calibrator"])
  prior = _log_prior(work, row)
  report = artefact.meta["extra"]["report"]
  facts = {"tau": report["tau"]} if "tau" in report else {}
  return _Aligned(made, stages.params_of(made, artefact.arrays, prior), prior), facts


def _log_prior(work: Workdir, row: Row) -> np.ndarray:
  """Log class frequencies that a row was calibrated with; only other splits need the data set."""
  data = work.load("data")
  if not data.meta["config"]["data"]["splits"]:
    return longtail.log_prior(data.arrays["counts"])
  return _context(work).log_prior(row)


def _context(work: Workdir) -> Context:
  """The run, which opens its data set if it is asked for a split."""
  config = json.loads((work.path / "config.json").read_text())
  return Context(check.check(config), work)


def _views(
  artefact: Artefact, row: Row, found: record.DistilledSet, aligned: _Aligned
) -> record.LabelledViews:
  """Logits of the views and what made them, for the format fkd."""
  config, shape = artefact.meta["config"], found.images.shape
  store = label_store.open_store(artefact.folder(label_lib.STORE), class_names=found.class_names)
  exact = aligned.calibrator is None and store.encoding.dtype == "float16"
  numbers, kwargs = jnp.arange(shape[0]), artefact.meta["extra"].get("replay")
  if not (replayed := kwargs is not None):  # not imported: views come from the key
    kwargs = config["label"]["views"] | ({"parts": found.parts} if found.parts > 1 else {})

  def records_of(epoch: int) -> view_records.Records:
    if replayed:
      return jax.tree.map(lambda x: x[epoch], view_records.from_arrays(artefact.arrays))
    drawn = view_records.record_fn(shape[1:], shape[0], **kwargs)
    key = label_lib.view_key(config["seed"], row.images)
    return jax.jit(drawn)(key, numbers, jnp.full(shape[0], epoch))

  def read(epoch: int) -> Mapping[str, np.ndarray]:
    records = records_of(epoch)
    logits = aligned(store.logits(epoch, epoch + 1)[0])
    return fkd.arrays_of(records, logits.astype(np.float16) if exact else logits, shape[1:])

  return record.LabelledViews(store.shape[0], kwargs.get("mix", "cutmix"), read)


def _images(work: Workdir, images: str | None) -> str:
  """The image source that is meant; raises LtddError that lists them."""
  methods = {
    name: work.load(f"distil/{name}").meta["config"]["distil"]["method"]["name"]
    for name in _names(work, "distil")
  }
  if not methods:
    raise LtddError(f"{work.path} has no distilled images; run --stage=distil first")
  if images is not None:
    check_choice("--images", images, methods)
    return images
  own = [name for name, method in methods.items() if method != "random"] or list(methods)
  if len(own) > 1:
    raise LtddError(f"{work.path} has several image sources; expected --images with one of {own}")
  return own[0]


def _names(work: Workdir, stage: str) -> list[str]:
  """Names of the artefacts in a folder of them: image sources, label sources or calibrators."""
  folder = work.path / stage
  if not folder.is_dir():
    return []
  return sorted(p.name for p in folder.iterdir() if (p / META).is_file())


def _meta(work: Workdir, data: Artefact, distilled: Artefact, images: str) -> dict[str, Any]:
  """Where a set comes from."""
  counts = np.bincount(distilled.arrays["labels"], minlength=len(data.meta["class_names"]))
  extra, method = data.meta["extra"], distilled.meta["config"]["distil"]["method"]
  factor, of_split, sha256 = extra["imbalance_factor"], extra["counts"], data.meta["split_sha256"]
  if method.get("split") is not None:
    split = _context(work).split(method["split"])
    factor, of_split, sha256 = split.imbalance_factor, list(split.counts), split.sha256
  return {
    "images": images,
    "method": method["name"],
    "dataset": extra["dataset"],
    "imbalance_factor": factor,
    "class_counts": of_split,
    "images_per_class": int(counts[0]) if len(set(counts.tolist())) == 1 else counts.tolist(),
    "split_sha256": sha256,
    "fingerprint": distilled.meta["fingerprint"],
    "versions": distilled.meta["versions"],
  }
