"""Studies: several runs of the pipeline, and what they say together.

  python -m launch.main --config configs/perturbation.py:dataset=digits --workdir runs/perturbation

The config of a study is that of a run with one more group, `study`: the name of the study and its
arguments. A study derives the configs of its runs from it, so that a value changed on the command
line is changed in all of them. It can be stopped and started again as a run can, since it consists
of runs and of an analysis that takes seconds.
"""

from typing import Any

from ltdd_jax.core import config as config_lib
from ltdd_jax.core import files
from ltdd_jax.core.types import LtddError
from ltdd_jax.studies import bound_study, networks_study, perturbation_study
from ltdd_jax.studies.runs import Runner

STUDIES = {
  "perturbation": perturbation_study,
  "bound": bound_study,
  "networks": networks_study,
}


def run(
  config: Any,
  workdir: files.Pathlike,
  *,
  cache: files.Pathlike | None = None,
  stage: str | None = None,
  dry_run: bool = False,
  checkpoint_seconds: float = 30.0,
  show_progress: bool = True,
) -> dict[str, Any] | None:
  """Runs the study of a config; arguments as of `pipeline.run`.

  Args:
    config: of a run, with a group `study`: {"name": ..., **arguments}.
    workdir: folder of the study; its runs have folders in it.
    cache: shared by the runs; by default `workdir/cache`.
    stage: must be None: a study needs all stages of its runs.
    dry_run: print the plans of those runs that can be planned now.
    checkpoint_seconds: least time between two checkpoints.
    show_progress: whether to show bars.

  Returns:
    What is written to `workdir/report/NAME.json`; None after a dry run.

  Raises:
    LtddError: anything wrong with the config, the data or the work directories.
  """
  plain = config.to_dict() if hasattr(config, "to_dict") else dict(config)
  study = dict(plain.pop("study"))
  name = study.pop("name", None)
  if name not in STUDIES:
    hint = config_lib.suggest(str(name), STUDIES)
    raise LtddError(f"config.study.name is {name!r}. {hint} Known studies: {', '.join(STUDIES)}")
  config_lib.bind("config.study", STUDIES[name].options, study)
  if stage is not None:
    raise LtddError(f"--stage={stage} is for runs; a study runs whole. Leave it out")
  runner = Runner(
    files.path(workdir),
    cache=cache or files.path(workdir) / "cache",
    dry_run=dry_run,
    checkpoint_seconds=checkpoint_seconds,
    show_progress=show_progress,
  )
  return STUDIES[name].run(plain, config_lib.with_defaults(STUDIES[name].options, study), runner)
