"""Which stages a run has: the closure of what its rows need, each after what it reads."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ltdd_jax import calibrate, distil
from ltdd_jax.artefacts import workdir as workdir_lib
from ltdd_jax.interop import distilled_sets
from ltdd_jax.labels import sources as label_sources
from ltdd_jax.pipeline import continued, plan, stages
from ltdd_jax.pipeline.context import HARD, Context, Row
from ltdd_jax.pipeline.resources import RESOURCES
from ltdd_jax.pipeline.stages import KINDS, SCORING, VERSIONS, Product, student_numbers
from ltdd_jax.training import loop


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


def used_sources(config: Mapping[str, Any]) -> tuple[str, ...]:
  """The image sources that a row is of; the others are not made."""
  return tuple(source for source in image_sources(config) if rows(config, source))


class Stage(NamedTuple):
  """One stage of one run."""

  name: str
  config: dict[str, Any]  # the part of the config that it depends on, and code versions
  inputs: dict[str, str]  # {stage that it reads: fingerprint}
  about: dict[str, Any]  # arguments of its functions in `stages` and `plan`

  @property
  def kind(self) -> str:
    """The first part of the name."""
    return self.name.split("/")[0]

  @property
  def fingerprint(self) -> str:
    """A hash of what the stage depends on."""
    return workdir_lib.fingerprint(self.config, self.inputs)

  def build(self, ctx: Context, session: loop.Session) -> Product:
    """Makes what the stage leaves behind."""
    return getattr(stages, f"{self.kind}_stage")(ctx, session, **self.about)

  def plan(self, ctx: Context) -> str:
    """One line for `--dry_run`."""
    return getattr(plan, self.kind)(ctx, **self.about)


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
    code: Mapping[str, int] | None = None,
    **about: Any,
  ) -> str:
    """Adds a stage unless it is there, and returns its name."""
    if name not in self.found:
      kind = name.split("/")[0]
      versions = {"version": {kind: VERSIONS[kind]} | dict(code or {})}
      inputs = {stage: self.found[stage].fingerprint for stage in dict.fromkeys(reads)}
      self.found[name] = Stage(name, config | versions, inputs, about)
    return name

  def data(self) -> str:
    data = {k: v for k, v in self.config["data"].items() if k != "data_dir"}
    if data["whiten"] is None:  # as before there was the option
      del data["whiten"]
    workers = data.pop("stream_workers")  # of which the number has no part in results
    data |= {} if workers is None else {"stream": True}
    return self.add("data", {"data": data, "identity": self.ctx.identity}, ())

  def teacher(self) -> str:
    return self.add("teacher", self.seed | {"teacher": self.config["teacher"]}, (self.data(),))

  def statistics(self) -> str:
    methods = self.config["distil"]["methods"]
    needing = [s for s in sorted(methods) if "statistics" in self.ctx.method(s).needs]
    names = tuple(dict.fromkeys(t for s in needing for t in self.ctx.teacher_names(s)))
    part = self.seed | {"statistics": self.config["statistics"], "teachers": names}
    return self.add("statistics", part, (self.data(), self.teacher()), names=names)

  def trajectories(self) -> str:
    methods = self.config["distil"]["methods"]
    needing = [s for s in sorted(methods) if "trajectories" in self.ctx.method(s).needs]
    splits = tuple(sorted({self.ctx.split_name(s) for s in needing}, key=str))
    config = dict(self.config["trajectories"])
    if not config["classifier_epochs"]:  # as before there was the option
      del config["classifier_epochs"]
    part = self.seed | {"trajectories": config, "splits": splits}
    return self.add("trajectories", part, (self.data(),), splits=splits)

  def distil(self, images: str) -> str:
    method, part = self.ctx.method(images), dict(self.config["distil"])
    entry = part["method"] = dict(part.pop("methods")[images])
    reads = [self.data(), *(getattr(self, RESOURCES[need].stage)() for need in method.needs)]
    if "teachers" in method.needs:
      part["teachers"] = self.ctx.teacher_names(images)
    else:
      del part["teachers"]
    entry.pop("teachers", None)
    entry |= continued.contents(self.ctx, images)
    if entry.get("on_top_of") is None:
      entry.pop("on_top_of", None)
    if method.batching != "batches":
      del part["batch_size"]
    if method.batching == "select":
      del part["order"]
    group = self.seed | {"distil": part}
    if file := self.ctx.file(images):  # known by its content, wherever it lies
      content = {"name": entry["name"], "sha256": file.sha256}
      group = {"distil": {"method": content, "dtype": part["dtype"]}}
    code = {entry["name"]: distil.version(entry["name"])}
    return self.add(f"distil/{images}", group, reads, code, images=images)

  def label(self, row: Row) -> str:
    made, part = self.ctx.label_source(row.labels), dict(self.config["label"])
    del part["sources"]
    reads = [self.distil(row.images)]
    group: dict[str, Any] = {"source": made._asdict() | {"online": False}}
    if made.kind == "teacher":
      reads.append(self.teacher())
      group |= self.seed | {"label": part}
    if views := self.ctx.folder_logits(row.labels):
      group["source"] |= {"path": views.sha256}
    elif made.path is not None:
      logits = self.ctx.file_logits(row.labels)
      group["source"] |= {"path": distilled_sets.content_sha256(logits, np.zeros(0))}
    code = {"source": label_sources.VERSION}
    return self.add(row.stage("label"), group, reads, code, row=row)

  def calibrate(self, row: Row) -> str:
    part = dict(self.config["calibrate"])
    entry = part.pop("calibrators")[row.calibrator]
    group = {"calibrate": part | {"calibrator": entry}}
    code = {entry["name"]: calibrate.version(entry["name"])}
    reads = [self.data(), self.label(row)]
    if "probe" in self.ctx.calibrator(row).needs:
      numbers = {k: v for k, v in student_numbers(self.ctx).items() if k not in SCORING}
      probed = group | self._trained(row, numbers)
      both = [*reads, self.distil(row.images)]
      reads.append(self.add(row.stage("probe"), probed, both, code, row=row))
    return self.add(row.stage("calibrate"), group, reads, code, row=row)

  def student(self, row: Row) -> str:
    numbers, reads = student_numbers(self.ctx), [self.data(), self.distil(row.images)]
    if row.labels == HARD:
      numbers = {k: v for k, v in numbers.items() if k not in ("loss", "hard_weight")}
    else:
      reads += [self.label(row), self.calibrate(row)]
    return self.add(row.stage("student"), self._trained(row, numbers), reads, row=row)

  def _trained(self, row: Row, numbers: dict[str, Any]) -> dict[str, Any]:
    """What students of a row depend on, beside what their stage reads."""
    group = self.seed | {"student": numbers}
    replayed = self.ctx.folder_logits(row.labels) is not None
    if not replayed:
      group["views"] = self.config["label"]["views"]
    if row.labels != HARD:
      group["online"] = self.ctx.label_source(row.labels).online
    if self.ctx.own_lr:
      group["recipe_lr"] = self.ctx.recipe_lr
    epochs = self.config["label"]["num_epochs"]
    if not replayed and epochs < numbers["num_epochs"]:
      group["label"] = {"num_epochs": epochs}
    return group


def make_stages(ctx: Context) -> list[Stage]:
  """Lists the stages of a run in the order in which they run: what its rows need, and no more."""
  builder = Builder(ctx)
  for row in rows(ctx.config):
    builder.student(row)
  return sorted(builder.found.values(), key=lambda s: KINDS.index(s.kind))
