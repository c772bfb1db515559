"""What a run changed of the recipe that it names: compared value by value, defaults filled in."""

from collections.abc import Mapping
from typing import Any

from ltdd_jax import models
from ltdd_jax.core import config as config_lib
from ltdd_jax.data import views as views_lib
from ltdd_jax.students import recipes
from ltdd_jax.training import losses, optimizers

_FACTORIES: dict[str, Mapping[str, Any]] = {
  "optimizer": optimizers.OPTIMIZERS,
  "schedule": optimizers.SCHEDULES,
  "loss": losses.SOFT_LOSSES,
}


def sentence_of(config: Mapping[str, Any], num_images: int, num_classes: int) -> str | None:
  """Says "rd3", or "rd3, changed: num_epochs 400 -> 100"; None if a config names no recipe.

  Label epochs count if labels are stored, and the loss if there are soft labels.

  Args:
    config: as `check.check` returns it.
    num_images: slots of the distilled set, n.
    num_classes: k.

  Raises:
    LtddError: see `recipes.resolve`.
  """
  name, label = config["student"]["recipe"], config["label"]
  if name is None:
    return None
  want = recipes.resolve(
    name,
    dataset=config["data"]["name"],
    ipc=num_images / num_classes,
    model=config["student"]["model"],
  )
  mine = {"student": {k: config["student"][k] for k in want["student"]}, "views": label["views"]}
  want, mine = _plain(want), _plain(mine)
  soft = bool(config["calibrate"]["calibrators"])
  if soft and not any(x.get("online") for x in label["sources"].values()):
    want["label_epochs"] = want["num_epochs"]
    mine["label_epochs"] = label["num_epochs"]
  unused = () if soft else ("loss", "hard_weight")
  changes = [
    f"{k} {a} -> {b}"
    for k, (a, b) in config_lib.diff(want, mine).items()
    if config_lib.ABSENT not in (a, b) and not _equal(a, b) and k.split(".")[0] not in unused
  ]
  said = str(recipes.parse(name))
  return f"{said}, changed: {', '.join(changes)}" if changes else said


def _equal(a: Any, b: Any) -> bool:
  """Whether 20 is 20.0; True is not 1."""
  return a == b and isinstance(a, bool) == isinstance(b, bool)


def _plain(settings: Mapping[str, Any]) -> dict[str, Any]:
  """One flat dict with all defaults; arguments stand under the name of what takes them."""
  out = dict(settings["student"])
  filled = {"views": config_lib.with_defaults(views_lib.view_fn, settings["views"])}
  if "model" in out:
    model = out.pop("model")
    filled["model"] = config_lib.with_defaults(models.MODELS[model["name"]], model)
  for key, factories in _FACTORIES.items():
    group = dict(out.pop(key))
    name = out[f"{key}.name"] = group.pop("name")
    filled[f"{key}.{name}"] = config_lib.with_defaults(factories[name], group)
    if key == "schedule":
      filled[f"{key}.{name}"]["per_epoch"] = bool(group.get("per_epoch"))
  for prefix, values in filled.items():
    out |= {f"{prefix}.{k}": v for k, v in values.items() if k != "schedule"}
  return out
