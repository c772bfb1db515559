"""Writes the HTML report of a run, or of several beside each other.

    python -m launch.report runs/digits                            # runs/digits/report/index.html
    python -m launch.report runs/a runs/b --out comparison.html

Only files of the work directories are read. Runs that are unfinished have a report too.
"""

import sys

from absl import app, flags

from ltdd_jax.core import startup

_OUT = flags.DEFINE_string("out", None, "HTML file to write; tables are written beside it")


def main(argv: list[str]) -> int:
  """Calls `report.page`; errors for the user are one message."""
  from ltdd_jax.core.types import LtddError
  from ltdd_jax.report import page

  try:
    print(f"wrote {page.write(argv[1:], _OUT.value)}")
  except LtddError as error:
    print(f"error: {error}", file=sys.stderr)
    return 2
  return 0


if __name__ == "__main__":
  app.run(main, flags_parser=startup.parse_flags)
