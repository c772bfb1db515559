"""Scores a distilled set: DD-Ranking's scores, and whether it gives away training images.

    python -m launch.score runs/edc --images edc --labels plain,adsa       # of a finished run
    python -m launch.score --set images.npz --config configs/cifar10_lt.py:ipc=10 --workdir runs/s

`docs/how-to/score_a_distilled_set.md` says what the scores are. Values of the config can be changed
as with `launch.main`: `--config.student.num_seeds=5 --config.study.real={'num_epochs':50}`.
"""

import sys

from launch import errors
from launch import main as launch_main

from absl import app, flags  # isort: skip  # after launch.main, which tunes the host

flags.adopt_module_key_flags(launch_main)  # for --help
_IMAGES = flags.DEFINE_string("images", None, "image source to score, such as edc")
_SET = flags.DEFINE_string("set", None, "file or folder of images from elsewhere to score")
_LABELS = flags.DEFINE_list("labels", None, "hard, plain, adsa, learned/plain; all if not given")
_PRESET = flags.DEFINE_string("preset", None, "ddr: DD-Ranking's search and best on test")


@errors.in_one_message
def main(argv: list[str]) -> None:
  """Runs the study."""
  launch_main.set_up()
  from ltdd_jax.core import command_line
  from ltdd_jax.studies import scores_study

  overrides = [arg for arg in argv[1:] if launch_main.OVERRIDE.match(arg)]
  workdir = next((arg for arg in argv[1:] if arg not in overrides), None)
  config = None if workdir else command_line.read_config(str(launch_main.CONFIG.value))
  study = scores_study.study_config(
    config, workdir, images=_IMAGES.value, file=_SET.value, labels=_LABELS.value,
    preset=_PRESET.value,
  )  # fmt: skip
  study = command_line.override(study, overrides)
  launch_main.run(study, launch_main.WORKDIR.value or f"{workdir}/scores")


def parse_flags(argv: list[str]) -> list[str]:
  """Parses the command line but for values of the config, which are left for `main`."""
  overrides = [arg for arg in argv[1:] if launch_main.OVERRIDE.match(arg)]
  flags.FLAGS.set_gnu_getopt()
  try:
    program, *rest = flags.FLAGS([arg for arg in argv if arg not in overrides])
    if len(rest) > 1:
      raise flags.Error(f"unexpected {rest[1]!r}; expected one work directory and --flags")
    if not _IMAGES.value and not _SET.value:
      raise flags.Error("--images or --set is needed; --help lists all flags")
    if bool(rest) == bool(launch_main.CONFIG.value):
      raise flags.Error("expected the work directory of a run, or --config and --workdir")
    if not rest and not launch_main.WORKDIR.value:
      raise flags.Error("--workdir is needed with --config: the folder of the scores")
  except flags.Error as error:
    print(f"error: {str(error).strip()}", file=sys.stderr)
    sys.exit(2)
  return [program, *rest, *overrides]


if __name__ == "__main__":
  app.run(main, flags_parser=parse_flags)
