"""What programs say of errors that a user can mend: one message, and no traceback."""

import functools
import sys
from collections.abc import Callable

Main = Callable[[list[str]], int | None]


def in_one_message(main: Main) -> Callable[[list[str]], int]:
  """Wraps a program: exit code 2 after an error for the user, and 130 after a stop that saved."""

  @functools.wraps(main)
  def wrapped(argv: list[str]) -> int:
    from ltdd_jax.artefacts import checkpoint  # which imports JAX: programs tune the host first
    from ltdd_jax.core.types import LtddError

    try:
      return main(argv) or 0
    except LtddError as error:
      print(f"error: {error}", file=sys.stderr)
      return 2
    except checkpoint.Interrupted as stop:
      print(f"{stop}. Saved; give the same command again to go on.", file=sys.stderr)
      return 130

  return wrapped
