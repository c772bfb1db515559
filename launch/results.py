"""Results of finished runs as data, and the tables of the docs.

    python -m launch.results add runs/edc runs/rded     # rows into docs/results/ours.csv
    python -m launch.results tables                     # renews README.md and docs/results/*.md

Run both at the root of the repository.
"""

from absl import app, flags

from launch import errors
from ltdd_jax.core import startup

_TO = flags.DEFINE_string("to", "docs/results/ours.csv", "CSV file that `add` writes")


@errors.in_one_message
def main(argv: list[str]) -> None:
  """Calls `report.published`."""
  from ltdd_jax.core.types import LtddError
  from ltdd_jax.report import published

  match argv[1:]:
    case ["add", *workdirs] if workdirs:
      print(published.add(workdirs, _TO.value))
    case ["tables"]:
      print("renewed:", ", ".join(published.write_tables()) or "nothing, all is up to date")
    case other:
      raise LtddError(
        f"the arguments are {' '.join(other)!r}; expected 'add RUNDIR...' or 'tables'."
      )


if __name__ == "__main__":
  app.run(main, flags_parser=startup.parse_flags)
