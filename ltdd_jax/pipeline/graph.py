"""Which stages a run has: the closure of what its rows need, each after what it reads."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ltdd_jax import calibrate, distil
from ltdd_jax.interop import distilled_sets
from ltdd_jax.labels import sources as label_sources
from ltdd_jax.pipeline import plan, stages
from ltdd_jax.pipeline.context import HARD, Context, Row
from ltdd_jax.pipeline.resources import RESOURCES
from ltdd_jax.pipeline.stages import KINDS, VERSIONS, Product, Stage


def rows(config: Mapping[str, Any], images: str | None = None) -> tuple[Row, ...]:
  """The rows of the report: image sources, each with hard labels and then all soft ones."""
  calibrators = config["calibrate"]["calibrators"]
  rank = [*calibrate.CALIBRATORS].index
  order = sorted(calibrators, key=lambda k: (rank(calibrators[k]["name"]), k))
  out = []
  for source in image_sources(config) if images is None else (images,):
    out += [Row(source)] if config["student"]["hard_labels"] else []
    for labels, entry in config["label"]["sources"].items():
      if entry.get("images") is not None and source not in entry["images"]:
        continue
      own = order if entry.get("calibrators") is None else entry["calibrators"]
      out += [Row(source, labels, name) for name in order if name in own]
  return tuple(out)


def image_sources(config: Mapping[str, Any]) -> tuple[str, ...]:
  """Names of the image sources; random real images, the control, come last."""
  methods = config["distil"]["methods"]
  return tuple(sorted(methods, key=lambda k: (methods[k]["name"] == "random", k)))


class Builder:
  """Collects the stages of a run, each after what it reads."""

  def __init__(self, ctx: Context):
    self.ctx, self.config = ctx, ctx.config
    self.seed = {"seed": ctx.config["seed"]}
    self.found: dict[str, Stage] = {}

  def add(
    self,
    name: str,
    config: dict[str, Any],
    reads: Sequence[str],
    build: Callable[..., Product],
    described: Callable[..., str],
    code: Mapping[str, int] | None = None,
    **bound: Any,
  ) -> str:
    """Adds a stage unless it is there, and returns its name."""
    if name not in self.found:
      kind = name.split("/")[0]
      versions = {"version": {kind: VERSIONS[kind]} | dict(code or {})}
      inputs = {stage: self.found[stage].fingerprint for stage in dict.fromkeys(reads)}
      self.found[name] = Stage(
        name,
        config | versions,
        inputs,
        functools.partial(build, **bound),
        functools.partial(described, **bound),
      )
    return name

  def data(self) -> str:
    data = {k: v for k, v in self.config["data"].items() if k != "data_dir"}
    part = {"data": data, "identity": self.ctx.identity}
    return self.add("data", part, (), stages.data_stage, plan.data)

  def teacher(self) -> str:
    part = self.seed | {"teacher": self.config["teacher"]}
    return self.add("teacher", part, (self.data(),), stages.teacher_stage, plan.teacher)

  def statistics(self) -> str:
    methods = self.config["distil"]["methods"]
    needing = [s for s in sorted(methods) if "statistics" in self.ctx.method(s).needs]
    names = tuple(dict.fromkeys(t for s in needing for t in self.ctx.teacher_names(s)))
    part = self.seed | {"statistics": self.config["statistics"], "teachers": names}
    reads = self.data(), self.teacher()
    return self.add(
      "statistics", part, reads, stages.statistics_stage, plan.statistics, names=names
    )

  def distil(self, images: str) -> str:
    method, part = self.ctx.method(images), dict(self.config["distil"])
    entry = part["method"] = dict(part.pop("methods")[images])
    reads = [self.data(), *(getattr(self, RESOURCES[need].stage)() for need in method.needs)]
    if "teachers" in method.needs:
      part["teachers"] = self.ctx.teacher_names(images)
    else:
      del part["teachers"]
    entry.pop("teachers", None)
    if method.batching != "batches":
      del part["batch_size"]
    if method.batching == "select":
      del part["order"]
    group = self.seed | {"distil": part}
    if "file" in method.needs:  # known by its content, wherever it lies
      content = {"name": entry["name"], "sha256": self.ctx.file(images).sha256}
      group = {"distil": {"method": content, "dtype": part["dtype"]}}
    code = {entry["name"]: distil.version(entry["name"])}
    return self.add(
      f"distil/{images}", group, reads, stages.distil_stage, plan.distil, code, images=images
    )

  def label(self, row: Row) -> str:
    made, part = self.ctx.label_source(row.labels), dict(self.config["label"])
    del part["sources"]
    reads = [self.distil(row.images)]
    group: dict[str, Any] = {"source": made._asdict() | {"online": False}}
    if made.kind == "teacher":
      reads.append(self.teacher())
      group |= self.seed | {"label": part}
    if made.path is not None:
      logits = distilled_sets.read_logits(f"config.label.sources.{row.labels}", made.path)
      group["source"] |= {"path": distilled_sets.content_sha256(logits, np.zeros(0))}
    code = {"source": label_sources.VERSION}
    return self.add(row.stage("label"), group, reads, stages.label_stage, plan.label, code, row=row)

  def calibrate(self, row: Row) -> str:
    part = dict(self.config["calibrate"])
    calibrator = part.pop("calibrators")[row.calibrator]
    group = {"calibrate": part | {"calibrator": calibrator}}
    code = {calibrator["name"]: calibrate.version(calibrator["name"])}
    reads = [self.data(), self.label(row)]
    if "probe" in calibrate.make_calibrator(**calibrator).needs:
      config = {
        k: v for k, v in stages.student_numbers(self.ctx, row).items() if k not in stages.SCORING
      }
      probed = group | self.seed | {"student": config, "views": self.config["label"]["views"]}
      online = {"online": self.ctx.label_source(row.labels).online}
      both = [*reads, self.distil(row.images)]
      name = row.stage("probe")
      reads.append(
        self.add(name, probed | online, both, stages.probe_stage, plan.probe, code, row=row)
      )
    return self.add(
      row.stage("calibrate"), group, reads, stages.calibrate_stage, plan.calibrate, code, row=row
    )

  def student(self, row: Row) -> str:
    part, group = stages.student_numbers(self.ctx, row), {"views": self.config["label"]["views"]}
    reads = [self.data(), self.distil(row.images)]
    if row.labels == HARD:
      part = {k: v for k, v in part.items() if k not in ("loss", "hard_weight")}
    else:
      reads += [self.label(row), self.calibrate(row)]
      group["online"] = self.ctx.label_source(row.labels).online
    group |= self.seed | {"student": part}
    return self.add(row.stage("student"), group, reads, stages.student_stage, plan.student, row=row)


def make_stages(ctx: Context) -> list[Stage]:
  """Lists the stages of a run in the order in which they run: what its rows need, and no more."""
  builder = Builder(ctx)
  for row in rows(ctx.config):
    builder.student(row)
  return sorted(builder.found.values(), key=lambda s: KINDS.index(s.kind))
