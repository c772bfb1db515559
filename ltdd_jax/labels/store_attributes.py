"""Attributes of a label store: what is in its `zarr.json`, and whether it is what is wanted."""

import dataclasses
import itertools
import json
import pathlib
import reprlib
from collections.abc import Mapping, Sequence
from typing import Any

from ltdd_jax.core import config as config_lib
from ltdd_jax.core import files
from ltdd_jax.core.types import LtddError
from ltdd_jax.labels.encoding import Encoding

FORMAT = 1
KEY = "ltdd_jax.labels"  # of the group's attributes
NAME = "zarr.json"


def make(
  shape: Sequence[int], encoding: Encoding, class_names: Sequence[str], facts: Mapping[str, Any]
) -> dict[str, Any]:
  """The attributes of a store (e, n, k), as JSON values."""
  about = {
    "format": FORMAT,
    "shape": [int(x) for x in shape],
    "encoding": dataclasses.asdict(encoding),
    "columns": encoding.columns(shape[2]),
    "class_names": list(class_names),
    "facts": facts,
  }
  return config_lib.canonical(about, "label store")


def write(path: pathlib.Path, about: Mapping[str, Any]) -> None:
  """Makes the group of a store in folder `path`."""
  group = {"zarr_format": 3, "node_type": "group", "attributes": {KEY: about}}
  files.write_text(path / NAME, json.dumps(group, indent=1, allow_nan=False) + "\n")


def read(path: pathlib.Path) -> dict[str, Any]:
  """The attributes of the store in folder `path`; LtddError if there is none, or a damaged one."""
  try:
    about = json.loads((path / NAME).read_text(encoding="utf-8"))["attributes"][KEY]
    number = about["format"]
  except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
    raise LtddError(
      f"{path} is no label store of ltdd_jax: {NAME} is missing, damaged or another program's "
      f"({type(error).__name__}: {error})"
    ) from error
  if number != FORMAT:
    raise LtddError(
      f"label store {path} has format {number!r}, and this version of ltdd_jax reads format "
      f"{FORMAT}. Label the images anew, or use the version that wrote it."
    )
  if wrong := wrong_field(about):
    raise LtddError(
      f"label store {path} is damaged: {wrong}, in the attributes of {NAME}. Delete {path} and "
      "label the images anew."
    )
  return about


def wrong_field(about: Mapping[str, Any]) -> str | None:
  """Says what is wrong with attributes of the right format: "shape is [0, 2, 3]; expected ..."."""
  shape, names = about.get("shape"), about.get("class_names")
  sizes = isinstance(shape, list) and [type(x) for x in shape] == [int] * 3 and min(shape) > 0
  k = shape[2] if sizes else 0
  strings = isinstance(names, list) and all(isinstance(name, str) for name in names)
  good = {
    "shape": (sizes, "three sizes, 1 or more each"),
    "encoding": (_is_encoding(about.get("encoding"), k), f"dtype, top_k and rest for {k} classes"),
    "class_names": (strings and len(names) == k, f"{k} names, one for each class"),
    "facts": (isinstance(about.get("facts"), dict), "an object"),
  }
  for key, (fine, expected) in good.items():
    if not fine:
      return f"{key} is {reprlib.repr(about.get(key))}; expected {expected}"
  return None


def _is_encoding(value: Any, k: int) -> bool:
  try:
    Encoding(**value).check(k)
  except (LtddError, TypeError):
    return False
  return set(value) == {field.name for field in dataclasses.fields(Encoding)}


def check_same(path: pathlib.Path, want: Mapping[str, Any], found: Mapping[str, Any]) -> None:
  """Raises LtddError with what differs between the attributes that are wanted and found."""
  check_classes(path, want["class_names"], found["class_names"])
  if changes := config_lib.diff(found, want):
    lines = [f"  {k}: {json.dumps(a)} -> {json.dumps(b)}" for k, (a, b) in changes.items()]
    raise LtddError(
      "\n".join([f"label store {path} holds other labels:", *lines])
      + f"\nUse another folder, or delete {path}"
    )


def check_classes(path: pathlib.Path, want: Sequence[str], found: Sequence[str]) -> None:
  """Raises LtddError with the first class that differs: there may be a thousand."""
  for c, (there, here) in enumerate(itertools.zip_longest(found, want)):
    if there != here:
      raise LtddError(
        f"label store {path} was made with another class map: class {c} is {there!r} there (of "
        f"{len(found)}) and {here!r} here (of {len(want)}). Use labels of this data set, or label "
        "its images anew."
      )
