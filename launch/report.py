"""Writes the HTML report of a run, or of several beside each other.

    python -m launch.report runs/digits                            # runs/digits/report/index.html
    python -m launch.report runs/a runs/b --out comparison.html

Only files of the work directories are read. Runs that are unfinished have a report too.
"""

import sys

from absl import app, flags

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


def parse_flags(argv: list[str]) -> list[str]:
  """Parses the command line, flags before or after the rest; an error is one message."""
  flags.FLAGS.set_gnu_getopt()
  try:
    return flags.FLAGS(argv)
  except flags.Error as error:
    print(f"error: {str(error).strip()}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
  app.run(main, flags_parser=parse_flags)
