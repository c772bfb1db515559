"""Evaluation recipes by name: how students are trained, so that numbers can be compared.

  recipes.apply(config, "rd3")                     # sets config.student and config.label.views
  recipes.apply(config, "edc_mse_gt:released")     # what EDC's scripts have, not its paper
  recipes.resolve("rded_kl", dataset="cifar10", ipc=10, model={"name": "convnet"})

`config.student.recipe` records the name, and a run says what it changed. The values come from the
published code of each method, listed with what we differ in docs/reference/recipes.md. Where paper
and released code differ the paper counts, and `:released` asks for the code's.
"""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from ltdd_jax.core import config as config_lib
from ltdd_jax.core.types import LtddError
from ltdd_jax.students.recipes.values import RECIPES as RECIPES
from ltdd_jax.students.recipes.values import Case, Settings
from ltdd_jax.students.recipes.values import nearest_ipc as nearest_ipc


class Reference(NamedTuple):
  """A recipe as configs name it: NAME[/DATASET][:released]."""

  name: str
  dataset: str | None
  released: bool

  def __str__(self) -> str:
    dataset = f"/{self.dataset}" if self.dataset else ""
    return f"{self.name}{dataset}{':released' if self.released else ''}"


CLASSES = {"cifar10": 10, "cifar100": 100, "tiny": 200, "imagenet": 1000}
KNOWN = {name: name for name in CLASSES} | {"tiny_imagenet": "tiny", "imagenet2012": "imagenet"}
"""Names of data sets, to the names of them here."""

_REFERENCE = re.compile(r"(?P<name>\w+)(/(?P<dataset>\w+))?(?P<rel>:released)?")


def parse(reference: str) -> Reference:
  """Reads NAME[/DATASET][:released].

  Raises:
    LtddError: an unknown recipe, or a switch that it does not have.
  """
  found = _REFERENCE.fullmatch(str(reference))
  name = found["name"] if found else str(reference)
  if found is None or name not in RECIPES:
    hint = config_lib.suggest(name, RECIPES)
    raise LtddError(f"unknown recipe {reference!r}. {hint} Known: {', '.join(RECIPES)}.")
  if found["rel"] and not RECIPES[name].released:
    differing = [k for k, r in RECIPES.items() if r.released]
    raise LtddError(
      f"recipe {name!r} has no ':released'; paper and code differ for {', '.join(differing)} only"
    )
  return Reference(name, found["dataset"], bool(found["rel"]))


def resolve(reference: str, *, dataset: str, ipc: float, model: Mapping[str, Any]) -> Settings:
  """Gives the values of a recipe.

  Args:
    reference: see `parse`; its data set counts before `dataset`.
    dataset: name of the data set.
    ipc: images per class; between published numbers, see `nearest_ipc`.
    model: the student's {name, **kwargs}: RDED's learning rate depends on it, and RDED sets
      `bn_momentum` in it.

  Returns:
    {"student": keyword arguments of `config.student`, "views": `config.label.views`}. Labels
    are made for as many epochs as students have.

  Raises:
    LtddError: as `parse`, or a data set that the recipe has no values for.
  """
  ref = parse(reference)
  recipe, name = RECIPES[ref.name], ref.dataset or dataset
  known = KNOWN.get(name, name)
  if recipe.datasets is not None and known not in recipe.datasets:
    everywhere = [k for k, r in RECIPES.items() if r.datasets is None]
    raise LtddError(
      f"recipe {ref.name!r} has no values for the data set {name!r}, only for "
      f"{', '.join(recipe.datasets)}. Borrow those of one, '{ref.name}/{recipe.datasets[0]}', or "
      f"use {' or '.join(everywhere)}, which are for every data set"
    )
  return recipe.make(Case(known, ipc, CLASSES.get(known, 0), model, ref.released))


def apply(config: Any, reference: str, *, dataset: str | None = None) -> None:
  """Sets a recipe's values in a config, and `config.student.recipe`.

  Values that are set later win, and the report says so.

  Args:
    config: a ConfigDict or a dict, with its data, its student's model and its images per class.
    reference: see `parse`.
    dataset: whose values to take, if not those of `config.data.name`.

  Raises:
    LtddError: as `resolve`.
  """
  ref = parse(reference)
  if RECIPES[ref.name].datasets is not None:  # stays, if config.data.name is changed later
    name = ref.dataset or dataset or config["data"]["name"]
    ref = ref._replace(dataset=KNOWN.get(name, name))
  trained, label = config["student"], config["label"]
  found = resolve(
    str(ref),
    dataset=config["data"]["name"],
    ipc=config["distil"]["images_per_class"],
    model=trained["model"],
  )
  for key, value in found["student"].items():
    if value is not None or trained.get(key) is not None:
      trained[key] = value
  trained["recipe"] = str(ref)
  label["views"] = found["views"]
  label["num_epochs"] = found["student"]["num_epochs"]
  if RECIPES[ref.name].hard:
    trained["hard_labels"] = True
    config["calibrate"]["calibrators"] = {}
