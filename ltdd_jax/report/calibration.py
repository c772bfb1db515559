"""What a calibration of logits did, as text for a terminal.

print(calibration.describe(calibrate_logits("z.npy", "y.npy", "n.npy", out="labels.npz")))
"""

import math

import numpy as np

from ltdd_jax.data import longtail
from ltdd_jax.interop import Calibration, Job
from ltdd_jax.report import tables

MAX_CLASSES = 20  # rows of the table for single classes
HEAD_ROWS = 7  # of the table of what max_head_drop trades


def describe(found: Calibration) -> str:
  """The message of the calibrator, tau, and a table of class confidences from head to tail.

  With `max_head_drop`, then a table of head and tail along tau.
  """
  lines = [f"{found.calibrator}: {found.report.get('message', '')}".rstrip(" :"), _tau(found)]
  shares = f"{100 * found.agreement:.1f} % of rows (chance: {100 / len(found.class_counts):.1f} %)"
  lines += [f"The largest logit is that of the label in {shares}."]
  title = "Class confidences: mean probability that labels give to the class of the image."
  if "target_prior" in found.report:
    title += " After is with the step to target_prior."
  lines += ["", title, "", _table(found)]
  if curve := found.report.get("head_curve"):
    lines += ["", "Head and tail: mean confidence along tau.", "", _head_table(curve)]
  return "\n".join(lines)


def _tau(found: Calibration) -> str:
  text = f"tau = {found.tau:.4f}"
  if interval := found.report.get("tau_interval"):
    text += f", 95 % interval {interval[0]:.4f} to {interval[1]:.4f}"
  elif interval := found.report.get("free_tau_interval"):
    text += f"; without the bound on the head {found.report['free_tau']:.4f}, 95 % interval "
    text += f"{interval[0]:.4f} to {interval[1]:.4f}"
  return text


def _table(found: Calibration) -> str:
  """Rows for head, mid and tail (thirds), then classes; of many, some evenly from head to tail."""
  counts, k = found.class_counts, len(found.class_counts)
  rows = [
    _row(f"{name}, {len(members)} classes", found, np.array(members))
    for name, members in longtail.groups(counts, "thirds").items()
    if members
  ]
  order = np.argsort(-counts, kind="stable")
  shown = order[np.round(np.linspace(0, k - 1, min(k, MAX_CLASSES))).astype(int)]
  rows += [_row(f"class {c}", found, np.array([c])) for c in shown]
  text = tables.table(["classes", "training images", "before", "after"], rows)
  left = k - len(shown)
  return text if not left else f"{text}\n({left} more classes lie between those shown)"


def _head_table(curve: list[list[float | None]]) -> str:
  picked = np.round(np.linspace(0, len(curve) - 1, HEAD_ROWS)).astype(int)
  rows = [[f"{curve[i][0]:.2f}", *(tables.or_dash(x, ".3f") for x in curve[i][1:])] for i in picked]
  return tables.table(["tau", "objective", "head", "tail"], rows)


def _row(name: str, found: Calibration, members: np.ndarray) -> list[str]:
  counts = found.class_counts[members]
  images = _number(counts[0]) if len(members) == 1 else f"{_number(counts.mean())} on average"
  before, after = (x[members] for x in (found.confidence_before, found.confidence_after))
  return [name, images, _mean(before), _mean(after)]


def _number(value: float) -> str:
  return f"{value:,.0f}" if value >= 10 or value == round(value) else f"{value:.3g}"


def _mean(values: np.ndarray) -> str:
  """Mean over classes that have an image."""
  there = values[~np.isnan(values)]
  return f"{there.mean():.3f}" if there.size else "-"


def describe_job(job: Job) -> str:
  """What a command would do, for a dry run."""
  *lead, k = job.shape
  given = "".join(f", {key}={value}" for key, value in job.args.items() if key != "target_prior")
  lines = [
    f"{job.text}: {job.source.dtype} {job.shape}, {math.prod(lead):,} rows of {k} classes",
    f"labels: {job.labels.shape}, {len(np.unique(job.labels))} of {k} classes have an image",
    f"counts: {_number(job.counts.max())} to {_number(job.counts.min())} training images a class",
    f"calibrator: {job.name}{given}",
    f"would write {job.out}: {job.kind}, {job.dtype} {job.shape}, {job.nbytes / 1e6:,.1f} MB",
  ]
  return "\n".join(lines)
