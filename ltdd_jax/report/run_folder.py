"""What a work directory holds, for reports: all that is there, and what is missing or damaged.

  run = read("runs/digits")
  run.results["rows"], run.missing

Nothing but files is read: no data set, no network, no device. A run may be unfinished, damaged or
of another version: then `missing` says what a report has to leave out.
"""

import json
import zipfile
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from ltdd_jax.artefacts import manifest
from ltdd_jax.core import files
from ltdd_jax.core.types import LtddError
from ltdd_jax.report import tables

MAX_POINTS = 200  # of a training curve
MATRICES = "matrices.npz"
KINDS = (  # of stages: the first folder of their names
  "data", "teacher", "statistics", "trajectories", "distil", "label", "probe", "calibrate",
  "student",
)  # fmt: skip
_ROW = ("images", "labels", "calibrator", "top1", "groups", "per_class", "images_per_class")
DAMAGED = (  # what reading files of others may raise
  OSError, ValueError, LookupError, TypeError, AttributeError, EOFError, zipfile.BadZipFile,
  LtddError,
)  # fmt: skip


class Run(NamedTuple):
  """The content of a work directory; None or empty where there is none."""

  name: str
  path: epath.Path
  results: dict[str, Any] | None  # report/results.json
  config: dict[str, Any] | None
  starts: list[dict[str, Any]]  # of runs.jsonl
  stages: dict[str, dict[str, Any]]  # {stage: manifest} of finished ones
  matrices: dict[str, np.ndarray]  # of `pipeline.matrices`
  images: dict[str, dict[str, np.ndarray]]  # {image source: images, labels}
  neighbours: dict[str, dict[str, np.ndarray]]  # {image source: nearest training images}
  scores: dict[str, Any] | None  # of `launch.score`
  curves: dict[str, tuple[list[int], list[float]]]  # {loop: (steps, losses)}
  missing: list[str]  # sentences


def read(workdir: files.Pathlike) -> Run:
  """Reads a work directory.

  Raises:
    LtddError: there is no such folder, or nothing of a run in it.
  """
  path = files.path(workdir)
  if not path.is_dir():
    raise LtddError(f"{workdir}: there is no such folder; expected the work directory of a run")
  missing: list[str] = []
  report, scored = path / "report", path / "scores" / "report" / "scores.json"
  results = _attempt(missing, "report/results.json", _results, report / "results.json")
  run = Run(
    name=path.resolve().name,
    path=path,
    results=results,
    config=_attempt(missing, "config.json", _json, path / "config.json"),
    starts=_attempt(missing, "runs.jsonl", _lines, path / "runs.jsonl") or [],
    stages=_stages(path, missing),
    matrices=_attempt(missing, f"report/{MATRICES}", _npz, report / MATRICES) or {},
    images=_images(path, missing),
    neighbours={
      file.stem.removeprefix("neighbours-"): found
      for file in sorted(report.glob("neighbours-*.npz"))
      if (found := _attempt(missing, f"report/{file.name}", _npz, file))
    },
    scores=_attempt(missing, "scores", _json, scored) if scored.exists() else None,
    curves=dict(_curves(path / "metrics", missing)),
    missing=missing,
  )
  if not (run.results or run.config or run.stages):
    raise LtddError(
      f"{workdir}: there is no config.json, no artefact and no report in it, so it is no work "
      "directory of a run. Expected what --workdir names"
    )
  return run


def _attempt(
  missing: list[str], name: str, load: Callable[[epath.Path], Any], path: epath.Path
) -> Any:
  """What `load` makes of a path; None if it is not there or cannot be read, which is noted."""
  try:
    return load(path)
  except FileNotFoundError:
    missing.append(f"{name} is not there")
  except DAMAGED as error:
    said = next(iter(str(error).splitlines()), repr(error))
    missing.append(f"{name} cannot be read: {said}")
  return None


def _text(path: epath.Path) -> str:
  if not path.exists():
    raise FileNotFoundError(path)
  return path.read_text()


def _json(path: epath.Path) -> dict[str, Any]:
  found = json.loads(_text(path))
  if not isinstance(found, dict):
    raise ValueError("it holds no JSON object")
  return found


def _results(path: epath.Path) -> dict[str, Any]:
  results = _json(path)
  if results.get("schema") != tables.SCHEMA:
    raise ValueError(
      f"it has schema {results.get('schema')}, not {tables.SCHEMA}; run its command again"
    )
  if not results["rows"]:
    raise ValueError("it has no rows")
  for row in results["rows"]:
    if lacking := [key for key in _ROW if key not in row]:
      raise ValueError(f"it has a row without {lacking[0]!r}")
  return results


def _lines(path: epath.Path) -> list[dict[str, Any]]:
  """Lines of JSON; a last one that a kill has cut is left out."""
  lines = _text(path).splitlines()
  cut = bool(lines) and not lines[-1].rstrip().endswith("}")
  return [json.loads(line) for line in (lines[:-1] if cut else lines)]


def _points(path: epath.Path) -> list[tuple[int, float]]:
  """Steps and losses of a loop, those that are finite."""
  points = [(int(r["step"]), float(r["loss"])) for r in _lines(path) if "loss" in r]
  return [p for p in points if np.isfinite(p[1])]


def _npz(path: epath.Path) -> dict[str, np.ndarray]:
  if not path.exists():
    raise FileNotFoundError(path)
  with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
    return {name: stored[name] for name in stored.files}


def _stages(path: epath.Path, missing: list[str]) -> dict[str, dict[str, Any]]:
  """Manifests of finished stages, by name."""
  found = {}
  patterns = (kind + "/*" * depth + "/" + manifest.META for kind in KINDS for depth in range(4))
  for meta in sorted(file for pattern in patterns for file in path.glob(pattern)):
    name = meta.parent.relative_to(path).as_posix()
    about = _attempt(missing, f"{name}/{manifest.META}", manifest.read_meta, meta.parent)
    if about:
      found[name] = about
  return found


def _images(path: epath.Path, missing: list[str]) -> dict[str, dict[str, np.ndarray]]:
  found = {}
  for meta in sorted(path.glob("distil/*/" + manifest.META)):
    name = meta.parent.relative_to(path).as_posix()
    artefact = _attempt(missing, name, manifest.open_artefact, meta.parent)
    if artefact:
      found[meta.parent.name] = {k: artefact.arrays[k] for k in ("images", "labels")}
  return found


def _curves(
  folder: epath.Path, missing: list[str]
) -> Iterator[tuple[str, tuple[list[int], list[float]]]]:
  for file in sorted(files.below(folder)) if folder.is_dir() else ():
    if file.name != "metrics.jsonl":
      continue
    name = file.parent.relative_to(folder).as_posix()
    points = _attempt(missing, f"metrics/{name}", _points, file) or []
    if len(points) > 1:
      points = points[:: -(-len(points) // MAX_POINTS)]
      yield name, tuple(map(list, zip(*points, strict=True)))  # type: ignore[misc]
