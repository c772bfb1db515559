"""What is said where artefacts are there that were made from something else."""

import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from etils import epath

from ltdd_jax.artefacts import manifest
from ltdd_jax.core import config as config_lib

_DEEPEST = 4  # parts of the longest name of a stage, "calibrate/sre2l/teacher/adsa"


def explain(
  root: epath.Path,
  found: Sequence[tuple[Mapping[str, Any], Mapping[str, Any], Mapping[str, str]]],
) -> str:
  """Says all that differs between artefacts and what is wanted, and all that is to be deleted.

  Args:
    root: the work directory.
    found: for each artefact its meta, and the config and the inputs {stage: fingerprint} wanted.
  """
  stages = {meta["stage"] for meta, *_ in found}
  made = _made_from(root, stages)
  changes: dict[str, set[str]] = {}  # {a line: stages}
  for meta, config, inputs in found:
    pairs = config_lib.diff(meta["config"], config)
    lines = [f"{k}: {_show(old)} -> {_show(new)}" for k, (old, new) in pairs.items()]
    if not lines:  # an input that is there itself is explained by its own lines
      pairs = config_lib.diff(meta["inputs"], inputs)
      lines = [f"input {k}: {a[:12]} -> {b[:12]}" for k, (a, b) in pairs.items() if k not in stages]
    for line in lines:
      changes.setdefault(line, set()).add(meta["stage"])
  of_inputs, of_code = (all(k.startswith(x) for k in changes) for x in ("input ", "version."))
  what = "by code that gives other results" if of_code else "with another config"
  return "\n".join(
    [
      f"{root} has artefacts that were made {'from other inputs' if of_inputs else what}:",
      *(f"  {line} ({', '.join(_short(x, made))})" for line, x in changes.items()),
      "Use another --workdir, or delete all that was made so: "
      + " ".join(str(root / x) for x in _short({s for s, old in made.items() if old}, made)),
    ]
  )


def _made_from(root: epath.Path, stages: Collection[str]) -> dict[str, bool]:
  """Of each artefact, whether it is one of `stages` or was made from one, directly or not."""
  reads = {}
  for depth in range(_DEEPEST):
    for path in root.glob(f"[!.]*/{'*/' * depth}{manifest.META}"):
      name = path.parent.relative_to(root).as_posix()
      reads[name] = set(manifest.read_meta(path.parent)["inputs"])
  found = set(stages)
  while more := {s for s in reads if s not in found and reads[s] & found}:
    found |= more
  return {s: s in found for s in reads}


def _short(stages: Collection[str], known: Collection[str]) -> list[str]:
  """Names of stages; `student` alone stands for all below it."""
  kind = lambda name: name.split("/")[0]
  partly = {kind(s) for s in known if s not in stages}
  return sorted({s if kind(s) in partly else kind(s) for s in stages})


def _show(value: Any) -> str:
  return value if value == config_lib.ABSENT else json.dumps(value)
