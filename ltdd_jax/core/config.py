"""Configs: compare them, check them against the functions they configure, parse their arguments.

  check_groups(config, {"data": data_options, "distil.methods.*": METHODS})
  diff({"a": {"lr": 0.1}}, {"a": {"lr": 0.2}})            # {"a.lr": (0.1, 0.2)}
  parse_arg("ipc=50,preset=cpu", ipc=10, preset="full")   # namespace(ipc=50, preset='cpu')

A group of a config is the keyword-only arguments of one function, so Python's signature is the
schema. Leading positional parameters are the program's to fill in.
"""

import difflib
import inspect
import json
import math
import pathlib
import re
import types
import typing
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np

from ltdd_jax.core.types import LtddError

REQUIRED = inspect.Parameter.empty


class Key(NamedTuple):
  """A key of a group that none of its functions takes: the program itself reads it."""

  annotation: Any
  default: Any = REQUIRED


class Group(NamedTuple):
  """A config group that several functions share: the union of their keyword-only arguments.

  Attributes:
    functions: those that the group configures.
    own: further keys, which name nested groups or are read by the program itself.
    hidden: arguments that are the program's and not the user's.
  """

  functions: tuple[Callable[..., Any], ...] = ()
  own: Mapping[str, Key] = types.MappingProxyType({})
  hidden: tuple[str, ...] = ()


Factory = Callable[..., Any] | Group
Schema = Mapping[str, Factory | Mapping[str, Factory]]

ABSENT = "(absent)"  # stands for a key that one of two configs lacks

# ---- canonical values, flattening and differences ----


def canonical(value: Any, where: str = "config") -> Any:
  """Turns a config into plain JSON values, the same for equal configs.

  Tuples become lists, NumPy scalars Python numbers, paths strings, ConfigDicts dicts.

  Args:
    value: nested mappings and sequences of None, booleans, numbers, strings and paths.
    where: name of the value, for messages.

  Raises:
    LtddError: a number that is not finite, a key that is not a string, or another kind of value.
  """
  if hasattr(value, "to_dict"):
    value = value.to_dict()
  if isinstance(value, np.ndarray | np.generic):
    value = value.tolist()
  if value is None or isinstance(value, bool | int | str):
    return value
  if isinstance(value, float):
    if math.isfinite(value):
      return value
    raise LtddError(f"{where} is {value}; expected a finite number, or None to leave it out")
  if isinstance(value, pathlib.PurePath):
    return str(value)
  if isinstance(value, Mapping):
    if bad := [k for k in value if not isinstance(k, str)]:
      raise LtddError(f"{where} has the key {bad[0]!r}; expected keys that are strings")
    return {k: canonical(value[k], f"{where}.{k}") for k in sorted(value)}
  if isinstance(value, list | tuple):
    return [canonical(v, f"{where}.{i}") for i, v in enumerate(value)]
  raise LtddError(
    f"{where} is a {type(value).__name__}; expected None, a bool, a number, a string, or lists and "
    "dicts of them"
  )


def flatten(config: Any) -> dict[str, Any]:
  """Flattens a config to {dotted key: canonical value}; empty dicts and plain lists are values."""
  out: dict[str, Any] = {}

  def walk(prefix: str, value: Any) -> None:
    if isinstance(value, list) and any(isinstance(v, dict) for v in value):
      value = dict(enumerate(value))
    if isinstance(value, dict) and value:
      for key, inner in value.items():
        walk(f"{prefix}.{key}" if prefix else str(key), inner)
    else:
      out[prefix] = value

  plain = canonical(config)
  if plain != {}:
    walk("", plain)
  return out


def diff(old: Any, new: Any) -> dict[str, tuple[Any, Any]]:
  """Lists what differs: {dotted key: (old, new)}, with ABSENT where a key is missing."""
  old, new = flatten(old), flatten(new)
  pairs = {
    k: (old.get(k, ABSENT), new.get(k, ABSENT)) for k in [*old, *(k for k in new if k not in old)]
  }
  return {k: (a, b) for k, (a, b) in pairs.items() if json.dumps(a) != json.dumps(b)}


# ---- checks against signatures ----


def suggest(name: Any, options: Iterable[str]) -> str:
  """Says "Did you mean 'x'?" for the nearest option, or nothing."""
  known = {option.lower(): option for option in options}
  near = difflib.get_close_matches(str(name).lower(), known, n=1)
  return f"Did you mean {known[near[0]]!r}?" if near else ""


def parameters(factory: Factory, skip_positional: bool = True) -> dict[str, inspect.Parameter]:
  """The parameters of a factory or a group that a config may set."""
  if isinstance(factory, Group):
    known = {k: p for f in factory.functions for k, p in parameters(f).items()}
    own = {
      k: inspect.Parameter(k, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind)
      for k, (kind, default) in factory.own.items()
    }
    return {k: p for k, p in (known | own).items() if k not in factory.hidden}
  kinds: list[Any] = [inspect.Parameter.KEYWORD_ONLY]
  if not skip_positional:
    kinds.append(inspect.Parameter.POSITIONAL_OR_KEYWORD)
  return {k: p for k, p in inspect.signature(factory).parameters.items() if p.kind in kinds}


def bind(
  where: str, factory: Factory, kwargs: Mapping[str, Any], skip_positional: bool = True
) -> None:
  """Checks keyword arguments against a factory's signature without calling it.

  Args:
    where: what is being configured, for messages: "config.distil.methods.sre2l".
    factory: a function; if it has `**kwargs`, it takes any key.
    kwargs: arguments for it.
    skip_positional: whether positional parameters are the program's, and so unknown here.

  Raises:
    LtddError: an unknown or missing key, or a value of the wrong simple type.
  """
  known = parameters(factory, skip_positional)
  takes = f"{_name(factory, where)} takes ({_render(known)})"
  if not _takes_any(factory):
    for key in kwargs:
      if key not in known:
        hint = suggest(key, known)
        raise LtddError(f"{where}: unexpected key {key!r}. {hint}{' ' if hint else ''}{takes}")
  for key, p in known.items():
    if key not in kwargs:
      if p.default is p.empty:
        raise LtddError(f"{where}: missing key {key!r}. {takes}")
    elif not _fits(kwargs[key], p.annotation) and kwargs[key] is not p.default:
      if isinstance(kwargs[key], str) and p.annotation == Mapping[str, Any]:
        raise LtddError(
          f"{where}: {key} is {kwargs[key]!r} (str); expected a dict with a name and the arguments "
          f"that go with it, as {{'name': {kwargs[key]!r}}}"
        )
      raise LtddError(
        f"{where}: {key} is {kwargs[key]!r} ({type(kwargs[key]).__name__}); expected "
        f"{_annotation(p)}. {takes}"
      )


def with_defaults(factory: Factory, kwargs: Mapping[str, Any]) -> dict[str, Any]:
  """Adds the defaults of a factory's keyword-only parameters to its arguments."""
  known = parameters(factory)
  return {k: p.default for k, p in known.items() if p.default is not p.empty} | dict(kwargs)


def check_groups(
  config: Any,
  schema: Schema,
  scalars: Mapping[str, type] = types.MappingProxyType({"seed": int}),
) -> None:
  """Checks each group of a config against the function that it configures.

  Args:
    config: a ConfigDict or a dict of groups.
    schema: {dotted name: function}, or {dotted name: {name: function}} for a group whose key `name`
      chooses among them. A part `*` stands for every key, or every entry of a list.
    scalars: values at the top level that belong to no group, with their types.

  Raises:
    LtddError: a group, name, key or type that does not fit, or a group that is missing.
  """
  config = config.to_dict() if hasattr(config, "to_dict") else config
  groups = {path.split(".")[0] for path in schema}
  known = sorted(groups | set(scalars))
  for key in config:
    if key not in known:
      hint = suggest(key, known)
      raise LtddError(
        f"config: unexpected group {key!r}. {hint}{' ' if hint else ''}Groups: {', '.join(known)}."
      )
  for key in known:
    if key not in config:
      raise LtddError(f"config: {key!r} is missing; expected all of {', '.join(known)}")
  for key, kind in scalars.items():
    if not _fits(config[key], kind):
      raise LtddError(f"config.{key} is {config[key]!r}; expected {kind.__name__}")
  for path, target in schema.items():
    for where, group, siblings in _find(config, path.split("."), "config"):
      _check_group(where, group, target, siblings)


def _find(
  node: Any, path: Sequence[str], where: str, siblings: Collection[str] = ()
) -> Iterable[tuple[str, Any, Collection[str]]]:
  """Finds the groups of a path, each with the other keys beside it where the path ends in `*`."""
  if not path:
    yield where, node, siblings
  elif path[0] == "*":
    if isinstance(node, list | tuple):
      node = {str(i): inner for i, inner in enumerate(node)}
    for key, inner in node.items() if isinstance(node, Mapping) else ():
      yield from _find(inner, path[1:], f"{where}.{key}", [k for k in node if k != key])
  elif isinstance(node, Mapping) and path[0] in node:
    inner = node[path[0]]
    if inner is not None or where == "config":  # else the signature around it says if it may be
      yield from _find(inner, path[1:], f"{where}.{path[0]}")


def _check_group(
  where: str,
  group: Any,
  target: Factory | Mapping[str, Factory],
  siblings: Collection[str],
) -> None:
  if not isinstance(group, Mapping):
    raise LtddError(f"{where} is {group!r}; expected a dict of arguments")
  if isinstance(target, Group) or not isinstance(target, Mapping):
    bind(where, target, group)
    return
  kwargs = dict(group)
  name = kwargs.pop("name", None)
  options = ", ".join(sorted(target))
  if name is None:
    hint = suggest(where.rpartition(".")[2], siblings)
    raise LtddError(f"{where}: missing key 'name'; expected one of {options}. {hint}".rstrip())
  if not isinstance(name, str) or name not in target:
    hint = suggest(name, target)
    raise LtddError(f"{where}: unknown name {name!r}. {hint}{' ' if hint else ''}Known: {options}.")
  try:
    bind(where, target[name], kwargs)
  except LtddError as error:
    of_others = {k for f in target.values() for k in parameters(f)} - {*parameters(target[name])}
    if not of_others & {*kwargs}:
      raise
    raise LtddError(
      f"{error}. If the name was changed, give the dict whole, as {{'name': {name!r}}}"
    ) from error


def _takes_any(factory: Factory) -> bool:
  if isinstance(factory, Group):
    return False
  return any(p.kind is p.VAR_KEYWORD for p in inspect.signature(factory).parameters.values())


def _name(factory: Factory, where: str) -> str:
  if isinstance(factory, Group):
    if len(factory.functions) != 1:
      return where
    (factory,) = factory.functions
  return getattr(factory, "__name__", type(factory).__name__)


def _render(known: Mapping[str, inspect.Parameter]) -> str:
  if not known:
    return "no arguments"
  text = str(inspect.Signature([p.replace(kind=p.KEYWORD_ONLY) for p in known.values()]))
  return _short(text[1:-1])


def _short(text: str) -> str:
  return re.sub(r"\b(?:collections\.abc|typing|types|ltdd_jax(?:\.\w+)*)\.", "", text)


def _annotation(p: inspect.Parameter) -> str:
  return _short(inspect.formatannotation(p.annotation))


_SIMPLE: dict[Any, tuple[type, ...]] = {
  bool: (bool, np.bool_),
  int: (int, np.integer),
  float: (int, float, np.integer, np.floating),
  str: (str, pathlib.PurePath),
  tuple: (tuple, list),
  list: (tuple, list),
  Sequence: (tuple, list, np.ndarray),
  dict: (Mapping,),
  Mapping: (Mapping,),
  type(None): (type(None),),
}


def _fits(value: Any, annotation: Any) -> bool:
  """Whether a value, with its elements, has a simple type; True for annotations that are not."""
  origin = typing.get_origin(annotation)
  if origin in (typing.Union, types.UnionType):
    return any(_fits(value, a) for a in typing.get_args(annotation))
  if origin is typing.Literal:
    return value in typing.get_args(annotation)
  if annotation is None:
    annotation = type(None)
  simple = _SIMPLE.get(origin or annotation) if isinstance(origin or annotation, type) else None
  if simple is None:
    return True
  if isinstance(value, bool) and bool not in simple:
    return False
  return isinstance(value, simple) and _elements_fit(value, origin, typing.get_args(annotation))


def _elements_fit(value: Any, origin: Any, kinds: tuple[Any, ...]) -> bool:
  if not kinds or origin not in (tuple, list, Sequence):
    return True
  if origin is tuple and kinds[-1] is not Ellipsis:
    return len(value) == len(kinds) and all(map(_fits, value, kinds))
  return all(_fits(element, kinds[0]) for element in value)


# ---- arguments of config files ----


def parse_arg(arg: str | None, **defaults: Any) -> SimpleNamespace:
  """Parses the argument of a config file: "method=sre2l,imbalance=100,preset=cpu".

  Args:
    arg: comma-separated `key=value` pairs; a bare `key` sets a boolean; None or "" for none.
    **defaults: all keys, with values whose types the values get.

  Raises:
    LtddError: an unknown or repeated key, or a value that is not of the default's type.
  """
  values = dict(defaults)
  seen = set()
  for item in filter(None, (x.strip() for x in (arg or "").split(","))):
    key, equals, text = (x.strip() for x in item.partition("="))
    if key not in defaults:
      hint = suggest(key, defaults)
      options = ", ".join(f"{k}={v}" for k, v in defaults.items())
      raise LtddError(
        f"config argument {key!r} is unknown. {hint}{' ' if hint else ''}Arguments and their "
        f"defaults: {options}."
      )
    if key in seen:
      raise LtddError(f"config argument {key!r} is given twice in {arg!r}; expected once")
    seen.add(key)
    values[key] = _parse_value(key, text if equals else None, defaults[key])
  return SimpleNamespace(**values)


_BOOLEANS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


def _parse_value(key: str, text: str | None, default: Any) -> Any:
  if isinstance(default, bool):
    value: Any = True if text is None else _BOOLEANS.get(text.lower())
    if value is None:
      raise LtddError(f"config argument {key}={text}: expected true or false")
    return value
  kind = str if default is None else type(default)
  if not text:
    raise LtddError(f"config argument {key!r} has no value; expected {key}=<{kind.__name__}>")
  try:
    value = kind(text)
  except ValueError as error:
    raise LtddError(f"config argument {key}={text}: expected {kind.__name__}") from error
  if isinstance(value, float) and not math.isfinite(value):
    raise LtddError(f"config argument {key}={text}: expected a finite number")
  return value
