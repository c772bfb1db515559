"""What a run changed of the recipe that it names: compared value by value, defaults filled in."""

from collections.abc import Mapping
from typing import Any

from ltdd_jax import models
from ltdd_jax.core import config as config_lib
from ltdd_jax.data import views as views_lib
from ltdd_jax.students import recipes
from ltdd_jax.training import losses, optimizers

Changes = dict[str, tuple[Any, Any]]  # {name: (the recipe's value, the run's)}

_FACTORIES: dict[str, Mapping[str, Any]] = {
  "optimizer": optimizers.OPTIMIZERS,
  "schedule": optimizers.SCHEDULES,
  "loss": losses.SOFT_LOSSES,
}


def of_run(config: Mapping[str, Any], num_images: int, num_classes: int) -> Changes:
  """Compares a config with the recipe that it names.

  Args:
    config: as `check.check` returns it, with `config.student.recipe`.
    num_images: slots of the distilled set, n.
    num_classes: k.

  Returns:
    What differs, by name, such as {"num_epochs": (400, 100)}; label epochs count if labels are
    stored, and the loss if there are soft labels.

  Raises:
    LtddError: see `recipes.resolve`.
  """
  trained, label = config["student"], config["label"]
  want = recipes.resolve(
    trained["recipe"],
    dataset=config["data"]["name"],
    ipc=num_images / num_classes,
    model=trained["model"],
  )
  mine = {"student": {k: trained[k] for k in want["student"]}, "views": label["views"]}
  want, mine = _plain(want), _plain(mine)
  soft = bool(config["calibrate"]["calibrators"])
  if soft and not any(x.get("online") for x in label["sources"].values()):
    want["label_epochs"] = want["num_epochs"]
    mine["label_epochs"] = label["num_epochs"]
  unused = () if soft else ("loss", "hard_weight")
  return {
    k: (a, b)
    for k, (a, b) in config_lib.diff(want, mine).items()
    if config_lib.ABSENT not in (a, b) and not _equal(a, b) and k.split(".")[0] not in unused
  }


def _equal(a: Any, b: Any) -> bool:
  """Whether 20 is 20.0; True is not 1."""
  return a == b and isinstance(a, bool) == isinstance(b, bool)


def _plain(settings: Mapping[str, Any]) -> dict[str, Any]:
  """One flat dict with all defaults; arguments stand under the name of what takes them."""
  out = dict(settings["student"])
  if "model" in out:
    model = dict(out.pop("model"))
    filled = config_lib.with_defaults(models.MODELS[model["name"]], model)
    out |= {f"model.{k}": v for k, v in filled.items()}
  for key, factories in _FACTORIES.items():
    group = dict(out.pop(key))
    name = group.pop("name")
    filled = config_lib.with_defaults(factories[name], group)
    if key == "schedule":
      filled["per_epoch"] = bool(group.get("per_epoch"))
    out[f"{key}.name"] = name
    out |= {f"{key}.{name}.{k}": v for k, v in filled.items() if k != "schedule"}
  out |= {
    f"views.{k}": v
    for k, v in config_lib.with_defaults(views_lib.view_fn, settings["views"]).items()
  }
  return out


def sentence_of(config: Mapping[str, Any], num_images: int, num_classes: int) -> str | None:
  """The `sentence` of a run of n distilled images, or None if it names no recipe."""
  name = config["student"]["recipe"]
  if name is None:
    return None
  return sentence(name, of_run(config, num_images, num_classes))


def sentence(reference: str, changes: Changes) -> str:
  """Says "rd3", or "rd3, changed: num_epochs 400 -> 100"."""
  name = str(recipes.parse(reference))
  if not changes:
    return name
  return f"{name}, changed: " + ", ".join(f"{k} {a} -> {b}" for k, (a, b) in changes.items())
