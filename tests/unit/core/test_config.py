"""Configs: canonical values, differences, checks against signatures, arguments."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pytest
from ml_collections import ConfigDict, FrozenConfigDict

from ltdd_jax.core import config
from ltdd_jax.core.types import LtddError


def sre2l(env, /, *, num_steps: int = 1000, lr: float = 0.25, r_bn: float = 0.01):
  return env, num_steps, lr, r_bn


def data_options(
  *,
  name: str,
  counts: Sequence[int] | None = None,
  size: tuple[int, int] = (8, 8),
  test: bool = False,
  rule: Literal["ltdd", "ldam"] = "ltdd",
  more: Mapping[str, Any] | None = None,
):
  return name


METHODS = {"sre2l": sre2l, "random": lambda env, /: env}

# ---- canonical, flatten, diff ----


def test_canonical_makes_plain_json_values():
  value = ConfigDict({"b": (1, np.float64(0.5)), "a": {"x": np.arange(2), "p": None}})
  expected = {"a": {"p": None, "x": [0, 1]}, "b": [1, 0.5]}
  assert config.canonical(value) == expected
  assert config.canonical(FrozenConfigDict(value)) == expected
  assert list(config.canonical(value)) == ["a", "b"]
  assert config.canonical({"p": pathlib.Path("x/y"), "t": np.bool_(True)}) == {
    "p": "x/y",
    "t": True,
  }


@pytest.mark.parametrize(
  ("value", "text"),
  [
    ({"a": [1.0, float("nan")]}, r"config\.a\.1 is nan; expected a finite number"),
    ({"a": {"b": np.float32("inf")}}, r"config\.a\.b is inf"),
    ({"a": {1: 2}}, r"config\.a has the key 1; expected keys that are strings"),
    ({"a": object()}, r"config\.a is a object; expected None, a bool"),
    ({"a": 1j}, r"config\.a is a complex"),
  ],
)
def test_canonical_refuses(value, text):
  with pytest.raises(LtddError, match=text):
    config.canonical(value)


def test_flatten_goes_into_lists_of_dicts_only():
  value = {
    "a": {"b": 1, "c": {}},
    "augment": ({"name": "flip"}, {"name": "crop", "pad": 4}),
    "l": (1,),
  }
  assert config.flatten(value) == {
    "a.b": 1,
    "a.c": {},
    "augment.0.name": "flip",
    "augment.1.name": "crop",
    "augment.1.pad": 4,
    "l": [1],
  }
  assert config.flatten({}) == {}


def test_diff_lists_changed_added_and_removed_keys():
  old = {"a": {"lr": 0.1, "gone": 1}, "same": (1, 2)}
  new = {"a": {"lr": 0.2, "new": None}, "same": [1, 2]}
  assert config.diff(old, new) == {
    "a.lr": (0.1, 0.2),
    "a.gone": (1, config.ABSENT),
    "a.new": (config.ABSENT, None),
  }


def test_diff_sees_types_as_the_fingerprint_does():
  assert config.diff({"a": 1, "b": [1]}, {"a": 1.0, "b": [True]}) == {
    "a": (1, 1.0),
    "b": ([1], [True]),
  }


# ---- bind ----


def test_suggest():
  assert config.suggest("r_bm", ["lr", "r_bn"]) == "Did you mean 'r_bn'?"
  assert config.suggest("xyzzy", ["lr", "r_bn"]) == ""


def test_bind_names_the_key_the_near_one_and_the_signature():
  with pytest.raises(LtddError) as error:
    config.bind("config.distil.sre2l", sre2l, {"r_bm": 0.1})
  assert str(error.value) == (
    "config.distil.sre2l: unexpected key 'r_bm'. Did you mean 'r_bn'? "
    "sre2l takes (*, num_steps: int = 1000, lr: float = 0.25, r_bn: float = 0.01)"
  )


def test_bind_skips_what_the_program_fills_in():
  config.bind("x", sre2l, {"lr": 1})
  with pytest.raises(LtddError, match="unexpected key 'env'"):
    config.bind("x", sre2l, {"env": 1})

  def positional(kind, *, width: int):
    return kind, width

  config.bind("x", positional, {"kind": 1, "width": 2}, skip_positional=False)
  with pytest.raises(LtddError, match="unexpected key 'kind'"):
    config.bind("x", positional, {"kind": 1, "width": 2})


def test_bind_takes_any_key_where_the_factory_does():
  config.bind("x", lambda *, a=1, **rest: rest, {"b": 2})


def test_bind_says_what_a_factory_without_arguments_takes():
  with pytest.raises(LtddError, match=r"unexpected key 'lr'. <lambda> takes \(no arguments\)"):
    config.bind("x", METHODS["random"], {"lr": 2})


def test_bind_missing_key():
  with pytest.raises(
    LtddError, match=r"config\.data: missing key 'name'. data_options takes \(\*, n"
  ):
    config.bind("config.data", data_options, {})


GOOD = [
  {"counts": [1, 2]},
  {"counts": (1, 2)},
  {"counts": None},
  {"counts": np.array([1, 2])},
  {"size": [4, 4]},
  {"test": True},
  {"rule": "ldam"},
  {"more": {"a": 1}},
  {"name": pathlib.Path("x")},
]
BAD = [
  {"counts": "12"},
  {"counts": 3},
  {"size": 4},
  {"test": 1},
  {"name": None},
  {"name": 3},
  {"rule": "none"},
  {"more": [1]},
]


@pytest.mark.parametrize("kwargs", GOOD)
def test_types_that_fit(kwargs):
  config.bind("x", data_options, {"name": "digits"} | kwargs)


@pytest.mark.parametrize("kwargs", BAD)
def test_types_that_do_not_fit(kwargs):
  (key,) = kwargs
  with pytest.raises(LtddError, match=f"x: {key} is .*; expected "):
    config.bind("x", data_options, {"name": "digits"} | kwargs)


def test_numbers():
  config.bind("x", sre2l, {"lr": 1, "num_steps": np.int64(3)})
  config.bind("x", sre2l, {"lr": np.float32(1)})
  for bad in ({"num_steps": 1.5}, {"num_steps": True}, {"lr": "0.1"}, {"lr": None}, {"lr": False}):
    with pytest.raises(LtddError, match=r"expected (int|float)"):
      config.bind("x", sre2l, bad)


def test_a_default_fits_whatever_its_annotation():
  def factory(*, width: int = None):  # noqa: RUF013 (what is tested)
    return width

  config.bind("x", factory, {"width": None})


def test_with_defaults():
  assert config.with_defaults(sre2l, {"lr": 1.0}) == {"num_steps": 1000, "lr": 1.0, "r_bn": 0.01}
  assert "name" not in config.with_defaults(data_options, {})


# ---- groups ----

SCHEMA = {"data": data_options, "distil.methods.*": METHODS, "distil": lambda *, methods: methods}


def good():
  return {
    "seed": 0,
    "data": {"name": "digits"},
    "distil": {"methods": {"a": {"name": "sre2l", "lr": 0.1}, "b": {"name": "random"}}},
  }


def test_good_groups():
  config.check_groups(good(), SCHEMA)
  config.check_groups(ConfigDict(good()), SCHEMA)


def change(path, value):
  def apply(c):
    *parents, last = path.split(".")
    for p in parents:
      c = c[p]
    if value is None:
      del c[last]
    else:
      c[last] = value

  return apply


@pytest.mark.parametrize(
  ("path", "value", "text"),
  [
    (
      "dato",
      {},
      r"config: unexpected group 'dato'. Did you mean 'data'\? Groups: data, distil, se",
    ),
    ("data", None, "config: 'data' is missing; expected all of data, distil, seed"),
    ("seed", None, "config: 'seed' is missing"),
    ("seed", 1.5, r"config\.seed is 1\.5; expected int"),
    ("data", "digits", r"config\.data is 'digits'; expected a dict of arguments"),
    ("data.nam", "x", r"config\.data: unexpected key 'nam'. Did you mean 'name'\?"),
    ("data.name", None, r"config\.data: missing key 'name'"),
    (
      "distil.methods.a.name",
      "sr2el",
      r"config\.distil\.methods\.a: unknown name 'sr2el'. Did y",
    ),
    (
      "distil.methods.a.name",
      None,
      r"methods\.a: missing key 'name'; expected one of random, sre",
    ),
    (
      "distil.methods.a.r_bm",
      1.0,
      r"config\.distil\.methods\.a: unexpected key 'r_bm'. Did you ",
    ),
    (
      "distil.methods.a.lr",
      "big",
      r"config\.distil\.methods\.a: lr is 'big' \(str\); expected fl",
    ),
  ],
)
def test_bad_groups(path, value, text):
  c = good()
  change(path, value)(c)
  with pytest.raises(LtddError, match=text):
    config.check_groups(c, SCHEMA)


def test_a_star_stands_for_the_entries_of_a_list():
  def crop(images, *, padding: int):
    return images, padding

  schema = {"augment": lambda *, views: views, "augment.views.*": {"crop": crop}}
  c = {"augment": {"views": ({"name": "crop", "padding": 1}, {"name": "crop", "pad": 1})}}
  with pytest.raises(LtddError, match=r"config\.augment\.views\.1: unexpected key 'pad'"):
    config.check_groups(c, schema, scalars={})


# ---- arguments ----


def parse(arg):
  return config.parse_arg(arg, method="sre2l", imbalance=100.0, ipc=10, smoke=False, folder=None)


def test_parse_arg():
  for nothing in (None, "", " "):
    assert vars(parse(nothing)) == {
      "method": "sre2l", "imbalance": 100.0, "ipc": 10, "smoke": False, "folder": None,
    }  # fmt: skip
  args = parse("method=random, imbalance=50,ipc=1,smoke,folder=/a=b")
  assert vars(args) == {
    "method": "random", "imbalance": 50.0, "ipc": 1, "smoke": True, "folder": "/a=b",
  }  # fmt: skip
  assert isinstance(args.imbalance, float)
  assert parse("smoke=true").smoke is True
  assert parse("smoke=0").smoke is False


@pytest.mark.parametrize(
  ("arg", "text"),
  [
    (
      "imbalanc=3",
      r"'imbalanc' is unknown. Did you mean 'imbalance'\? Arguments and their defaults",
    ),
    ("ipc=1,ipc=2", "'ipc' is given twice"),
    ("ipc=1.5", r"ipc=1\.5: expected int"),
    ("imbalance=big", "imbalance=big: expected float"),
    ("imbalance=nan", "imbalance=nan: expected a finite number"),
    ("ipc", "'ipc' has no value; expected ipc=<int>"),
    ("method=", "'method' has no value; expected method=<str>"),
    ("smoke=maybe", "smoke=maybe: expected true or false"),
  ],
)
def test_parse_arg_refuses(arg, text):
  with pytest.raises(LtddError, match=text):
    parse(arg)
