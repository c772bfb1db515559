"""What studies share: starting runs inside their folder, and reading what runs left there."""

import dataclasses
import json
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from etils import epath

from ltdd_jax import calibrate, pipeline
from ltdd_jax.artefacts import workdir as workdir_lib
from ltdd_jax.core import files
from ltdd_jax.pipeline import check, graph, stages
from ltdd_jax.pipeline.context import Context, Row

_CHUNK = 1 << 22  # logits that are calibrated at once


@dataclasses.dataclass(frozen=True)
class Runner:
  """Starts runs of the pipeline in folders of a study's work directory."""

  workdir: epath.Path
  cache: files.Pathlike
  dry_run: bool = False
  checkpoint_seconds: float = 30.0
  show_progress: bool = True

  def __call__(self, name: str, config: Mapping[str, Any], stage: str | None = None) -> None:
    """Runs a config in `workdir/name`, up to a stage or to the end, or prints its plan."""
    if self.dry_run:
      print(f"---- {name}")
    pipeline.run(
      config,
      self.workdir / name,
      cache=self.cache,
      stage=stage,
      dry_run=self.dry_run,
      checkpoint_seconds=self.checkpoint_seconds,
      show_progress=self.show_progress,
    )

  def context(self, name: str, config: Mapping[str, Any]) -> Context:
    """A finished run, to read from."""
    return Context(check.check(config), workdir_lib.Workdir(self.workdir / name))

  def write_report(self, name: str, results: Mapping[str, Any], text: str) -> epath.Path:
    """Writes `report/NAME.json` and `report/NAME.md`, prints the latter; returns the folder.

    Of a pod, the first process writes and prints.
    """
    folder = self.workdir / "report"
    if jax.process_index() == 0:
      content = json.dumps(results, indent=1, allow_nan=False)
      files.write_text(folder / f"{name}.json", content + "\n")
      files.write_text(folder / f"{name}.md", text)
      print(text)
    return folder


def label_chunks(ctx: Context, row: Row, num_epochs: int | None = None) -> Iterator[np.ndarray]:
  """Calibrated logits (e, n, k) float32 of a row's labels, some label epochs at a time."""
  calibrator, params = stages.load_params(ctx, row)
  log_prior, apply = ctx.log_prior(row), jax.jit(calibrator.apply)
  store = stages.open_store(ctx, row)
  epochs, n, k = store.shape
  epochs = min(epochs, num_epochs or epochs)
  step = max(1, _CHUNK // (n * k))
  for start in range(0, epochs, step):
    logits = store.logits(start, min(start + step, epochs))
    yield np.asarray(apply(params, logits, log_prior))


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
  calibrators = {plain_name(config): {"name": "none"}} | dict(config["calibrate"]["calibrators"])
  return _with_calibrators(config, calibrators)


def without_probes(config: Mapping[str, Any]) -> dict[str, Any]:
  """A config without the calibrators that train a student."""
  known = config["calibrate"]["calibrators"]
  needs = lambda v: calibrate.make_calibrator(**v).needs
  kept = {k: v for k, v in known.items() if "probe" not in needs(v)}
  return _with_calibrators(config, kept)


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
