"""Runs a config: `python -m launch.main --config configs/digits_lt.py --workdir runs/digits`.

Any value of the config can be changed: `--config.student.num_epochs=100 --config.label.top_k=None`.
The same command, given again, goes on where it stopped and skips what is done.
"""

import logging as std_logging
import re
import sys
from typing import Any

from ltdd_jax.core import startup

startup.tune_host()  # before jax is imported, and so above the other imports
startup.stop_in_one_line()

from absl import app, flags, logging  # noqa: E402

from launch import errors  # noqa: E402

CONFIG = flags.DEFINE_string(
  "config", None, "config file, with arguments after a colon: configs/cifar10_lt.py:ipc=50"
)
WORKDIR = flags.DEFINE_string("workdir", None, "folder of the artefacts of this run")
_CACHE = flags.DEFINE_string("cache", None, "folder of artefacts shared by several runs")
_STAGE = flags.DEFINE_string("stage", None, "run up to this stage, or with 'only:' it alone")
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "print the plan and do nothing")
_DISTRIBUTED = flags.DEFINE_bool("distributed", False, "one of several processes (pod, cluster)")
_CPU_DEVICES = flags.DEFINE_integer("cpu_devices", None, "virtual CPU devices; see startup.py")
_CHECKPOINT_SECONDS = flags.DEFINE_float("checkpoint_seconds", 30.0, "time between checkpoints")
_COMPILE_CACHE = flags.DEFINE_string(
  "compile_cache", startup.DEFAULT_CACHE, "folder of compiled programs; empty for none"
)
OVERRIDE = re.compile(r"--?config\.")  # how values of the config begin


@errors.in_one_message
def main(argv: list[str]) -> None:
  """Runs the config of the command line."""
  from ltdd_jax.core import command_line

  set_up()
  name = str(CONFIG.value)
  config = command_line.override(command_line.read_config(name), argv[1:])
  run(config, str(WORKDIR.value), name)


def run(config: dict[str, Any], workdir: str, file: str | None = None) -> None:
  """Runs the pipeline or a study, as the other flags say; `file` is where the config is from."""
  options: dict[str, Any] = {
    "cache": _CACHE.value,
    "stage": _STAGE.value,
    "dry_run": _DRY_RUN.value,
    "checkpoint_seconds": _CHECKPOINT_SECONDS.value,
  }
  if "study" in config:
    from ltdd_jax import studies

    studies.run(config, workdir, **options)
  else:
    from ltdd_jax import pipeline
    from ltdd_jax.core import command_line

    defaults = None if file is None else command_line.read_defaults(file)
    pipeline.run(config, workdir, defaults=defaults, **options)


def set_up() -> None:
  """Sets up logs and devices."""
  set_up_logs()
  cache = _COMPILE_CACHE.value or None
  logging.info("%s", startup.setup_jax(_CPU_DEVICES.value, cache, _DISTRIBUTED.value))


def set_up_logs() -> None:
  """Logs our own lines, with the time of day."""
  logging.set_verbosity(logging.INFO)
  logging.get_absl_handler().setFormatter(std_logging.Formatter("%(asctime)s %(message)s", "%X"))
  logging.get_absl_handler().addFilter(lambda r: "tensorflow_datasets" not in r.pathname)
  std_logging.getLogger("jax").setLevel(std_logging.WARNING)  # it lists accelerators it lacks
  for name in ("asyncio", "fsspec", "gcsfs"):  # what matters they raise too
    std_logging.getLogger(name).setLevel(std_logging.CRITICAL)


def parse_flags(argv: list[str], *, workdir: bool = True) -> list[str]:
  """Parses the command line but for values of the config, which are left for `main`."""
  overrides = [arg for arg in argv[1:] if OVERRIDE.match(arg)]
  try:
    program, *rest = flags.FLAGS([arg for arg in argv if arg not in overrides])
    if rest:
      raise flags.Error(f"unexpected {' '.join(rest)!r}; values are given as --config.KEY=VALUE")
    if not CONFIG.value or (workdir and not WORKDIR.value):
      needed = "--config and --workdir are" if workdir else "--config is"
      raise flags.Error(f"{needed} needed; --help lists all flags")
  except flags.Error as error:
    print(f"error: {str(error).strip()}", file=sys.stderr)
    sys.exit(2)
  return [program, *overrides]


if __name__ == "__main__":
  app.run(main, flags_parser=parse_flags)
