"""Studies: several runs of the pipeline, and what they say together.

  python -m launch.main --config configs/perturbation.py:dataset=digits --workdir runs/perturbation

The config of a study is that of a run with one more group, `study`: the name of the study and its
arguments. A study derives the configs of its runs from it, so that a value changed on the command
line is changed in all of them. It can be stopped and started again as a run can, since it consists
of runs and of an analysis that takes seconds.
"""

from collections.abc import Callable, Mapping
from typing import Any

from ltdd_jax.core import config as config_lib
from ltdd_jax.core import files
from ltdd_jax.core.types import LtddError
from ltdd_jax.studies import (
  bound_study,
  networks_study,
  perturbation_study,
  scores_study,
  teachers_study,
)
from ltdd_jax.studies.runs import Runner

STUDIES: Mapping[str, Callable[..., dict[str, Any] | None]] = {
  "perturbation": perturbation_study.run,
  "bound": bound_study.run,
  "networks": networks_study.run,
  "teachers": teachers_study.run,
  "scores": scores_study.run,
}


def run(
  config: Any, workdir: files.Pathlike, *, stage: str | None = None, **options: Any
) -> dict[str, Any] | None:
  """Runs the study of a config.

  Args:
    config: of a run, with a group `study`: {"name": ..., **arguments}.
    workdir: folder of the study; its runs have folders in it, and share `cache` there by default.
    stage: must be None: a study needs all stages of its runs.
    **options: of `pipeline.run`.

  Returns:
    What is written to `workdir/report/NAME.json`; None after a dry run.

  Raises:
    LtddError: anything wrong with the config, the data or the work directories.
  """
  plain = config.to_dict() if hasattr(config, "to_dict") else dict(config)
  study = dict(plain.pop("study"))
  check(study)
  name: str = study.pop("name")
  if stage is not None:
    raise LtddError(f"--stage={stage} is for runs; a study runs whole. Leave it out")
  return STUDIES[name](plain, Runner(files.path(workdir), options), **study)


def check(study: Mapping[str, Any]) -> None:
  """Raises LtddError unless the group `study` of a config has a known name and its arguments."""
  name, kwargs = study.get("name"), {k: v for k, v in study.items() if k != "name"}
  if name not in STUDIES:
    hint = config_lib.suggest(str(name), STUDIES)
    raise LtddError(f"config.study.name is {name!r}. {hint} Known studies: {', '.join(STUDIES)}")
  config_lib.bind("config.study", STUDIES[str(name)], kwargs)
