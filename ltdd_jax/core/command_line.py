"""Config files and what the command line changes in them.

  config = read_config("configs/digits_lt.py:ipc=10")     # a plain dict
  config = read_config("runs/digits/config.json")         # that of an earlier run
  config = override(config, ["--config.student.ema=None", "--config.data.counts=(9,3,1)"])

Values are Python literals, or else text. Any key can be given: `pipeline.check` refuses those that
no function takes.
"""

import ast
import copy
import importlib.util
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from ltdd_jax.core import files
from ltdd_jax.core.config import suggest
from ltdd_jax.core.types import LtddError

_OVERRIDE = re.compile(r"--?config\.([\w.-]+)(?:=(.*))?", re.DOTALL)
_WORDS = {"true": True, "false": False}


def read_config(name: str) -> dict[str, Any]:
  """Runs `get_config` of a config file, with the argument that follows a colon, or reads JSON.

  A `.json` file is a config as runs write it (`config.json`); lists in it are tuples.

  Raises:
    LtddError: a file that is not there or has no such function, or an argument that it refuses.
  """
  config = _read_json(files.path(name)) if name.endswith(".json") else call(name, "get_config")
  config = config.to_dict() if hasattr(config, "to_dict") else config
  if not isinstance(config, Mapping):
    raise LtddError(f"the config of {name} is a {type(config).__name__}; expected a dict")
  return dict(config)


def read_defaults(name: str) -> dict[str, Any] | None:
  """Reads the config of a file without its argument; None if the file does not do without."""
  try:
    return read_config(name.partition(":")[0])
  except Exception:  # whatever a file makes of no argument; it is for the report alone
    return None


def call(name: str, function: str) -> Any:
  """Calls a function of a `.py` file, with the argument that follows a colon.

  Raises:
    LtddError: a file that is not there or has no such function.
  """
  text, colon, arg = name.partition(":")
  path = files.path(text)
  if path.suffix != ".py" or not path.is_file():
    there = [p.name for p in path.parent.glob("*.py")]
    text = f"--config is {name}: there is no config file {path}; expected a .py file. "
    raise LtddError((text + suggest(path.name, there)).rstrip(". "))
  spec = importlib.util.spec_from_file_location("config_file", path)
  assert spec is not None  # the file ends in .py
  assert spec.loader is not None
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  if not hasattr(module, function):
    raise LtddError(f"config file {path} has no function {function}; see configs/ for examples")
  return getattr(module, function)(*[arg] if colon else [])


def _read_json(path: Any) -> Any:
  """Reads a JSON file, its lists as tuples, which is what config files have."""
  try:
    return _tuples(json.loads(path.read_text()))
  except (OSError, ValueError) as error:
    raise LtddError(
      f"--config is {path}: it cannot be read ({error}); expected a JSON file with a config"
    ) from error


def _tuples(value: Any) -> Any:
  if isinstance(value, dict):
    return {key: _tuples(inner) for key, inner in value.items()}
  return tuple(map(_tuples, value)) if isinstance(value, list) else value


def override(config: Mapping[str, Any], args: Iterable[str]) -> dict[str, Any]:
  """Returns a config with values of the command line, of which the last of a key counts.

  Args:
    config: nested dicts.
    args: `--config.KEY=VALUE`, with dots between the parts of a key.

  Raises:
    LtddError: an argument without a value, a key within a value that has no keys, or a recipe.
  """
  out: dict[str, Any] = copy.deepcopy(dict(config))
  for arg in args:
    match = _OVERRIDE.fullmatch(arg)
    if match is None or match[2] is None:
      raise LtddError(f"{arg!r} has no value or no key; expected --config.KEY=VALUE")
    if match[1] == "student.recipe":
      raise LtddError(
        f"{arg}: this key is what the report says and changes no training; expected recipe=NAME "
        "after the config file, as in --config configs/digits_lt.py:recipe=rd3"
      )
    *parents, last = match[1].split(".")
    node = out
    for depth, key in enumerate(parents):
      if node.get(key) is None:
        node[key] = {}
      node = node[key]
      if not isinstance(node, dict):
        whole = ".".join(["config", *parents[: depth + 1]])
        raise LtddError(f"{arg}: {whole} is {node!r}, which has no keys; give it whole, --{whole}=")
    node[last] = _value(match[2], node.get(last))
  return out


def _value(text: str, old: Any) -> Any:
  """Reads a value; numbers become what the value in their place is, text or a float."""
  try:
    value = ast.literal_eval(text)
  except (ValueError, SyntaxError):
    value = _WORDS.get(text.lower(), text)
  if isinstance(old, str) and isinstance(value, bool | int | float):
    return text
  if isinstance(old, float) and type(value) is int:
    return float(value)
  return value
