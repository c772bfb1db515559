"""Writes the HTML report of a run, or of several beside each other.

    python -m launch.report runs/digits                            # runs/digits/report/index.html
    python -m launch.report runs/a runs/b --out comparison.html

Only files of the work directories are read. Runs that are unfinished have a report too.
"""

from absl import app, flags

from launch import errors
from ltdd_jax.core import startup

_OUT = flags.DEFINE_string("out", None, "HTML file to write; tables are written beside it")


@errors.in_one_message
def main(argv: list[str]) -> None:
  """Calls `report.page`."""
  from ltdd_jax.report import page

  print(f"wrote {page.write(argv[1:], _OUT.value)}")


if __name__ == "__main__":
  app.run(main, flags_parser=startup.parse_flags)
