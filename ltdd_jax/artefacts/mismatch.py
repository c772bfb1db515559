"""What is said where an artefact is there that was made from something else."""

import json
from collections.abc import Mapping
from typing import Any

from etils import epath

from ltdd_jax.artefacts import manifest
from ltdd_jax.core import config as config_lib

_DEEPEST = 3  # parts of the longest name of a stage, "calibrate/x/adsa"


def explain(
  root: epath.Path,
  meta: Mapping[str, Any],
  config: Mapping[str, Any],
  inputs: Mapping[str, str],
) -> str:
  """Says what differs between an artefact and what is wanted, and what to delete.

  Args:
    root: the work directory.
    meta: of the artefact that is there.
    config: the part of the config that the stage depends on.
    inputs: {stage: fingerprint} of what it reads.
  """
  folder = root / meta["stage"]
  if changes := config_lib.diff(meta["config"], config):
    of_code = all(key.startswith("version.") for key in changes)
    what = f"was made {'by code that gives other results' if of_code else 'with another config'}"
    lines = [f"  {k}: {_show(old)} -> {_show(new)}" for k, (old, new) in changes.items()]
  else:
    what = "has this config, but was made from other inputs (fingerprints)"
    differ = config_lib.diff(meta["inputs"], inputs)
    lines = [f"  {k}: {old[:12]} -> {new[:12]}" for k, (old, new) in differ.items()]
  advice = f"Use another --workdir, or delete {folder}"
  if later := _made_from(root, meta["stage"]):
    advice += f" and what was made from it: {' '.join(str(root / x) for x in later)}"
  return "\n".join([f"{folder} {what}:", *lines, advice])


def _made_from(root: epath.Path, stage: str) -> list[str]:
  """Folders made from `stage`, directly or not; `student` alone stands for all below it."""
  reads = {}
  for depth in range(_DEEPEST):
    for path in root.glob(f"[!.]*/{'*/' * depth}{manifest.META}"):
      name = path.parent.relative_to(root).as_posix()
      reads[name] = set(manifest.read_meta(path.parent)["inputs"])
  found: set[str] = set()
  while more := {s for s in reads if s not in found and reads[s] & {stage, *found}}:
    found |= more
  kind = lambda name: name.split("/")[0]
  partly = {kind(s) for s in reads if s not in found}
  return sorted({s if kind(s) in partly else kind(s) for s in found})


def _show(value: Any) -> str:
  return value if value == config_lib.ABSENT else json.dumps(value)
