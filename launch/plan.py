"""What a run takes on devices that need not be there; its steps are compiled, and not run.

    python -m launch.plan --config configs/cifar10_lt.py:method=edc --topology v5e:4x4
    python -m launch.plan --config configs/cifar10_lt.py:method=edc --sweep 4,16,64
    python -m launch.plan --config configs/digits_lt.py --cpu_devices 2      # the devices here

`docs/how-to/plan_a_run.md` says what the columns are. Values of the config can be changed as with
`launch.main`.
"""

import functools
import os
from typing import Any

from launch import errors
from launch import main as launch_main

from absl import app, flags  # isort: skip  # after launch.main, which tunes the host

for _name in ("config", "cpu_devices"):
  flags.declare_key_flag(_name)  # for --help
_TOPOLOGY = flags.DEFINE_string("topology", None, "slice of TPUs: v5e:4x4; else the devices here")
_SWEEP = flags.DEFINE_list("sweep", None, "numbers of chips, for a table of slices: 4,16,64")
_COUNTS = flags.DEFINE_string("counts", None, "file of class counts, if the data are not here")
_STAGES = flags.DEFINE_list("stages", None, "kinds of stages to plan: teacher,distil; all if none")


@errors.in_one_message
def main(argv: list[str]) -> None:
  """Prints the plan."""
  _set_up()
  from ltdd_jax.core import command_line, hardware
  from ltdd_jax.core.registry import check_choice
  from ltdd_jax.interop.inputs import open_vector
  from ltdd_jax.pipeline import ahead_of_time, programs
  from ltdd_jax.pipeline.blank import blank_context

  targets = _slices()
  config = command_line.read_config(str(launch_main.CONFIG.value))
  config = command_line.override(config, argv[1:])
  counts = None if _COUNTS.value is None else open_vector(_COUNTS.value, "counts")[1]
  kinds = _STAGES.value or programs.KINDS
  for kind in kinds:
    check_choice("an entry of --stages", kind, programs.KINDS)
  found = programs.of_run(blank_context(config, counts), kinds)
  if _SWEEP.value:
    print(ahead_of_time.scaling_table(found, targets))
    return
  (target,) = targets or [hardware.local()]
  print(target)
  print(ahead_of_time.table([*ahead_of_time.compiled(found, target)], target))


def _slices() -> list[Any]:
  """The slices that the flags name; none for the devices here."""
  from ltdd_jax.core import hardware

  names = [_TOPOLOGY.value] if _TOPOLOGY.value else []
  if _SWEEP.value:
    names = hardware.slices((_TOPOLOGY.value or "v5e").partition(":")[0], _SWEEP.value)
  return [*map(hardware.of_topology, names)]


def _set_up() -> None:
  """Sets up devices. No program comes from a cache, so that the compiler's time is its own."""
  from ltdd_jax.core import startup

  launch_main.set_up_logs()
  if _TOPOLOGY.value or _SWEEP.value:
    import jax

    jax.config.update("jax_platforms", "cpu")
    os.environ.setdefault("TPU_MIN_LOG_LEVEL", "4")  # of libtpu, which looks for a TPU
  startup.setup_jax(flags.FLAGS.cpu_devices, None)


if __name__ == "__main__":
  app.run(main, flags_parser=functools.partial(launch_main.parse_flags, workdir=False))
