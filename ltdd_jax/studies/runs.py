"""What studies share: starting runs inside their folder, and reading what runs left there."""

import dataclasses
import json
import types
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np
from etils import epath

from ltdd_jax import calibrate, pipeline
from ltdd_jax.artefacts import workdir as workdir_lib
from ltdd_jax.core import files
from ltdd_jax.core import mesh as mesh_lib
from ltdd_jax.core.types import LtddError
from ltdd_jax.data import views as views_lib
from ltdd_jax.labels import label as label_lib
from ltdd_jax.pipeline import check, graph, stages
from ltdd_jax.pipeline.context import Context, Row
from ltdd_jax.report import plots
from ltdd_jax.training import forward

_BATCH = 500


def check_names(key: str, names: Iterable[str], own: Iterable[str] = ()) -> None:
  """Raises LtddError if a run of a study has the name of a folder of the study's own."""
  folders = {"report", "cache", *own}
  if taken := sorted(folders & {*names}):
    raise LtddError(
      f"{key} has {taken[0]!r}, the name of a folder of the study's own; expected names other than "
      f"{', '.join(sorted(folders))}"
    )


@dataclasses.dataclass(frozen=True)
class Runner:
  """Starts runs of the pipeline in folders of a study's work directory."""

  workdir: epath.Path
  options: Mapping[str, Any]  # of `pipeline.run`

  @property
  def dry_run(self) -> bool:
    """Whether runs only print their plans."""
    return bool(self.options.get("dry_run"))

  @property
  def cache(self) -> files.Pathlike:
    """The folder of artefacts that the runs share."""
    return self.options.get("cache") or self.workdir / "cache"

  def __call__(self, name: str, config: Mapping[str, Any], stage: str | None = None) -> None:
    """Runs a config in `workdir/name`, up to a stage or to the end, or prints its plan."""
    if self.dry_run:
      print(f"---- {name}")
    options = {**self.options, "cache": self.cache}
    pipeline.run(config, self.workdir / name, stage=stage, **options)

  def context(self, name: str, config: Mapping[str, Any]) -> Context:
    """A finished run, to read from."""
    return Context(check.check(config), workdir_lib.Workdir(self.workdir / name))

  def write_report(
    self,
    name: str,
    results: Mapping[str, Any],
    text: str,
    figures: Mapping[str, Callable[[Mapping[str, Any]], Any]] = types.MappingProxyType({}),
  ) -> None:
    """Writes `report/NAME.json`, `report/NAME.md` and figures, and prints the text.

    Of a pod, the first process writes and prints.
    """
    folder = self.workdir / "report"
    if jax.process_index() == 0:
      content = json.dumps(results, indent=1, allow_nan=False)
      files.write_text(folder / f"{name}.json", content + "\n")
      files.write_text(folder / f"{name}.md", text)
      print(text)
    write_plots(results, folder, figures)


def write_plots(
  results: Mapping[str, Any],
  folder: epath.Path,
  figures: Mapping[str, Callable[[Mapping[str, Any]], Any]],
) -> tuple[epath.Path, ...]:
  """Writes figures of the results under their names; none if matplotlib is not installed."""
  if not plots.available():
    return ()
  for name, figure in figures.items():
    plots.save(figure(results), folder / name)
  return tuple(folder / name for name in figures)


def teacher_logits(ctx: Context, labels: str) -> Callable[[np.ndarray], np.ndarray]:
  """A label source, of teachers, as a function of normalised images (n, h, w, c), giving (n, k)."""
  made = ctx.label_source(labels)
  if made.kind != "teacher":
    raise LtddError(
      f"config.label.sources.{labels} is {made.kind!r}; this study shows images to the source and "
      "expects a label source 'teacher'"
    )
  teachers = ctx.teachers(made.teachers)
  networks, variables = zip(*((t.model, t.variables) for t in teachers), strict=True)
  return in_batches(lambda x: label_lib.teacher_logits(networks, variables, x, made.aggregate))


def in_batches(fn: Callable[[jax.Array], jax.Array]) -> Callable[[np.ndarray], np.ndarray]:
  """Compiles a function of images once, for batches of one size over all devices."""
  mesh = mesh_lib.make_mesh()
  compiled = jax.jit(lambda images: fn(mesh_lib.split_batch(mesh, 0.0 + images)))
  step = lambda images, rows, counts: compiled(images[rows])
  return lambda images: forward.outputs(step, images, len(images), _BATCH)


def make_views(ctx: Context, source: str, num_epochs: int) -> np.ndarray:
  """The first views (e, n, h, w, c) of an image source, those that students see, normalised."""
  num_epochs = min(num_epochs, ctx.config["label"]["num_epochs"])
  distilled = ctx.distilled(source)
  images, targets = (jax.numpy.asarray(distilled[k]) for k in ("images", "labels"))
  views_of = jax.jit(views_lib.view_fn(ctx.source.spec, **ctx.views(source)))
  key = label_lib.view_key(ctx.config["seed"], source)
  rows = np.arange(len(targets), dtype=np.int32)
  epochs = [np.full_like(rows, t) for t in range(num_epochs)]
  return np.stack([np.asarray(views_of(key, images, targets, rows, e).images) for e in epochs])


def calibrate_logits(ctx: Context, row: Row, logits: np.ndarray) -> np.ndarray:
  """Applies a fitted calibrator to other logits (n, k) of the same teachers."""
  calibrator, params = stages.load_params(ctx, row)
  return np.asarray(calibrator.apply(params, logits, ctx.log_prior(row)))


def plain_name(config: Mapping[str, Any]) -> str:
  """What the config calls plain soft labels, or "plain" if it has none."""
  calibrators = config["calibrate"]["calibrators"]
  return next((k for k, v in calibrators.items() if v["name"] == "none"), "plain")


def with_plain(config: Mapping[str, Any]) -> dict[str, Any]:
  """A config that has plain soft labels among its calibrators."""
  return _with_calibrators(
    config, {plain_name(config): {"name": "none"}} | dict(config["calibrate"]["calibrators"])
  )


def without_probes(config: Mapping[str, Any]) -> dict[str, Any]:
  """A config without the calibrators that train a student."""
  known = config["calibrate"]["calibrators"]
  asks = lambda v: "probe" in calibrate.make_calibrator(**v).needs
  return _with_calibrators(config, {k: v for k, v in known.items() if not asks(v)})


def _with_calibrators(config: Mapping[str, Any], calibrators: Any) -> dict[str, Any]:
  return {**config, "calibrate": {**config["calibrate"], "calibrators": calibrators}}


def seconds(ctx: Context) -> float:
  """Wall time of all stages of a run."""
  found = graph.make_stages(ctx)
  return sum(ctx.workdir.load(s.name).meta["seconds"] for s in found if ctx.workdir.exists(s.name))


def jsonable(value: Any) -> Any:
  """Arrays, records and numbers as plain JSON values, None for NaN."""
  if isinstance(value, Mapping):
    return {str(k): jsonable(v) for k, v in value.items()}
  if isinstance(value, tuple) and hasattr(value, "_asdict"):
    return jsonable(value._asdict())
  if isinstance(value, np.ndarray | np.generic):
    value = value.tolist()
  if isinstance(value, list | tuple):
    return [jsonable(v) for v in value]
  return None if isinstance(value, float) and not np.isfinite(value) else value
